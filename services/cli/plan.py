"""`accord plan`: what a job will hold in memory and how many forwards a step takes, before anything runs.

consumes: a job and the configs of its model; produces: a table, or the same as JSON. No Ray, no service, no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from accord.backbones.sizes import ModelSizes
from accord.config.contract import RewardSpec
from accord.config.files import files_below, kind_of
from accord.config.job import JobSpec
from accord.errors import UserError
from accord.plugins import load_impl, resolve
from accord.types import Role
from learner.memory import STAGES, Stage, rank_bytes

GIB = 2**30
Bytes = Mapping[str, int]
_HELD = (
    "adapters", "gradients", "optimizer", "buffers", "activations", "activations_checkpointed", "clips", "total",
)  # fmt: skip
"""Rows of the table under the weights."""


def plan(job: JobSpec) -> dict[str, Any]:
    """Count a job: sizes of its model, bytes per process by role, forwards per step.

    Raises UserError for a backbone that cannot be sized and for a job without one, ModelError for a directory that
    cannot be read.
    """
    if not job.samples:
        raise UserError(
            "an evaluation of clips loads no model, so there is nothing to plan; `accord validate` looks at its clips "
            "and at the files of its rewards"
        )
    if not job.backbone.sizes:
        raise UserError(f"backbone {job.backbone.name} cannot be planned: its spec has no `sizes`, which counts it")
    sizes: ModelSizes = resolve(job.backbone.sizes)(job.backbone, job.sampling)
    return {
        "job": job.name,
        "model": {
            "path": job.backbone.path,
            "dtype": job.backbone.dtype,
            "depth": sizes.depth,
            "parameters": dict(sizes.parameters),
            "adapter_parameters": sizes.adapter_parameters,
            "adapter_roles": list(_roles(job)),
            "tokens": dict(sizes.tokens),
        },
        "step": _step(job),
        "rollout_worker": _rollout(job, sizes),
        "learner_rank": {f"zero_{stage}": _rank(job, sizes, stage) for stage in STAGES if job.trains},
        "engine": "torch" if job.cluster.engine == "torch" else f"zero_{job.cluster.zero_stage}",
        "rewards": {reward.name: _reward(reward) for reward in job.rewards},
        "gpus": _gpus(job),
        "notes": [*job.backbone.notes(), *reward_notes(job.rewards)],
    }


def _roles(job: JobSpec) -> tuple[Role, ...]:
    """Whose adapters a learner rank holds, nobody's where nothing is trained; a rollout worker holds policy and old."""
    if not job.trains:
        return ()
    return ("policy", "old") if job.guards.reference_reset is None else ("policy", "old", "ref")


def _group(job: JobSpec) -> int:
    """Clips of a prompt that are sampled together."""
    return job.prompts.group_size if job.trains else job.evaluate.samples_per_prompt


def _rollout(job: JobSpec, sizes: ModelSizes) -> Bytes:
    """Bytes of one rollout worker when it has most clips to make, for an evaluation or a step; `clips` lie in host
    memory."""
    most = max(_group(job), job.evaluate.samples_per_prompt)
    rows = dict(sizes.weight_bytes)
    rows["adapters"] = 8 * sizes.adapter_parameters
    rows["activations"] = most * sizes.activations.forward
    rows["clips"] = most * sizes.clip_bytes
    return rows | {"total": sum(rows.values())}


def _rank(job: JobSpec, sizes: ModelSizes, stage: Stage) -> Bytes:
    """Bytes of one learner rank, which loads the trained component alone.

    The total counts activations the way the job computes them.
    """
    trained = sizes.trained
    held = rank_bytes(
        stage,
        job.cluster.learner_ranks,
        weights=sizes.weight_bytes[trained],
        frozen=sizes.parameters[trained],
        adapter=sizes.adapter_parameters,
        roles=len(_roles(job)),
    )
    rows = {trained: held.pop("weights")} | held
    plain, checkpointed = (
        job.optimizer.micro_batch * kept for kept in (sizes.activations.plain, sizes.activations.checkpointed)
    )
    total = sum(rows.values()) + (checkpointed if job.backbone.gradient_checkpointing else plain)
    return rows | {"activations": plain, "activations_checkpointed": checkpointed, "total": total}


def _reward(reward: RewardSpec) -> dict[str, float]:
    """What a replica of its server asks for, and the bytes of the files that it loads, as far as they are there."""
    try:
        files = {file for named in reward.files() for file in _below(Path(named.path))}
    except UserError:
        files = set()
    held = sum(file.stat().st_size for file in files)
    return {"gpus": reward.num_gpus, "cpus": reward.num_cpus, "files": held}


def _below(path: Path) -> Iterable[Path]:
    kind = kind_of(path)
    return files_below(path) if kind == "directory" else [path] if kind == "file" else []


def _gpus(job: JobSpec) -> dict[str, float]:
    """GPUs by role; rewards with a replica each."""
    cluster = job.cluster
    return {
        "rollout_workers": cluster.rollout_workers * cluster.rollout_gpus,
        "learner_ranks": cluster.learner_ranks * cluster.learner_gpus,
        "rewards": sum(reward.num_gpus for reward in job.rewards),
    }


def reward_notes(rewards: Iterable[RewardSpec]) -> Iterator[str]:
    """Rewards that are meant for a GPU and ask for none."""
    slow = [reward.name for reward in rewards if reward.accelerator and not reward.num_gpus]
    if slow:
        yield f"without num_gpus these rewards run on a CPU, slowly: {', '.join(slow)}"


def _step(job: JobSpec) -> dict[str, int]:
    """How often the model runs in one step, of an evaluation in one batch of prompts. Forwards of sampling count a
    whole group as one batch."""
    groups = math.ceil(job.prompts.per_step / job.cluster.rollout_workers)
    sampled = {
        "clips": job.prompts.per_step * _group(job),
        "rollout_batch": _group(job),
        "rollout_passes": job.sampling.passes,
        "rollout_forwards": groups * job.sampling.num_steps * job.sampling.passes,
    }
    return sampled | _learned(job) if job.trains else sampled


def _learned(job: JobSpec) -> dict[str, int]:
    algorithm = load_impl(job.algorithm)(job.algorithm)
    samples = job.prompts.per_step // job.cluster.learner_ranks * job.prompts.group_size
    items = samples * job.algorithm.draws(job)
    batches = math.ceil(items / job.optimizer.micro_batch)
    again = 1 if job.backbone.gradient_checkpointing else 0
    return {
        "micro_batch": job.optimizer.micro_batch,
        "micro_batches": batches,
        "learner_forwards": batches * (len(algorithm.anchors) + 1 + again),
        "learner_backwards": batches,
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print a plan as tables."""
    model, step = found["model"], found["step"]
    tokens = ", ".join(f"{count} {name}" for name, count in model["tokens"].items())
    billions = sum(model["parameters"].values()) / 1e9
    console.print(f"[bold]{model['path']}[/bold]: {billions:.3g} B parameters, {model['depth']} blocks", soft_wrap=True)
    ranks: Mapping[str, Bytes] = found["learner_rank"]
    roles = f" for each of {', '.join(model['adapter_roles'])}" if ranks else ""
    console.print(f"tokens of a clip: {tokens}; LoRA: {model['adapter_parameters']:,} parameters{roles}")
    sampled = (
        f"{step['clips']} clips; {step['rollout_forwards']} forwards of {step['rollout_batch']} per rollout worker"
    )
    learned = (
        f"; {step['micro_batches']} micro-batches of {step['micro_batch']} per rank, "
        f"{step['learner_forwards']} forwards and {step['learner_backwards']} backwards"
    ) if ranks else ""  # fmt: skip
    console.print(f"{'a step' if ranks else 'a batch of prompts'}: {sampled}{learned}")
    own = found["engine"]
    table = Table(box=None, header_style="dim", title="GiB per process", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("rollout worker", justify="right")
    for name in ranks:
        chosen = name == own or (own == "torch" and name == "zero_0")
        table.add_column(f"rank, {name.replace('_', '-')}{' *' if chosen else ''}", justify="right")
    columns = [found["rollout_worker"], *ranks.values()]
    for row in [row for row in [*model["parameters"], *_HELD] if any(row in rows for rows in columns)]:
        table.add_row(row.replace("_", " "), *(f"{rows[row] / GIB:.3g}" if row in rows else "" for rows in columns))
    console.print(table)
    _show_places(found, console)
    for note in found["notes"]:
        console.print(f"Note: {note}.", style="dim")
    if ranks:
        console.print(
            "* the job's own. The totals hold one kind of activations: the one that the job computes with.", style="dim"
        )


def _show_places(found: Mapping[str, Any], console: Console) -> None:
    """GPUs by role, and how large the rewards' files are."""
    if any(found["gpus"].values()):
        roles = ", ".join(f"{count:g} for {role.replace('_', ' ')}" for role, count in found["gpus"].items())
        console.print(f"GPUs: {roles} (one replica each)")
    files = [f"{name} {asked['files'] / GIB:.3g}" for name, asked in found["rewards"].items() if asked["files"]]
    if files:
        console.print(f"GiB of the files of rewards, for each replica: {', '.join(files)}")
