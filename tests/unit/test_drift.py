"""Distances between what a reward said of the canaries first and says now."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest

from accord.canary import Canary, canaries
from accord.config.rewards.panel import SyncReward
from accord.drift import FILE, CanaryScores, drift


class LooseReward(SyncReward):
    """Company moves its scores."""

    batch_tolerance: ClassVar[float] = 0.05


@pytest.fixture(scope="module")
def clips() -> tuple[Canary, ...]:
    return canaries(SyncReward())[:4]


def scores(clips: tuple[Canary, ...], *values: float) -> CanaryScores:
    found = {
        canary.name: (value, "ok" if math.isfinite(value) else "timeout")
        for canary, value in zip(clips, values, strict=True)
    }
    return CanaryScores.of(SyncReward(), clips, found)


def test_distances_are_in_standard_deviations_of_the_first_values(clips):
    first, now = scores(clips, 0.0, 0.2, 0.4, 0.6), scores(clips, 0.0, 0.2, 0.4 - math.sqrt(0.05), 0.61)
    found = drift(SyncReward(), first, now, 0.5)
    assert list(found.distances.values()) == pytest.approx([0.0, 0.0, 1.0, 0.01 / math.sqrt(0.05)])
    assert (found.farthest, found.distance) == (clips[2].name, pytest.approx(1.0))
    assert found.beyond and not drift(SyncReward(), first, now, 1.01).beyond
    assert drift(SyncReward(), first, first, 0.0).beyond is False, "the same is never beyond"


def test_values_that_hardly_differ_are_measured_by_the_smallest_effect(clips):
    found = drift(SyncReward(), scores(clips, 0.5, 0.5, 0.5, 0.5), scores(clips, 0.5, 0.5, 0.5, 0.502), 0.05)
    assert found.distance == pytest.approx(0.002 / SyncReward.smallest_effect)


def test_what_company_may_do_is_no_drift(clips):
    first, now = scores(clips, 0.0, 0.2, 0.4, 0.6), scores(clips, 0.099, 0.2, 0.4, 0.6)
    assert drift(SyncReward(), first, now, 0.05).beyond
    assert not drift(LooseReward(), first, now, 0.05).beyond
    assert drift(LooseReward(), first, scores(clips, 0.101, 0.2, 0.4, 0.6), 0.05).beyond


def test_a_canary_without_a_score_is_not_compared_and_gets_its_first_value_later(clips):
    first, now = scores(clips, math.nan, 0.2, 0.4, 0.6), scores(clips, 0.1, math.nan, 0.4, 0.6)
    assert set(drift(SyncReward(), first, now, 0.05).distances) == {clips[2].name, clips[3].name}
    filled = first.filled(now)
    assert list(filled.values.values()) == [0.1, 0.2, 0.4, 0.6]
    assert set(filled.reasons.values()) == {"ok"}
    nothing = drift(SyncReward(), first, scores(clips, *[math.nan] * 4), 0.05)
    assert (nothing.farthest, nothing.distance, nothing.beyond) == ("", 0.0, False)


def test_values_come_back_from_a_file_as_they_were(clips):
    one = scores(clips, 0.1 + 0.2, math.nan, 1 / 3, 1e-300)
    assert FILE.validate_json(FILE.dump_json({"sync": one})) == {"sync": one}
