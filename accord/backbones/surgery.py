"""Gradient surgery, and what it lets through. No forward value ever changes.

The model is found by walking modules, so any wrapper may be around it; blocks are in the order of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from accord.backbones.base import CrossAttends, capable
from accord.config.algorithm_parts import SurgerySpec
from accord.errors import SpecError


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
            hook = _on_context(partial(_shown, partial(sink, block)))
            stack.callback(attention.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
        yield


def _shown(sink: Callable[[Tensor], None], context: Tensor) -> Tensor:
    """A view of its own, whose gradient is shown."""
    seen = context.view_as(context)
    if seen.requires_grad:
        seen.register_hook(sink)
    return seen


def _on_context(change: Callable[[Tensor], Tensor]) -> Any:
    """A pre-hook of an attention that changes its context."""

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "encoder_hidden_states" in kwargs:
            return args, {**kwargs, "encoder_hidden_states": change(kwargs["encoder_hidden_states"])}
        return (args[0], change(args[1]), *args[2:]), kwargs

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

    hook = _on_context(partial(scale_gradient, keep=keep))
    return [attention.register_forward_pre_hook(hook, with_kwargs=True)]


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
