"""Region weights: attention from sound to picture, captured while sampling. No forward value ever changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from accord.backbones.base import WatchesAttention, demanded
from accord.types import Capture

_EDGE = 1e-9
"""Tolerance of products such as 10/48 * 48."""


class RegionCapture:
    """Collects, during the denoising of a group, how much sound attends to each video token (OmniNFT eq. 10)."""

    def __init__(self, model: WatchesAttention, spec: Capture, num_steps: int) -> None:
        self.model = model
        self.spec = spec
        self.blocks = _between(spec.first_block, spec.last_block, model.depth)
        self.steps = frozenset(_between(spec.first_step, spec.last_step, num_steps))
        self.total: Tensor | None = None
        self.count = 0

    def during(self, step: int) -> AbstractContextManager[None]:
        """Enter around the conditional forward of a step (0-based); watches it if the spec reads that step."""
        if step not in self.steps:
            return nullcontext()
        return self.model.watch_video_attention(self.blocks, self._add)

    def _add(self, mass_BT: Tensor) -> None:
        self.total = mass_BT if self.total is None else self.total + mass_BT
        self.count += 1

    def fork(self, rows: Sequence[int]) -> None:
        """Sample g goes on as a copy of sample rows[g], with what that one has collected so far."""
        if self.total is not None:
            self.total = self.total[rows]

    def scores(self) -> Tensor:
        """Mean over the chosen blocks and steps of the attention each video token got, float32 [G, T]."""
        if self.total is None:
            raise RuntimeError("no attention was captured: no forward ran inside `during`")
        return self.total / self.count

    def weights(self, frames: int) -> Tensor:
        """The weights of the video loss [G, T]; `frames` is the number of latent frames."""
        return region_weights(self.scores(), self.spec.formula, self.spec.strength, frames)


def capture_region(module: nn.Module, spec: Capture, num_steps: int) -> RegionCapture:
    """A fresh RegionCapture for one group denoised in `num_steps` steps by the model inside `module`.

    Nothing is attached to the model outside of `during`. Raises SpecError when there is no such attention to read.
    """
    return RegionCapture(demanded(module, WatchesAttention, "/algorithm/region"), spec, num_steps)


def region_weights(scores_GT: Tensor, formula: str, strength: float, frames: int) -> Tensor:
    """Turn attention scores into token weights, float32 [G, T].

    `minmax` (OmniNFT eq. 11): w = 1 + strength * (s - min s) / (max s - min s), per sample.
    `frame_sigmoid` (released code): w = 1 + strength * sigmoid(strength * z), z standardised within a latent frame.
    A sample or frame without any spread has s = min s, and z = 0.
    """
    scores = scores_GT.float()
    if formula == "minmax":
        low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
        return 1.0 + strength * _ratio(scores - low, high - low)
    by_frame = scores.unflatten(1, (frames, -1))
    centred = by_frame - by_frame.mean(dim=2, keepdim=True)
    spread = by_frame.std(dim=2, keepdim=True) if by_frame.shape[2] > 1 else torch.zeros_like(centred)
    return (1.0 + strength * torch.sigmoid(strength * _ratio(centred, spread))).flatten(1)


def _ratio(value: Tensor, unit: Tensor) -> Tensor:
    """Value / unit, and 0 where the unit is 0."""
    return torch.where(unit > 0, value / torch.where(unit > 0, unit, 1.0), 0.0)


def _between(first: float, last: float, count: int) -> list[int]:
    """Indices i of `count` with floor(first * count) <= i <= floor(last * count)."""
    low = min(math.floor(first * count + _EDGE), count - 1)
    return list(range(low, min(math.floor(last * count + _EDGE), count - 1) + 1))
