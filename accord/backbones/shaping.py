"""Shapers and probes: gradient surgery, what it lets through, attention capture. No forward value ever changes.

The model is found by walking modules, so any wrapper may be around it; blocks are in the order of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accord.backbones.base import CrossAttends, WatchesAttention, capable, demanded
from accord.config.algorithms import SurgerySpec
from accord.errors import SpecError
from accord.types import Capture

_EDGE = 1e-9
"""Tolerance of products such as 10/48 * 48."""


@contextmanager
def gradient_surgery(attentions: Sequence[nn.Module], spec: SurgerySpec) -> Iterator[None]:
    """Scale the gradient that flows from video into audio at each of `audio_to_video(model)` (OmniNFT eq. 8-9).

    K' = sg(K) + keep * (K - sg(K)), likewise V, for `tensor = "kv"`; the same on the audio hidden state in front of
    both projections for `"context"`, which leaves their own weights the full gradient. Enter it around forward *and*
    backward: gradient checkpointing computes the forward again inside backward.
    """
    if spec.enabled and not attentions:
        raise SpecError([("/algorithm/surgery", "the backbone has no audio-to-video cross-attention to operate on")])
    try:
        factors = spec.factors(len(attentions))
    except ValueError as error:
        pointer, _, message = str(error).partition(": ")
        raise SpecError([(f"/algorithm/surgery{pointer}", message)]) from None
    with ExitStack() as stack:
        for attention, keep in zip(attentions, factors, strict=True):
            for handle in _surgery_hooks(attention, spec.tensor, keep) if keep != 1.0 else ():
                stack.callback(handle.remove)
        yield


@contextmanager
def watch_audio_from_video(attentions: Sequence[nn.Module], sink: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show `sink(block, gradient)` what comes back to the audio stream through each of `audio_to_video(model)`.

    The gradient [B, T_audio, C] is that of the audio hidden state which the attention takes as its context, once per
    forward that leads to a loss, through keys and values together and behind gradient surgery, whichever of the two is
    entered first. Blocks count from 0; one to which nothing comes back is not reported. Enter it around forward *and*
    backward.
    """
    with ExitStack() as stack:
        for block, attention in enumerate(attentions):
            hook = _tap(partial(sink, block))
            stack.callback(attention.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
        yield


def _tap(sink: Callable[[Tensor], None]) -> Any:
    """A pre-hook that passes the context on as a view of its own, whose gradient is shown."""

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        context = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
        seen = context.view_as(context)
        if seen.requires_grad:
            seen.register_hook(sink)
        if "encoder_hidden_states" in kwargs:
            return args, {**kwargs, "encoder_hidden_states": seen}
        return (args[0], seen, *args[2:]), kwargs

    return hook


def audio_to_video(module: nn.Module) -> list[nn.Module]:
    """The attentions by which video reads sound, of the model inside `module`, in its order; [] for one without."""
    model = capable(module, CrossAttends)
    return [] if model is None else model.audio_to_video()


def _surgery_hooks(attention: Any, tensor: str, keep: float) -> list[Any]:
    if tensor == "kv":

        def scale_output(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            return scale_gradient(output, keep)

        return [layer.register_forward_hook(scale_output) for layer in (attention.to_k, attention.to_v)]

    def scale_context(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "encoder_hidden_states" in kwargs:
            context = scale_gradient(kwargs["encoder_hidden_states"], keep)
            return args, {**kwargs, "encoder_hidden_states": context}
        return (args[0], scale_gradient(args[1], keep), *args[2:]), kwargs

    return [attention.register_forward_pre_hook(scale_context, with_kwargs=True)]


def scale_gradient(x: Tensor, keep: float) -> Tensor:
    """Return x bit for bit; its gradient is multiplied by `keep` on the way back."""
    if keep == 0.0:
        return x.detach()
    scaled: Tensor = _Scale.apply(x, keep)
    return scaled


class _Scale(torch.autograd.Function):
    """Identity forward, scaled backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: float) -> Tensor:
        ctx.keep = keep
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.keep, None


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
