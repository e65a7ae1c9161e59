"""How big a model is and what a forward of it keeps, without its weights: everything is counted on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes per sample of a batch."""

    plain: int
    """What autograd keeps between forward and backward."""
    checkpointed: int
    """The same with gradient checkpointing: the inputs of all blocks, and what one block keeps while it runs again."""
    block: int
    """What it keeps of one block."""
    forward: int
    """Most that lives at once in a forward without gradient."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """A backbone in numbers, for one clip size."""

    parameters: Mapping[str, int]
    """By component, buffers included."""
    weight_bytes: Mapping[str, int]
    """By component, in the type it is loaded in."""
    trained: str
    """The one component that learner ranks load; they train it, and ZeRO partitions it."""
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


def _attention(fused: bool) -> AbstractContextManager[Any]:
    return _Fused() if fused else nullcontext()


class _Live(TorchDispatchMode):
    """While entered, counts the bytes of all tensors that are made, and takes them off when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        del types
        result = func(*args, **(kwargs or {}))
        before = {id_of(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id_of(tensor) not in before:  # a view or in-place result makes nothing
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        del self.seen[key]


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

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _attention(fused):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def peak_bytes(forward: Callable[[], Any], *, fused: bool = True, grad: bool = False) -> int:
    """Most bytes of tensors that live at once while `forward` runs; what existed before is left out.

    `fused` as in `kept_bytes`. Without `grad`, autograd keeps nothing.
    """
    counted = _Live()
    with torch.set_grad_enabled(grad), _attention(fused), counted:
        forward()
    return counted.peak


def id_of(tensor: Tensor) -> int:
    """What views of one storage share."""
    return tensor.untyped_storage()._cdata
