"""The plain engine: one process, torch alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from accord.backbones import adapters
from accord.backbones.base import Conditions
from accord.config.job import OptimizerSpec
from accord.types import Modality, Role
from learner.engine import (
    AdapterState,
    Latents,
    adamw,
    optimizer_tensors,
    set_optimizer_tensors,
    squared_norms,
    trainable,
)


class TorchEngine:
    """One process. It averages over nobody."""

    layout = "torch"
    sharded = False
    watch_gradients = False
    gradient_squares: Tensor

    def __init__(self, module: nn.Module, spec: OptimizerSpec) -> None:
        self.module = module
        self.max_grad_norm = spec.max_grad_norm
        self.parameters = trainable(module)
        self.optimizer = adamw(self.parameters, spec)

    def velocity(self, latents: Latents, sigmas: Latents, conditions: Conditions) -> dict[Modality, Tensor]:
        """The model's forward under the active role."""
        return self.module(latents, sigmas, conditions)

    def backward(self, loss: Tensor) -> None:
        """Accumulate into `.grad`."""
        loss.backward()

    def step(self) -> float:
        """Clip, update, clear."""
        if self.watch_gradients:
            gradients = [parameter.grad for parameter in self.parameters]
            self.gradient_squares = squared_norms(gradients, self.parameters[0].device)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def adapter_state(self, role: Role) -> dict[str, np.ndarray]:
        """Full float32 tensors of a role."""
        return adapters.adapter_state(self.module, role)

    def load_adapters(self, states: Mapping[Role, AdapterState]) -> None:
        """Overwrite roles."""
        for role, state in states.items():
            adapters.load_adapter_state(self.module, role, state)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter number."""
        return optimizer_tensors(self.optimizer, self.parameters)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore moments and step counts."""
        set_optimizer_tensors(self.optimizer, self.parameters, state)

    def blend_old(self, eta: float) -> None:
        """Blend: old <- eta old + (1 - eta) policy."""
        adapters.blend_(self.module, into="old", source="policy", eta=eta)
