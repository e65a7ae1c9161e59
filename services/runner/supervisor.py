"""The supervisor: claims a job, has it run as an attempt in a child process (attempt.py), and keeps count.

consumes: queued jobs, while the gate is open; produces: attempts, one at a time; unblocked by: `stop`, which drains.

Whatever goes wrong with one job costs that job an attempt at most: the loop goes on, after a pause that grows while
things go wrong.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from accord.errors import ServiceError
from services.jobs.job import Job
from services.jobs.store import Claimed
from services.results.conclude import conclude_unfinished
from services.runner.attempt import Attempt, Runner
from services.runner.janitor import keep_clean

log = logging.getLogger("accord.runner")

_TELL_S = 15.0
"""So often it is said again why nothing is claimed, also to jobs that came meanwhile."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass
class Supervisor(Runner):
    """Runs one job at a time until told to stop."""

    owner: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._closed: str | None = None
        self._told = 0.0

    def run(self, stop: threading.Event) -> None:
        """Claim and run jobs until `stop` is set; the running attempt is then drained and requeued. Never raises."""
        janitor = threading.Thread(
            target=keep_clean, args=(self.settings, self.store, stop), name="accord-janitor", daemon=True
        )  # fmt: skip
        janitor.start()
        pause = _FIRST_PAUSE_S
        while not stop.is_set():
            self.last_tick = time.monotonic()
            try:
                self._next(stop)
                pause = _FIRST_PAUSE_S
            except Exception as error:
                self.survived("loop", error)
                stop.wait(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2)

    def turns(self) -> None:
        """Raises ServiceError when the loop has not come round for a long while."""
        still = time.monotonic() - self.last_tick
        if still > max(120.0, 4 * self.settings.lease_s):
            raise ServiceError(f"the runner's loop has not moved for {still:.0f} s")

    def _next(self, stop: threading.Event) -> None:
        """Run one job, or wait a moment."""
        self.training.forget()
        if not self._open():
            stop.wait(1.0)
            return
        claimed = self._claim()
        if claimed.job is None:
            stop.wait(min(0.5, self.settings.lease_s / 6))
        else:
            self._ended(Attempt(self, claimed.job, claimed.event_id, self.environment()).run(stop))

    def _open(self) -> bool:
        """Whether a claimed job could run here now; a change is told once."""
        missing, now = self.gate.missing(), time.monotonic()
        if missing != self._closed or (missing and now > self._told + _TELL_S):
            if missing:
                log.warning("claiming no job: %s", missing)
            self.store.explain(missing[:500])  # those that are queued learn what they wait for
            self._told = now
        self._closed = missing
        return not missing

    def _claim(self) -> Claimed:
        claimed = self.store.claim(self.owner, self.settings.lease_s, self.backoff_s())
        for lost in claimed.lost:
            log.warning("the lease of %s, attempt %d had run out", lost.id, lost.epoch)
            self.metrics.counter("accord_lease_lost_total").inc()
            self._ended(lost)
        job = claimed.job
        if job is not None:
            log.info("claimed %s, attempt %d", job.id, job.epoch)
            self.metrics.counter("accord_attempts_total").inc()
            if job.epoch == 1:
                self.metrics.histogram("accord_queue_wait_seconds").observe(max(0.0, job.updated_at - job.created_at))
        return claimed

    def _ended(self, job: Job | None) -> None:
        """Count a job that has ended, and leave a report when it ended without success."""
        if job is None or not job.finished:
            return
        outcome = self.metrics.counter("accord_jobs_finished_total")
        outcome.labels(outcome=str(job.state), reason=str(job.reason)).inc()
        try:
            conclude_unfinished(self.settings, job)
        except Exception as error:
            self.survived("conclude", error)
