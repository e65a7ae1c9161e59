"""The same clip is not judged twice, whatever differs is, and what is kept is bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from accord.canary import canaries
from accord.config.contract import RewardSpec
from accord.config.rewards.panel import SyncReward
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score, score_groups
from reward_servers.results import ClipDigest, Results, score_once

PROMPT = Prompt("p", "av", "v", "a")
CANARY = canaries(SyncReward())[0].prompt


class Counting(RewardModel):
    """Mean of the picture; remembers what it was shown, and raises for a white one."""

    def __init__(self, spec: RewardSpec) -> None:
        super().__init__(spec)
        self.batches: list[int] = []

    def score_batch(self, prompts, clips):
        self.batches.append(len(clips))
        if any(clip.video_FHWC.min() == 255 for clip in clips):
            raise ValueError("white")
        return [Score(float(clip.video_FHWC.mean()) / 255) for clip in clips]

    score_set = score_batch


class Ranking(SyncReward):
    """One that compares the clips of a group."""

    scope: ClassVar = "group"


def clip(level: int, side: int = 16, frames: int = 4) -> Clip:
    generator = np.random.default_rng(level)
    video = np.full((frames, side, side, 3), level, np.uint8)
    return Clip(video, 8.0, generator.standard_normal((1, 8000)).astype(np.float32) * 0.1, 16000)


def asked(model, groups, results, prompt=PROMPT):
    digests = [[ClipDigest(one) for one in group] for group in groups]
    return score_once(model, [prompt] * len(groups), groups, digests, results)


def test_scores_are_those_of_scoring_all_and_each_clip_is_judged_once():
    model, results = Counting(SyncReward()), Results(100)
    groups = [[clip(10), clip(20), clip(10)], [clip(20), clip(30)]]
    found = asked(model, groups, results)
    plain = score_groups(Counting(SyncReward()), [PROMPT] * 2, groups)
    assert [replace(scores, seconds=0) for scores in found] == [replace(scores, seconds=0) for scores in plain]
    assert sum(model.batches) == 3
    again = asked(model, groups, results)
    assert [scores.values for scores in again] == [scores.values for scores in plain]
    assert sum(model.batches) == 3 and results.found == 2 + 5


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": replace(PROMPT, prompt_a="b")},
        {"clip": replace(clip(10), fps=9.0)},
        {"clip": replace(clip(10), audio_CS=clip(11).audio_CS)},
        {"clip": replace(clip(10), video_FHWC=clip(10).video_FHWC.reshape(2, 32, 16, 3))},
        {"weights": "ab"},
    ],
)
def test_whatever_a_score_depends_on_is_in_its_key(other):
    model, results = Counting(SyncReward()), Results(100)
    asked(model, [[clip(10)]], results)
    model.weights_digest = other.get("weights", "")
    asked(model, [[other.get("clip", clip(10))]], results, other.get("prompt", PROMPT))
    assert results.found == 0


def test_a_models_error_is_not_kept_and_a_clip_without_arrays_has_no_key():
    model, results = Counting(SyncReward()), Results(100)
    torn = Clip(None, 8.0, None, 16000)
    for _ in range(2):
        (scores,) = asked(model, [[clip(255), torn]], results)
        assert scores.reasons == ("model_error", "bad_media")
    assert len(results) == 0 and results.found == 0


def test_what_is_kept_is_bounded_and_the_oldest_goes_first():
    model, results = Counting(SyncReward()), Results(2)
    for level in (10, 20, 10, 30, 10, 20):
        asked(model, [[clip(level)]], results)
    assert len(results) == 2
    assert sum(model.batches) == 4, "20 went when 30 came, 10 stayed"


def test_one_that_compares_clips_sees_all_of_them_every_time():
    model, results = Counting(Ranking()), Results(100)
    for _ in range(2):
        asked(model, [[clip(10), clip(10)]], results)
    assert model.batches == [2, 2] and len(results) == 0


def test_a_forward_holds_clips_of_one_shape_and_no_more_pixels_than_it_may():
    model = Counting(SyncReward(max_batch_pixels=3 * 4 * 16 * 16))
    clips = [clip(level, side=side) for side in (16, 32) for level in range(1, 6)]
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    (scores,) = model.score([PROMPT], [[clips[place] for place in order]])
    assert sorted(model.batches) == [1, 1, 1, 1, 1, 2, 3]
    assert [score.value for score in scores] == [(place % 5 + 1) / 255 for place in order]
    unbound = Counting(SyncReward())
    unbound.score([PROMPT], [[clips[place] for place in order]])
    assert unbound.batches == [5, 5]


def test_a_canary_is_judged_each_time_and_one_that_changed_makes_all_scores_forgotten():
    model, results = Counting(SyncReward()), Results(100)
    asked(model, [[clip(10)]], results)
    for _ in range(2):
        asked(model, [[clip(20)]], results, CANARY)
    assert sum(model.batches) == 3 and len(results) == 2
    asked(model, [[clip(10)]], results)
    assert sum(model.batches) == 3, "a canary as before takes nothing away"
    model.score_batch = lambda prompts, clips: [Score(0.75)] * len(clips)
    assert asked(model, [[clip(10)]], results)[0].values == pytest.approx((10 / 255,))
    assert asked(model, [[clip(20)]], results, CANARY)[0].values == (0.75,)
    assert asked(model, [[clip(10)]], results)[0].values == (0.75,), "not what the reward said before"
