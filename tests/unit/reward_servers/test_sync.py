"""Synchrony: graded, paid for being in step and for nothing else."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from accord.config.rewards.panel import SyncReward
from accord.types import Clip
from accord.world.scene import render_audio
from reward_servers.base import build, score_groups


@pytest.fixture(scope="module")
def model():
    return build(SyncReward())


def delayed(clip: Clip, seconds: float) -> Clip:
    return dataclasses.replace(clip, audio_CS=np.roll(clip.audio_CS, round(seconds * clip.sample_rate), axis=1))


def test_the_score_falls_with_the_delay(model, world):
    means = []
    for delay in (0.0, 0.03, 0.06, 0.12, 0.2):
        pairs = [(prompt, delayed(clip, delay)) for prompt, clip in world["clean"]]
        scores = score_groups(model, [prompt for prompt, _ in pairs], [[clip] for _, clip in pairs])
        means.append(np.mean([score.values[0] for score in scores]))
    assert all(early > late for early, late in itertools.pairwise(means))
    assert means[0] > 0.9 and means[-1] < 0.1


def test_more_sounds_alone_earn_nothing(model, world):
    """Sound that comes often matches by chance; the chance term takes that away again."""
    gains = {}
    for count in (2, 6, 12):
        values = []
        for index, (prompt, clip) in enumerate(world["clean"]):
            times = np.sort(np.random.default_rng([count, index]).uniform(0, 2.0, count)).astype(np.float32)
            audio = render_audio(times, "ping")[None]
            (scores,) = score_groups(model, [prompt], [[dataclasses.replace(clip, audio_CS=audio)]])
            values.append(scores.values[0])
        gains[count] = np.mean(values)
    assert max(gains.values()) < 0.12
    assert gains[12] - gains[2] < 0.12


def test_neither_silence_nor_stillness_beats_misplaced_sound(model, world):
    prompt, clip = world["offset"][0]
    still = dataclasses.replace(clip, video_FHWC=np.repeat(clip.video_FHWC[:1], 25, axis=0))
    silent = dataclasses.replace(clip, audio_CS=np.zeros_like(clip.audio_CS))
    steady = dataclasses.replace(clip, audio_CS=np.full_like(clip.audio_CS, 0.2))
    misplaced = [pair[1] for pair in world["offset"]]
    (empty,) = score_groups(model, [prompt], [[still, silent, steady]])
    (wrong,) = score_groups(model, [prompt], [misplaced])
    assert empty.valid == (True, True, True)
    assert empty.reasons == ("no_events", "silent_audio", "no_events")
    assert max(empty.values) == model.spec.floor <= min(wrong.values)
    assert np.mean(wrong.values) > model.spec.floor + 0.05


def test_components_tell_what_the_value_is_made_of(model, world):
    prompt, clip = world["clean"][0]
    (scores,) = score_groups(model, [prompt], [[clip, delayed(clip, 0.06)]])
    parts = scores.components
    assert parts["offset_s"][0] < 0.01
    assert parts["offset_s"][1] == pytest.approx(0.06, abs=0.01)
    for value, f1, chance in zip(scores.values, parts["f1"], parts["chance"], strict=True):
        assert value == pytest.approx((f1 - chance) / (1 - chance))
    assert parts["num_contacts"][0] == parts["num_onsets"][0] >= 1
