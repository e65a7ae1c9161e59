"""`consistency`: cuts, morphs and changes of colour lower it, and a frozen clip has none to show."""

from __future__ import annotations

import numpy as np
import pytest

from reward_servers.panel.consistency import CELLS, DIRECTIONS, _features, _outlines
from tests.unit.reward_servers.seen import (
    REAL_NAMES,
    cut,
    falls,
    flashed,
    frozen,
    garish,
    judged,
    morphing,
    real,
    recoloured,
    shapes,
    values,
)

AXES = {
    "cuts": (cut, (1, 7)),
    "morph": (morphing, (0.25, 0.5, 1.0)),
    "colour": (recoloured, (15, 30, 60)),
    "freeze": (frozen, (0.25, 0.5, 0.75, 1.0)),
}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["shapes", *REAL_NAMES])
def test_what_changes_the_things_lowers_it_step_by_step(name, axis):
    video = shapes(41) if name == "shapes" else real(name)[40:81]
    spoil, amounts = AXES[axis]
    numbers = values("consistency", video, spoil, amounts)
    assert falls(numbers), numbers


@pytest.mark.parametrize("name", REAL_NAMES)
def test_a_good_clip_is_not_at_the_ceiling_and_cheats_do_not_pay(name):
    video = real(name)
    clean = judged("consistency", video).value
    assert 0.2 < clean < 0.95
    assert judged("consistency", garish(frozen(video, 1.0), 1)).value == 0.0
    assert judged("consistency", flashed(video)).value <= clean


def test_a_frame_is_alike_to_itself_and_unlike_another():
    red, blue = (np.full((128, 128, 3), colour, np.uint8) for colour in ((200, 20, 20), (20, 20, 200)))
    assert _features(red) @ _features(red) == pytest.approx(1.0)
    assert _features(red) @ _features(blue) == pytest.approx(0.5)  # no outlines in either: that half is alike


def test_outlines_are_shares_of_directions():
    """By hand: vertical stripes have all of their strength across, direction 0, in every cell alike."""
    stripes = np.repeat(np.tile([0, 0, 255, 255], 33)[None, :, None], 132, axis=0).repeat(3, axis=2).astype(np.uint8)
    shares = (_outlines(stripes) ** 2).reshape(CELLS * CELLS, DIRECTIONS)
    assert shares[:, 0] == pytest.approx(1.0 / CELLS**2, rel=0.05) and shares[:, 1:].max() < 1e-4
