"""A reward behind someone else's URL: good answers to the bit, what its card says, where it may ask."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import math
import ssl
import struct
import time
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from accord.config.contract import ModelFacts
from accord.config.rewards.panel import SoundReward
from accord.errors import RewardError, UserError
from accord.types import (
    Clip,
    RewardIdentity,
)
from reward_servers.base import RewardModel, Score, build, score_groups
from reward_servers.outside import Outside
from reward_servers.placement import app_name
from reward_servers.results import ClipDigest, Results, score_once
from tests.unit.reward_servers.bad_servers import cut, drip, gives
from tests.unit.reward_servers.loud import (
    CALL_S,
    OTHER,
    PROMPT,
    Loud,
    LoudReward,
    bits,
    clip,
    loud_server,
    spec,
)
from tests.unit.reward_servers.score_server import running

VALUES = (0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, 1 / 3, -2.2250738585072014e-308, 123456789.12345679)


@pytest.fixture
def server():
    with loud_server(LoudReward()) as one:
        yield one


# ------------------------------------------------ good answers


def test_values_and_components_are_those_of_its_server_to_the_bit(server):
    prompts = [PROMPT, OTHER, PROMPT]
    groups = [[clip(0), clip(1), clip(2, frames=5)], [clip(3), clip(4, rate=16_000)], [clip(5)]]
    here = score_groups(server.model, prompts, groups)
    there = score_groups(build(spec(server)), prompts, groups)
    assert [bits(scores) for scores in there] == [bits(scores) for scores in here]
    assert [scores.components for scores in there] == [scores.components for scores in here]
    assert {reason for scores in there for reason in scores.reasons} == {"ok"}
    assert {(scores.reward, scores.version) for scores in there} == {("remote:loud", "7")}
    sent = sorted((prompt.id, len(clips)) for prompt, clips in server.asked)
    assert sent == [("p", 1), ("p", 3), ("q", 1), ("q", 1)], "one call for each prompt, shape and rate"


def test_every_bit_of_a_number_survives(server):
    Loud.script[:] = VALUES
    clips = [clip(seed) for seed in range(len(VALUES))]
    (scores,) = score_groups(build(spec(server)), [PROMPT], [clips])
    assert bits(scores) == [struct.pack("<d", value) for value in VALUES]


def test_what_its_server_cannot_score_stays_invalid_for_its_reason(server):
    def some(handler, tree):
        reasons, values = ["too_small", "of_another_release", "silent_audio"], [None, None, 0.0]
        handler.give({**tree, "values": values, "valid": [False, False, True], "reasons": reasons, "more": {"to": 1}})

    server.answer = some
    (scores,) = score_groups(build(spec(server)), [PROMPT], [[clip(0), clip(1), clip(2)]])
    assert scores.reasons == ("too_small", "model_error", "silent_audio")
    assert np.isnan(scores.values[:2]).all() and scores.values[2] == 0.0


def test_what_is_sent(server, monkeypatch):
    monkeypatch.setenv("ACCORD_TOKEN_LOUD", "s3cret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    model = build(spec(server, token_env="ACCORD_TOKEN_LOUD"))
    nan = Clip(clip().video_FHWC, 8.0, np.full((1, 4_000), np.nan, np.float32), 8_000)
    (scores,) = score_groups(model, [PROMPT], [[clip(), nan]])
    assert scores.reasons == ("ok", "non_finite"), "what cannot be measured is not sent"
    assert server.paths == ["/v1/rewards/loud", "/v1/score?reward=loud&deadline_s=20"]
    assert {headers["authorization"] for headers in server.headers} == {"Bearer s3cret"}
    assert {headers["accept-encoding"] for headers in server.headers} == {"identity"}
    ((prompt, (seen,)),) = server.asked
    assert prompt == PROMPT and (seen.fps, seen.sample_rate) == (8.0, 8_000)
    np.testing.assert_array_equal(seen.video_FHWC, clip().video_FHWC)
    np.testing.assert_array_equal(seen.audio_CS, clip().audio_CS)
    assert "s3cret" not in model.spec.model_dump_json()


def test_one_of_several_of_a_name_is_asked_for(server):
    model = build(spec(server, reward="loud:loud-1a2b"))
    assert score_groups(model, [PROMPT], [[clip()]])[0].valid == (True,)
    assert server.paths == ["/v1/rewards/loud%3Aloud-1a2b", "/v1/score?reward=loud%3Aloud-1a2b&deadline_s=20"]


def test_only_what_is_needed_is_sent(monkeypatch):
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    with running(build(SoundReward())) as server:
        odd = replace(clip(), video_FHWC=np.zeros((1, 2, 2, 3), np.uint8), fps=math.nan)
        model = build(spec(server, route="audio"))
        clips = [clip(1), odd]
        assert (
            score_groups(model, [PROMPT], [clips])[0].values == score_groups(server.model, [PROMPT], [clips])[0].values
        )
        assert len(server.asked) == 1


class RankReward(LoudReward):
    """It compares."""

    impl: ClassVar[str] = f"{__name__}:Rank"
    scope: ClassVar[Literal["clip", "group", "step"]] = "group"


class Rank(RewardModel):
    """Places by light."""

    def score_set(self, prompts, clips):
        lights = [float(clip.video_FHWC.mean()) for clip in clips]
        return [Score(float(sum(other < light for other in lights))) for light in lights]


def test_clips_that_are_compared_go_in_one_call(monkeypatch):
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    with running(build(RankReward())) as server:
        model = build(spec(server, {"scope": "group"}, max_batch_pixels=1))
        groups = [[clip(0), clip(1), clip(2)], [clip(3), clip(4)], [clip(5), clip(6, rate=16_000)], [clip(7)]]
        found = score_groups(model, [PROMPT] * 4, groups)
        assert [len(clips) for _, clips in server.asked] == [3, 2]
        assert [sorted(scores.values) for scores in found[:2]] == [[0.0, 1.0, 2.0], [0.0, 1.0]]
        assert [scores.reasons[0] for scores in found[2:]] == ["model_error", "too_few"]


def test_several_of_them_are_told_apart_and_share_no_server(server):
    one, other = spec(server), spec(server, name="remote:other")
    assert app_name(one) != app_name(other) and app_name(one).startswith("remote-loud-")
    assert app_name(one) == app_name(spec(server, weight=2.0)) != app_name(spec(server, call_s=0.4))


def test_a_failure_is_not_remembered_and_a_score_is(server):
    model, results = build(spec(server)), Results(10)
    usual, clips = server.answer, [clip()]

    def asked():
        return score_once(model, [PROMPT], [clips], [[ClipDigest(one) for one in clips]], results)[0]

    server.answer = gives({}, 401)
    assert asked().reasons == ("refused",) and len(results) == 0
    server.answer = usual
    assert asked().valid == asked().valid == (True,) and len(server.asked) == 2


def test_a_server_that_is_busy_or_lost_for_a_moment_is_asked_again(server):
    usual, waits = server.answer, []
    script = [gives({}, 503, Retry_After="0"), cut, usual]

    def play(handler, tree):
        waits.append(time.monotonic())
        script.pop(0)(handler, tree)

    server.answer = play
    (scores,) = score_groups(build(spec(server)), [PROMPT], [[clip()]])
    assert scores.reasons == ("ok",) and len(waits) == 3
    script[:] = [gives({}, 429, Retry_After="1"), usual]
    (scores,) = score_groups(build(spec(server)), [PROMPT], [[clip()]])
    assert scores.reasons == ("ok",) and 1.0 <= waits[4] - waits[3] < 2.0


def test_as_many_calls_are_under_way_as_are_made(monkeypatch):
    """More than an HTTP client's usual hundred: none spends its time waiting for another's connection."""
    count, answer = 110, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")

    async def asked():
        everyone = asyncio.Barrier(count)

        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            await everyone.wait()
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=count) as listening:
            url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            there = Outside(url, "", call_s=5.0, retries=0, max_answer_bytes=1024)
            async with there.session() as http:
                return await asyncio.gather(*(there.ask(http, "GET", "/") for _ in range(count)))

    assert asyncio.run(asked()) == [b"{}"] * count


def test_a_redirect_leads_nowhere(server):
    with running(server.model) as forbidden:
        for status in (301, 302, 307, 308):
            server.answer = server.tell = gives(b"", status, Location=f"{forbidden.url}/score?reward=loud")
            with pytest.raises(RewardError, match=f"answers {status}"):
                build(spec(server))
        server.tell = lambda handler, tree: handler.give(tree)
        (scores,) = score_groups(build(spec(server)), [PROMPT], [[clip()]])
        assert scores.reasons == ("bad_answer",) and forbidden.paths == []


# ------------------------------------------------ what its card says


def test_a_card_that_says_the_same_is_who_judges(server):
    model = build(spec(server))
    assert model.identity() == RewardIdentity("7", "ab" * 32) and model.weights_digest == "ab" * 32


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"version": "8"}, r"version '8', and the job's card '7'"),
        ({"weights_digest": "cd" * 32}, "weights_digest 'cdcd"),
        ({"weights_digest": ""}, "weights_digest ''"),
        ({"needs": ["video"]}, r"needs \['video'\]"),
        ({"range": [0.0, None]}, r"low and high \[0\.0, None\], and the job's card \[None, None\]"),
        ({"floor": -1.0}, r"floor -1\.0"),
        ({"prompt_anchored": False}, "prompt_anchored False"),
        ({"scope": "group"}, "scope 'group', and the job's card 'clip'"),
        ({"licence": "CC-BY-NC-4.0"}, "licence 'CC-BY-NC-4.0', and the job has no allow_noncommercial"),
    ],
)
def test_a_card_that_says_another_thing_is_refused_at_once_and_at_the_roster(server, lie, words):
    model = build(spec(server))
    server.tell = lambda handler, tree: handler.give({**tree, **lie})
    with pytest.raises(UserError, match=words):
        model.identity()
    with pytest.raises(UserError, match=r"'remote:loud' at http://127\.0\.0\.1.*take over"):
        build(spec(server))
    if "licence" in lie:
        build(spec(server, allow_noncommercial=True))


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (gives({"detail": "no such reward"}, 404), UserError, r"refuses 'loud' \(the server answers 404: .*no such"),
        (gives({}, 401), UserError, "401.*see reward and token_env"),
        (gives({}, 500), RewardError, r"gives no card \(bad_answer\)"),
        (gives({}, 503, Retry_After="9"), RewardError, r"gives no card \(backpressure\)"),
        (gives(b"<html>"), RewardError, "card that cannot be read"),
        (gives({"name": "loud"}), RewardError, "version: Field required"),
        (cut, RewardError, r"gives no card \(unreachable\)"),
        (drip, RewardError, r"gives no card \(timeout\): .*within 0\.8 s"),
    ],
)  # fmt: skip
def test_a_server_that_gives_no_card_is_an_error_with_its_cause(server, answer, error, words):
    server.tell = answer
    with pytest.raises(error, match=words):
        build(spec(server, call_s=CALL_S))


# ------------------------------------------------ where it may ask


def test_only_hosts_of_the_operators_list_are_asked_and_a_token_is_there(server, monkeypatch):
    with pytest.raises(UserError, match="ACCORD_TOKEN_LOUD is not set"):
        build(spec(server, token_env="ACCORD_TOKEN_LOUD"))
    for url, words in [("http://169.254.169.254/v1", "ACCORD_REWARD_HOSTS"), ("file:///etc/passwd", "is no address")]:
        ((where, what),) = spec(server, url=url).problems(None, ModelFacts())
        assert where == "url" and words in what
        with pytest.raises(UserError, match=words):
            build(spec(server, url=url))
    monkeypatch.delenv("ACCORD_REWARD_HOSTS")
    with pytest.raises(UserError, match="ACCORD_REWARD_HOSTS"):
        build(spec(server))
    assert server.paths == []


@pytest.mark.parametrize(
    ("fields", "card", "where"),
    [
        ({"route": "audio"}, {"needs": ("video",)}, "route"),
        ({}, {"low": 1.0, "high": 0.0}, "card/low"),
        ({}, {"low": 1.0}, "card/floor"),
        ({"call_s": 300.0}, {}, "call_s"),
        ({"ca_file": "/x.pem"}, {}, "ca_file"),
    ],
)
def test_what_does_not_fit_together_is_told(server, fields, card, where):
    assert [place for place, _ in spec(server, card, **fields).problems(None, None)] == [where]


@pytest.mark.parametrize("name", ["remote", "remote:", "remote:A", "remote:a/b", "remote:a-b", "loud", "remote:a:b"])
def test_a_label_is_a_word(server, name):
    with pytest.raises(ValidationError, match="name"):
        spec(server, name=name)


def certificate(folder):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(host, critical=False).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "ca.pem").write_bytes(signed.public_bytes(pem))
    return folder / "ca.pem", folder / "key.pem"


def test_tls_is_held_to_the_certificates_that_are_named(server, tmp_path):
    ca, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    (scores,) = score_groups(build(spec(server, url=url, ca_file=str(ca))), [PROMPT], [[clip()]])
    assert scores.valid == (True,)
    with pytest.raises(RewardError, match=r"unreachable.*CERTIFICATE_VERIFY_FAILED"):
        build(spec(server, url=url))
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(UserError, match=r"ca\.pem holds no certificates"):
        build(spec(server, url=url, ca_file=str(ca)))
