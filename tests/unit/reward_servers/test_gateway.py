"""The HTTP door over models in this process: what it answers, and what it refuses before it reads."""

from __future__ import annotations

import asyncio
import json
import math

import httpx
import numpy as np
import pytest

from accord.config.rewards.panel import SoundReward, SyncReward
from accord.types import Clip, Prompt
from reward_servers import gateway
from reward_servers.base import build, score_groups
from reward_servers.gateway import Gateway, Refusal, answer_of, card_of, one_of, token_digest
from reward_servers.wire import write_body

TOKEN = "a-token-of-thirty-characters-x"
SERVED = {
    "sync": ("sync",),
    "sound-1": ("sound",),
    "sound-2": ("sound",),
    "pack-a-9": ("sync", "motion"),
    "remote-1": ("remote:motion",),
}
OCTETS = {"Content-Type": "application/octet-stream"}


class InProcess:
    """Rewards behind a gateway without a cluster."""

    def __init__(self) -> None:
        self._models = {spec.name: build(spec) for spec in (SyncReward(), SoundReward())}
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = False

    def _model(self, name):
        return self._models[one_of(name, {reward: (reward,) for reward in self._models})[1]]

    async def cards(self):
        return [card_of(model.spec, "") for model in self._models.values()]

    async def card(self, name):
        return card_of(self._model(name).spec, "")

    async def needs(self, name):
        return self._model(name).spec.needs

    async def score(self, name, prompt, clips):
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return answer_of(score_groups(self._model(name), [prompt], [clips])[0], "")


def clips(count: int = 2, frames: int = 12) -> list[Clip]:
    generator = np.random.default_rng(3)
    return [
        Clip(
            generator.integers(0, 256, (frames, 32, 48, 3), dtype=np.uint8), 12.0,
            generator.standard_normal((1, frames * 2000), dtype=np.float32) * 0.1, 24_000,
        )
        for _ in range(count)
    ]  # fmt: skip


PROMPT = Prompt("p", "a ball", "a ball", "a bell")
BODY = write_body(PROMPT, clips())


async def asked(method: str, path: str, door: Gateway | None = None, **options) -> httpx.Response:
    transport = httpx.ASGITransport(app=door or Gateway(InProcess()))
    async with httpx.AsyncClient(transport=transport, base_url="http://door") as http:
        return await http.request(method, path, **options)


def ask(method: str, path: str, door: Gateway | None = None, **options) -> httpx.Response:
    return asyncio.run(asked(method, path, door, **options))


def refused(answer: httpx.Response) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code and problem["title"] and problem["detail"]
    return problem


@pytest.mark.parametrize("spec", [SyncReward(), SoundReward()], ids=lambda spec: spec.name)
def test_scores_have_the_bits_of_this_process(spec):
    answer = ask("POST", f"/v1/score?reward={spec.name}&deadline_s=60", content=BODY, headers=OCTETS)
    assert answer.status_code == 200, answer.text
    scores = score_groups(build(spec), [PROMPT], [clips()])[0]
    found = answer.json()
    assert (found["reward"], found["version"], found["weights_digest"]) == (spec.name, spec.version, "")
    assert found["values"] == list(scores.values) and found["valid"] == [True, True]
    assert found["reasons"] == list(scores.reasons)
    assert found["components"].keys() == scores.components.keys()
    for name, parts in scores.components.items():
        assert found["components"][name] == [part if math.isfinite(part) else None for part in parts], name


def test_a_clip_without_a_score_has_null_and_a_reason():
    body = write_body(PROMPT, clips(frames=2))
    found = ask("POST", "/v1/score?reward=sync", content=body, headers=OCTETS).json()
    assert (found["values"], found["valid"], found["reasons"]) == ([None] * 2, [False] * 2, ["too_short"] * 2)


def test_cards_say_what_a_reward_declares_and_nothing_of_its_options():
    (sync, sound) = ask("GET", "/v1/rewards").json()["rewards"]
    assert (sync["name"], sync["needs"], sync["range"]) == ("sync", ["video", "audio"], list(SyncReward.range))
    assert ask("GET", "/v1/rewards/sound").json() == sound
    assert set(sound["components"]) == set(SoundReward.components)
    assert sound.keys() >= {
        "about", "version", "weights_digest", "route", "scope", "floor", "prompt_anchored", "min_frames", "max_frames",
        "min_side", "max_side", "min_audio_s", "max_audio_s", "batch_tolerance", "licence",
    }  # fmt: skip
    assert "spec" not in sound and "path" not in json.dumps(sound)
    from accord.config.rewards.sets import AudioVendiReward

    assert card_of(AudioVendiReward(), "")["range"] == [None, None]


REFUSED = {
    "another path": ("GET", "/v1/else", {}, 404, None),
    "the root": ("GET", "/", {}, 404, None),
    "score by GET": ("GET", "/v1/score?reward=sync", {}, 405, None),
    "cards by POST": ("POST", "/v1/rewards", {}, 405, None),
    "a form": ("POST", "/v1/score?reward=sync", {"data": {"a": "b"}}, 415, "content-type"),
    "no reward": ("POST", "/v1/score", {"content": BODY, "headers": OCTETS}, 400, "reward"),
    "an unknown reward": ("POST", "/v1/score?reward=beauty", {"content": BODY, "headers": OCTETS}, 404, "reward"),
    "the card of an unknown one": ("GET", "/v1/rewards/beauty", {}, 404, "reward"),
    "a deadline in words": ("POST", "/v1/score?reward=sync&deadline_s=x", {"content": BODY, "headers": OCTETS}, 400,
                            "deadline_s"),
    "a deadline without end": ("POST", "/v1/score?reward=sync&deadline_s=inf", {"content": BODY, "headers": OCTETS},
                               400, "deadline_s"),
    "a torn body": ("POST", "/v1/score?reward=sync", {"content": BODY[:-5], "headers": OCTETS}, 400, "/video"),
    "no body": ("POST", "/v1/score?reward=sync", {"content": b"", "headers": {**OCTETS, "Content-Length": "0"}}, 400,
                ""),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "options", "status", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_says_why(method, path, options, status, field):
    answer = ask(method, path, **options)
    assert answer.status_code == status
    assert refused(answer).get("field") == field


def test_an_unknown_reward_is_told_which_there_are():
    detail = refused(ask("GET", "/v1/rewards/beauty"))["detail"]
    assert "'beauty'" in detail and "sound, sync" in detail


def raw(headers: dict[str, str], chunks: list[bytes], door: Gateway) -> tuple[dict, int]:
    """One POST below the level of a client. Returns the problem, and how many chunks were read."""
    waiting, sent = list(chunks), []

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/score", "query_string": b"reward=sync", "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in {**OCTETS, **headers}.items()],
    }  # fmt: skip
    asyncio.run(door(scope, receive, send))
    return json.loads(sent[1]["body"]), len(chunks) - len(waiting)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "x"}, 411),
        ({"Content-Length": "10", "Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": str(gateway.MAX_BODY_BYTES + 1)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
    ],
)
def test_a_length_is_refused_before_a_byte_is_read(headers, status):
    problem, read = raw(headers, [b"x"], Gateway(InProcess()))
    assert problem["status"] == status and read == 0


def test_more_than_was_said_is_not_read():
    problem, read = raw({"Content-Length": "10"}, [b"x" * 6] * 5, Gateway(InProcess()))
    assert problem["status"] == 400 and read == 2


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"])
def test_without_the_token_there_is_one_answer_to_everything(header):
    door = Gateway(InProcess(), token_digest(TOKEN))
    headers = {} if header is None else {"Authorization": header}
    answers = [ask("GET", path, door, headers=headers) for path in ("/v1/rewards", "/v1/rewards/none", "/else")]
    assert {(answer.status_code, answer.text, answer.headers["www-authenticate"]) for answer in answers} == {
        (401, answers[0].text, "Bearer")
    }
    assert raw({"Content-Length": "5"}, [b"x" * 5], door) == (answers[0].json(), 0), "nothing is read, either"


def test_with_the_token_one_is_served():
    door = Gateway(InProcess(), token_digest(TOKEN))
    assert ask("GET", "/v1/rewards", door, headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_at_the_deadline_the_call_is_cancelled():
    rewards = InProcess()
    rewards.hold.clear()

    async def waited():
        path = "/v1/score?reward=sync&deadline_s=0.05"
        answer = await asked("POST", path, Gateway(rewards), content=BODY, headers=OCTETS)
        await asyncio.sleep(0)
        return answer, rewards.cancelled

    answer, cancelled = asyncio.run(waited())
    assert answer.status_code == 504 and "0.05 s" in refused(answer)["detail"]
    assert cancelled


def test_when_its_caller_has_gone_a_call_is_cancelled():
    rewards = InProcess()
    rewards.hold.clear()
    messages = [{"type": "http.request", "body": BODY}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        del message

    async def left():
        scope = {
            "type": "http", "method": "POST", "path": "/v1/score", "query_string": b"reward=sync", "root_path": "",
            "headers": [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(BODY)).encode())],
        }  # fmt: skip
        async with asyncio.timeout(10):
            await Gateway(rewards)(scope, receive, send)
        await asyncio.sleep(0)
        return rewards.cancelled

    assert asyncio.run(left())


def test_where_there_is_no_room_one_may_ask_again(monkeypatch):
    """Bodies that are held together have a limit, and what was held is given back."""

    async def several():
        rewards = InProcess()
        door = Gateway(rewards)
        rewards.hold.clear()
        first = asyncio.create_task(asked("POST", "/v1/score?reward=sound", door, content=BODY, headers=OCTETS))
        await asyncio.sleep(0.05)
        second = await asked("POST", "/v1/score?reward=sound", door, content=BODY, headers=OCTETS)
        rewards.hold.set()
        return await first, second, await asked(
            "POST", "/v1/score?reward=sound", door, content=BODY, headers=OCTETS
        )  # fmt: skip

    monkeypatch.setattr(gateway, "MAX_HELD_BYTES", 2 * len(BODY) - 1)
    first, second, third = asyncio.run(several())
    assert (first.status_code, second.status_code, third.status_code) == (200, 429, 200)
    assert second.headers["retry-after"] == "1" and refused(second)
    monkeypatch.setattr(gateway, "MAX_CALLS", 0)
    assert ask("POST", "/v1/score?reward=sound", content=BODY, headers=OCTETS).status_code == 429


@pytest.mark.parametrize(
    ("name", "found"),
    [("sync", ("sync", "sync")), ("motion", ("pack-a-9", "motion")), ("sync:pack-a-9", ("pack-a-9", "sync")),
     ("sound:sound-2", ("sound-2", "sound")), ("remote:motion", ("remote-1", "remote:motion"))],
)  # fmt: skip
def test_a_name_means_one_reward(name, found):
    assert one_of(name, SERVED) == found


@pytest.mark.parametrize(
    ("name", "told"),
    [("sound", "sound:sound-1, sound:sound-2"), ("sound:sync", "no reward"), ("", "no reward"), (":sync", "no reward")],
)
def test_a_name_that_means_none_or_several_is_refused(name, told):
    with pytest.raises(Refusal) as caught:
        one_of(name, SERVED)
    assert caught.value.status == 404 and told in caught.value.detail
