"""How big a model is and what a forward of it keeps, without its weights: everything is counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that autograd keeps between forward and backward, per sample of a batch."""

    plain: int
    checkpointed: int
    """With gradient checkpointing: the inputs of all blocks, and what one block keeps while it runs again."""
    block: int
    """Of one block; also a bound on what a forward without gradient needs at a time."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A backbone in numbers, for one clip size."""

    parameters: Mapping[str, int]
    """By component, buffers included."""
    weight_bytes: Mapping[str, int]
    """By component, in the type it is loaded in."""
    trained: str
    """The component that learner ranks train, and that ZeRO partitions."""
    decoders: tuple[str, ...]
    """Components that only rollout workers load."""
    adapter_parameters: int
    """Of one role."""
    depth: int
    tokens: Mapping[str, int]
    """Of one clip by modality, and of the text."""
    clip_bytes: int
    """One decoded clip: uint8 frames and float32 sound."""
    activations: Activations


class _FusedAttention(torch.autograd.Function):
    """Attention as a fused kernel keeps it: queries, keys, values and result, no map of queries against keys.

    Only counted, never computed: on the meta device torch would choose the kernel that keeps the map.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, queries, _ = query.shape
        result = query.new_empty(batch, queries, heads, value.shape[-1]).transpose(1, 2)  # so that heads join by a view
        ctx.save_for_backward(query, key, value, result)
        return result


class _Fused(TorchFunctionMode):
    """While entered, attention is `_FusedAttention`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every function."""
        del types
        named = kwargs or {}
        if func is scaled_dot_product_attention:
            places = ("query", "key", "value")
            return _FusedAttention.apply(*(named[k] if k in named else args[i] for i, k in enumerate(places)))
        return func(*args, **named)


def kept_bytes(module: nn.Module, forward: Callable[[], Any], *, fused: bool = True) -> int:
    """Bytes that autograd keeps for backward while `forward` runs, each storage once, the module's weights left out.

    `fused` replaces attention by what a fused kernel keeps, which computes nothing: for the meta device only.
    """
    weights = {id_of(parameter) for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id_of(tensor) not in weights:
            kept[id_of(tensor)] = tensor  # held on to, so that no other tensor gets its identity
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if fused:
            with _Fused():
                forward()
        else:
            forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def id_of(tensor: Tensor) -> int:
    """What views of one storage share."""
    return tensor.untyped_storage()._cdata
