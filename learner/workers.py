"""The learner's processes: a Ray Train worker group in which every rank runs the page.

consumes: a job, an empty or half-finished run folder, a source of groups; waits for: placement, groups, its peers;
produces: the run folder and a TrainResult; unblocked by: the attempt's deadline, the group's restart after a death.

A rank that dies takes the group with it; Ray Train starts the group again and the page goes on from the latest
checkpoint. An error that would only happen again ends the group at once, and `run` raises it as itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.disk import WAIT_S
from accord.errors import AccordError, DeadlineExceeded, ours
from accord.events import EventSink, ProcessLost
from accord.run_folder import LEARNER, RunFolder
from accord.types import GroupSource, Prompt
from learner.outcome import TrainResult

MAX_RESTARTS = 3
START_TIMEOUT_S = 300
"""Placement and start of all ranks."""
COLLECTIVE_TIMEOUT_S = 7200
"""Longest wait for a peer: rank 0 evaluates while the others wait."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What every rank needs; it travels to them pickled."""

    job: JobSpec
    folder: RunFolder
    held_out: Sequence[Prompt]
    source: GroupSource
    events: EventSink
    guard: Callable[[], None]
    epoch: int
    began: float | None = None
    disk_wait_s: float = WAIT_S


def run(
    job: JobSpec,
    folder: RunFolder,
    *,
    source: GroupSource,
    events: EventSink,
    guard: Callable[[], None] = lambda: None,
    epoch: int = 0,
    began: float | None = None,
    deadline_s: float | None = None,
    disk_wait_s: float = WAIT_S,
) -> TrainResult:
    """Train the job to its end in a connected Ray cluster. `source`, `events`
    and `guard` pickle: every rank gets its own copy, which connects when first used.

    `began` is the Unix time at which the attempt began, for its start-up time. A write waits up to `disk_wait_s` for
    room in the run folder.

    Raises the error of the page; DeadlineExceeded after `deadline_s` (default: the job's max_runtime_s); AccordError
    when the ranks died more often than MAX_RESTARTS or could not be placed. The caller ends what still runs by
    disconnecting from Ray.
    """
    deadline_s = job.max_runtime_s if deadline_s is None else deadline_s
    held_out = load_prompts(job.prompts.held_out)
    launch = Launch(job, folder, held_out, source, events, guard, epoch, began, disk_wait_s)
    outcome = _fit_within(launch, deadline_s)
    if isinstance(outcome, Exception):
        raise _page_error(outcome)
    return TrainResult(**outcome)


def _page_error(outcome: Exception) -> AccordError:
    """The error of ours that a rank raised, as itself; else one that tells what the ranks ended with."""
    ranks: dict[int, Exception] = getattr(outcome, "worker_failures", {})
    for error in (*(ranks[rank] for rank in sorted(ranks)), outcome):
        found = ours(error)
        if found is not None:
            return found
    wrapped = AccordError(f"the learner ranks failed: {outcome}")
    wrapped.__cause__ = outcome
    return wrapped


def _fit_within(launch: Launch, deadline_s: float) -> Any:
    """Ray Train's `fit` waits without end, so it gets a thread and we keep the clock."""
    box: list[Any] = []

    def fit() -> None:
        try:
            box.append(_fit(launch))
        except Exception as error:  # whatever Ray raises is the outcome; `run` turns it into ours
            box.append(error)

    thread = threading.Thread(target=fit, daemon=True, name="learner-group")
    thread.start()
    thread.join(max(deadline_s, 0.0))
    if not box:
        raise DeadlineExceeded(
            f"training was not done after {deadline_s:.0f} s; raise max_runtime_s, or train fewer steps"
        )
    return box[0]


def _fit(launch: Launch) -> Any:
    """Start the group and wait for it. Returns what the page returned on rank 0; raises what Ray Train ended with."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths of the job mean what they mean here
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less; a lost rank is noticed anyway
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import RunConfig, ScalingConfig

    from learner.trainer import Trainer, restarts

    cluster = launch.job.cluster
    gpus = cluster.learner_gpus
    resources = {"CPU": cluster.learner_cpus} | ({"GPU": gpus} if gpus else {})
    page: Any = partial(rank_main, launch)
    trainer = Trainer(
        page,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=cluster.learner_ranks, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"attempt-{launch.epoch}",
            storage_path=str(launch.folder.path(LEARNER)),
            failure_config=restarts(MAX_RESTARTS),
        ),
    )
    result: Any = trainer.fit()
    return result.return_value


def rank_main(launch: Launch) -> dict[str, Any]:
    """One rank's process, from its first line to its result. An error of ours leaves it without Ray's wrapping."""
    try:
        return _train(launch)
    except Exception as error:
        found = ours(error)
        if found is None or found is error:
            raise
        raise found from None


def _train(launch: Launch) -> dict[str, Any]:
    if not launch.job.trains:
        return asdict(_evaluate(launch))
    import ray.train.torch

    from learner.run import Run
    from learner.train import train

    run = Run(
        launch.job, launch.folder, launch.source, launch.events, launch.held_out,
        device=str(ray.train.torch.get_device()), guard=launch.guard, epoch=launch.epoch, began=launch.began,
        disk_wait_s=launch.disk_wait_s,
    )  # fmt: skip
    if run.ranks.first:
        run.clock.began = _report_loss(launch.events) or launch.began
    return asdict(train(run))


def _evaluate(launch: Launch) -> TrainResult:
    from learner.evaluate_only import evaluate_only

    _report_loss(launch.events)
    return evaluate_only(
        launch.job, launch.folder, launch.source, launch.events, launch.held_out, disk_wait_s=launch.disk_wait_s
    )


def _report_loss(events: EventSink) -> float | None:
    """Tell what happened to the group's former life, if it had one, and return the Unix time of its end."""
    from learner.trainer import former_loss

    loss = former_loss()
    if loss is None:
        return None
    at, what = loss
    events.emit(
        ProcessLost(
            process="learner rank",
            outcome=f"{what}; all ranks restarted from the latest checkpoint",
            recovery_seconds=round(time.time() - at, 3),
        )
    )
    return at
