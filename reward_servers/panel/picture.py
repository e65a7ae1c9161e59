"""Technical quality of the frames: sharp, clean, with contrast, well exposed, whole, and coloured with measure.

Seven terms, each in (0, 1], of up to eight frames at even spacing, at the size they have; a frame's quality is the
fourth root of their product and the value is the mean over frames. With the brightness Y in 0..255, G_s its gradient by
Gaussian derivatives of s pixels, and c its standard deviation at a quarter of the size (structure without grain):

* sharpness r^2, r = 1 - <G_2, G_2> / <G_0.7, G_2>: how much of the structure's gradient is lost at 2 px. The fine
  gradient enters only as far as it agrees with the coarse one, so noise does not (what is left of it by chance is taken
  out, and a little more); the height of a step cancels, so contrast does not either. At least 0.02.
* cleanness 1 / (1 + (n / (c + 5) / 0.15)^1.5), n the deviation of the noise: Immerkaer's Laplacian (CVIU 1996) in the
  30 % of the 8x8 blocks that are smoothest at half size, less 0.8 of what half the size has. Pictures look alike at
  half their size (Field, JOSA 1987), noise does not, so texture is not taken for grain.
* contrast c / (c + 40).
* exposure exp(-((mean Y / 255 - 0.5) / 0.6)^2) / (1 + clipped / 0.3), `clipped` the share of black and white pixels.
* wholeness 1 / (1 + b / 0.3), b by how much neighbours across the borders of 8x8 blocks differ more than beside them
  (Wang, Bovik & Evans, ICIP 2000). Not measured below 72 pixels, where there are too few borders to tell.
* colour 1 / (1 + (m / (c + 15) / 2)^2), m Hasler and Suesstrunk's colourfulness (SPIE 2003) at a quarter of the size,
  times (m^2 + 90) / (m^2 + 100): a band that ends softly above.

Range [0, 1), higher is better; photographs 0.3 to 0.5. No term has a ceiling. A clip of one colour gets the floor.
Limits: blind to content, composition and motion; night, fog and shallow focus cost, so compare clips of one prompt
only; a texture as fine as noise all over the frame (gravel, static) counts as noise, and rises under a blur of 1 px, as
do grainy nights and hard patterns; small frames that never were coded rise when they are; blocks off the grid of 8 are
not seen. Known hacks: a frozen picture (train `motion` beside it), hard shapes on a plain ground (a text-video reward).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.signals import Pixels

cv2.setNumThreads(1)

Grey = NDArray[np.float32]
FRAMES = 8
FINE, COARSE = 0.7, 2.0
FLAT = 0.5
"""Deviation of the brightness, of 255, below which a frame shows nothing."""
CHANCE = 1.3
"""More than all of the noise's own agreement between scales is taken out, so that noise never sharpens."""
NATURAL = 0.8
SMOOTHEST = 30
BLURRED = 0.02
"""Least sharpness of a frame that shows anything, so that what is blurred or noisy beyond it still has an order."""
WHOLE_SIDE = 72
_LAPLACIAN = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], dtype=np.float32)
_GAIN = float((_LAPLACIAN**2).sum())


class PictureModel(RewardModel):
    """Mean over frames of the product of seven terms."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `sharpness`, `noise`, `contrast`, `brightness`, `clipped`, `blockiness`, `colourfulness`."""
        parts = [measured(frame) for frame in _chosen(clip)[1]]
        means = {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
        value = float(np.mean([quality(part) for part in parts]))
        return Score(value, means) if value > 0.0 else self.empty("no_events", means)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """The quality and its parts at each of the frames looked at."""
        times_s, frames = _chosen(clip)
        parts = [measured(frame) for frame in frames]
        drawn = {"quality": [quality(part) for part in parts]}
        drawn |= {name: [part[name] for part in parts] for name in ("sharpness", "noise", "contrast", "blockiness")}
        return [Curve(name, times_s, np.array(values)) for name, values in drawn.items()]


def measured(frame_HWC: Pixels) -> dict[str, float]:
    """What a frame is judged by, uint8 RGB [H, W, 3]; brightness and noise as shares of full scale."""
    grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    size = max(1, width // 4), max(1, height // 4)
    small = np.asarray(cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    noise = _noise(grey)
    flat = float(grey.std()) < FLAT
    return {
        "sharpness": 0.0 if flat else _sharpness(grey, noise),
        "noise": noise / 255.0,
        "contrast": float(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).std()) / 255.0,
        "brightness": float(grey.mean()) / 255.0,
        "clipped": float(((grey <= 2.0) | (grey >= 253.0)).mean()),
        "blockiness": _blockiness(grey),
        "colourfulness": _colourfulness(small),
    }


def quality(part: dict[str, float]) -> float:
    """The fourth root of the product of the terms of what was measured."""
    contrast, noise = 255.0 * part["contrast"], 255.0 * part["noise"]
    colour = part["colourfulness"]
    terms = (
        part["sharpness"] ** 2,
        1.0 / (1.0 + (noise / (contrast + 5.0) / 0.15) ** 1.5),
        contrast / (contrast + 40.0),
        math.exp(-(((part["brightness"] - 0.5) / 0.6) ** 2)) / (1.0 + part["clipped"] / 0.3),
        1.0 / (1.0 + part["blockiness"] / 0.3),
        1.0 / (1.0 + (colour / (contrast + 15.0) / 2.0) ** 2),
        (colour**2 + 90.0) / (colour**2 + 100.0),
    )
    return math.prod(terms) ** 0.25


def _chosen(clip: Clip) -> tuple[NDArray[np.float64], list[Pixels]]:
    """Times (s) of the frames that are looked at, and the frames."""
    count = len(clip.video_FHWC)
    places = np.unique(np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int))
    return places / clip.fps, [clip.video_FHWC[place] for place in places]


def _noise(grey_HW: Grey) -> float:
    """Standard deviation of the noise, of 255."""
    height, width = (size // 2 * 2 for size in grey_HW.shape)
    even = grey_HW[:height, :width]
    half = np.asarray(cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA), dtype=np.float32)
    fine = _block_means(_laplacian(even) ** 2, 8)
    coarse = _block_means(_laplacian(half) ** 2, 4)
    level = _block_means(half, 4)
    # noise at black and white is cut off
    open_ended = (level > 16.0) & (level < 239.0)
    if open_ended.mean() >= 0.1:
        fine, coarse = fine[open_ended], coarse[open_ended]
    smooth = coarse <= np.percentile(coarse, SMOOTHEST)
    excess = float((fine[smooth] - NATURAL * coarse[smooth]).mean())
    return math.sqrt(max(excess, 0.0) / (_GAIN * (1.0 - NATURAL / 4.0)))


def _laplacian(plane_HW: Grey) -> Grey:
    return np.asarray(cv2.filter2D(plane_HW, cv2.CV_32F, _LAPLACIAN), dtype=np.float32)


def _block_means(plane_HW: Grey, size: int) -> Grey:
    """Means of whole blocks, remainders cut off, [H // size, W // size]."""
    rows, columns = (side // size for side in plane_HW.shape)
    blocks = plane_HW[: rows * size, : columns * size].reshape(rows, size, columns, size)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _sharpness(grey_HW: Grey, noise: float) -> float:
    """1 - <coarse, coarse> / <fine, coarse>; white noise of deviation n adds n^2 / (4 pi s^4) to a product at scale s,
    s^2 being the mean of the two squares."""
    agreed = kept = 0.0
    for axis in (0, 1):
        fine, coarse = (_derivative(grey_HW, scale, axis) for scale in (FINE, COARSE))
        agreed += float((fine * coarse).mean(dtype=np.float64))
        kept += float((coarse * coarse).mean(dtype=np.float64))
    agreed -= CHANCE * noise**2 / (4.0 * math.pi * ((FINE**2 + COARSE**2) / 2.0) ** 2)
    kept -= noise**2 / (4.0 * math.pi * COARSE**4)
    share = 1.0 - kept / agreed if kept > 0.0 and agreed > 0.0 else 0.0
    return max(BLURRED, share)


def _derivative(grey_HW: Grey, scale: float, axis: int) -> Grey:
    """Gaussian derivative along an axis, per pixel."""
    reach = math.ceil(3 * scale)
    smooth = cv2.getGaussianKernel(2 * reach + 1, scale, cv2.CV_32F)
    slope = (np.arange(-reach, reach + 1, dtype=np.float32)[:, None] * smooth / scale**2).astype(np.float32)
    across, down = (smooth, slope) if axis == 0 else (slope, smooth)
    return np.asarray(cv2.sepFilter2D(grey_HW, cv2.CV_32F, across, down))


def _blockiness(grey_HW: Grey) -> float:
    """Excess of the steps across borders of 8x8 blocks over those beside them, as a share of these."""
    if min(grey_HW.shape) < WHOLE_SIDE:
        return 0.0
    excess = beside = 0.0
    for axis in (0, 1):
        step = np.abs(np.diff(grey_HW, axis=axis)).mean(axis=1 - axis, dtype=np.float64)
        border = np.arange(7, len(step) - 1, 8)
        next_to = (step[border - 1] + step[border + 1]) / 2.0
        excess += max(0.0, float((step[border] - next_to).mean()))
        beside += float(next_to.mean())
    return excess / (beside + 1.0)


def _colourfulness(frame_HWC: Pixels) -> float:
    """Hasler and Suesstrunk's M: 0 for grey, about 50 for photographs."""
    red, green, blue = (frame_HWC[..., channel].astype(np.float64) for channel in range(3))
    across, along = red - green, (red + green) / 2.0 - blue
    return math.hypot(across.std(), along.std()) + 0.3 * math.hypot(across.mean(), along.mean())
