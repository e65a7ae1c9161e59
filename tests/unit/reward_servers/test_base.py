"""The wrapper: whatever a model does, the group comes back whole and a failure is never a number."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest

from accord.config.contract import RewardSpec
from accord.config.rewards.panel import PictureReward, SoundReward
from accord.types import Clip, Prompt, Route
from reward_servers.base import RewardModel, Score, score_groups, unusable

PROMPT = Prompt("p", "av", "v", "a")


def clip(frames: int = 4, samples: int = 8000, level: float = 0.5) -> Clip:
    video = np.full((frames, 16, 16, 3), 90, np.uint8)
    return Clip(video, 12.0, np.full((1, samples), level, np.float32), 16_000)


class ScriptedReward(RewardSpec):
    """What the models of these tests declare: sound and picture, values from 0 to 1."""

    version: ClassVar[str] = "7"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    name: Literal["scripted"] = "scripted"
    route: Route = "both"


class UnboundedReward(ScriptedReward):
    """One whose values end nowhere."""

    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    floor: ClassVar[float] = -1.0


class Model(RewardModel):
    """Answers with what the test says, clip by clip."""

    def __init__(self, answers):
        super().__init__(ScriptedReward())
        self.answers = iter(answers)

    def score_clip(self, prompt, clip):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_clip_that_raises_leaves_its_neighbours_alone():
    model = Model([Score(0.25), RuntimeError("boom"), Score(0.75, {"part": 3.0})])
    (scores,) = score_groups(model, [PROMPT], [[clip(), clip(), clip()]])
    assert scores.valid == (True, False, True)
    assert scores.reasons == ("ok", "model_error", "ok")
    assert scores.values[0] == 0.25 and scores.values[2] == 0.75
    assert math.isnan(scores.values[1])
    assert math.isnan(scores.components["part"][0]) and scores.components["part"][2] == 3.0
    assert (scores.reward, scores.version) == ("scripted", "7")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_invalid(value):
    (scores,) = score_groups(Model([Score(value), Score(0.5)]), [PROMPT], [[clip(), clip()]])
    assert scores.valid == (False, True)
    assert scores.reasons[0] == "non_finite"
    assert math.isnan(scores.values[0])


def test_a_model_that_loses_a_score_makes_all_groups_invalid():
    class Short(Model):
        def score_batch(self, prompts, clips):
            return [Score(1.0)]

    scores = score_groups(Short([]), [PROMPT, PROMPT], [[clip()], [clip(), clip()]])
    assert [group.valid for group in scores] == [(False,), (False, False)]
    assert {reason for group in scores for reason in group.reasons} == {"model_error"}


def test_a_model_that_raises_makes_all_groups_invalid():
    class Broken(Model):
        def score_batch(self, prompts, clips):
            raise RuntimeError("no memory")

    (scores,) = score_groups(Broken([]), [PROMPT], [[clip(), clip()]])
    assert scores.valid == (False, False) and scores.reasons == ("model_error",) * 2


class Batching(RewardModel):
    """Scores all clips at once by their loudness; a level of 1/8 is too much for it."""

    def __init__(self):
        super().__init__(UnboundedReward())
        self.batches = []

    def score_batch(self, prompts, clips):
        assert len(prompts) == len(clips)
        self.batches.append(len(clips))
        if any(clip.audio_CS[0, 0] == 0.125 for clip in clips):
            raise MemoryError("odd")
        return [Score(100.0 * float(clip.audio_CS.mean()) if clip.audio_CS[0, 0] < 0.9 else math.inf) for clip in clips]


def test_a_model_that_batches_sees_all_clips_that_can_be_measured_at_once():
    model = Batching()
    groups = [[clip(), clip(frames=1), clip(level=0.25)], [], [clip(level=0.0), clip(level=0.75)]]
    first, empty, second = score_groups(model, [PROMPT] * 3, groups)
    assert model.batches == [3]
    assert first.reasons == ("ok", "too_short", "ok") and second.reasons == ("silent_audio", "ok")
    assert (first.values[0], first.values[2]) == (50.0, 25.0) and second.values == (-1.0, 75.0)
    assert empty.values == ()


def test_one_clip_that_breaks_a_batch_is_found_and_the_others_have_their_scores():
    model = Batching()
    (scores,) = score_groups(model, [PROMPT], [[clip(), clip(level=0.125), clip(level=0.25)]])
    assert scores.reasons == ("ok", "model_error", "ok") and scores.valid == (True, False, True)
    assert (scores.values[0], scores.values[2]) == (50.0, 25.0)
    assert model.batches == [3, 1, 1, 1]


def test_a_batch_is_held_to_finite_numbers_as_single_clips_are():
    (scores,) = score_groups(Batching(), [PROMPT], [[clip(), clip(level=0.95)]])
    assert scores.reasons == ("ok", "non_finite") and math.isnan(scores.values[1])


@pytest.mark.parametrize("components", [{"level": "loud"}, None])
def test_a_component_that_is_no_number_stays_with_its_clip(components):
    class Chatty(Batching):
        def score_batch(self, prompts, clips):
            first, *rest = super().score_batch(prompts, clips)
            return [replace(first, components=components), *rest]

    (scores,) = score_groups(Chatty(), [PROMPT], [[clip(), clip()]])
    assert scores.reasons == ("model_error", "ok") and math.isnan(scores.values[0])


def test_a_model_scores_clips_or_batches():
    class Neither(RewardModel):
        pass

    with pytest.raises(TypeError, match="Neither overrides none of score_clip, score_batch and score_set"):
        Neither(ScriptedReward())


def test_what_is_no_score_costs_that_clip_alone():
    (scores,) = score_groups(Model([Score("high"), Score(0.5)]), [PROMPT], [[clip(), clip()]])
    assert scores.reasons == ("model_error", "ok")


def test_silence_is_a_valid_floor_and_not_a_hole():
    (scores,) = score_groups(Model([Score(0.5)]), [PROMPT], [[clip(level=0.0), clip()]])
    assert scores.valid == (True, True)
    assert scores.values == (0.0, 0.5)
    assert scores.reasons == ("silent_audio", "ok")


def broken(**changes) -> Clip:
    good = clip()
    fields = {"video_FHWC": good.video_FHWC, "fps": 12.0, "audio_CS": good.audio_CS, "sample_rate": 16_000}
    return Clip(**{**fields, **changes})


NAN_AUDIO = np.full((1, 8000), np.nan, np.float32)
INF_AUDIO = np.array([[0.1] * 7999 + [np.inf]], np.float32)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (broken(audio_CS=NAN_AUDIO), "non_finite"),
        (broken(audio_CS=INF_AUDIO), "non_finite"),
        (broken(audio_CS=np.zeros((1, 0), np.float32)), "too_short"),
        (broken(audio_CS=np.zeros((1, 399), np.float32)), "too_short"),
        (broken(audio_CS=np.zeros((1, 8000), np.float64)), "bad_media"),
        (broken(audio_CS=np.zeros(8000, np.float32)), "bad_media"),
        (broken(audio_CS=np.zeros((0, 8000), np.float32)), "bad_media"),
        (broken(audio_CS=None), "bad_media"),
        (broken(sample_rate=0), "bad_media"),
        (broken(sample_rate=math.nan), "bad_media"),
        (broken(video_FHWC=np.zeros((1, 16, 16, 3), np.uint8)), "too_short"),
        (broken(video_FHWC=np.zeros((2, 16, 16, 3), np.uint8)), "too_short"),
        (broken(video_FHWC=np.zeros((4, 16, 16, 3), np.float32)), "bad_media"),
        (broken(video_FHWC=np.zeros((4, 16, 16), np.uint8)), "bad_media"),
        (broken(video_FHWC=np.zeros((4, 16, 16, 4), np.uint8)), "bad_media"),
        (broken(video_FHWC=np.zeros((4, 0, 16, 3), np.uint8)), "too_small"),
        (broken(video_FHWC="frames"), "bad_media"),
        (broken(fps=-1.0), "bad_media"),
    ],
)
def test_what_cannot_be_measured_is_invalid_for_a_reason(bad, reason):
    assert unusable(bad, ScriptedReward()) == reason
    (scores,) = score_groups(Model([Score(0.5)]), [PROMPT], [[bad, clip()]])
    assert scores.valid == (False, True)
    assert scores.reasons == (reason, "ok")
    assert math.isnan(scores.values[0])


def test_how_short_a_clip_may_be_is_the_rewards_own_affair():
    class Patient(ScriptedReward):
        min_frames: ClassVar[int] = 5
        min_audio_s: ClassVar[float] = 0.6

    assert unusable(clip(), ScriptedReward()) is None
    assert unusable(clip(), Patient()) == unusable(clip(frames=5), Patient()) == "too_short"
    assert unusable(clip(frames=5, samples=9600), Patient()) is None


def test_only_the_needed_modality_is_judged():
    assert unusable(broken(audio_CS=NAN_AUDIO), PictureReward()) is None
    assert unusable(broken(fps=-1.0), SoundReward()) is None


def test_a_model_sees_arrays_without_gaps_and_of_what_is_in_order_no_copy():
    seen = []

    class Looks(Model):
        def score_clip(self, prompt, clip):
            seen.append(clip)
            return super().score_clip(prompt, clip)

    dense = clip()
    gaps = Clip(dense.video_FHWC[:, ::-1], 12.0, np.full((8000, 2), 0.5, np.float32).T, 16_000)
    (scores,) = score_groups(Looks([Score(0.5)] * 2), [PROMPT], [[gaps, dense]])
    assert scores.reasons == ("ok", "ok")
    assert all(one.video_FHWC.flags.c_contiguous and one.audio_CS.flags.c_contiguous for one in seen)
    assert np.array_equal(seen[0].video_FHWC, gaps.video_FHWC) and np.array_equal(seen[0].audio_CS, gaps.audio_CS)
    assert seen[1].video_FHWC is dense.video_FHWC and seen[1].audio_CS is dense.audio_CS


def test_a_model_has_no_curves_unless_it_says_so():
    assert list(Model([]).curves(PROMPT, clip())) == []
