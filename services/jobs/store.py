"""The job store: the port that the API and the supervisor use, and its in-memory twin.

Both implementations pass tests/contracts/test_job_store.py. Delivery is at least once; effects are exactly once
because everything an attempt writes carries its epoch.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from accord.errors import Conflict, Fenced, JobNotFound
from accord.events import JOB_EVENT, Event, JobEvent, StateChanged, StepCompleted
from services.jobs.job import ACTIVE, TERMINAL, TRANSITIONS, Job, JobState, Reason

IDEMPOTENCY_TTL_S = 24 * 3600
EVENTS_KEPT = 20_000
"""Newest events kept per job; a stream never grows beyond about this."""


class Beat(StrEnum):
    """The store's answer to a heartbeat."""

    OK = "OK"
    CANCEL = "CANCEL"
    """Still the owner, but a user asked to stop."""
    FENCED = "FENCED"
    """Not the owner any more: stop at once and write nothing."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the job's stream."""

    id: str
    """`milliseconds-sequence`, increasing; what SSE sends as `id:`."""
    event: JobEvent


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first; `after` fetches the next page, None at the end."""

    jobs: list[Job]
    after: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim found on its way."""

    job: Job | None
    """To run; None when none is ready."""
    lost: tuple[Job, ...]
    """Jobs whose lease had run out, as they are now: queued again, failed or cancelled."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue in numbers."""

    by_state: Mapping[str, int]
    oldest_queued_s: float
    """Age of the oldest queued job; 0 when none waits."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to store. `key` is the caller's idempotency key, `fingerprint` a digest of what was submitted."""

    id: str
    name: str
    spec_json: str
    steps: int
    max_attempts: int = 3
    key: str = ""
    fingerprint: str = ""


class JobStore(Protocol):
    """Jobs, leases and events. Every call raises StoreUnavailable when the store does not answer or takes no writes."""

    def ready(self) -> None:
        """Return when the store answers and accepts writes."""
        ...

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """Store a job and return (job, created). The same key and fingerprint within 24 h return the first job.

        Raises Conflict when the key came with another fingerprint.
        """
        ...

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        ...

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """Return up to `limit` jobs older than job id `after`, newest first."""
        ...

    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        """Take expired leases back, then lease the oldest ready job to `owner` under the next epoch.

        A lost job waits `backoff_s` * 2^(lost - 1) before it is ready again, or fails after `max_attempts`.
        """
        ...

    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        """Extend the lease."""
        ...

    def running(self, job_id: str, epoch: int) -> None:
        """Starting → running; nothing when it is past that. Raises Fenced."""
        ...

    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        """End the job. Raises Fenced; Conflict when `state` cannot follow."""
        ...

    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        """Give a failed attempt back: requeue with backoff, or fail after `max_attempts`. Raises Fenced."""
        ...

    def release(self, job_id: str, epoch: int) -> Job:
        """Give an unfinished attempt back at once; it does not count as lost. Raises Fenced."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Queued → cancelled, starting/running → cancelling; repeating it is fine. Raises Conflict once finished."""
        ...

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """Add an event of the attempt to the job's stream and return its id. Raises Fenced."""
        ...

    def events(self, job_id: str, after: str = "0-0", limit: int = 500, wait_s: float = 0.0) -> list[StoredEvent]:
        """Return events after id `after`, oldest first; waits up to `wait_s` for the first one."""
        ...

    def stats(self) -> QueueStats:
        """Count jobs by state."""
        ...

    def mark(self, name: str, ttl_s: float) -> bool:
        """Remember a name for `ttl_s` seconds; False when it was remembered already."""
        ...

    def marked(self, name: str) -> bool:
        """True while a name is remembered."""
        ...


@dataclass(slots=True)
class _Idempotent:
    job_id: str
    fingerprint: str
    expires: float


@dataclass
class InMemoryJobStore:
    """JobStore in this process's memory, for tests and for understanding the real one."""

    clock: Any = time.time
    _jobs: dict[str, Job] = field(default_factory=dict)
    _leases: dict[str, float] = field(default_factory=dict)
    _ready_at: dict[str, float] = field(default_factory=dict)
    _order: dict[str, int] = field(default_factory=dict)
    _keys: dict[str, _Idempotent] = field(default_factory=dict)
    _events: dict[str, deque[StoredEvent]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=20_000)))
    _marks: dict[str, float] = field(default_factory=dict)
    _sequence: int = 0
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def ready(self) -> None:
        """Always."""

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """See JobStore."""
        with self._lock:
            now = self.clock()
            known = self._keys.get(submission.key) if submission.key else None
            if known and known.expires > now:
                if known.fingerprint != submission.fingerprint:
                    raise Conflict("this Idempotency-Key was used with another job; use a new key for a new job")
                return self._jobs[known.job_id], False
            if submission.key:
                self._keys[submission.key] = _Idempotent(submission.id, submission.fingerprint, now + IDEMPOTENCY_TTL_S)
            job = Job(
                id=submission.id, name=submission.name, max_attempts=submission.max_attempts, steps=submission.steps,
                created_at=now, updated_at=now, spec_json=submission.spec_json,
            )  # fmt: skip
            self._jobs[job.id] = job
            self._order[job.id] = len(self._order)
            self._ready_at[job.id] = now
            self._note(job)
            return job, True

    def get(self, job_id: str) -> Job:
        """See JobStore."""
        with self._lock:
            return self._find(job_id)

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """See JobStore."""
        with self._lock:
            wanted = [
                job for job_id, job in sorted(self._jobs.items(), reverse=True)
                if (after is None or job_id < after) and (state is None or job.state == state)
            ]  # fmt: skip
        return Page(wanted[:limit], wanted[limit - 1].id if len(wanted) > limit else None)

    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        """See JobStore."""
        with self._lock:
            now = self.clock()
            expired = [job_id for job_id, until in self._leases.items() if until <= now]
            lost = tuple(
                self._lose(self._jobs[job_id], Reason.LEASE_LOST, "the owner stopped reporting", backoff_s)
                for job_id in expired
            )
            waiting = sorted((self._order[job_id], job_id) for job_id, at in self._ready_at.items() if at <= now)
            if not waiting:
                return Claimed(None, lost)
            job = self._jobs[waiting[0][1]]
            del self._ready_at[job.id]
            self._leases[job.id] = now + lease_s
            job = job.model_copy(
                update={"epoch": job.epoch + 1, "owner": owner, "started_at": job.started_at or now}
            )  # fmt: skip
            return Claimed(self._move(job, JobState.STARTING, Reason.NONE, ""), lost)

    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        """See JobStore."""
        with self._lock:
            try:
                job = self._owned(job_id, epoch)
            except Fenced:
                return Beat.FENCED
            self._leases[job_id] = self.clock() + lease_s
            return Beat.CANCEL if job.state == JobState.CANCELLING else Beat.OK

    def running(self, job_id: str, epoch: int) -> None:
        """See JobStore."""
        with self._lock:
            job = self._owned(job_id, epoch)
            if job.state == JobState.STARTING:
                self._move(job, JobState.RUNNING, Reason.NONE, "")

    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        """See JobStore."""
        with self._lock:
            return self._move(self._owned(job_id, epoch), state, reason, message)

    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        """See JobStore."""
        with self._lock:
            return self._lose(self._owned(job_id, epoch), reason, message, backoff_s)

    def release(self, job_id: str, epoch: int) -> Job:
        """See JobStore."""
        with self._lock:
            job = self._owned(job_id, epoch)
            if job.state == JobState.CANCELLING:
                return self._move(job, JobState.CANCELLED, Reason.CANCELLED, "")
            self._ready_at[job_id] = self.clock()
            return self._move(job, JobState.QUEUED, Reason.DRAINED, "the runner was stopped")

    def cancel(self, job_id: str) -> Job:
        """See JobStore."""
        with self._lock:
            job = self._find(job_id)
            if job.state == JobState.CANCELLING:
                return job
            if job.state == JobState.QUEUED:
                return self._move(job, JobState.CANCELLED, Reason.CANCELLED, "")
            return self._move(job, JobState.CANCELLING, Reason.CANCELLED, "")

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """See JobStore."""
        with self._lock:
            job = self._owned(job_id, epoch)
            if isinstance(event, StepCompleted):
                self._jobs[job_id] = job.model_copy(update={"step": event.step})
            return self._store_event(job_id, event)

    def events(self, job_id: str, after: str = "0-0", limit: int = 500, wait_s: float = 0.0) -> list[StoredEvent]:
        """See JobStore."""
        deadline = time.monotonic() + wait_s
        with self._lock:
            self._find(job_id)
            while True:
                stream = list(self._events[job_id])
                start = bisect_right(stream, _order_of(after), key=lambda stored: _order_of(stored.id))
                left = deadline - time.monotonic()
                if start < len(stream) or left <= 0:
                    return stream[start : start + limit]
                self._lock.wait(left)

    def stats(self) -> QueueStats:
        """See JobStore."""
        with self._lock:
            queued = [job.created_at for job in self._jobs.values() if job.state == JobState.QUEUED]
            counts = Counter(job.state for job in self._jobs.values())
            oldest = max(0.0, self.clock() - min(queued)) if queued else 0.0
        return QueueStats({state.value: counts[state] for state in JobState}, oldest)

    def mark(self, name: str, ttl_s: float) -> bool:
        """See JobStore."""
        with self._lock:
            if self.marked(name):
                return False
            self._marks[name] = self.clock() + ttl_s
            return True

    def marked(self, name: str) -> bool:
        """See JobStore."""
        return bool(self._marks.get(name, 0.0) > self.clock())

    def _find(self, job_id: str) -> Job:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(f"no job {job_id!r}") from None

    def _owned(self, job_id: str, epoch: int) -> Job:
        job = self._find(job_id)
        if job.epoch != epoch or job.state not in ACTIVE:
            raise Fenced(f"attempt {epoch} does not own {job_id} (attempt {job.epoch}, {job.state.value})")
        return job

    def _lose(self, job: Job, reason: Reason, message: str, backoff_s: float) -> Job:
        lost = job.lost_attempts + 1
        job = job.model_copy(update={"lost_attempts": lost})
        if job.state == JobState.CANCELLING:
            return self._move(job, JobState.CANCELLED, Reason.CANCELLED, message)
        if lost >= job.max_attempts:
            return self._move(job, JobState.FAILED, reason, message)
        self._ready_at[job.id] = self.clock() + backoff_s * 2 ** (lost - 1)
        return self._move(job, JobState.QUEUED, reason, message)

    def _move(self, job: Job, to: JobState, reason: Reason, message: str) -> Job:
        if to not in TRANSITIONS[job.state]:
            raise Conflict(f"{job.id} is {job.state.value}, which cannot become {to.value}")
        now = self.clock()
        ended = {"finished_at": now} if to in TERMINAL else {}
        moved = job.model_copy(update={"state": to, "reason": reason, "message": message, "updated_at": now, **ended})
        self._jobs[job.id] = moved
        if to not in ACTIVE:
            self._leases.pop(job.id, None)
        if to in TERMINAL:
            self._ready_at.pop(job.id, None)
        self._note(moved)
        return moved

    def _note(self, job: Job) -> None:
        self._store_event(
            job.id, StateChanged(at=job.updated_at, state=job.state, reason=job.reason, attempt=job.epoch)
        )

    def _store_event(self, job_id: str, event: Event) -> str:
        self._sequence += 1
        event_id = f"{int(self.clock() * 1000)}-{self._sequence}"
        parsed = JOB_EVENT.validate_json(event.model_dump_json())
        self._events[job_id].append(StoredEvent(event_id, parsed))
        self._lock.notify_all()
        return event_id


def _order_of(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    return int(milliseconds), int(sequence or 0)
