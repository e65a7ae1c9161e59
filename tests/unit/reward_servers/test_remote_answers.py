"""Every kind of bad answer of someone else's server: no number, the right reason, in time, and none in the gradient."""

from __future__ import annotations

import gzip
import json
import struct
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from accord.config.algorithm_parts import CreditSpec
from accord.config.rewards.panel import SoundReward
from accord.types import (
    RewardScores,
    RolloutPlan,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
)
from learner.algorithms.credit import assign_credit, tabulate
from reward_servers.base import build, score_groups
from tests.unit.reward_servers.bad_servers import cut, cut_short, drip, endless, gives, hang, no_http
from tests.unit.reward_servers.loud import (
    CALL_S,
    OTHER,
    PROMPT,
    LoudReward,
    NarrowReward,
    bits,
    clip,
    loud_server,
    spec,
)

SLACK_S = 3.0


def told(**fields):
    return lambda handler, tree: handler.give({**tree, **fields})


def number(text: str):
    """The first value written so."""
    return lambda handler, tree: handler.give(
        json.dumps({**tree, "values": ["#", *tree["values"][1:]]}).replace('"#"', text).encode()
    )


def first(name: str, value: Any):
    return lambda handler, tree: handler.give({**tree, name: [value, *tree[name][1:]]})


def shorter(name: str, by: int = 1):
    return lambda handler, tree: handler.give({**tree, name: tree[name][:-by] if by > 0 else tree[name] * 2})


def half(handler, tree):
    handler.give(json.dumps(tree).encode()[:-40])


def late(handler, tree):
    time.sleep(CALL_S + 0.2)
    handler.give(tree)


BOMB = gzip.compress(b" " * 30_000_000)
BAD = {
    "NaN": (number("NaN"), "bad_answer"),
    "+Inf": (number("Infinity"), "bad_answer"),
    "-Inf": (number("-Infinity"), "bad_answer"),
    "1e999": (number("1e999"), "bad_answer"),
    "an integer of 400 digits": (number("9" * 400), "bad_answer"),
    "a text for a number": (number('"0.5"'), "bad_answer"),
    "true for a number": (number("true"), "bad_answer"),
    "a list for a number": (number("[0.5]"), "bad_answer"),
    "null that is valid": (number("null"), "bad_answer"),
    "a number that is invalid": (first("valid", False), "bad_answer"),
    "a number with a failure": (first("reasons", "timeout"), "bad_answer"),
    "1 for true": (first("valid", 1), "bad_answer"),
    "too few values": (shorter("values"), "bad_answer"),
    "no value": (told(values=[], valid=[], reasons=[], components={}), "bad_answer"),
    "too many values": (shorter("values", -1), "bad_answer"),
    "too few reasons": (shorter("reasons"), "bad_answer"),
    "too few of a component": (told(components={"light": [0.5]}), "bad_answer"),
    "one number for all": (told(values=0.5), "bad_answer"),
    "no values": (gives({"reward": "loud", "version": "7", "weights_digest": "ab" * 32}), "bad_answer"),
    "binary numbers": (gives(struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)), "bad_answer"),
    "no UTF-8": (gives(b'{"values": ["\xff\xfe"]}'), "bad_answer"),
    "nested too deeply": (gives(b"[" * 200_000), "bad_answer"),
    "HTML": (gives(b"<html>It works</html>", Content_Type="text/html"), "bad_answer"),
    "empty": (gives(b""), "bad_answer"),
    "half of it": (half, "bad_answer"),
    "a list": (gives([]), "bad_answer"),
    "of another reward": (told(reward="sync"), "bad_answer"),
    "of another version": (told(version="8"), "wrong_version"),
    "of other weights": (told(weights_digest="cd" * 32), "wrong_version"),
    "out of range": (told(values=[1e6, -1e6]), "out_of_range"),
    "an exception": (told(values=[None, None], valid=[False, False], reasons=["model_error"] * 2), "model_error"),
    "400": (gives({"title": "Bad body", "detail": "no video"}, 400), "refused"),
    "401": (gives({}, 401), "refused"),
    "404": (gives({}, 404), "refused"),
    "413": (gives({}, 413), "refused"),
    "429": (gives({}, 429), "backpressure"),
    "500": (gives(b"<h1>Oops</h1>", 500), "bad_answer"),
    "503": (gives(b"", 503), "backpressure"),
    "503 for an hour": (gives(b"", 503, Retry_After="3600"), "backpressure"),
    "504": (gives({}, 504), "timeout"),
    "204": (gives(b"", 204), "bad_answer"),
    "a redirect": (gives(b"", 307, Location="/v1/elsewhere"), "bad_answer"),
    "compressed": (gives(BOMB, Content_Encoding="gzip"), "bad_answer"),
    "huge": (endless, "bad_answer"),
    "hang": (hang, "timeout"),
    "slow": (late, "timeout"),
    "drip": (drip, "timeout"),
    "cut": (cut, "unreachable"),
    "cut short": (cut_short, "unreachable"),
    "no HTTP": (no_http, "unreachable"),
}  # fmt: skip
AGAIN = {"429", "503", "cut", "cut short", "no HTTP"}


@dataclass
class Outcome:
    """What became of a group whose answer was bad, and of one of the same batch whose answer was good."""

    good: RewardScores
    bad: RewardScores
    seconds: float
    asked: int
    paths: set[str]


@pytest.fixture(scope="module")
def narrow():
    with loud_server(NarrowReward()) as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(narrow):
    """Of each kind, played once."""
    played: dict[str, Outcome] = {}

    def of(kind: str) -> Outcome:
        if kind not in played:
            wrong, reason = BAD[kind]
            server.answer = lambda handler, tree: (wrong if handler.prompt == OTHER else usual)(handler, tree)
            model = build(spec(server, call_s=CALL_S if reason == "timeout" else 20.0))
            server.asked.clear()
            started = time.monotonic()
            good, bad = score_groups(model, [PROMPT, OTHER], [[clip(0), clip(1)], [clip(2), clip(3)]])
            asked = sum(prompt == OTHER for prompt, _ in server.asked)
            paths = {path.partition("?")[0] for path in server.paths}
            played[kind] = Outcome(good, bad, time.monotonic() - started, asked, paths)
        return played[kind]

    server, usual = narrow, narrow.answer
    return of


def test_there_are_all_kinds_of_bad_answers():
    assert len(BAD) >= 23 and set(AGAIN) < set(BAD)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_no_number_and_spoils_no_other(outcomes, kind):
    found = outcomes(kind)
    assert found.bad.reasons == (BAD[kind][1],) * 2
    assert np.isnan(found.bad.values).all() and found.bad.components == {}
    assert bits(found.good) == bits(score_groups(build(LoudReward()), [PROMPT], [[clip(0), clip(1)]])[0])
    assert found.seconds < CALL_S + SLACK_S
    assert found.asked == (3 if kind in AGAIN else 1)
    assert found.paths == {"/v1/rewards/loud", "/v1/score"}


def test_no_more_is_read_of_an_answer_than_allowed(narrow):
    usual, seen = narrow.answer, []
    model = build(spec(narrow))

    def pour(handler, tree):
        seen.append(handler)
        endless(handler, tree)

    narrow.answer = pour
    assert score_groups(model, [OTHER], [[clip(0)]])[0].reasons == ("bad_answer",)
    narrow.answer = usual
    deadline = time.monotonic() + 10
    while not seen[0].wfile.closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen[0].poured < 60_000_000


def test_none_of_them_reaches_the_gradient_and_each_is_counted(narrow, outcomes):
    remote = {True: spec(narrow), False: spec(narrow, required=False)}
    found = {kind: (outcomes(kind).good, outcomes(kind).bad) for kind in BAD}

    def step(mask: str) -> list[ScoredGroup]:
        """All answers of a step; `mask`: instead of the bad ones, clips that could not be measured."""
        groups = []
        for place, scores in enumerate(one for pair in found.values() for one in pair):
            if mask and not any(scores.valid):
                scores = replace(scores, reasons=(mask,) * 2)
            request = RolloutRequest(1, place, PROMPT, (1, 2), 0, RolloutPlan("old", 8))
            sound = RewardScores("sound", "1", (0.1 * place, 0.5), ("ok", "ok"))
            groups.append(ScoredGroup(SampleGroup(request, 0, None, None), {"remote:loud": scores, "sound": sound}))
        return groups

    def credit(groups, *rewards):
        return assign_credit(tabulate(groups, rewards), CreditSpec(mode="routed"), ("video", "audio"))

    sound = SoundReward()
    bad, masked = credit(step(""), remote[True], sound), credit(step("too_short"), remote[True], sound)
    for modality, advantage in bad.advantages.items():
        assert torch.equal(advantage, masked.advantages[modality]) and advantage.isfinite().all()
    assert (bad.advantages["video"][1::2] == 0).all() and (bad.advantages["video"][::2] != 0).all()
    counted = Counter(BAD[kind][1] for kind in found)
    prefix = "reward/remote:loud/invalid/"
    assert {name.removeprefix(prefix): count for name, count in bad.metrics.items() if name.startswith(prefix)} == {
        reason: 2.0 * count for reason, count in counted.items()
    }
    assert bad.metrics["reward/remote:loud/valid_ratio"] == 0.5
    dropped, without = credit(step(""), remote[False], sound), credit(step(""), sound)
    assert dropped.metrics["reward/remote:loud/dropped"] == 1.0
    assert torch.equal(dropped.advantages["audio"], without.advantages["audio"])
