"""The in-memory twin of the Redis store: for tests, and for understanding the real one."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from accord.errors import Conflict, Fenced, JobNotFound, StoreError
from accord.events import Event, Gap, Progress, StateChanged, StepCompleted, read_event
from services.jobs.job import ACTIVE, TERMINAL, TRANSITIONS, Job, JobState, JobSummary, Reason
from services.jobs.records import order_of
from services.jobs.store import (
    ALIVE,
    FEED_KEPT,
    IDEMPOTENCY_TTL_S,
    MESSAGE_KEPT,
    STEPS_KEPT,
    STOPPED,
    Beat,
    Claimed,
    FeedEntry,
    Page,
    QueueStats,
    StoredEvent,
    Submission,
)

_Entry = TypeVar("_Entry", StoredEvent, FeedEntry)


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
    _events: dict[str, list[StoredEvent]] = field(default_factory=lambda: defaultdict(list))
    _dropped: dict[str, tuple[str, int]] = field(default_factory=dict)
    _feed: deque[FeedEntry] = field(default_factory=lambda: deque(maxlen=FEED_KEPT))
    _folders: set[str] = field(default_factory=set)
    _marks: dict[str, float] = field(default_factory=dict)
    _sequence: int = 0
    _places: int = 0
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def ready(self) -> None:
        """Always."""

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """See JobStore."""
        with self._lock:
            now = self.clock()
            known = self._accepted(submission.key, submission.fingerprint)
            if known:
                return known, False
            if submission.key:
                self._keys[submission.key] = _Idempotent(submission.id, submission.fingerprint, now + IDEMPOTENCY_TTL_S)
            job = Job(
                id=submission.id, name=submission.name, max_attempts=submission.max_attempts, steps=submission.steps,
                created_at=now, updated_at=now, spec_json=submission.spec_json,
            )  # fmt: skip
            self._jobs[job.id] = job
            self._order[job.id] = self._last_place()
            self._ready_at[job.id] = now
            self._note(job)
            return job, True

    def enqueue_all(self, submissions: Sequence[Submission]) -> list[tuple[Job, bool] | StoreError]:
        """See JobStore."""
        answers: list[tuple[Job, bool] | StoreError] = []
        for submission in submissions:
            try:
                answers.append(self.enqueue(submission))
            except StoreError as error:
                answers.append(error)
        return answers

    def accepted(self, key: str, fingerprint: str) -> Job | None:
        """See JobStore."""
        with self._lock:
            return self._accepted(key, fingerprint)

    def _accepted(self, key: str, fingerprint: str) -> Job | None:
        known = self._keys.get(key) if key else None
        if known is None or known.expires <= self.clock() or known.job_id not in self._jobs:
            return None
        if known.fingerprint != fingerprint:
            raise Conflict("this Idempotency-Key was used with another job; use a new key for a new job")
        return self._jobs[known.job_id]

    def get(self, job_id: str) -> Job:
        """See JobStore."""
        with self._lock:
            return self._find(job_id)

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """See JobStore."""
        with self._lock:
            wanted: list[JobSummary] = [
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
            job = self._move(job, JobState.STARTING, Reason.NONE, "")
            return Claimed(job, lost, self._events[job.id][-1].id)

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

    def release(self, job_id: str, epoch: int, *, delay_s: float = 0.0, message: str = STOPPED) -> Job:
        """See JobStore."""
        with self._lock:
            job = self._owned(job_id, epoch)
            if job.state == JobState.CANCELLING:
                return self._move(job, JobState.CANCELLED, Reason.CANCELLED, "")
            self._ready_at[job_id] = self.clock() + delay_s
            waiting = message if delay_s > 0 else ""
            return self._move(job, JobState.QUEUED, Reason.DRAINED, message, waiting=waiting)

    def explain(self, why: str) -> None:
        """See JobStore."""
        with self._lock:
            now = self.clock()
            for job_id in [job_id for job_id, at in self._ready_at.items() if at <= now]:
                self._jobs[job_id] = self._jobs[job_id].model_copy(update={"waiting": why})

    def cancel(self, job_id: str) -> Job:
        """See JobStore."""
        with self._lock:
            job = self._find(job_id)
            if job.state == JobState.CANCELLING:
                return job
            if job.state == JobState.QUEUED:
                return self._move(job, JobState.CANCELLED, Reason.CANCELLED, "")
            return self._move(job, JobState.CANCELLING, Reason.CANCELLED, "")

    def delete(self, job_id: str) -> None:
        """See JobStore."""
        with self._lock:
            job = self._find(job_id)
            if not job.finished:
                raise Conflict(ALIVE.format(job_id=job_id, state=job.state))
            self._forget(job_id)
            self._folders.add(job_id)

    def sweep(self, retention_s: float, limit: int = 500) -> int:
        """See JobStore."""
        with self._lock:
            latest = self.clock() - retention_s
            old = [job.id for job in self._jobs.values() if job.finished_at is not None and job.finished_at <= latest]
            for job_id in old[:limit]:
                self._forget(job_id)
            return len(old[:limit])

    def _forget(self, job_id: str) -> None:
        for kept in (self._jobs, self._events, self._dropped, self._order):
            kept.pop(job_id, None)  # type: ignore[attr-defined]

    def folders_to_remove(self, limit: int = 100) -> list[str]:
        """See JobStore."""
        with self._lock:
            return sorted(self._folders)[:limit]

    def folder_removed(self, job_id: str) -> None:
        """See JobStore."""
        with self._lock:
            self._folders.discard(job_id)

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """See JobStore."""
        with self._lock:
            job = self._owned(job_id, epoch)
            if isinstance(event, Progress):
                self._jobs[job_id] = job.model_copy(update={"progress": event})
                self._tell(job_id, "", event)
                return ""
            if isinstance(event, StepCompleted):
                self._jobs[job_id] = job.model_copy(update={"step": event.step})
                self._make_room(job_id)
            return self._store_event(job_id, event)

    def events(self, job_id: str, after: str = "0-0", limit: int = 500) -> list[StoredEvent]:
        """See JobStore."""
        with self._lock:
            return self._history(job_id, after, limit)

    def _history(self, job_id: str, after: str, limit: int) -> list[StoredEvent]:
        self._find(job_id)
        found = _after(self._events[job_id], after, limit)
        dropped_to, dropped = self._dropped.get(job_id, ("0-0", 0))
        if order_of(after) < order_of(dropped_to):
            found.append(StoredEvent(dropped_to, Gap(at=order_of(dropped_to)[0] / 1000, dropped=dropped)))
            found.sort(key=lambda stored: order_of(stored.id))
        return found[:limit]

    def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
        """See JobStore."""
        with self._lock:
            deadline = time.monotonic() + wait_s
            while not (found := _after(list(self._feed), after, limit)) and (left := deadline - time.monotonic()) > 0:
                self._lock.wait(left)
            return found

    def feed_end(self) -> str:
        """See JobStore."""
        with self._lock:
            return self._feed[-1].id if self._feed else "0-0"

    def stats(self) -> QueueStats:
        """See JobStore."""
        with self._lock:
            queued = [job.created_at for job in self._jobs.values() if job.state == JobState.QUEUED]
            counts = Counter(job.state for job in self._jobs.values())
            oldest = max(0.0, self.clock() - min(queued)) if queued else 0.0
        return QueueStats({state.value: counts[state] for state in JobState}, oldest)

    def unreadable(self) -> dict[str, int]:
        """See JobStore. Nothing here comes from another release."""
        return {}

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

    def _last_place(self) -> int:
        self._places += 1
        return self._places

    def _find(self, job_id: str) -> Job:
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound(f"no job {job_id!r}") from None

    def _owned(self, job_id: str, epoch: int) -> Job:
        job = self._find(job_id)
        if job.epoch != epoch or job.state not in ACTIVE:
            raise Fenced(f"attempt {epoch} does not own {job_id} (attempt {job.epoch}, {job.state})")
        return job

    def _lose(self, job: Job, reason: Reason, message: str, backoff_s: float) -> Job:
        lost = job.lost_attempts + 1
        job = job.model_copy(update={"lost_attempts": lost})
        if job.state == JobState.CANCELLING:
            return self._move(job, JobState.CANCELLED, Reason.CANCELLED, message)
        if lost >= job.max_attempts:
            return self._move(job, JobState.FAILED, reason, message)
        self._order[job.id] = self._last_place()
        self._ready_at[job.id] = self.clock() + backoff_s * 2 ** (lost - 1)
        return self._move(job, JobState.QUEUED, reason, message)

    def _move(self, job: Job, to: JobState, reason: Reason, message: str, waiting: str = "") -> Job:
        if to not in TRANSITIONS[JobState(job.state)]:
            raise Conflict(f"{job.id} is {job.state}, which cannot become {to}")
        now = self.clock()
        ended = {"finished_at": now} if to in TERMINAL else {}
        moved = job.model_copy(update={
            "state": to, "reason": reason, "message": message[:MESSAGE_KEPT], "waiting": waiting[:MESSAGE_KEPT],
            "progress": None, "updated_at": now, **ended,
        })  # fmt: skip
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

    def _make_room(self, job_id: str) -> None:
        steps = [stored for stored in self._events[job_id] if isinstance(stored.event, StepCompleted)]
        if len(steps) >= STEPS_KEPT:
            self._events[job_id].remove(steps[0])
            self._dropped[job_id] = (steps[0].id, self._dropped.get(job_id, ("", 0))[1] + 1)

    def _store_event(self, job_id: str, event: Event) -> str:
        event_id = f"{int(self.clock() * 1000)}-{self._sequence}"
        self._events[job_id].append(StoredEvent(event_id, read_event(event.model_dump_json())))
        self._tell(job_id, event_id, event)
        return event_id

    def _tell(self, job_id: str, event_id: str, event: Event) -> None:
        self._sequence += 1
        feed_id = f"{int(self.clock() * 1000)}-{self._sequence}"
        self._feed.append(FeedEntry(feed_id, self._sequence, job_id, event_id, event.model_dump_json()))
        self._lock.notify_all()


def _after(entries: list[_Entry], after: str, limit: int) -> list[_Entry]:
    start = bisect_right(entries, order_of(after), key=lambda entry: order_of(entry.id))
    return entries[start : start + limit]
