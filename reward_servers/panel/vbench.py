"""Three of VBench's sixteen dimensions (Huang et al., CVPR 2024) without weights: flicker, smoothness, dynamics.

`temporal_flicker` is VBench's own number, to the rounding. `motion_smoothness` and `dynamic_degree` are twins: VBench's
formulas with optical flow (reward_servers/flow.py) in place of its learned interpolator (AMT-S) and flow (RAFT), so
their numbers compare among themselves and not with published tables. All three are in [0, 1], higher is better. Flicker
and smoothness are squeezed into the top of the range and perfect on a frozen clip, which dynamic degree alone punishes:
they are there to be measured (weight 0); `motion` is there to be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.flow import carried, dense_flow, fastest, grey_frames
from reward_servers.signals import Float, Pixels

SHORT_SIDE = 128
LOOKS_PER_S = 8.0
FAST = 6.0 / 256.0
"""Displacement between two looks, in short sides, above which VBench calls a pair of frames dynamic."""
DYNAMIC_SHARE = 4.0 / 16.0
"""Share of frames whose pair must be dynamic for VBench to call the clip so."""


class TemporalFlickerModel(RewardModel):
    """VBench's temporal flickering: (255 - mean absolute difference of neighbouring frames) / 255.

    Over all pixels and colours at the size they have. Limits: meant for clips that stand still; what moves, the camera
    included, counts as flicker. Hack: a frozen clip.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """No components: the value is the number."""
        return Score(float((255.0 - _change(clip.video_FHWC).mean()) / 255.0))

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """The mean absolute difference of each frame from the one before."""
        change = _change(clip.video_FHWC)
        return [Curve("difference", np.arange(1, len(change) + 1) / clip.fps, change, "of 255")]


class MotionSmoothnessModel(RewardModel):
    """A twin of VBench's motion smoothness: (255 - mean absolute error of the frames left out) / 255.

    Every second frame is left out and drawn from its two neighbours: each is carried half its way along the flow to the
    other, and the two are averaged. Grey, at a short side of 128. Limits: noise counts as roughness; motion is taken to
    be even and straight over two frames; a real contact is rough. Hack: a frozen clip.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `error`, the mean absolute error as a share of full scale."""
        error = float(_left_out(clip.video_FHWC).mean()) / 255.0
        return Score(1.0 - error, {"error": error})

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """The error of each frame left out."""
        error = _left_out(clip.video_FHWC)
        return [Curve("error", (2 * np.arange(len(error)) + 1) / clip.fps, error, "of 255")]


class DynamicDegreeModel(RewardModel):
    """A twin of VBench's dynamic degree, made continuous: r / (r + 1), 0.5 where VBench's verdict turns.

    Eight looks a second; between two of them the mean displacement of the 5 % of pixels that move most, over 6 pixels
    per 256 of the short side. VBench calls a clip dynamic when that exceeds 1 for as many pairs as a quarter of the
    looks, so r is the largest number that so many pairs reach. Limits: motion faster than the search reaches is cut.
    Hacks: camera shake and boiling noise; train `motion` instead.
    """

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `ratio` (r) and `dynamic` (VBench's verdict). Without any motion, the floor (`no_events`)."""
        _, ratios = _displacements(clip)
        wanted = max(1, round(DYNAMIC_SHARE * (len(ratios) + 1)))
        ratio = float(np.sort(ratios)[-min(wanted, len(ratios))])
        components = {"ratio": ratio, "dynamic": float(ratio > 1.0)}
        return Score(ratio / (ratio + 1.0), components) if ratio > 0.0 else self.empty("no_events", components)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """The displacement of the fastest pixels over VBench's threshold."""
        times_s, ratios = _displacements(clip)
        return [Curve("displacement", times_s, ratios, "of VBench's threshold")]


def _change(video_FHWC: Pixels) -> Float:
    """Mean absolute difference of each frame from the one before, of 255 [F - 1]."""
    size = video_FHWC[0].size
    return np.array([cv2.norm(a, b, cv2.NORM_L1) / size for a, b in pairwise(video_FHWC)])


def _left_out(video_FHWC: Pixels) -> Float:
    """Mean absolute error of every second frame as drawn from its neighbours, of 255."""
    grey_FHW = grey_frames(video_FHWC, SHORT_SIDE)
    after_FHW = grey_FHW[2::2]
    before_FHW, between_FHW = grey_FHW[: 2 * len(after_FHW) : 2], grey_FHW[1 : 2 * len(after_FHW) : 2]
    forth, back = dense_flow(before_FHW, after_FHW), dense_flow(after_FHW, before_FHW)
    errors = []
    for index, truth in enumerate(between_FHW):
        early = carried(before_FHW[index], back[index] / 2.0)
        late = carried(after_FHW[index], forth[index] / 2.0)
        errors.append(float(np.abs((early + late) / 2.0 - truth).mean(dtype=np.float64)))
    return np.array(errors)


def _displacements(clip: Clip) -> tuple[Float, Float]:
    """Times (s) of the looks but the last, and the displacement of the fastest pixels over the threshold."""
    step = min(max(1, round(clip.fps / LOOKS_PER_S)), len(clip.video_FHWC) - 1)
    grey_FHW = grey_frames(clip.video_FHWC[::step], SHORT_SIDE)
    ratios = fastest(dense_flow(grey_FHW[:-1], grey_FHW[1:])) / (FAST * min(grey_FHW.shape[1:]))
    return np.arange(len(ratios)) * step / clip.fps, ratios
