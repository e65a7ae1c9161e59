"""The DeepSpeed engine, ZeRO stage 0 to 3: the only file that knows DeepSpeed.

Its configuration is derived from the job; nobody writes a DeepSpeed file. The optimizer is torch's AdamW, so nothing is
compiled. Gradients pile up locally and are averaged when `step` is called.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

if not torch.cuda.is_available():
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed looks once, at import

import deepspeed

from accord.backbones.base import Conditions
from accord.config.job import OptimizerSpec
from accord.types import Modality, Role
from learner.engine import AdapterState, Engine, Latents, adamw, squared_norms
from learner.memory import BUCKET

warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)  # DeepSpeed's call
setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010
# AdamW and the collectives are torch's. Left alone, DeepSpeed would compile a shared-memory collective with the local
# compiler on first use: minutes of waiting, and sums in another order on machines that have one.


def zero_config(spec: OptimizerSpec, stage: int, adapter_size: int) -> dict[str, Any]:
    """Return DeepSpeed's dictionary for float32 adapters of `adapter_size` trained numbers.

    Communication overlap stays off: overlapped reduction orders sums by timing, and a job's result must not depend on
    timing.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": spec.max_grad_norm if stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "steps_per_print": 1_000_000_000,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": False,
            "round_robin_gradients": False,
            "reduce_bucket_size": min(adapter_size, BUCKET),
            "allgather_bucket_size": min(adapter_size, BUCKET),
        },
    }


def pieces(parameters: Sequence[nn.Parameter], skipped: int, room: int) -> list[tuple[nn.Parameter, int]]:
    """How many numbers of each parameter lie in a flat partition of `room`, `skipped` ones of the first excluded."""
    found = []
    for parameter in parameters:
        size = min(parameter.numel() - skipped, room)
        found.append((parameter, size))
        room, skipped = room - size, 0
    return found


class ZeroEngine(Engine):
    """DeepSpeed around the model. Needs an initialised torch.distributed process group, also for one rank."""

    def __init__(self, module: nn.Module, spec: OptimizerSpec, stage: int) -> None:
        super().__init__(module, spec)
        self.stage = stage
        self.layout = f"zero{stage}"
        self.sharded = stage > 0
        if not deepspeed.comm.is_initialized():
            backend = torch.distributed.get_backend()
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        optimizer = adamw(self.parameters, spec)
        config = zero_config(spec, stage, sum(parameter.numel() for parameter in self.parameters))
        self.grad_norm = float("nan")
        self.gradient_squares = torch.zeros(len(self.parameters), dtype=torch.float64)
        optimizer.register_step_pre_hook(self._clip if stage == 0 else self._measure)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )

    @override
    def velocity(self, latents: Latents, sigmas: Latents, conditions: Conditions) -> dict[Modality, Tensor]:
        """The model's forward under the active role; ZeRO-3 gathers parameters on the way."""
        return self.engine(latents, sigmas, conditions)

    @override
    def backward(self, loss: Tensor) -> None:
        """Accumulate; stages 2 and 3 average into their partition at once."""
        self.engine.backward(loss, scale_wrt_gas=False)

    @override
    def step(self) -> float:
        """Finish averaging, clip by the global norm, update, clear."""
        if self.watch_gradients:
            self.gradient_squares = torch.zeros_like(self.gradient_squares, device=self.parameters[0].device)
        self.engine.step()
        if self.stage == 0:
            return self.grad_norm
        norm = float(self.engine.get_global_grad_norm())
        # They were taken behind the clipping, which multiplied by the inverse of this.
        self.gradient_squares *= max(1.0, (norm + 1e-6) / self.max_grad_norm) ** 2
        return norm

    def _clip(self, *_call: Any) -> None:
        """Stage 0 only: between averaging and update. DeepSpeed's own clipping there keeps the norm to itself."""
        if self.watch_gradients:  # all ranks hold the same gradient; each speaks for its share
            whole = squared_norms([parameter.grad for parameter in self.parameters], self.parameters[0].device)
            self.gradient_squares = whole / torch.distributed.get_world_size()
        self.grad_norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))

    def _measure(self, optimizer: torch.optim.Optimizer, *_call: Any) -> None:
        """Stages 1 to 3, right before an update: the norms of this rank's pieces of the averaged gradient."""
        if not self.watch_gradients:
            return
        numbers = {id(flat): number for number, flat in enumerate(self.updated[1])}
        slots = {id(parameter): slot for slot, parameter in enumerate(self.parameters)}
        for flat in (flat for group in optimizer.param_groups for flat in group["params"] if flat.grad is not None):
            pieces = self._pieces(numbers[id(flat)])
            sizes = [size for _, size in pieces]
            parts = flat.grad.view(-1)[: sum(sizes)].split(sizes)
            places = torch.tensor([slots[id(parameter)] for parameter, _ in pieces], device=flat.device)
            self.gradient_squares.index_add_(0, places, squared_norms(parts, flat.device))

    def _pieces(self, number: int) -> list[tuple[nn.Parameter, int]]:
        """Whose gradient, and how many numbers of it, stand one after the other in this rank's flat tensor `number`."""
        if self.stage == 3:
            return [(parameter, parameter.partition_numel()) for parameter in self.optimizer.fp16_groups[number]]
        inside, skipped = self.optimizer.params_in_partition[number], self.optimizer.first_offset[number]
        return pieces(inside, skipped, int(self.optimizer.partition_size[number]))

    @override
    def load_adapters(self, states: Mapping[Role, AdapterState]) -> None:
        """With the trained role, the optimizer's own copy of it is overwritten, too."""
        super().load_adapters(states)
        if self.stage > 0 and "policy" in states:
            self.optimizer.refresh_fp32_params()

    @property
    @override
    def updated(self) -> tuple[torch.optim.Optimizer, Sequence[Tensor]]:
        """The AdamW that DeepSpeed drives, and the tensors that it updates on this rank."""
        if self.stage == 0:
            return self.optimizer, self.parameters
        flat = "single_partition_of_fp32_groups" if self.stage < 3 else "fp32_partitioned_groups_flat"
        return self.optimizer.optimizer, getattr(self.optimizer, flat)

    @override
    @contextmanager
    def whole(self, change: bool = False) -> Iterator[None]:
        """Gather the adapters of a ZeRO-3 model. Every rank makes the same change; rank 0's is what is kept."""
        if self.stage < 3:
            yield
            return
        lora = [parameter for name, parameter in self.module.named_parameters() if "lora_" in name]
        with deepspeed.zero.GatheredParameters(lora, modifier_rank=0 if change else None):
            yield
