"""`picture`: each spoiling of the frames lowers it, noise never sharpens, nothing is at the ceiling."""

from __future__ import annotations

import numpy as np
import pytest

from accord.plugins import spec_class
from accord.types import Clip
from accord.world.scene import make_clips
from reward_servers.base import build
from reward_servers.panel.picture import measured, quality
from tests.unit.reward_servers.seen import (
    PROMPT,
    REAL_NAMES,
    SOUND,
    blocky,
    blurred,
    faint,
    falls,
    flashed,
    frozen,
    garish,
    grainy,
    judged,
    panned,
    pixels,
    real,
    shapes,
    values,
)

AXES = {
    "blur": (blurred, (1, 2, 4, 8)),
    "noise": (grainy, (4, 8, 16, 32)),
    "contrast": (faint, (0.4, 0.7)),
    "saturation": (garish, (1, 3)),
    "blocks": (blocky, (10, 30, 50, 70, 90)),
}
DRAWN = {"texture": panned(3), "shapes": shapes(3)}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", REAL_NAMES)
def test_what_spoils_a_real_clip_lowers_it_step_by_step(name, axis):
    spoil, amounts = AXES[axis]
    numbers = values("picture", real(name)[::30], spoil, amounts)
    assert falls(numbers), numbers


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", DRAWN)
def test_what_spoils_a_drawn_clip_lowers_it_step_by_step(name, axis):
    spoil, amounts = AXES[axis]
    if axis == "blocks":
        amounts = amounts[1:]  # what was never coded before loses fine grain, too, and little else, at quality 90
    numbers = values("picture", DRAWN[name], spoil, amounts)
    assert falls(numbers), numbers


@pytest.mark.parametrize("axis", ["blur", "noise", "contrast", "saturation"])
def test_what_spoils_a_clip_of_the_world_lowers_it_step_by_step(axis):
    spoil, amounts = AXES[axis]
    for made in make_clips(3, 7):
        numbers = values("picture", made.video[::6], spoil, amounts)
        assert falls(numbers), numbers


@pytest.mark.parametrize("name", REAL_NAMES)
def test_a_good_clip_is_neither_at_the_ceiling_nor_at_the_floor(name):
    assert 0.2 < judged("picture", real(name)).value < 0.7


@pytest.mark.parametrize("name", REAL_NAMES)
def test_a_frozen_garish_frame_and_flashes_do_not_pay(name):
    video = real(name)[::3]
    clean = judged("picture", video).value
    assert judged("picture", garish(frozen(video, 1.0), 1)).value < clean
    assert judged("picture", flashed(video)).value <= clean


def test_noise_never_sharpens():
    for video in (*DRAWN.values(), np.full((3, 96, 96, 3), 128, np.uint8)):
        for frame in video[:1]:
            sharp = [measured(grainy(frame[None], sigma)[0])["sharpness"] for sigma in (0, 4, 8, 16, 32, 64)]
            assert max(sharp) <= sharp[0] + 0.02, sharp


SHOWN = {
    "sharpness": 1.0, "noise": 0.0, "contrast": 40 / 255, "brightness": 0.5, "clipped": 0.0, "blockiness": 0.0,
    "colourfulness": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "amount", "times"),
    [
        ("sharpness", 0.5, 0.25),
        ("noise", 0.15 * (40 + 5) / 255, 0.5),
        ("contrast", 120 / 255, 0.75 / 0.5),
        ("brightness", 0.2, np.exp(-0.25)),
        ("clipped", 0.3, 0.5),
        ("blockiness", 0.3, 0.5),
        ("colourfulness", 2 * (40 + 15), 0.5 * (110**2 + 90) / (110**2 + 100) / 0.9),
    ],
)
def test_each_term_of_the_quality_is_the_one_that_is_documented(part, amount, times):
    """By hand: contrast 40 is worth a half and grey 0.9; every other term of `SHOWN` is 1."""
    assert quality(SHOWN) == pytest.approx((0.5 * 0.9) ** 0.25)
    assert quality({**SHOWN, part: amount}) == pytest.approx((0.5 * 0.9 * times) ** 0.25)


def test_noise_is_measured_in_its_own_size():
    """By hand: normal noise of deviation 8, the same in all channels."""
    noise = np.random.default_rng(0).normal(0, 8, (128, 160, 1))
    frame = np.clip(np.rint(128 + np.repeat(noise, 3, axis=2)), 0, 255).astype(np.uint8)
    assert measured(frame)["noise"] * 255 == pytest.approx(8.0, rel=0.1)


def test_colourfulness_is_hasler_and_suesstrunks():
    """By hand: halves of pure red and pure green have R - G of +-255 and (R + G) / 2 - B of 127.5."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[:, :32, 0], frame[:, 32:, 1] = 255, 255
    assert measured(frame)["colourfulness"] == pytest.approx(255.0 + 0.3 * 127.5)


def test_blocks_are_found_on_their_grid_alone():
    """By hand: steps of 4 across the borders and none beside them, over the constant 1."""
    tiles = np.repeat(np.repeat(np.indices((12, 12)).sum(axis=0) % 2 * 4 + 100, 8, axis=0), 8, axis=1)
    frame = np.repeat(tiles[..., None], 3, axis=2).astype(np.uint8)
    assert measured(frame)["blockiness"] == pytest.approx(8.0)
    assert measured(np.roll(frame, (4, 4), (0, 1)))["blockiness"] == 0.0


def test_small_frames_have_too_few_borders_for_blocks_to_be_told():
    tile = np.repeat(np.repeat(np.indices((8, 8)).sum(axis=0) % 2 * 4 + 100, 8, axis=0), 8, axis=1)
    assert measured(np.repeat(tile[..., None], 3, axis=2).astype(np.uint8))["blockiness"] == 0.0


def test_a_speck_is_nothing_to_be_sharp():
    frame = np.full((64, 64, 3), 100, np.uint8)
    frame[::16, ::16] = 103  # a deviation of 0.19
    assert measured(frame)["sharpness"] == 0.0


def test_black_and_white_pixels_are_counted_and_do_not_hide_noise():
    """By hand: a quarter black, a quarter white; the noise of the other half is told, although a half has none."""
    grey = 128 + np.random.default_rng(1).normal(0, 8, (128, 128))
    grey[:64, :64], grey[64:, 64:] = 0, 255
    found = measured(pixels(np.repeat(grey[..., None], 3, axis=2)))
    assert found["clipped"] == pytest.approx(0.5, abs=0.01)
    assert found["noise"] * 255 == pytest.approx(8.0, rel=0.15)


def test_texture_is_not_taken_for_grain():
    """By hand: grain of deviation 4 in each channel is 2.67 in grey, and squares add up."""
    frame = panned(1)[0]
    clean, grained = (measured(one)["noise"] * 255 for one in (frame, grainy(frame[None], 4)[0]))
    assert clean < 2.0 and np.sqrt(grained**2 - clean**2) == pytest.approx(2.67, rel=0.2)


def test_eight_frames_are_looked_at_from_the_first_to_the_last():
    model = build(spec_class("rewards", "picture")())
    for count, wanted in ((33, 8), (5, 5)):
        for curve in model.curves(PROMPT, Clip(panned(count), 24.0, SOUND, 16_000)):
            assert (len(curve.values), curve.times_s[0], curve.times_s[-1]) == (wanted, 0.0, (count - 1) / 24)


def test_one_colour_is_empty():
    score = judged("picture", np.full((5, 40, 40, 3), (200, 30, 60), np.uint8))
    assert (score.value, score.reason) == (0.0, "no_events")
