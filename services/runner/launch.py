"""The composition root: one attempt of one job, from its lease to its outcome. It knows all rooms, as `local.py` does.

consumes: a claimed job (id, epoch) from the store; waits for: groups, steps, deadlines; produces: the run folder and
the job's events; unblocked by: SIGTERM, which ends the attempt in an orderly way. How it ended is the exit status
(exit_status.py).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord import logs
from accord.config.files import reading
from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.prompts import load_prompts
from accord.config.settings import Settings
from accord.disk import patiently
from accord.errors import AccordError, Unreachable, ours
from accord.events import EventSink, Failed, Progress, Warned
from accord.run_folder import RunFolder
from services.connections import ray_address
from services.runner.exit_status import ExitStatus
from services.runner.inputs import prepare
from services.runner.roster import hold_roster
from services.runner.sink import QueuedEventSink, StoreEventSink

if TYPE_CHECKING:
    from learner.workers import TrainResult

log = logging.getLogger("accord.launch")

STAGES = ("connecting to Ray", "starting reward servers", "loading models into rollout workers and learner ranks")
"""What the attempt does before its first clip."""


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception: nothing on the way may take it for a failure and retry."""


def main() -> None:
    """Run one attempt and exit with its outcome."""
    parser = argparse.ArgumentParser(
        prog="accord-attempt", description="One attempt of one job (started by the runner)."
    )
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--epoch", required=True, type=int)
    arguments = parser.parse_args()
    logs.forgive_output()
    logs.configure(job_id=arguments.job_id, attempt=arguments.epoch, role="attempt")
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(attempt(Settings(), arguments.job_id, arguments.epoch))


def _terminate(*_: Any) -> None:
    raise Terminated


def attempt(settings: Settings, job_id: str, epoch: int) -> ExitStatus:
    """Run the attempt; every way it can end becomes one exit status and, if it failed, one typed event."""
    sink = StoreEventSink(settings, job_id, epoch)
    try:
        _attempt(settings, sink, job_id, epoch)
    except Terminated:
        return ExitStatus.TERMINATED
    except Exception as error:
        return _ended(sink, error)
    return ExitStatus.SUCCEEDED


def _ended(sink: EventSink, error: Exception) -> ExitStatus:
    """The exit status for an error; one of ours counts as itself, whatever it came wrapped in."""
    found = ours(error) or error
    status = ExitStatus.of(found)
    if status is ExitStatus.FENCED:
        log.warning("a newer attempt owns this job; stopping")
        return status
    log.error("attempt failed", exc_info=found)
    reason = found.reason if isinstance(found, AccordError) else AccordError.reason
    message = f"{type(found).__name__}: {found}"
    retryable = status not in (ExitStatus.USER_ERROR, ExitStatus.GUARD)
    try:
        sink.emit(Failed(reason=reason, message=message[:2000], retryable=retryable))
    except AccordError as refused:
        log.warning("the failure could not be reported: %s", refused)
    return status


def _attempt(settings: Settings, sink: StoreEventSink, job_id: str, epoch: int) -> None:
    started = time.monotonic()
    job = sink.spec()
    preflight(job, settings.roots)
    folder = settings.run_folder(job_id)
    write = _patient(settings, sink)
    write(partial(prepare, settings, job, folder)).complete_in_background()
    _begin("connecting to Ray", sink)
    address = ray_address(settings)  # before Ray is imported: it also tells Ray its token
    import ray

    try:
        ray.init(address=address, namespace=f"{job_id}-{epoch}", log_to_driver=True, logging_level=logging.WARNING)
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        raise Unreachable(f"cannot connect to Ray at {address}: {error}") from error
    try:
        with reading(settings.roots):  # prompts are read again
            result = _train(job, folder, sink, epoch, started, settings)
    finally:
        ray.shutdown()  # ends every actor this attempt owns; the reward servers are not among them
    from services.results.conclude import conclude

    wall_seconds = time.monotonic() - started
    write(partial(conclude, settings, folder, job_id, job, state="succeeded", wall_seconds=wall_seconds))
    log.info("version %d, adapter %s", result.policy_version, result.adapter_sha256)


def _patient(settings: Settings, sink: StoreEventSink) -> Any:
    """How the attempt writes: it waits while the volume has no room, and says so."""
    return partial(
        patiently, warn=lambda code, message: sink.emit(Warned(code=code, message=message)), wait_s=settings.disk_wait_s
    )


def _begin(stage: str, sink: StoreEventSink) -> None:
    """Say in the start-up bar which stage begins."""
    sink.emit(Progress(phase="startup", step=0, done=STAGES.index(stage), total=len(STAGES), detail=stage))


def _train(
    job: JobSpec, folder: RunFolder, sink: StoreEventSink, epoch: int, started: float, settings: Settings
) -> TrainResult:
    """Reward servers, rollout workers and stream, learner: then the learner's page runs until the last step."""
    import ray

    from learner import workers
    from reward_servers import app
    from reward_servers.door import Door
    from reward_servers.serve_handles import ServeScorer
    from rollout_workers.actor import start_stream
    from services.runner.clips import ClipsSource

    deadline = started + job.max_runtime_s
    _begin("starting reward servers", sink)
    app.deploy(job.rewards, door=Door.of(settings), idle_s=settings.reward_idle_s, envs=settings.reward_envs)
    scorer = ServeScorer(job.rewards)
    roster = asyncio.run(scorer.roster())
    _patient(settings, sink)(partial(hold_roster, job, folder, roster))
    _begin("loading models into rollout workers and learner ranks", sink)
    source = (
        start_stream(job, load_prompts(Path(job.prompts.train)), scorer, QueuedEventSink(sink))
        if job.samples
        else ClipsSource(job, scorer, ray.put)
    )
    return workers.run(
        job,
        folder,
        source=source,
        events=sink,
        guard=sink.guard,
        epoch=epoch,
        began=time.time() - (time.monotonic() - started),
        deadline_s=deadline - time.monotonic(),
        disk_wait_s=settings.disk_wait_s,
    )


if __name__ == "__main__":
    main()
