"""One attempt at a job, seen from outside: its process, its lease, and what its end means for the job.

consumes: a claimed job; produces: a child process (launch.py), its log, and the job's outcome; waits for: the child,
bounded by the lease, the grace period and `max_runtime_s`; unblocked by: `stop`, which drains.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from accord.config.settings import Settings
from accord.disk import no_room
from accord.errors import AccordError, Conflict, Fenced, IncompatibleSpec, JobNotFound, StoreUnavailable
from accord.events import Failed, JobEvent
from services import guard, processes
from services.jobs.job import Job, JobState, Reason
from services.jobs.store import Beat, JobStore
from services.registry import Metrics
from services.runner.exit_status import ExitStatus, reason_of
from services.runner.gate import Gate
from services.runner.prometheus import TrainingMetrics

log = logging.getLogger("accord.runner")

MARK = "ACCORD_ATTEMPT"
"""Environment variable that every process of an attempt carries: `job id:epoch`."""
MAX_RELEASES = 20
"""So often a job is given back without counting a lost attempt; after that, what was away for it counts."""
OTHER_RELEASE_S = 60.0
"""Pause before a job that this release cannot read is offered again."""
_TICK_S = 0.1


class Stop(Enum):
    """Why the supervisor ended an attempt."""

    CANCEL = "cancelled by a user"
    DRAIN = "the runner is going down"
    TIMEOUT = "max_runtime_s is over"
    FENCED = "the lease was lost"
    SILENT = "the job store took no heartbeat for two thirds of the lease"


_DISOWNED = frozenset({Stop.FENCED, Stop.SILENT})
"""The lease is someone else's, or may be soon."""


def launch_command(job_id: str, epoch: int) -> list[str]:
    """How an attempt is started."""
    return [sys.executable, "-m", "services.runner.launch", "--job-id", job_id, "--epoch", str(epoch)]


@dataclass
class Runner:
    """What the attempts of one runner share: its settings, the store, where it counts, what it knows of the cluster."""

    settings: Settings
    store: JobStore
    metrics: Metrics
    environment: Callable[[], Mapping[str, str]] = dict
    """Where an attempt finds store and Ray; raises AccordError while that is not known."""
    command: Callable[[str, int], Sequence[str]] = launch_command
    hurry: threading.Event = field(default_factory=threading.Event)
    """Set to cut the grace period short."""
    last_tick: float = field(default_factory=time.monotonic)
    """When its loop last came round (monotonic); readiness looks at it."""

    def __post_init__(self) -> None:
        self.training = TrainingMetrics(self.metrics)
        self.gate = Gate(self.settings, self.environment, self.metrics)

    def survived(self, where: str, error: Exception) -> None:
        """Say what went wrong, once and for all: the caller goes on."""
        self.metrics.counter("accord_runner_errors_total").labels(where=where).inc()
        if isinstance(error, AccordError):
            log.warning("%s: %s", where, error)
        else:
            log.error("%s: %r", where, error, exc_info=error)

    def backoff_s(self) -> float:
        """The base of the retry delay, with jitter so that jobs lost together do not come back together."""
        return self.settings.retry_backoff_s * random.uniform(0.8, 1.2)


class Attempt:
    """One leased execution."""

    def __init__(self, runner: Runner, job: Job, since: str, environment: Mapping[str, str]) -> None:
        """`since` is the place of its claim in the job's history: what stands after it is this attempt's."""
        self._of, self._job = runner, job
        self._environment = environment
        self._settings, self._store = runner.settings, runner.store
        self._last_ok = self._last_try = time.monotonic()
        self._stop: Stop | None = None
        self._kill_at = float("inf")
        self._cursor = since
        self._said = ""

    def run(self, stop: threading.Event) -> Job | None:
        """Spawn, watch, clean up, report. Whatever happens, the store is told; returns what it made of the job."""
        try:
            outcome = self._outcome(self._execute(stop))
        except IncompatibleSpec as error:
            outcome = self._give_back(str(error), OTHER_RELEASE_S, bounded=False)
        except Exception as error:
            self._of.survived("attempt", error)
            why = f"the runner could not run it: {type(error).__name__}: {error}"
            outcome = self._give_back(why) if no_room(error) else self._lose(Reason.INFRASTRUCTURE, why)
        if outcome is None:
            self._of.metrics.counter("accord_lease_fenced_writes_total").inc()
            return None
        return self._insist(outcome, stop)

    def _execute(self, stop: threading.Event) -> int:
        """The attempt's exit status, once nothing of it is left."""
        runtime_s = self._job.spec.max_runtime_s
        mark = f"{self._job.id}:{self._job.epoch}"
        process = self._spawn(mark)
        deadline = time.monotonic() + runtime_s
        try:
            while process.poll() is None:
                self._tick(process, stop, deadline)
                time.sleep(_TICK_S)
        finally:
            processes.signal_group(process, signal.SIGKILL)
            status = process.wait()
            self._clean_up(mark)
        log.info("%s, attempt %d: exit status %d", *self._key, status)
        return status

    def _clean_up(self, mark: str) -> None:
        """End what the attempt left and read its last words; nothing here changes how it ended."""
        try:
            leaked = processes.end(processes.marked(MARK, mark), 1.0)
            if leaked:
                log.warning("%s, attempt %d left %d processes", *self._key, leaked)
        except Exception as error:
            self._of.survived("cleanup", error)
        self._tail()
        self._of.training.ended(self._job.id)

    @property
    def _key(self) -> tuple[str, int]:
        return self._job.id, self._job.epoch

    def _spawn(self, mark: str) -> guard.Child:
        environment = {
            **os.environ,
            **self._environment,
            MARK: mark,
            "ACCORD_DATA_DIR": str(self._settings.data_dir.resolve()),
            "ACCORD_RUNS_DIR": str(self._settings.runs_dir.resolve()),
            "ACCORD_LEASE_S": str(self._settings.lease_s),
            "PYTHONUNBUFFERED": "1",
        }
        environment.pop("ACCORD_API_KEY", None)
        command, folder = list(self._of.command(*self._key)), self._settings.run_folder(self._job.id)
        try:
            path = folder.path(folder.log(self._job.epoch))
            path.parent.mkdir(parents=True, exist_ok=True)
            output = path.open("ab")
        except OSError as error:
            log.warning("%s, attempt %d runs without a log: %s", *self._key, error)
            return guard.spawn(command, env=environment, stdout=subprocess.DEVNULL)
        with output:
            return guard.spawn(command, env=environment, stdout=output)

    def _tick(self, process: guard.Child, stop: threading.Event, deadline: float) -> None:
        now = time.monotonic()
        self._of.last_tick = now
        lease = self._settings.lease_s
        if now - self._last_ok > lease * 2 / 3:
            # Before any beat: after a long pause the lease may be someone else's already.
            self._ask(process, Stop.SILENT)
        elif now - self._last_try > lease / 3:
            self._beat(process, now)
            self._of.gate.missing()  # for the metrics
        if now > deadline:
            self._ask(process, Stop.TIMEOUT)
        if stop.is_set():
            self._ask(process, Stop.DRAIN)
        if now > self._kill_at or (self._stop and self._of.hurry.is_set()):
            processes.signal_group(process, signal.SIGKILL)
        self._tail()
        self._of.training.forget()  # a finished job's gauges must not outlive it through a long next one

    def _beat(self, process: guard.Child, now: float) -> None:
        try:
            answer = self._store.beat(*self._key, self._settings.lease_s)
        except JobNotFound:
            answer = Beat.FENCED
        except Exception as error:  # whatever the store said, it was not that the lease is extended
            self._of.survived("heartbeat", error)
            self._last_try = now - self._settings.lease_s / 4  # again in a twelfth of the lease
            return
        self._last_ok = self._last_try = now
        if answer is Beat.FENCED:
            self._ask(process, Stop.FENCED)
        elif answer is Beat.CANCEL:
            self._ask(process, Stop.CANCEL)

    def _ask(self, process: guard.Child, why: Stop) -> None:
        """SIGTERM once; the grace period starts. A fenced attempt gets none: its writes are refused already."""
        if self._stop is None:
            log.info("%s, attempt %d: stopping it, %s", *self._key, why.value)
            self._kill_at = time.monotonic() + self._settings.grace_s
            process.terminate()
        if self._stop is None or why in _DISOWNED:
            self._stop = why
        if why in _DISOWNED:
            self._kill_at = 0.0

    def _tail(self) -> None:
        """Read what the attempt reported since the last look. Only metrics hang on it, and why an attempt failed."""
        try:
            for entry in self._store.events(self._job.id, self._cursor):
                self._cursor = entry.id
                self._observe(entry.event)
        except StoreUnavailable as error:
            log.debug("events not read: %s", error)
        except Exception as error:
            self._of.survived("events", error)

    def _observe(self, event: JobEvent) -> None:
        if isinstance(event, Failed):
            self._said = event.message
        try:
            self._of.training.observe(self._job.id, event)
        except Exception as error:  # an event of another release may lack what a metric needs
            self._of.survived("metrics", error)

    def _outcome(self, status: int) -> Callable[[], Job] | None:
        """What to tell the store. A result wins over a wish to stop; a wish to stop wins over a failure.

        None when the attempt has no say any more.
        """
        store, key, said = self._store, self._key, self._said
        if self._stop is Stop.FENCED or status == ExitStatus.FENCED:
            return None
        if self._stop is Stop.SILENT:
            return self._give_back(self._stop.value)
        if status == ExitStatus.SUCCEEDED:
            return lambda: store.finish(*key, JobState.SUCCEEDED, Reason.NONE)
        if status in (ExitStatus.USER_ERROR, ExitStatus.GUARD):
            return lambda: store.finish(*key, JobState.FAILED, reason_of(status), said)
        if self._stop is Stop.CANCEL:
            return lambda: store.finish(*key, JobState.CANCELLED, Reason.CANCELLED)
        if self._stop is Stop.TIMEOUT:
            why = f"it ran longer than max_runtime_s = {self._job.spec.max_runtime_s:g}"
            return lambda: store.finish(*key, JobState.FAILED, Reason.TIMEOUT, why)
        if self._stop is Stop.DRAIN:
            return lambda: store.release(*key)
        away = (
            (said or "something it needs is away")
            if status == ExitStatus.UNAVAILABLE
            else self._of.gate.outlived(self._environment)
        )
        if away:
            return self._give_back(away)
        return self._lost(status)

    def _lost(self, status: int) -> Callable[[], Job]:
        """It ended without a result that stands."""
        reason, place = reason_of(status), f"see logs/attempt-{self._job.epoch}.log"
        if reason is Reason.KILLED:
            return self._lose(reason, f"the attempt was killed by {signal.Signals(-status).name}; {place}")
        if reason is Reason.CRASHED:
            return self._lose(reason, f"the attempt ended with status {status}; {place}")
        return self._lose(reason, self._said or place)

    def _lose(self, reason: Reason, message: str) -> Callable[[], Job]:
        return lambda: self._store.lose(*self._key, reason, message, self._of.backoff_s())

    def _give_back(self, why: str, delay_s: float | None = None, *, bounded: bool = True) -> Callable[[], Job]:
        """Release the job without a lost attempt, unless that was done too often."""
        released = self._job.epoch - 1 - self._job.lost_attempts
        if bounded and released >= MAX_RELEASES:
            return self._lose(Reason.INFRASTRUCTURE, why)
        delay = max(1.0, self._of.backoff_s()) if delay_s is None else delay_s
        return lambda: self._store.release(*self._key, delay_s=delay, message=why)

    def _insist(self, call: Callable[[], Job], stop: threading.Event) -> Job | None:
        """Repeat until the store answers. After the lease has run out it will hear of the loss by itself."""
        deadline = time.monotonic() + self._settings.lease_s
        while True:
            try:
                return call()
            except Fenced as error:
                log.warning("%s", error)
                self._of.metrics.counter("accord_lease_fenced_writes_total").inc()
                return None
            except (JobNotFound, Conflict) as error:
                log.warning("the outcome of %s, attempt %d has no place: %s", *self._key, error)
                return None
            except Exception as error:  # the store did not answer, or not in a way that says it has the outcome
                if time.monotonic() > deadline or stop.is_set():
                    log.warning("the outcome of %s, attempt %d could not be stored: %s", *self._key, error)
                    return None
                self._of.survived("outcome", error)
                time.sleep(0.5)
