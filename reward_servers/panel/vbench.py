"""Three VBench-style video measures without weights: temporal flicker, motion smoothness, dynamic degree.

After Huang et al. 2023 ("VBench"), with block matching where VBench uses learned flow or interpolation, on frames
averaged down to a short side of 32 to 63 pixels. All three are in [0, 1], higher is better. Flicker and smoothness are
squeezed into the top of the range, so use them normalised inside a group. Both are perfect on a frozen clip, which
dynamic degree alone punishes: never train on them without it or a text-video reward.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, luma, shrunk

SHORT_SIDE = 32
BLOCK = 4
REACH = 3
STILLNESS = 0.01
"""Advantage, in mean absolute brightness, that a block's zero displacement has over any other."""


class TemporalFlickerModel(RewardModel):
    """How well still surfaces keep their brightness.

    value = 1 - mean over frame pairs of the median absolute difference of the pixels. VBench takes the mean over
    pixels and therefore only clips that stand still; the median leaves a moving object out. VBench's own number is the
    component `vbench`. Limits: a camera that moves looks like flicker. Hack: a frozen clip.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `vbench`, the official (255 - mean absolute difference) / 255."""
        grey_FHW = luma(shrunk(clip.video_FHWC, SHORT_SIDE))
        change = np.abs(np.diff(grey_FHW, axis=0))
        value = 1.0 - np.median(change, axis=(1, 2)).mean()
        return Score(float(value), {"vbench": float(1.0 - change.mean())})


class MotionSmoothnessModel(RewardModel):
    """How well each frame is foretold by its two neighbours.

    value = 1 - mean absolute error of the frame against a motion-compensated middle of its neighbours, over the tenth
    of the pixels that change most between these. Limits: fast motion beyond 6 pixels of the small frame and
    occlusions count as errors; a real contact is one rough frame. Hack: a frozen clip.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `error`, mean absolute error where something moves."""
        grey_FHW = luma(shrunk(clip.video_FHWC, SHORT_SIDE))
        before, between, after = grey_FHW[:-2], grey_FHW[1:-1], grey_FHW[2:]
        error = np.abs(_middle(before, after) - between)
        moving = np.abs(after - before) + error
        threshold = np.percentile(moving, 90, axis=(1, 2), keepdims=True)
        chosen = moving >= threshold
        mean_error = float((error * chosen).sum() / chosen.sum())
        return Score(1.0 - mean_error, {"error": mean_error})


class DynamicDegreeModel(RewardModel):
    """How much moves: the fastest twentieth of the blocks, relative to VBench's threshold.

    value = min(1, ratio / 2); ratio = (mean displacement of the fastest 5 % of the blocks between frames an eighth of
    a second apart) / (6 pixels per 256 of short side). Changes of overall brightness are taken out first. VBench makes
    this a yes or no per clip; here it is continuous. Limits: displacement above 3 pixels of the small frame is cut.
    Hacks: camera shake and boiling noise; train a smoothness or text-video reward beside it.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `ratio`. A clip in which no block moves at all is at the floor (`no_events`)."""
        grey_FHW = luma(shrunk(clip.video_FHWC, SHORT_SIDE))
        step = min(max(1, round(clip.fps / 8.0)), len(grey_FHW) - 1)
        frames = grey_FHW[::step] - np.median(grey_FHW[::step], axis=(1, 2), keepdims=True)
        speed = _displacement(frames[:-1], frames[1:])
        fastest = np.sort(speed.reshape(len(speed), -1), axis=1)[:, -max(1, speed[0].size // 20) :]
        unit = 6.0 / 256.0 * min(grey_FHW.shape[1:])
        ratio = float(fastest.mean()) / unit
        if ratio == 0.0:
            return self.empty("no_events", {"ratio": 0.0})
        return Score(min(1.0, ratio / 2.0), {"ratio": ratio})


# ---------------------------------------------------------------- block matching


def _shifts() -> list[tuple[int, int]]:
    """All (dy, dx) up to REACH, nearest first, so that ties go to the smaller displacement."""
    every = [(dy, dx) for dy in range(-REACH, REACH + 1) for dx in range(-REACH, REACH + 1)]
    return sorted(every, key=lambda shift: (shift[0] ** 2 + shift[1] ** 2, shift))


def _padded(frames_FHW: Float) -> Float:
    """Frames with their borders repeated REACH pixels outwards."""
    return np.pad(frames_FHW, ((0, 0), (REACH, REACH), (REACH, REACH)), mode="edge")


def _moved(padded_FHW: Float, dy: int, dx: int) -> Float:
    """Frames displaced by (dy, dx), cut from their padded form."""
    height, width = (size - 2 * REACH for size in padded_FHW.shape[1:])
    return padded_FHW[:, REACH - dy : REACH - dy + height, REACH - dx : REACH - dx + width]


def _block_mean(frames_FHW: Float) -> Float:
    """Means of BLOCK x BLOCK blocks, remainders cut off, [F, h, w]."""
    count, height, width = frames_FHW.shape
    cut = frames_FHW[:, : height // BLOCK * BLOCK, : width // BLOCK * BLOCK]
    return cut.reshape(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(2, 4))


def _displacement(before_FHW: Float, after_FHW: Float) -> Float:
    """Displacement in pixels of each block of `after` from `before`, [F, h, w]."""
    padded = _padded(before_FHW)
    best: Float | None = None
    for dy, dx in _shifts():
        cost = _block_mean(np.abs(_moved(padded, dy, dx) - after_FHW))
        if best is None:
            best, speed = cost - STILLNESS, np.zeros_like(cost)
            continue
        better = cost < best
        best = np.where(better, cost, best)
        speed = np.where(better, np.hypot(dy, dx), speed)
    return speed


def _middle(before_FHW: Float, after_FHW: Float) -> Float:
    """Motion-compensated middle: per block, the symmetric displacement under which both neighbours agree best."""
    height, width = before_FHW.shape[1:]
    padded_before, padded_after = _padded(before_FHW), _padded(after_FHW)
    best: Float | None = None
    for dy, dx in _shifts():
        early, late = _moved(padded_before, dy, dx), _moved(padded_after, -dy, -dx)
        cost = _block_mean(np.abs(early - late))
        if best is None:
            best, middle = cost - STILLNESS, (early + late) / 2.0
            continue
        better = cost < best
        if not better.any():
            continue
        best = np.where(better, cost, best)
        mask = np.repeat(np.repeat(better, BLOCK, axis=1), BLOCK, axis=2)
        full = np.zeros((len(mask), height, width), dtype=bool)
        full[:, : mask.shape[1], : mask.shape[2]] = mask
        middle = np.where(full, (early + late) / 2.0, middle)
    return middle
