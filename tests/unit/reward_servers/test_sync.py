"""Synchrony: graded either way, paid for being in step and for nothing else."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from accord.config.rewards.panel import SyncReward
from accord.types import Clip
from accord.world.scene import render_audio
from reward_servers.base import build, score_groups
from reward_servers.panel.events import seen


@pytest.fixture(scope="module")
def model():
    return build(SyncReward())


def delayed(clip: Clip, seconds: float) -> Clip:
    return dataclasses.replace(clip, audio_CS=np.roll(clip.audio_CS, round(seconds * clip.sample_rate), axis=1))


@pytest.fixture(scope="module")
def watched(world):
    """The clean clips with what is seen in them."""
    return [(seen(clip), clip) for _, clip in world["clean"]]


@pytest.mark.parametrize("way", [1, -1])
def test_the_score_of_the_built_in_world_falls_with_the_delay_either_way(model, watched, way):
    means = [
        np.mean([model.compared(courses, delayed(clip, way * delay)).value for courses, clip in watched])
        for delay in (0.0, 0.06, 0.12, 0.2, 0.35)
    ]
    assert all(early > late for early, late in itertools.pairwise(means))
    assert means[0] > 0.5 and means[-1] < 0.15


def test_more_sounds_alone_earn_nothing(model, watched):
    """Sound that comes often matches by chance, at many lags."""
    gains = {}
    for count in (2, 6, 12):
        values = []
        for index, (courses, clip) in enumerate(watched):
            times = np.sort(np.random.default_rng([count, index]).uniform(0, 2.0, count)).astype(np.float32)
            audio = render_audio(times, "ping")[None]
            values.append(model.compared(courses, dataclasses.replace(clip, audio_CS=audio)).value)
        gains[count] = np.mean(values)
    assert max(gains.values()) < 0.15
    assert gains[12] < gains[2] + 0.05


def test_unrelated_sound_and_pictures_earn_next_to_nothing(model, watched):
    """Clips of the world share two periods and few phases, so some pairs do match."""
    crossed = [
        model.compared(courses, dataclasses.replace(clip, audio_CS=watched[(index + step) % len(watched)][1].audio_CS))
        for step in (1, 3, 5, 7)
        for index, (courses, clip) in enumerate(watched)
    ]
    assert np.mean([score.value for score in crossed]) < 0.12


def test_neither_silence_nor_stillness_beats_misplaced_sound(model, world):
    prompt, clip = world["offset"][0]
    still = dataclasses.replace(clip, video_FHWC=np.repeat(clip.video_FHWC[:1], 25, axis=0))
    silent = dataclasses.replace(clip, audio_CS=np.zeros_like(clip.audio_CS))
    steady = dataclasses.replace(clip, audio_CS=np.full_like(clip.audio_CS, 0.2))
    (empty,) = score_groups(model, [prompt], [[still, silent, steady]])
    (wrong,) = score_groups(model, [prompt], [[pair[1] for pair in world["offset"]]])
    assert empty.valid == (True, True, True)
    assert empty.reasons == ("no_events", "silent_audio", "no_events")
    assert max(empty.values) == model.spec.floor <= min(wrong.values)
    assert np.mean(wrong.values) > model.spec.floor + 0.05
