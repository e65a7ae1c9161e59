"""Reward servers on a real Ray Serve: by handle and through the door, scaled under traffic, and with parts killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray._private import state as ray_state
from ray.serve.context import _get_global_client

from accord.config.rewards.panel import SoundReward, SyncReward
from accord.config.rewards.remote import CardSpec, RemoteReward
from accord.config.rewards.sound import ClapReward
from accord.errors import DeadlineExceeded, RewardError, SpecError
from accord.types import Clip, Prompt, RewardIdentity
from accord.world.scene import IMPERFECT, make_clips
from reward_servers import app
from reward_servers.base import build, score_groups
from reward_servers.door import APPLICATION, Door
from reward_servers.placement import app_name
from reward_servers.scorer import LocalScorer
from reward_servers.serve_handles import ServeScorer
from reward_servers.wire import write_body

SPECS = [spec(num_cpus=0.1, remember=0) for spec in (SyncReward, SoundReward, ClapReward)]
GROUPS = 3
TOKEN = "a-token-of-thirty-characters-x"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/octet-stream"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def cluster(port):
    ray.init(
        num_cpus=2, labels={"pool": "rewards"}, include_dashboard=False, log_to_driver=False, logging_level="error"
    )
    try:
        names = app.deploy(SPECS, door=Door(port=port, token=TOKEN))
        assert names == ["sync", "sound", "clap"]
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def groups() -> list[tuple[Prompt, list[Clip]]]:
    made = []
    for index in range(GROUPS):
        clips = list(make_clips(4, 20 + index, IMPERFECT))
        asked = clips[0].prompt
        prompt = Prompt(asked.id, asked.prompt_av, asked.prompt_v, asked.prompt_a)
        made.append((prompt, [clip.clip for clip in clips]))
    return made


@pytest.fixture(scope="module")
def expected(groups):
    """What the models say in this process."""

    async def all_of_them():
        scorer = LocalScorer(SPECS)
        return {
            (spec.name, index): (await scorer.score(spec.name, prompt, clips, len(clips))).values
            for spec in SPECS
            for index, (prompt, clips) in enumerate(groups)
        }

    return asyncio.run(all_of_them())


def replicas(name: str) -> dict[str, int]:
    """Replica ids and process ids of an application that run now."""
    client = _get_global_client()
    (deployment,) = client.get_serve_details()["applications"][name]["deployments"].values()
    return {entry["replica_id"]: entry["pid"] for entry in deployment["replicas"] if entry["state"] == "RUNNING"}


def pids_of(*classes: str) -> list[int]:
    """Process ids of Serve's own actors."""
    alive = [actor for actor in ray_state.actors().values() if actor["State"] == "ALIVE"]
    found = [actor for actor in alive if actor["ActorClassName"] in classes]
    assert {actor["ActorClassName"] for actor in found} == set(classes)
    return [actor["Pid"] for actor in found]


def one(name: str) -> app.RewardStatus:
    return next(status for status in app.status() if status.name == name)


def test_scores_by_handle_have_the_bits_of_this_process(groups, expected):
    async def ask():
        scorer = ServeScorer(SPECS)
        calls = {
            (spec.name, index): scorer.score(spec.name, prompt, ray.put(clips), len(clips))
            for spec in SPECS
            for index, (prompt, clips) in enumerate(groups)
        }
        return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))

    found = asyncio.run(ask())
    for key, scores in found.items():
        assert all(scores.valid), (key, scores.reasons)
        assert scores.values == expected[key], key


def test_a_roster_by_handle_is_that_of_this_process():
    assert asyncio.run(ServeScorer(SPECS).roster()) == asyncio.run(LocalScorer(SPECS).roster())


@pytest.fixture
def http(port):
    """A client with the token, once the door is open."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=HEADERS, timeout=60) as client:
        opened(client)
        yield client


def opened(client: httpx.Client) -> None:
    """Wait until the door answers and Serve knows; it is started beside the rewards, and again after a death."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.get("/v1/rewards").status_code == 200 and replicas(APPLICATION):
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_cards_tell_strangers_what_the_rewards_are(http):
    cards = {card["name"]: card for card in http.get("/v1/rewards").json()["rewards"]}
    assert cards.keys() == {"sync", "sound", "clap"}
    roster = asyncio.run(LocalScorer(SPECS).roster())
    for spec in SPECS:
        card = http.get(f"/v1/rewards/{spec.name}").json()
        assert (card["version"], card["weights_digest"]) == (spec.version, roster[spec.name].weights_digest)
        assert (card["needs"], card["route"]) == (list(spec.needs), spec.route)


def test_scores_over_http_have_the_bits_of_this_process(http, groups, expected):
    """And so has each clip that is sent alone."""
    for spec in SPECS:
        for index, (prompt, clips) in enumerate(groups):
            answer = http.post("/v1/score", params={"reward": spec.name}, content=write_body(prompt, clips))
            assert answer.status_code == 200, answer.text
            assert tuple(answer.json()["values"]) == expected[spec.name, index]
    prompt, clips = groups[0][0], groups[0][1] + groups[1][1]
    for spec in SPECS:
        ways = [write_body(prompt, clips), *(write_body(prompt, [clip]) for clip in clips)]
        answers = [http.post("/v1/score", params={"reward": spec.name}, content=body).json() for body in ways]
        assert len(clips) == 8 and answers[0]["values"] == [one["values"][0] for one in answers[1:]]


def test_the_door_refuses_before_it_reads(http, port, groups):
    body = write_body(*groups[0])
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        refused = http.post("/v1/score?reward=sync", content=body, headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    torn = http.post("/v1/score?reward=sync", content=body[:-5])
    assert (torn.status_code, torn.json()["field"]) == (400, "/video")
    assert torn.headers["content-type"] == "application/problem+json"
    assert http.post("/v1/score?reward=sync", content=iter([body])).status_code == 411
    assert http.get("/v1/score").status_code == 405
    unknown = http.get("/v1/rewards/beauty")
    assert unknown.status_code == 404 and "clap, sound, sync" in unknown.json()["detail"]
    late = http.post("/v1/score?reward=sync&deadline_s=0.001", content=body)
    assert late.status_code == 504
    with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
        lines = ["POST /v1/score?reward=sync HTTP/1.1", "Host: door", f"Content-Length: {10**12}"]
        lines += [f"{name}: {value}" for name, value in HEADERS.items()]
        wire.sendall("\r\n".join([*lines, "", ""]).encode())
        assert wire.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_job_elsewhere_asks_through_the_door(http, port, groups, expected, monkeypatch):
    """The reward behind a URL, whose URL is this door."""
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    monkeypatch.setenv("ACCORD_TOKEN_DOOR", TOKEN)
    card = http.get("/v1/rewards/clap").json()
    low, high = card["range"]
    agreed = {key: card[key] for key in ("version", "weights_digest", "floor", "prompt_anchored")}
    for name in ("clap", "clap:clap"):
        spec = RemoteReward(
            name="remote:far", route="audio", url=f"http://127.0.0.1:{port}/v1", reward=name,
            token_env="ACCORD_TOKEN_DOOR",
            card=CardSpec(
                low=low, high=high, needs=tuple(card["needs"]), component_names=tuple(card["components"]), **agreed
            ),
        )  # fmt: skip
        scores = score_groups(build(spec), [prompt for prompt, _ in groups], [clips for _, clips in groups])
        assert [found.values for found in scores] == [expected["clap", index] for index in range(GROUPS)]


def test_a_reward_behind_a_url_is_served_like_any_other(http, port, groups, expected, tmp_path):
    """By handle to its own server here, which asks through the door; one whose card is another never starts."""
    (tmp_path / "far.json").write_text(
        json.dumps({"env_vars": {"ACCORD_REWARD_HOSTS": "127.0.0.1", "ACCORD_TOKEN_DOOR": TOKEN}})
    )
    card = http.get("/v1/rewards/sound").json()
    low, high = card["range"]
    agreed = CardSpec(version=card["version"], needs=("audio",), low=low, high=high, floor=card["floor"])
    spec = RemoteReward(
        name="remote:far", route="audio", url=f"http://127.0.0.1:{port}/v1", reward="sound", card=agreed,
        token_env="ACCORD_TOKEN_DOOR", env="far", remember=0,
    )  # fmt: skip
    (name,) = app.deploy([spec], envs=tmp_path, idle_s=0.5)
    assert name == app_name(spec) and one(name).rewards == ("remote:far",)

    async def asked():
        scorer = ServeScorer([spec])
        calls = (scorer.score("remote:far", prompt, ray.put(clips), len(clips)) for prompt, clips in groups)
        return await scorer.roster(), await asyncio.gather(*calls)

    roster, found = asyncio.run(asked())
    assert roster == {"remote:far": RewardIdentity(card["version"], "")}
    assert [scores.values for scores in found] == [expected["sound", index] for index in range(GROUPS)]
    liar = spec.model_copy(update={"card": agreed.model_copy(update={"version": "0"})})
    with pytest.raises(SpecError, match=rf"says version '{card['version']}', and the job's card '0'") as caught:
        app.deploy([liar], envs=tmp_path, idle_s=0.5)
    assert [pointer for pointer, _ in caught.value.problems] == ["/rewards/0"]


def test_the_client_of_the_docs_works_as_it_is_written(http, port, groups, expected, tmp_path):
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (client,) = re.findall(r"```python\n(# score\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "score.py").write_text(client.replace("http://127.0.0.1:8421", f"http://127.0.0.1:{port}"))
    prompt, clips = groups[0]
    np.savez(
        tmp_path / "clips.npz",
        video=np.stack([clip.video_FHWC for clip in clips]),
        audio=np.stack([clip.audio_CS for clip in clips]),
        fps=clips[0].fps,
        sample_rate=clips[0].sample_rate,
    )
    asked = subprocess.run(
        [sys.executable, "score.py", prompt.prompt_av], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "ACCORD_REWARDS_TOKEN": TOKEN},
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    values = [float(line.split()[0]) for line in asked.stdout.splitlines()]
    assert tuple(values) == expected["sync", 0], "sync is blind to the prompt"


def test_a_door_that_is_killed_costs_no_job_a_score_and_opens_again(http, groups, expected):
    """The gateway dies while a scorer scores; the token holds afterwards, too."""

    async def traffic(stop: asyncio.Event):
        scorer, found = ServeScorer(SPECS), []
        while not stop.is_set():
            for index, (prompt, clips) in enumerate(groups):
                found.append((index, await scorer.score("sound", prompt, clips, len(clips))))
            await asyncio.sleep(0.1)
        return found

    async def kill_under_traffic():
        stop = asyncio.Event()
        stream = asyncio.create_task(traffic(stop))
        await asyncio.sleep(0.3)
        for pid in victims.values():
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(opened, http)
        stop.set()
        return await stream

    victims = replicas(APPLICATION)
    began = time.monotonic()
    found = asyncio.run(kill_under_traffic())
    print(f"{len(found)} groups scored until the door was open again, {time.monotonic() - began:.1f} s")
    assert len(found) > 3 and not set(replicas(APPLICATION)) & set(victims)
    assert all(scores.values == expected["sound", index] for index, scores in found)
    assert http.get("/v1/rewards", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_deploying_again_and_scaling_leave_running_replicas_alone(port, groups, expected):
    """Sync goes to two replicas and back under traffic: no score fails, and nobody else is restarted."""
    before = {name: replicas(name) for name in ("sync", "sound", "clap", APPLICATION)}

    async def traffic(stop: asyncio.Event):
        scorer, found = ServeScorer(SPECS), []
        while not stop.is_set():
            for index, (prompt, clips) in enumerate(groups):
                found.append((index, await scorer.score("sync", prompt, clips, len(clips))))
        return found

    async def scale_under_traffic():
        stop = asyncio.Event()
        streams = [asyncio.create_task(traffic(stop)) for _ in range(2)]
        await asyncio.sleep(0.5)
        try:
            await asyncio.to_thread(app.deploy, SPECS, door=Door(port=port, token=TOKEN))
            began = time.monotonic()
            await asyncio.to_thread(app.scale, "sync", 2)
            print(f"sync has 2 replicas after {time.monotonic() - began:.1f} s")
            two = one("sync")
            seen = replicas("sync")
            await asyncio.sleep(1.0)
            began = time.monotonic()
            await asyncio.to_thread(app.scale, "sync", 1)
            print(f"sync has 1 replica after {time.monotonic() - began:.1f} s")
            await asyncio.sleep(0.5)
        finally:
            stop.set()
        return two, seen, [score for stream in streams for score in await stream]

    two, seen, found = asyncio.run(scale_under_traffic())
    assert (two.replicas_ready, two.replicas_target) == (2, 2)
    assert before["sync"].items() <= seen.items()
    assert len(found) > 10
    assert all(scores.values == expected["sync", index] for index, scores in found)
    assert one("sync").replicas_ready == 1
    for name in ("sound", "clap", APPLICATION):
        assert replicas(name) == before[name]


def test_a_killed_replica_comes_back_and_the_scores_are_the_same(groups, expected):
    victim = replicas("sound")
    others = {name: replicas(name) for name in ("sync", "clap")}

    async def ask():
        scorer = ServeScorer(SPECS)
        prompt, clips = groups[0]
        await scorer.score("sound", prompt, clips, len(clips))
        calls = [
            asyncio.create_task(scorer.score("sound", prompt, clips, len(clips)))
            for prompt, clips in groups
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        for pid in victim.values():
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*calls, scorer.score("sound", prompt, clips, len(clips)))

    found = asyncio.run(ask())
    wanted = [expected["sound", index] for index in range(GROUPS) for _ in range(3)]
    assert [scores.values for scores in found] == [*wanted, expected["sound", 0]]
    deadline = time.monotonic() + 60
    while not (alive := replicas("sound")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive and not set(alive) & set(victim)
    assert {name: replicas(name) for name in others} == others


def test_serve_itself_killed_costs_no_score(http, groups, expected):
    """The controller dies under traffic with the door, and right after it the replica that it would replace."""

    async def traffic(stop: asyncio.Event):
        scorer, found = ServeScorer(SPECS), []
        while not stop.is_set():
            for index, (prompt, clips) in enumerate(groups):
                found.append((index, await scorer.score("sync", prompt, clips, len(clips))))
        return found

    async def kill_under_traffic():
        stop = asyncio.Event()
        stream = asyncio.create_task(traffic(stop))
        await asyncio.sleep(0.3)
        for pid in pids_of("ServeController"):
            os.kill(pid, signal.SIGKILL)
        for pid in [*victims.values(), *replicas_of_door.values()]:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while not (alive := await asyncio.to_thread(replicas, "sync")) or set(alive) & set(victims):
            assert time.monotonic() - began < 60
            await asyncio.sleep(0.2)
        stop.set()
        return await stream

    victims, replicas_of_door = replicas("sync"), replicas(APPLICATION)
    found = asyncio.run(kill_under_traffic())
    assert len(found) > 3
    assert all(scores.values == expected["sync", index] for index, scores in found)
    opened(http)


def test_options_change_without_a_restart(groups, expected):
    before = {spec.name: replicas(spec.name) for spec in SPECS}
    assert app.change("sync", {"max_batch_groups": 2, "max_replicas": 3}) == ["sync"]
    texts = serve.get_app_handle("sync").specs_json.remote().result()
    assert [(name, json.loads(text)["max_batch_groups"]) for name, text in texts] == [("sync", 2)]
    with pytest.raises(SpecError, match=r"cannot change while it runs; these can: .*max_queued"):
        app.change("sync", {"weight": 2.0})
    with pytest.raises(SpecError, match="max_replicas"):
        app.change("sync", {"max_replicas": 0})
    prompt, clips = groups[0]
    scores = asyncio.run(ServeScorer(SPECS).score("sync", prompt, clips, len(clips)))
    assert scores.values == expected["sync", 0]
    for name, those in before.items():  # load of before may have brought another one
        assert those.items() <= replicas(name).items()


def test_a_pack_has_its_place_its_environment_and_the_same_scores(tmp_path, groups, expected):
    """Two rewards in one process, started by the first call, on the node with the label, in the named environment."""
    (tmp_path / "odd.json").write_text(json.dumps({"env_vars": {"ACCORD_ODD": "1"}}))
    place = {"pack": "both", "min_replicas": 0, "env": "odd", "node_labels": {"pool": "rewards"}}
    pair = [SyncReward(**place), SoundReward(**place)]
    (name,) = set(app.deploy(pair, idle_s=0.5, envs=tmp_path))
    assert one(name).rewards == ("sync", "sound") and one(name).replicas_target == 0
    prompt, clips = groups[0]

    async def both():
        scorer, shared = ServeScorer(pair), ray.put(clips)
        return await asyncio.gather(*(scorer.score(spec.name, prompt, shared, len(clips)) for spec in pair))

    assert [scores.values for scores in asyncio.run(both())] == [expected[spec.name, 0] for spec in pair]
    (pid,) = replicas(name).values()
    assert b"ACCORD_ODD=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert app.scale(name, 1) == ["sync", "sound"] and list(replicas(name).values()) == [pid]


def test_a_place_that_no_node_has_is_named():
    nowhere = SyncReward(node_labels={"pool": "elsewhere"}, deadline_s=1.0)
    with pytest.raises(DeadlineExceeded, match=r"pool=elsewhere"):
        app.deploy([nowhere], timeout_s=1.0)
    deadline = time.monotonic() + 30
    while app_name(nowhere) in {status.name for status in app.status()}:
        assert time.monotonic() < deadline, "what found no room is taken down"
        time.sleep(0.2)


def test_what_cannot_be_done_says_so(groups):
    with pytest.raises(RewardError, match="1 or more"):
        app.scale("sync", 0)
    with pytest.raises(RewardError, match=r"'beauty'.*clap"):
        app.scale("beauty", 2)


def test_a_server_that_cannot_be_built_fails_fast_and_hurts_nobody(tmp_path):
    spec = ClapReward(path=str(tmp_path))
    assert app_name(spec) != "clap" and app_name(spec).startswith("clap-")
    with pytest.raises(SpecError, match=r"config\.json") as caught:
        app.deploy([*SPECS, spec], idle_s=0.5)
    assert [pointer for pointer, _ in caught.value.problems] == ["/rewards/3"]
    deadline = time.monotonic() + 30
    while app_name(spec) in {status.name for status in app.status()}:
        assert time.monotonic() < deadline, "what could not be started is taken down"
        time.sleep(0.2)
    assert {status.name for status in app.status() if status.status == "RUNNING"} >= {"sync", "clap"}
