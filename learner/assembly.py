"""Who is made when: one process's part of a run, from the job to the rank that trains.

The model first, an engine around it, the algorithm, the rank that trains with them.
"""

from __future__ import annotations

import torch
from torch import nn

from accord.backbones.adapters import add_reference
from accord.config.job import JobSpec
from accord.plugins import load_impl
from learner.collectives import Ranks
from learner.engine import Engine
from learner.rank import Rank
from learner.torch_engine import TorchEngine


def make_engine(job: JobSpec, module: nn.Module) -> Engine:
    """The engine that the job names, around a model with adapter roles."""
    if job.cluster.engine == "torch":
        return TorchEngine(module, job.optimizer)
    from learner.zero import ZeroEngine  # seconds to import, and only for those who want it

    return ZeroEngine(module, job.optimizer, job.cluster.zero_stage)


def make_rank(job: JobSpec, device: str = "cpu") -> Rank:
    """This process among the learner ranks, with a model of its own. A process group is initialised before, if any.

    Raises what loading the model raises (ModelError, SpecError, CheckpointError).
    """
    torch.set_num_threads(job.cluster.torch_threads)
    ranks = Ranks(device)
    backbone = load_impl(job.backbone).load(
        job.backbone, job.sampling, device=device, without=("text", "decoders"), seed=job.seed
    )
    if job.guards.reference_reset is not None:
        add_reference(backbone.velocity_model)
    engine = make_engine(job, backbone.velocity_model)
    return Rank(job, backbone, engine, load_impl(job.algorithm)(job.algorithm), ranks, device)
