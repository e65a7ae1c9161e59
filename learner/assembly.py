"""Who is made when: one process's part of a run, from the job to what the page works with.

The model first, an engine around it, the algorithm, the rank that trains with them, the run that the page drives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from accord.config.job import JobSpec
from accord.disk import WAIT_S
from accord.events import EventSink
from accord.plugins import load_impl
from accord.run_folder import RunFolder
from accord.types import GroupSource, Prompt
from learner.collectives import Ranks
from learner.engine import Engine
from learner.rank import Rank
from learner.run import Run
from learner.torch_engine import TorchEngine


def _torch(job: JobSpec, module: nn.Module) -> Engine:
    return TorchEngine(module, job.optimizer)


def _deepspeed(job: JobSpec, module: nn.Module) -> Engine:
    from learner.zero import ZeroEngine  # seconds to import, and only for those who want it

    return ZeroEngine(module, job.optimizer, job.cluster.zero_stage)


ENGINES: Mapping[str, Callable[[JobSpec, nn.Module], Engine]] = {"torch": _torch, "deepspeed": _deepspeed}
"""By the name that a job's `cluster.engine` gives."""


def make_engine(job: JobSpec, module: nn.Module) -> Engine:
    """The engine that the job names, around a model with adapter roles."""
    return ENGINES[job.cluster.engine](job, module)


def make_rank(job: JobSpec, device: str = "cpu") -> Rank:
    """This process among the learner ranks, with a model of its own. A process group is initialised before, if any.

    Raises what loading the model raises (ModelError, SpecError, CheckpointError).
    """
    torch.set_num_threads(job.cluster.torch_threads)
    ranks = Ranks(device)
    backbone = load_impl(job.backbone).load(
        job.backbone, job.sampling, device=device, without=("text", "decoders"), seed=job.seed
    )
    engine = make_engine(job, backbone.velocity_model)
    return Rank(job, backbone, engine, load_impl(job.algorithm)(job.algorithm), ranks, device)


def make_run(
    job: JobSpec,
    folder: RunFolder,
    source: GroupSource,
    events: EventSink | None,
    held_out: Sequence[Prompt],
    *,
    device: str = "cpu",
    guard: Callable[[], None] = lambda: None,
    epoch: int = 0,
    began: float | None = None,
    disk_wait_s: float = WAIT_S,
) -> Run:
    """What `learner.train.train` needs, on this rank. Arguments as those of `Run`; only the first rank emits events."""
    rank = make_rank(job, device)
    return Run(
        job, folder, source=source, events=events if rank.ranks.first else None, rank=rank, held_out=held_out,
        guard=guard, epoch=epoch, began=began, disk_wait_s=disk_wait_s,
    )  # fmt: skip
