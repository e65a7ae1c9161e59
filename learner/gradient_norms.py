"""Where a step's gradient is: its norm by modality and block, and what video brings into the sound.

    gradient/<modality>/<block>           norm of the policy adapter's gradient in the parts of that block which write
                                          that modality's stream
    gradient/audio_from_video/<block>     norm of the gradient that reaches the audio stream through that block's
                                          audio-to-video cross-attention, behind gradient surgery

All are taken of the mean loss over every sample, noise level and rank of the step, before clipping, so neither the
micro-batch nor the number of ranks changes them. The first kind is read from the gradient that the engine is about to
clip: the squares of all of them add up to that of `grad_norm` while the adapter is in the blocks alone. The second kind
is not the gradient of a weight but of an activation, the hidden state [B, T_audio, C] that the attention takes as its
context, for all samples of the step together. Squares are added up on the device; one collective and one copy to the
host bring them out, once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from accord.backbones.adapters import adapter_parameters
from accord.backbones.base import VelocityModel, capable
from accord.backbones.surgery import watch_audio_from_video
from learner.collectives import Ranks
from learner.engine import Engine


class GradientNorms:
    """The norms of one engine's steps. Made on every rank; `metrics` is called on every rank after `Engine.step`."""

    def __init__(self, engine: Engine, ranks: Ranks, attentions: Sequence[nn.Module]) -> None:
        """`attentions`: `audio_to_video` of the engine's module."""
        self.engine, self.ranks, self.attentions = engine, ranks, attentions
        engine.watch_gradients = True
        adapter, model = adapter_parameters(engine.module, "policy"), capable(engine.module, VelocityModel)
        branches = {id(tensor): model.branch_of(key) for key, tensor in adapter.items()} if model else {}
        owners = [branches.get(id(parameter)) for parameter in engine.parameters]
        self.branches = sorted({owner for owner in owners if owner is not None})
        self.places = [self.branches.index(owner) if owner else len(self.branches) for owner in owners]
        self.arrived: dict[int, Tensor] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Enter around the forward and backward of a micro-batch."""
        return watch_audio_from_video(self.attentions, self._arrive)

    def _arrive(self, block: int, gradient: Tensor) -> None:
        square = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float64).square()
        self.arrived[block] = self.arrived.get(block, 0) + square

    def metrics(self) -> dict[str, float]:
        """The norms of the step that just ended, equal on every rank; the next one starts from nothing.

        Empty for a network that tells no branches apart and has no such attention.
        """
        if not self.branches and not self.attentions:
            return {}
        squares = self.engine.gradient_squares
        own = torch.zeros(len(self.branches) + 1, dtype=torch.float64, device=squares.device)
        own.index_add_(0, torch.tensor(self.places, device=squares.device), squares)
        blocks = range(len(self.attentions))
        nothing = torch.zeros((), dtype=torch.float64, device=squares.device)
        # A rank's loss is the mean over its own samples, and the step's loss the mean over ranks.
        arrived = [self.arrived.get(block, nothing) / self.ranks.count**2 for block in blocks]
        whole = self.ranks.sum(torch.stack([*own[:-1], *arrived]))
        self.arrived = {}
        names = [f"{modality}/{block:02d}" for modality, block in self.branches]
        names += [f"audio_from_video/{block:02d}" for block in blocks]
        return {f"gradient/{name}": value for name, value in zip(names, whole.sqrt().tolist(), strict=True)}
