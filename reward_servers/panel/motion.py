"""Motion that is there, and smooth: a frozen clip earns nothing, a rough one little.

Dense flow F_t (reward_servers/flow.py) between frames t and t + 1 of a short side of 128 pixels; C_t its median over
the frame, which is the camera's; h the short side. For each frame between two others the square root of a product of

* liveliness m / (m + 0.05): m the speed of the fastest 5 % of the pixels in short sides per second, as VBench's dynamic
  degree has it (its threshold is 0.19). The camera's part counts as its mean over half a second, so shaking is no
  motion; the stiller of the two neighbouring pairs counts, and a repeated frame is one of speed 0;
* evenness 1 / (1 + a / 0.5): a the mean of |F_t - F_t-1|, the camera's part taken out, over the mean of |F| + 0.1 px:
  the kinematic residual (NewtonRewards, arXiv 2512.00425) relative to the speed;
* steadiness 1 / (1 + (|C_t - C_t-1| / h) / 0.004): the camera does not jump;
* brightness 1 / (1 + l / 0.02): l the second difference of the mean brightness over the brightness;
* likeness 1 / (1 + e / 0.1): e the mean error of a frame foretold by its neighbour along the flow, over the frame's
  contrast (Lai et al., ECCV 2018): what morphs, boils or is cut is not foretold.

The value is the mean over frames, so a stretch that stands still earns nothing for its time. Range [0, 1), higher is
better; films 0.3 to 0.6; no term has a ceiling. A clip in which nothing moves gets the floor.
Limits: contacts, cuts and flashes are rough moments, and cost a frame or two each; still scenes are scored low although
they may be what the text asks for; rain, water and flames move at random; grain looks like motion where nothing else
moves. Known hacks: a slow pan over a picture (a text-video reward); blur makes everything foretold (train `picture`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.flow import Flow, carried, dense_flow, fastest, grey_frames
from reward_servers.signals import Float, Pixels

SHORT_SIDE = 128
LIVELY = 0.05
UNEVEN = 0.5
SHAKY = 0.004
FLICKER = 0.02
UNLIKE = 0.1
SLOWEST_PX = 0.1
"""Mean speed, in pixels, that unevenness is measured against where next to nothing moves."""
DARK = 8.0
"""Brightness and contrast, of 255, that are added to those of a frame before anything is divided by them."""
FROZEN_PX = 1e-3


@dataclass(frozen=True, slots=True)
class Course:
    """What each frame between two others is judged by [F - 2]."""

    speed: Float
    """Of the fastest pixels, short sides per second, in the stiller of the two pairs."""
    unevenness: Float
    shake: Float
    flicker: Float
    unlikeness: Float

    @property
    def quality(self) -> Float:
        """Square root of the product of the five terms."""
        product = self.speed / (self.speed + LIVELY)
        for amount, half in (
            (self.unevenness, UNEVEN),
            (self.shake, SHAKY),
            (self.flicker, FLICKER),
            (self.unlikeness, UNLIKE),
        ):
            product = product / (1.0 + amount / half)
        return np.asarray(np.sqrt(product))


class MotionModel(RewardModel):
    """Mean over time of liveliness times smoothness."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `speed`, `unevenness`, `shake`, `flicker`, `unlikeness` (means) and `frozen_share`."""
        course, frozen = _course(clip.video_FHWC, clip.fps)
        components = {name: float(getattr(course, name).mean()) for name in Course.__slots__}
        components["frozen_share"] = frozen
        value = float(course.quality.mean())
        return Score(value, components) if value > 0.0 else self.empty("no_events", components)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """The quality and its five amounts at each frame."""
        course, _ = _course(clip.video_FHWC, clip.fps)
        times_s = np.arange(1, len(course.speed) + 1) / clip.fps
        amounts = [(name, getattr(course, name)) for name in Course.__slots__]
        units = {"speed": "short sides/s"}
        return [
            Curve(name, times_s, values, units.get(name, ""))
            for name, values in [("quality", course.quality), *amounts]
        ]


def _course(video_FHWC: Pixels, fps: float) -> tuple[Course, float]:
    """The course, and the share of pairs of frames between which nothing moves."""
    grey_FHW = grey_frames(video_FHWC, SHORT_SIDE)
    flow = dense_flow(grey_FHW[:-1], grey_FHW[1:])
    short = min(grey_FHW.shape[1:])
    camera_F2 = np.median(flow.reshape(len(flow), -1, 2), axis=1).astype(np.float64)
    own = flow - camera_F2.astype(np.float32)[:, None, None]
    steady = own + _smoothed(camera_F2, fps).astype(np.float32)[:, None, None]
    speed = np.minimum(fastest(flow), fastest(steady)) * fps / short
    course = Course(
        speed=np.minimum(speed[1:], speed[:-1]),
        unevenness=_unevenness(flow, own),
        shake=np.hypot(*np.diff(camera_F2, axis=0).T) / short,
        flicker=_flicker(grey_FHW),
        unlikeness=_unlikeness(grey_FHW, flow),
    )
    return course, float((fastest(flow) < FROZEN_PX).mean())


def _smoothed(camera_F2: Float, fps: float) -> Float:
    """The camera's velocity averaged over about half a second, [F, 2]."""
    span = max(3, round(fps / 2) | 1)
    padded = np.pad(camera_F2, ((span // 2, span // 2), (0, 0)), mode="edge")
    kernel = np.full(span, 1.0 / span)
    return np.stack([np.convolve(padded[:, axis], kernel, "valid") for axis in (0, 1)], axis=1)


def _unevenness(flow_FHW2: Flow, own_FHW2: Flow) -> Float:
    """Change of the pixels' own velocity over their speed, for each two neighbouring pairs."""
    change = np.diff(own_FHW2, axis=0)
    rough = np.hypot(change[..., 0], change[..., 1]).mean(axis=(1, 2), dtype=np.float64)
    speed = np.hypot(flow_FHW2[..., 0], flow_FHW2[..., 1]).mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(rough / ((speed[1:] + speed[:-1]) / 2.0 + SLOWEST_PX))


def _flicker(grey_FHW: Pixels) -> Float:
    """Second difference of the mean brightness, relative to it."""
    level: NDArray[np.float64] = grey_FHW.mean(axis=(1, 2), dtype=np.float64)
    return np.asarray(np.abs(level[2:] - 2.0 * level[1:-1] + level[:-2]) / (level[1:-1] + DARK))


def _unlikeness(grey_FHW: Pixels, flow_FHW2: Flow) -> Float:
    """Error of each frame as foretold by the next along the flow, over its contrast; the worse of two pairs."""
    errors = [
        float(np.abs(carried(after, flow) - before).mean(dtype=np.float64)) / (float(before.std()) + DARK)
        for before, after, flow in zip(grey_FHW[:-1], grey_FHW[1:], flow_FHW2, strict=True)
    ]
    return np.maximum(errors[1:], errors[:-1])
