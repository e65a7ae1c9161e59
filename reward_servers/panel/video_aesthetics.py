"""Technical quality of the frames: sharp, free of noise, evenly exposed, with something in them.

Measures four things per clip, each in [0, 1], and multiplies them:

* `sharpness`: the steepest edges (99th percentile of the brightness gradient over the frame's contrast);
* `cleanness`: exp(-noise / 0.02), noise being the smallest local deviation that 5x5 pixel blocks agree on (median);
* `exposure`: share of pixels neither crushed nor blown out, times exp(-flicker / 0.03), flicker being the mean
  absolute change of the frames' median grey;
* `structure`: how strongly the most colourful 2 % of the pixels stand out, and how firmly they end where they end.

Range [0, 1], higher is better. Limits: blind to content and composition; it punishes night scenes and shallow depth of
field, so compare clips of one prompt only; large frames are averaged down to a short side of 64 to 127 pixels, so finer
grain is not seen. Known hacks: over-saturated shapes with hard borders; frozen frames (train a motion or text-video
reward beside it). A frame of one colour has no structure and gets the floor.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from accord.world.measure import flicker, saturation
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, luma, shrunk

SHORT_SIDE = 64
STEEP = 0.30
NOISE = 0.02
FLICKER = 0.03
SATURATED = 0.6
DARK, BRIGHT = 4.0 / 255.0, 251.0 / 255.0
FLAT = 0.5 / 255.0


class VideoAestheticsModel(RewardModel):
    """Product of sharpness, cleanness, exposure and structure."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `sharpness`, `cleanness`, `exposure`, `structure`."""
        frames = shrunk(clip.video_FHWC, SHORT_SIDE)
        grey = luma(frames)
        if float(grey.std(axis=(1, 2)).max()) < FLAT:
            return self.empty("no_events")
        parts = {
            "sharpness": _sharpness(grey),
            "cleanness": float(np.exp(-_noise(grey) / NOISE)),
            "exposure": float(_well_exposed(grey) * np.exp(-flicker(frames) / FLICKER)),
            "structure": _structure(saturation(frames)),
        }
        return Score(float(np.prod(list(parts.values()))), parts)


def _gradient(grey_FHW: Float) -> Float:
    """Length of the brightness gradient by central differences, [F, H-2, W-2]."""
    across = (grey_FHW[:, 1:-1, 2:] - grey_FHW[:, 1:-1, :-2]) / 2.0
    down = (grey_FHW[:, 2:, 1:-1] - grey_FHW[:, :-2, 1:-1]) / 2.0
    return np.hypot(across, down)


def _sharpness(grey_FHW: Float) -> float:
    """Steepest edges as a share of the frame's contrast; a hard step reaches 1/2, `STEEP` is full marks."""
    steep = np.percentile(_gradient(grey_FHW), 99, axis=(1, 2))
    low, high = np.percentile(grey_FHW, (1, 99), axis=(1, 2))
    return float(np.clip(steep / np.maximum(high - low, 0.05) / STEEP, 0.0, 1.0).mean())


def _noise(grey_FHW: Float) -> float:
    """Deviation that remains after the local plane is taken away (Laplacian difference), median over the frame."""
    rows = grey_FHW[:, 2:] - 2.0 * grey_FHW[:, 1:-1] + grey_FHW[:, :-2]
    laplacian = rows[:, :, 2:] - 2.0 * rows[:, :, 1:-1] + rows[:, :, :-2]
    return float((np.median(np.abs(laplacian), axis=(1, 2)) / (0.6745 * 6.0)).mean())


def _well_exposed(grey_FHW: Float) -> float:
    """Share of pixels that are neither crushed nor blown out."""
    return float(((grey_FHW > DARK) & (grey_FHW < BRIGHT)).mean())


def _structure(colour_FHW: Float) -> float:
    """Colour contrast of the strongest 2 % against the typical pixel, times how crisp its border is; mean of frames."""
    strong, typical = np.percentile(colour_FHW, 98, axis=(1, 2)), np.median(colour_FHW, axis=(1, 2))
    contrast = strong - typical
    border = np.percentile(_gradient(colour_FHW), 98, axis=(1, 2)) / np.maximum(contrast, 0.05)
    return float((np.clip(contrast / SATURATED, 0.0, 1.0) * np.clip(border / STEEP, 0.0, 1.0)).mean())
