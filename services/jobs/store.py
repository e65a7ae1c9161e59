"""The job store as the API and the supervisor see it: the port.

RedisJobStore and its in-memory twin (memory.py) pass tests/contracts/test_job_store*.py. Delivery is at least once;
effects are exactly once because everything an attempt writes carries its epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from accord.errors import StoreError
from accord.events import Event, JobEvent
from services.jobs.job import Job, JobState, JobSummary, Reason

PREFIX = "accord:{jobs}:"
"""Of all keys; its hash tag keeps them in one cluster slot."""
IDEMPOTENCY_TTL_S = 24 * 3600
STEPS_KEPT = 2_000
"""Newest step events kept per job; all other events are kept as long as the job."""
FEED_KEPT = 4_000
"""Newest entries of the feed, about."""
ALIVE = "{job_id} is {state}; cancel it and wait for its end before deleting it"
MESSAGE_KEPT = 2_000
"""Characters of a message; longer ones are cut."""
STOPPED = "the runner was stopped"


class Beat(StrEnum):
    """The store's answer to a heartbeat."""

    OK = "OK"
    CANCEL = "CANCEL"
    """Still the owner, but a user asked to stop."""
    FENCED = "FENCED"
    """Not the owner any more: stop at once and write nothing."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event with its place in the job's history."""

    id: str
    """`milliseconds-sequence`, increasing; what SSE sends as `id:`."""
    event: JobEvent


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """An event of any job, as it happened."""

    id: str
    """Place in the feed."""
    number: int
    """Consecutive: a jump says that the reader was too slow, and should read what it follows from the store again."""
    job_id: str
    event_id: str
    """Place in the job's history; empty for progress, which is not history."""
    json: str
    """The event; see accord.events.read_event."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first; `after` fetches the next page, None at the end."""

    jobs: list[JobSummary]
    after: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim found on its way."""

    job: Job | None
    """To run; None when none is ready."""
    lost: tuple[Job, ...]
    """Jobs whose lease had run out, as they are now: queued again, failed or cancelled."""
    event_id: str = ""
    """Place of the claim in the job's history; what comes after it is of this attempt or of a later one."""


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
        """Return when the store answers, accepts writes, and keeps them. Raises UnsafeStore when it would not."""

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """Store a job and return (job, created). The same key and fingerprint within 24 h return the first job.

        Raises Conflict when the key came with another fingerprint, StoreFull when there is no room for a new job.
        """

    def enqueue_all(self, submissions: Sequence[Submission]) -> list[tuple[Job, bool] | StoreError]:
        """`enqueue` for several at once, each on its own: what one would raise stands in its place."""

    def accepted(self, key: str, fingerprint: str) -> Job | None:
        """The job that was stored under an idempotency key; None when the key is new, over, or its job was deleted.

        Raises Conflict when the key came with another fingerprint.
        """

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """Return up to `limit` jobs older than job id `after`, newest first."""

    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        """Take expired leases back, then lease the oldest ready job to `owner` under the next epoch.

        A lost job waits `backoff_s` * 2^(lost - 1) before it is ready again, or fails after `max_attempts`.
        """

    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        """Extend the lease."""

    def running(self, job_id: str, epoch: int) -> None:
        """Starting → running; nothing when it is past that. Raises Fenced."""

    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        """End the job. Raises Fenced; Conflict when `state` cannot follow."""

    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        """Give a failed attempt back: requeue with backoff, or fail after `max_attempts`. Raises Fenced."""

    def release(self, job_id: str, epoch: int, *, delay_s: float = 0.0, message: str = STOPPED) -> Job:
        """Give an unfinished attempt back; it does not count as lost and the job keeps its place. Raises Fenced.

        With `delay_s` nobody can claim it before that is over, and `message` is told as what it is `waiting` for.
        """

    def explain(self, why: str) -> None:
        """Tell the jobs first in line what they are `waiting` for besides their turn; "" takes it back."""

    def cancel(self, job_id: str) -> Job:
        """Queued → cancelled, starting/running → cancelling; repeating it is fine. Raises Conflict once finished."""

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, and have its run folder removed. Raises JobNotFound; Conflict while it lives."""

    def sweep(self, retention_s: float, limit: int = 500) -> int:
        """Remove up to `limit` jobs that ended longer ago than `retention_s`, return how many; run folders stay."""

    def folders_to_remove(self, limit: int = 100) -> list[str]:
        """Ids of deleted jobs whose run folders are still to be removed."""

    def folder_removed(self, job_id: str) -> None:
        """The run folder of a deleted job is gone."""

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """Add an event of the attempt to the job's history and return its id. Raises Fenced.

        Progress is not history: it replaces `Job.progress`, goes to the feed, and has no id ("").
        """

    def events(self, job_id: str, after: str = "0-0", limit: int = 500) -> list[StoredEvent]:
        """Return the history after id `after`, oldest first.

        Where step events were dropped after `after`, a Gap stands in their place. Raises JobNotFound.
        """

    def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
        """Return entries of all jobs after feed id `after`, oldest first; waits up to `wait_s` for the first one.

        A reader takes `feed_end`, then a job's history, then follows. The feed is a quick messenger, not a record: it
        is bounded, and another release may not write to it, so a follower looks at the store now and then as well.
        """

    def feed_end(self) -> str:
        """The id of the newest entry of the feed; what comes after it has not happened yet."""

    def stats(self) -> QueueStats:
        """Count jobs by state."""

    def unreadable(self) -> Mapping[str, int]:
        """How many records this process has skipped so far because they were gone or could not be read, by kind."""

    def mark(self, name: str, ttl_s: float) -> bool:
        """Remember a name for `ttl_s` seconds; False when it was remembered already."""

    def marked(self, name: str) -> bool:
        """True while a name is remembered."""
