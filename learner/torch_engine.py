"""The plain engine: one process, torch alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from accord.backbones.base import Conditions
from accord.config.job import OptimizerSpec
from accord.types import Modality
from learner.engine import Engine, Latents, adamw, squared_norms


class TorchEngine(Engine):
    """One process. It averages over nobody."""

    layout = "torch"
    sharded = False

    def __init__(self, module: nn.Module, spec: OptimizerSpec) -> None:
        super().__init__(module, spec)
        self.optimizer = adamw(self.parameters, spec)

    @override
    def velocity(self, latents: Latents, sigmas: Latents, conditions: Conditions) -> dict[Modality, Tensor]:
        return self.module(latents, sigmas, conditions)

    @override
    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @override
    def step(self) -> float:
        if self.watch_gradients:
            gradients = [parameter.grad for parameter in self.parameters]
            self.gradient_squares = squared_norms(gradients, self.parameters[0].device)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    @property
    @override
    def updated(self) -> tuple[torch.optim.Optimizer, Sequence[Tensor]]:
        return self.optimizer, self.parameters
