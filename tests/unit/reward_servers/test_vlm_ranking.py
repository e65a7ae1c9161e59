"""A judge of pairs behind a real server: win rates by hand, both orders, who meets whom, each wrong answer."""

from __future__ import annotations

import base64
import io
import math
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from accord.config.contract import ModelFacts
from accord.config.rewards.judges import VLMRankingReward
from accord.errors import UserError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.vlm_ranking import meetings
from tests.unit.reward_servers.judge_server import completion, running
from tests.unit.reward_servers.wrong_answers import WRONG

PROMPT = Prompt("p", "av", "a red ball bouncing", "a")
GREYS = (40, 90, 130, 220)
BIAS = 0.6
"""What standing first adds to the logit."""


def chance(first: float, second: float, bias: float = BIAS) -> float:
    return 1 / (1 + math.exp(-((first - second) / 60 + bias)))


def greys(asked) -> tuple[float, float]:
    """Brightness of the two videos of a question."""
    found: list[list[float]] = []
    for part in asked["messages"][0]["content"]:
        if part["type"] == "text":
            found.append([])
        else:
            picture = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
            found[-1].append(float(np.asarray(Image.open(io.BytesIO(picture))).mean()))
    assert [len(of) for of in found] == [4, 4, 0]
    return float(np.mean(found[0])), float(np.mean(found[1]))


def by_brightness(handler, asked):
    """The brighter the better, and the first a little."""
    likes = 0.9 * chance(*greys(asked))
    handler.give(completion([("A", {"A": likes, " b": 0.9 - likes, "Well": 0.1})], asked["model"]))


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("ACCORD_REWARD_HOSTS", "127.0.0.1")
    with running() as server:
        server.answer = by_brightness
        yield server


def model(judge, **fields):
    return build(VLMRankingReward(**{"url": judge.url, "model": "judge", "call_s": 5.0, **fields}))


def clip(grey: int) -> Clip:
    video = np.full((48, 24, 32, 3), grey, np.uint8)
    return Clip(video, 24.0, np.zeros((1, 16_000), np.float32), 16_000)


def scored(reward, clips, prompt=PROMPT):
    (scores,) = score_groups(reward, [prompt], [clips])
    return scores


def test_the_value_is_the_mean_chance_over_both_orders(judge):
    scores = scored(model(judge), [clip(grey) for grey in GREYS])

    def beats(one, other):
        return (chance(one, other) + 1 - chance(other, one)) / 2

    wanted = [np.mean([beats(one, other) for other in GREYS if other != one]) for one in GREYS]
    assert scores.values == pytest.approx(wanted) and np.mean(scores.values) == pytest.approx(0.5)
    assert scores.components["wins"] == (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    assert scores.components["pairs"] == (3.0,) * 4 and scores.components["mass"] == pytest.approx([0.9] * 4)
    bias = [np.mean([(chance(a, b) + chance(b, a) - 1) / 2 for b in GREYS if b != a]) for a in GREYS]
    assert scores.components["position_bias"] == pytest.approx(bias) and min(bias) > 0.02
    assert len(judge.requests) == 12 and {one["max_tokens"] for one in judge.requests} == {1}


def test_twins_tie_and_a_judge_that_looks_at_places_alone_says_nothing(judge):
    scores = scored(model(judge), [clip(90), clip(90)])
    assert scores.values == pytest.approx((0.5, 0.5)) and scores.components["wins"] == (0.5, 0.5)
    judge.say([("A", {"A": 0.8, "B": 0.2})])
    scores = scored(model(judge), [clip(grey) for grey in GREYS])
    assert scores.values == pytest.approx([0.5] * 4) and scores.components["position_bias"] == pytest.approx([0.3] * 4)


def test_order_changes_no_bit_and_groups_do_not_meet(judge):
    reward, clips = model(judge, opponents=2), [clip(grey) for grey in (40, 90, 130, 170, 200, 220)]
    forward, backward = scored(reward, clips), scored(reward, clips[::-1])
    assert forward.values == backward.values[::-1]
    others = score_groups(reward, [PROMPT, replace(PROMPT, prompt_v="x")], [clips, clips[:3]])
    assert others[0].values == forward.values


def test_with_opponents_each_clip_meets_as_many_whatever_their_order(judge):
    clips = [clip(grey) for grey in range(10, 90, 10)]
    pairs = meetings(clips, 4)
    assert Counter(place for pair in pairs for place in pair) == dict.fromkeys(range(8), 4)
    back = {tuple(sorted(7 - place for place in pair)) for pair in meetings(clips[::-1], 4)}
    assert back == set(pairs)
    assert len(meetings(clips, 0)) == len(meetings(clips, 8)) == 28
    scores = scored(model(judge, opponents=4), clips)
    assert len(judge.requests) == 32 and scores.components["pairs"] == (4.0,) * 8


def test_words_of_another_judge(judge, tmp_path):
    (tmp_path / "question.txt").write_text("For {text_prompt}: 1 or 2?")
    judge.say([(" 2", {" 2": 0.75, "1": 0.25})])
    scores = scored(model(judge, answers=("1", "2"), template=str(tmp_path / "question.txt")), [clip(1), clip(2)])
    assert scores.values == pytest.approx((0.5, 0.5)) and scores.components["position_bias"] == pytest.approx(
        [-0.25] * 2
    )
    texts = [part["text"] for part in judge.requests[0]["messages"][0]["content"] if part["type"] == "text"]
    assert texts == ["Video 1:", "Video 2:", "For a red ball bouncing: 1 or 2?"]


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_costs_its_pairs_and_no_other(judge, kind):
    """Wrong is whatever is said of one clip: it has no pair left, and the others have one each."""
    wrong, reason = WRONG[kind]
    judge.answer = lambda handler, asked: (wrong if 130.0 in greys(asked) else by_brightness)(handler, asked)
    reward = model(judge, call_s=0.5 if reason == "timeout" else 5.0, max_answer_bytes=1_000_000)
    scores = scored(reward, [clip(40), clip(130), clip(220)])
    assert scores.reasons == ("ok", reason, "ok") and np.isnan(scores.values[1])
    assert scores.components["pairs"][::2] == (1.0, 1.0) and scores.values[0] + scores.values[2] == pytest.approx(1.0)


def test_one_order_without_an_answer_is_a_pair_without(judge):
    def half(handler, asked):
        if greys(asked) == (40.0, 220.0):
            return handler.give({}, 500)
        return by_brightness(handler, asked)

    judge.answer = half
    scores = scored(model(judge), [clip(40), clip(130), clip(220)])
    assert scores.components["pairs"] == (1.0, 2.0, 1.0) and scores.valid == (True,) * 3


def test_a_ranking_ends_in_time_with_what_it_has(judge):
    def slow(handler, asked):
        time.sleep(1.5 if 40.0 in greys(asked) else 0.0)
        by_brightness(handler, asked)

    judge.answer = slow
    started = time.monotonic()
    scores = scored(model(judge, ranking_s=0.8, concurrency=16), [clip(40), clip(130), clip(220)])
    assert time.monotonic() - started < 1.4
    assert scores.reasons == ("timeout", "ok", "ok") and scores.components["pairs"][1:] == (1.0, 1.0)


def test_no_more_questions_at_once_than_declared(judge):
    under_way, most = [0], [0]

    def count(handler, asked):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.02)
        under_way[0] -= 1
        by_brightness(handler, asked)

    judge.answer = count
    scored(model(judge, concurrency=2), [clip(grey) for grey in GREYS])
    assert most[0] == 2 and len(judge.requests) == 12


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"ranking_s": 600.0}, "ranking_s"), ({"max_batch_groups": 2}, "ranking_s"), ({"opponents": 3}, "opponents"),
        ({"answers": ("A", " a")}, "answers"), ({"answers": ("A", "")}, "answers"),
        ({"url": "http://169.254.169.254/v1"}, "url"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_told(judge, fields, where):
    spec = VLMRankingReward(**{"url": judge.url, "model": "judge", **fields})
    assert [place for place, _ in spec.problems(None, ModelFacts())] == [where]
    if where == "url":
        with pytest.raises(UserError, match="is not allowed"):
            build(spec)
