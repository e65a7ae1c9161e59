"""Things stay what they are, while they move: cuts, morphs and changes of colour cost, and so does standing still.

VBench's formula of consistency (Huang et al., CVPR 2024) over features without weights, on up to 16 frames at even
spacing: with c the cosine between the features of two frames and s(c) = 1 / (1 + (1 - c) / 0.1),

    value = mean over frames t >= 2 of g_t (s(c(t, t-1)) + s(c(t, 1))) / 2.

The features are the square roots of a joint histogram of hue, saturation and value (12 x 4 x 4 bins) and of histograms
of the edges' directions (12 bins, weighted by their strength) in a 3 x 3 grid of cells, each of length 1. A frozen clip
is the most consistent of all, so g_t = m / (m + 0.02), m the speed of the fastest 5 % of the pixels between frame t and
the next in short sides per second (reward_servers/flow.py), 0 where a frame is repeated.

Range [0, 1), higher is better; films 0.3 to 0.8. A clip in which nothing moves gets the floor. A twin of VBench's
subject and background consistency, which compare learned features: weaker, never the same number.
Limits: a change of identity at equal colours and outlines is not seen; a cut that is meant and a fast pan cost as well;
noise and blur hide changes. Known hacks: next to no motion (train `motion` beside it); one plain colour.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.flow import dense_flow, fastest, grey_frames, resized
from reward_servers.signals import Float, Pixels

FRAMES = 16
SHORT_SIDE = 128
HALF = 0.1
LIVELY = 0.02
HSV_BINS = (12, 4, 4)
HSV_RANGES = (0, 180, 0, 256, 0, 256)
DIRECTIONS = 12
CELLS = 3


class ConsistencyModel(RewardModel):
    """VBench's consistency over histograms, gated by motion."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `to_previous`, `to_first` (mean cosines), `liveliness` (mean gate)."""
        _, previous, first, gate = _course(clip.video_FHWC, clip.fps)
        components = {
            "to_previous": float(previous.mean()),
            "to_first": float(first.mean()),
            "liveliness": float(gate.mean()),
        }
        value = float((gate * (_alike(previous) + _alike(first)) / 2.0).mean())
        return Score(value, components) if value > 0.0 else self.empty("no_events", components)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """Both cosines and the gate at each frame that is compared."""
        times_s, *courses = _course(clip.video_FHWC, clip.fps)
        return [
            Curve(label, times_s, values)
            for label, values in zip(("to_previous", "to_first", "liveliness"), courses, strict=True)
        ]


def _alike(cosine: Float) -> Float:
    return np.asarray(1.0 / (1.0 + (1.0 - cosine) / HALF))


def _course(video_FHWC: Pixels, fps: float) -> tuple[Float, Float, Float, Float]:
    """Times (s), cosine to the frame looked at before, to the first, and the gate, of each frame after the first."""
    count = len(video_FHWC)
    places = np.unique(np.linspace(0, count - 2, min(FRAMES, count - 1)).round().astype(int))
    features_ND = np.stack([_features(frame) for frame in resized(video_FHWC[places], SHORT_SIDE)])
    cosine_NN = np.clip(features_ND @ features_ND.T, 0.0, 1.0)
    grey_FHW, next_FHW = (grey_frames(video_FHWC[chosen], SHORT_SIDE) for chosen in (places, places + 1))
    speed = fastest(dense_flow(grey_FHW, next_FHW)) * fps / min(grey_FHW.shape[1:])
    gate = (speed / (speed + LIVELY))[1:]
    return places[1:] / fps, np.diagonal(cosine_NN, 1).copy(), cosine_NN[0, 1:].copy(), gate


def _features(frame_HWC: Pixels) -> NDArray[np.float64]:
    """Colours and outlines of a frame as one vector of length 1."""
    hsv = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2HSV)
    colours = cv2.calcHist([hsv], [0, 1, 2], None, HSV_BINS, HSV_RANGES).ravel()
    parts = [np.sqrt(colours / colours.sum(), dtype=np.float64), _outlines(frame_HWC)]
    return np.concatenate(parts) / np.sqrt(2.0)


def _outlines(frame_HWC: Pixels) -> Float:
    """Square roots of the directions' shares of the edges' strength in each cell, of length 1."""
    grey = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    direction = (np.arctan2(down, across) % np.pi / np.pi * DIRECTIONS).astype(np.int64) % DIRECTIONS
    row, column = (np.arange(size) * CELLS // size for size in grey.shape)
    cell = (row[:, None] * CELLS + column[None]) * DIRECTIONS + direction
    strength = np.bincount(cell.ravel(), np.hypot(across, down).ravel(), CELLS * CELLS * DIRECTIONS) + 1.0
    return np.sqrt(strength / strength.sum())
