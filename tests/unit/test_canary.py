"""The canary set: the same bits everywhere, within what a reward looks at, showing what it says."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from accord.canary import EVENTS_EVERY_S, FPS, SAMPLE_RATE, canaries, digest, is_canary
from accord.config.contract import RewardSpec
from accord.config.rewards.panel import SyncReward
from accord.types import Prompt
from reward_servers.base import unusable

DIGEST = "501847ada7c1e75d4214ec5e4af2a0f7c727a44d3b81b4a5e60ba2086e782d3b"


class NarrowReward(SyncReward):
    """One that takes little of what there is."""

    min_side: ClassVar[int] = 112
    max_side: ClassVar[int] = 120
    frame_rates: ClassVar[tuple[float, float]] = (25.0, 25.0)
    min_audio_s: ClassVar[float] = 4.8
    sample_rates: ClassVar[tuple[int, int]] = (16_000, 16_000)


@pytest.fixture(scope="module")
def found():
    return {canary.name: canary for canary in canaries(SyncReward())}


def test_the_set_is_what_it_was(found):
    """Drift is measured against it: whoever changes it on purpose writes the new digest."""
    assert digest(canary.clip for canary in found.values()) == DIGEST
    again = canaries(SyncReward())
    assert digest(canary.clip for canary in again) == DIGEST and [one.name for one in again] == list(found)


@pytest.mark.parametrize("spec", [SyncReward(), NarrowReward()], ids=lambda spec: type(spec).__name__)
def test_a_reward_looks_at_each_clip_of_its_set(spec: RewardSpec):
    assert {unusable(canary.clip, spec) for canary in canaries(spec)} == {None}


def test_what_happens_in_step_is_heard_when_it_is_seen(found):
    for name, late_s in (("in_step", 0.0), ("late", 0.2)):
        clip = found[name].clip
        red = clip.video_FHWC.astype(int)
        ball = (red[..., 0] > 150) & (red[..., 1] < 100) & (red[..., 2] < 100)
        lowest = np.array([np.nonzero(frame.any(axis=1))[0].max() for frame in ball])
        contacts = [at for at in range(1, len(lowest) - 1) if lowest[at - 1] < lowest[at] >= lowest[at + 1]]
        loud = np.nonzero(np.abs(clip.audio_CS).max(axis=0) > 0.1)[0]
        onsets = loud[np.diff(loud, prepend=-SAMPLE_RATE) > 0.1 * SAMPLE_RATE]
        seen, heard = np.array(contacts) / FPS, np.array(onsets) / SAMPLE_RATE
        assert len(seen) == len(heard) == 2 / EVENTS_EVERY_S
        assert np.abs(heard - seen - late_s).max() < 1 / FPS


def test_the_set_has_its_extremes(found):
    assert not found["silent"].clip.audio_CS.any()
    assert not np.diff(found["still"].clip.video_FHWC.astype(int), axis=0).any()
    assert found["static"].clip.video_FHWC.std() > 70
    assert len({canary.prompt.id for canary in found.values()}) == len(found) == 8


def test_a_prompt_of_a_job_is_no_canary_whatever_it_is_called(found):
    assert all(is_canary(canary.prompt) for canary in found.values())
    assert not is_canary(Prompt("canary-in_step", "a canary sings", "a canary", "birdsong"))
