"""The engine port: a model with adapter roles, an optimizer on one of them, and how gradients are summed.

Contract of every engine: the loss handed to `backward` is this rank's mean over its own samples of the step, split over
as many calls as the caller likes; the gradient that `step` uses is the average over ranks. So the step is that of the
mean loss over all samples, whatever the engine and the number of ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from accord.backbones import adapters
from accord.backbones.base import Conditions
from accord.config.job import OptimizerSpec
from accord.errors import CheckpointError
from accord.types import Modality, Role

Latents = Mapping[Modality, Tensor]
AdapterState = Mapping[str, np.ndarray]


class Engine(ABC):
    """What a rank needs to train. All methods are called on every rank, in the same order."""

    layout: str
    """How optimizer state is cut; a checkpoint of another layout does not fit."""
    sharded: bool
    """True: every rank holds a part of the optimizer state. False: all hold the same."""
    watch_gradients = False
    """Set it to have `step` leave `gradient_squares`."""
    gradient_squares: Tensor
    """float64, one number per tensor of `parameters`: the squared norm of the part of its gradient in the last
    step that this rank speaks for, before clipping. Their sum over ranks is that of the whole step."""

    def __init__(self, module: nn.Module, spec: OptimizerSpec) -> None:
        self.module = module
        self.max_grad_norm = spec.max_grad_norm
        self.parameters = trainable(module)
        self.roles = adapters.roles(module)
        """Those that have tensors of their own."""

    @abstractmethod
    def velocity(self, latents: Latents, sigmas: Latents, conditions: Conditions) -> dict[Modality, Tensor]:
        """The model's forward under the active role."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss to this rank's."""

    @abstractmethod
    def step(self) -> float:
        """Average over ranks, clip, update, clear. Returns the norm of the whole gradient before clipping."""

    @property
    @abstractmethod
    def updated(self) -> tuple[torch.optim.Optimizer, Sequence[Tensor]]:
        """The AdamW, and the tensors that it updates on this rank."""

    def whole(self, change: bool = False) -> AbstractContextManager[None]:
        """While entered, every rank has the adapters in full; with `change` all of them make the same change."""
        del change
        return nullcontext()

    def adapter_state(self, role: Role) -> dict[str, np.ndarray]:
        """Full float32 tensors of a role, on every rank."""
        with self.whole():
            return adapters.adapter_state(self.module, role)

    def load_adapters(self, states: Mapping[Role, AdapterState]) -> None:
        """Overwrite roles. Raises CheckpointError when names or shapes do not fit."""
        with self.whole(change=True):
            for role, state in states.items():
                adapters.load_adapter_state(self.module, role, state)

    def optimizer_state(self) -> dict[str, Tensor]:
        """This rank's optimizer tensors by `<parameter number>/<key>`, to be loaded again bit for bit."""
        optimizer, parameters = self.updated
        return {
            f"{number}/{key}": torch.as_tensor(value).detach().cpu().contiguous().clone()
            for number, parameter in enumerate(parameters)
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned on the same rank. Raises CheckpointError when it does not fit."""
        optimizer, parameters = self.updated
        fresh: dict[int, dict[str, Tensor]] = {number: {} for number in range(len(parameters))}
        for name, value in state.items():
            place, _, key = name.partition("/")
            if not place.isdigit() or int(place) not in fresh:
                raise CheckpointError(f"optimizer state {name!r} has no parameter here ({len(parameters)} parameters)")
            parameter = parameters[int(place)]
            if value.dim() and value.shape != parameter.shape:
                raise CheckpointError(f"optimizer state {name!r} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
            fresh[int(place)][key] = value.clone().to(parameter.device if value.dim() else "cpu")
        for number, parameter in enumerate(parameters):
            optimizer.state.pop(parameter, None)
            if fresh[number]:
                optimizer.state[parameter] = fresh[number]

    def blend_old(self, eta: float) -> None:
        """Blend: old <- eta old + (1 - eta) policy."""
        with self.whole(change=True):
            adapters.blend_(self.module, into="old", source="policy", eta=eta)

    def reset_reference(self) -> None:
        """Copy: ref <- policy. Only where the reference has tensors of its own."""
        with self.whole(change=True):
            adapters.blend_(self.module, into="ref", source="policy", eta=0.0)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of the policy adapter, in the module's order. Raises ValueError when there is none."""
    found = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("no parameter of the model requires a gradient; add adapter roles before making an engine")
    return found


def squared_norms(gradients: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return the squared norm of each tensor, float64 on `device`; 0 for what got no gradient."""
    norms = [
        torch.zeros((), dtype=torch.float64, device=device)
        if gradient is None
        else torch.linalg.vector_norm(gradient, dtype=torch.float64)
        for gradient in gradients
    ]
    return torch.stack(norms).square()


def adamw(parameters: list[nn.Parameter], spec: OptimizerSpec) -> torch.optim.AdamW:
    """The one optimizer. `foreach=False` keeps the arithmetic the same on every device and engine."""
    return torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=spec.betas, eps=1e-8, weight_decay=spec.weight_decay, foreach=False
    )
