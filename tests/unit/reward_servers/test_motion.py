"""`motion` and VBench's three: what halts, flickers or shakes lowers the first; the others are what VBench says."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from accord.config.rewards.panel import MotionReward
from accord.types import Clip
from accord.world.scene import IMPERFECT, make_clips
from reward_servers.flow import dense_flow
from reward_servers.panel.motion import Course, MotionModel
from tests.unit.reward_servers.seen import (
    PROMPT,
    REAL_NAMES,
    SOUND,
    cut,
    falls,
    flashed,
    flickering,
    frozen,
    garish,
    grainy,
    halting,
    judged,
    panned,
    real,
    shaken,
    shapes,
    texture,
    values,
)

AXES = {
    "freeze": (frozen, (0.25, 0.5, 0.75, 1.0)),
    "halt": (halting, (1 / 8, 1 / 4, 1 / 2)),
    "flicker": (flickering, (0.02, 0.04, 0.08)),
    "shake": (shaken, (1, 2, 4)),
}
DRAWN = {"pan": panned(33), "shapes": shapes(33)}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", REAL_NAMES)
def test_what_spoils_the_motion_of_a_real_clip_lowers_it_step_by_step(name, axis):
    spoil, amounts = AXES[axis]
    numbers = values("motion", real(name)[24:57], spoil, amounts)
    assert falls(numbers), numbers


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", DRAWN)
def test_what_spoils_the_motion_of_a_drawn_clip_lowers_it_step_by_step(name, axis):
    spoil, amounts = AXES[axis]
    numbers = values("motion", DRAWN[name], spoil, amounts)
    assert falls(numbers), numbers


def test_a_frozen_clip_is_the_worst_of_its_group():
    group = [made.video for made in make_clips(6, 3, IMPERFECT)]
    still = judged("motion", frozen(group[0], 1.0), 12.0)
    assert (still.value, still.reason, still.components["frozen_share"]) == (0.0, "no_events", 1.0)
    moving = [judged("motion", video, 12.0).value for video in group]
    assert min(moving) > 0.1 and max(moving) < 0.9 and np.std(moving) > 0.02
    grain = grainy(np.repeat(group[0][:1], 25, axis=0), 3)
    assert judged("motion", grain, 12.0).value < max(moving)


@pytest.mark.parametrize("name", ["balls", "rain", "flash"])
def test_a_frozen_garish_frame_and_flashes_do_not_pay(name):
    video = real(name)[24:57]
    clean = judged("motion", video).value
    assert 0.15 < clean < 0.8
    assert judged("motion", garish(frozen(video, 1.0), 1)).value == 0.0
    assert judged("motion", flashed(video)).value < clean


@pytest.mark.parametrize(
    ("amount", "half"),
    [("unevenness", 0.5), ("shake", 0.004), ("flicker", 0.02), ("unlikeness", 0.1)],
)
def test_each_term_of_the_quality_is_the_one_that_is_documented(amount, half):
    """By hand: a speed of 0.05 is worth a half, and so is each amount at the size that the page names."""
    even = dict.fromkeys(("unevenness", "shake", "flicker", "unlikeness"), np.zeros(2))
    speed = np.array([0.05, 0.15])
    assert Course(speed, **even).quality == pytest.approx(np.sqrt([0.5, 0.75]))
    assert Course(speed, **{**even, amount: np.array([half, 3 * half])}).quality == pytest.approx(
        np.sqrt([0.25, 0.75 / 4])
    )


def test_the_speed_of_a_pan_is_what_was_drawn():
    """By hand: 2 pixels a frame at 24 frames a second over 128 pixels of height."""
    parts = judged("motion", panned(17)).components
    assert parts["speed"] == pytest.approx(2 * 24 / 128, rel=0.1)
    assert parts["frozen_share"] == 0.0 and parts["shake"] < 1e-4 and parts["flicker"] < 1e-3


def test_speed_is_per_second_and_a_turning_camera_still_moves():
    """By hand: twice as many frames a second are twice the speed; a turn takes half a second's mean to nothing."""
    assert judged("motion", panned(17), 48.0).components["speed"] == pytest.approx(2 * 48 / 128, rel=0.1)
    there_and_back = np.concatenate([panned(24), panned(24)[::-1]])
    assert 0.8 * 0.375 < judged("motion", there_and_back).components["speed"] < 0.375


def test_a_camera_that_shakes_is_shake_and_neither_motion_nor_unevenness():
    """By hand: 2 pixels to each side in turn are a velocity of 4 that changes by 8, with next to no mean."""
    shaking = np.stack([np.roll(texture(), 2 * (-1) ** frame, axis=1) for frame in range(25)])
    parts = judged("motion", shaking).components
    assert parts["shake"] == pytest.approx(8 / 128, rel=0.1)
    assert parts["speed"] < 4 * 24 / 128 / 4 and parts["unevenness"] < 0.5


def test_a_fade_is_no_flicker():
    """By hand: the second difference is 0 where brightness rises evenly, twice the step where it alternates."""
    rising, alternating = np.arange(17) * 2.0, np.where(np.arange(17) % 2, 2.5, -2.5)
    video = panned(17).clip(60, 190).astype(float)
    faded, flicker = ((video + light[:, None, None, None]).round().astype(np.uint8) for light in (rising, alternating))
    assert judged("motion", faded).components["flicker"] < 1e-3
    mean = cv2.cvtColor(faded[0], cv2.COLOR_RGB2GRAY).mean()
    assert judged("motion", flicker).components["flicker"] == pytest.approx(10 / (mean + 8), rel=0.05)


def test_a_cut_costs_the_frames_on_both_of_its_sides():
    (unlike,) = (
        curve.values
        for curve in MotionModel(MotionReward()).curves(PROMPT, Clip(cut(panned(13), 1), 24.0, SOUND, 16_000))
        if curve.label == "unlikeness"
    )
    assert list(np.flatnonzero(unlike > 0.3)) == [5, 6], unlike  # frames 6 and 7, the curve begins at frame 1


def test_flow_finds_a_displacement_and_none_between_equal_frames():
    grey = cv2.cvtColor(texture(), cv2.COLOR_RGB2GRAY)
    moved = np.roll(grey, (1, 3), (0, 1))
    flow = dense_flow(np.stack([grey, grey]), np.stack([moved, grey]))
    assert np.median(flow[0], axis=(0, 1)) == pytest.approx([3.0, 1.0], abs=0.1)
    assert not flow[1].any()


def test_the_curves_are_those_of_the_value():
    clip = Clip(panned(17), 24.0, SOUND, 16_000)
    model = MotionModel(MotionReward())
    curves = {curve.label: curve for curve in model.curves(PROMPT, clip)}
    assert curves["quality"].values.mean() == model.score_clip(PROMPT, clip).value
    assert curves["speed"].times_s == pytest.approx(np.arange(1, 16) / 24.0)


def test_temporal_flicker_is_vbenchs_number():
    """VBench's formula in numpy: the mean of absolute differences over pixels and colours, from 255."""
    video = shapes(7).astype(np.float64)
    expected = (255.0 - np.mean([np.abs(b - a).mean() for a, b in pairwise(video)])) / 255.0
    assert judged("temporal_flicker", shapes(7)).value == pytest.approx(expected, abs=1e-9)


def test_motion_smoothness_draws_what_was_left_out():
    """An even pan is drawn well; where every second frame is another picture, the error is nearly their difference."""
    smooth, error = panned(9), panned(9).copy()
    error[1::2] = 255 - error[1::2]
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(float) for frame in panned(9)]
    difference = np.mean([np.abs(255 - 2 * frame).mean() for frame in grey[1::2]]) / 255.0
    blended = (
        np.mean([np.abs((a + c) / 2 - b).mean() for a, b, c in zip(grey[:-2:2], grey[1::2], grey[2::2], strict=True)])
        / 255.0
    )
    assert judged("motion_smoothness", smooth).components["error"] < 0.5 * blended
    assert judged("motion_smoothness", error).components["error"] == pytest.approx(difference, rel=0.1)


@pytest.mark.parametrize(("speed", "verdict"), [(0, 0.0), (1, 1.0), (2, 1.0)])
def test_dynamic_degree_turns_at_vbenchs_threshold(speed, verdict):
    """By hand: `speed` pixels a frame, looks 3 frames apart, against 6 pixels per 256 of 128: 3 pixels."""
    score = judged("dynamic_degree", panned(25, speed))
    ratio = speed * 3 / 3.0
    assert score.components["ratio"] == pytest.approx(ratio, rel=0.1)
    assert score.value == pytest.approx(ratio / (ratio + 1.0), abs=0.03)
    assert speed == 1 or score.components["dynamic"] == verdict
