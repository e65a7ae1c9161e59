"""JobStore on any server that speaks the Redis protocol (commands of 6.2 / 7.0 only). The only file that imports redis.

Each operation is one Lua script, so it happens whole or not at all, and uses the server's clock. See lua/prelude.lua
for the keys.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from accord.config.settings import Settings
from accord.errors import Conflict, Fenced, JobNotFound, StoreUnavailable
from accord.events import JOB_EVENT, Event, StepCompleted
from services.jobs.job import ACTIVE, TERMINAL, TRANSITIONS, Job, JobState, Reason
from services.jobs.store import (
    EVENTS_KEPT,
    IDEMPOTENCY_TTL_S,
    Beat,
    Claimed,
    JobStore,
    Page,
    QueueStats,
    StoredEvent,
    Submission,
)

PREFIX = "accord:{jobs}:"
URL_FILE = "store.url"
"""File in the data directory where an embedded store leaves its address (mode 0600: it holds the password)."""
_TIMES = ("created_at", "updated_at", "started_at", "finished_at")


def store_url(settings: Settings) -> str:
    """The address of the job store: REDIS_URL, else the embedded store of the data directory.

    Raises StoreUnavailable when neither is there.
    """
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    try:
        return (settings.data_dir / URL_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        raise StoreUnavailable(
            f"no job store: REDIS_URL is not set and no service runs on {settings.data_dir.resolve()}; "
            "start one with `accord up` or set REDIS_URL"
        ) from None


def open_store(settings: Settings) -> JobStore:
    """Return the store that the settings point at. Connects on first use."""
    return RedisJobStore(store_url(settings), timeout_s=min(5.0, max(0.5, settings.lease_s / 3)))


def without_password(url: str) -> str:
    """The address as it may be shown to people."""
    head, at, tail = url.rpartition("@")
    return f"{head.split('://', 1)[0]}://{tail}" if at else url


class RedisJobStore:
    """Thread-safe; each call borrows a connection from a pool. A call is never retried silently: the caller decides."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self._shown = without_password(url)
        self._timeout_s = timeout_s
        try:
            self._redis: Any = redis.Redis.from_url(
                url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
        except ValueError as error:
            raise StoreUnavailable(f"REDIS_URL is not usable ({error}); expected redis://host:port/0") from error
        self._scripts = {name: self._redis.register_script(text) for name, text in _scripts().items()}

    def ready(self) -> None:
        """See JobStore."""
        self._guard(lambda: self._redis.set(PREFIX + "ready-check", "1", ex=60))

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """See JobStore."""
        digest = hashlib.sha256(submission.key.encode()).hexdigest() if submission.key else ""
        word, *rest = self._run(
            "enqueue", submission.id, submission.name, submission.spec_json, submission.steps,
            submission.max_attempts, digest, submission.fingerprint, IDEMPOTENCY_TTL_S,
        )  # fmt: skip
        if word == "CONFLICT":
            raise Conflict("this Idempotency-Key was used with another job; use a new key for a new job")
        return _job(rest[0]), word == "CREATED"

    def get(self, job_id: str) -> Job:
        """See JobStore."""
        fields = self._guard(lambda: self._redis.hgetall(_key(job_id)))
        if not fields:
            raise JobNotFound(f"no job {job_id!r}")
        return _job(fields)

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """See JobStore."""
        index = PREFIX + (f"in:{state.value}" if state else "all")
        upper = f"({after}" if after else "+"
        ids = self._guard(lambda: self._redis.zrevrangebylex(index, upper, "-", 0, limit + 1))
        page = ids[:limit]
        pipe = self._redis.pipeline(transaction=False)
        for job_id in page:
            pipe.hgetall(_key(job_id))
        jobs = [_job(fields) for fields in self._guard(pipe.execute) if fields]
        return Page(jobs, page[-1] if len(ids) > limit else None)

    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        """See JobStore."""
        word, fields, lost = self._run("claim", owner, _ms(lease_s), _ms(backoff_s))
        return Claimed(_job(fields) if word == "CLAIMED" else None, tuple(map(_job, lost)))

    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        """See JobStore."""
        word = self._run("beat", job_id, epoch, _ms(lease_s))[0]
        if word == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        return Beat(word)

    def running(self, job_id: str, epoch: int) -> None:
        """See JobStore."""
        self._owned("running", job_id, epoch)

    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        """See JobStore."""
        return _job(self._owned("finish", job_id, epoch, state.value, reason.value, message)[1])

    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        """See JobStore."""
        return _job(self._owned("lose", job_id, epoch, reason.value, message, _ms(backoff_s))[1])

    def release(self, job_id: str, epoch: int) -> Job:
        """See JobStore."""
        return _job(self._owned("release", job_id, epoch)[1])

    def cancel(self, job_id: str) -> Job:
        """See JobStore."""
        word, *rest = self._run("cancel", job_id)
        if word == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        job = _job(rest[0])
        if word == "ILLEGAL":
            raise Conflict(f"{job_id} is {job.state.value}, which cannot become {JobState.CANCELLING.value}")
        return job

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """See JobStore."""
        step = event.step if isinstance(event, StepCompleted) else ""
        return str(self._owned("append", job_id, epoch, event.model_dump_json(), step)[1])

    def events(self, job_id: str, after: str = "0-0", limit: int = 500, wait_s: float = 0.0) -> list[StoredEvent]:
        """See JobStore. `wait_s` is at most half the socket timeout, else the wait would look like a dead server."""
        stream = _key(job_id) + ":ev"
        block = min(wait_s, self._timeout_s / 2)
        found = self._guard(
            lambda: self._redis.xread({stream: after}, count=limit, block=_ms(block) if block > 0 else None)
        )
        if not found:
            if not self._guard(lambda: self._redis.exists(_key(job_id))):
                raise JobNotFound(f"no job {job_id!r}")
            return []
        entries = next(iter(found.values())) if isinstance(found, dict) else found[0][1]
        if entries and isinstance(entries[0], list):  # RESP3 nests one level deeper
            entries = list(itertools.chain.from_iterable(entries))
        return [StoredEvent(str(entry_id), JOB_EVENT.validate_json(fields["json"])) for entry_id, fields in entries]

    def stats(self) -> QueueStats:
        """See JobStore."""
        pipe = self._redis.pipeline(transaction=False)
        for state in JobState:
            pipe.zcard(PREFIX + "in:" + state.value)
        pipe.zrange(PREFIX + "in:queued", 0, 0)
        pipe.time()
        *counts, oldest, (seconds, microseconds) = self._guard(pipe.execute)
        age = 0.0
        if oldest:
            created = self._guard(lambda: self._redis.hget(_key(oldest[0]), "created_at"))
            age = max(0.0, seconds + microseconds / 1e6 - int(created) / 1000) if created else 0.0
        return QueueStats({state.value: int(count) for state, count in zip(JobState, counts, strict=True)}, age)

    def mark(self, name: str, ttl_s: float) -> bool:
        """See JobStore."""
        key = PREFIX + "mark:" + name
        return bool(self._guard(lambda: self._redis.set(key, "1", px=_ms(ttl_s), nx=True)))

    def marked(self, name: str) -> bool:
        """See JobStore."""
        return bool(self._guard(lambda: self._redis.exists(PREFIX + "mark:" + name)))

    def close(self) -> None:
        """Drop the pooled connections."""
        self._redis.close()

    def _owned(self, name: str, job_id: str, epoch: int, *arguments: str | int) -> list[Any]:
        """Run an epoch-guarded script."""
        answer = self._run(name, job_id, epoch, *arguments)
        if answer[0] == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        if answer[0] == "FENCED":
            raise Fenced(f"attempt {epoch} does not own {job_id} (attempt {answer[1]}, {answer[2]})")
        if answer[0] == "ILLEGAL":
            raise Conflict(f"{job_id} is {_job(answer[1]).state.value}, which cannot become {arguments[0]}")
        return answer

    def _run(self, name: str, *arguments: str | int) -> list[Any]:
        answer: list[Any] = self._guard(lambda: self._scripts[name](keys=[PREFIX], args=list(arguments)))
        return answer

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise StoreUnavailable(f"the job store at {self._shown} does not answer: {error}") from error
        except redis.ResponseError as error:
            raise StoreUnavailable(f"the job store at {self._shown} refused: {error}") from error


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _job(fields: Any) -> Job:
    """Build a Job from a hash, as a mapping or as Lua's flat list."""
    pairs: dict[str, Any] = dict(zip(fields[::2], fields[1::2], strict=True)) if isinstance(fields, list) else fields
    values = {name: pairs[name] for name in Job.model_fields if name in pairs}
    values |= {name: int(values[name]) / 1000 for name in _TIMES if name in values}
    return Job.model_validate(values)


def _lua_set(states: Iterable[JobState]) -> str:
    return "{" + ", ".join(f"{state.value} = true" for state in sorted(states)) + "}"


@cache
def _scripts() -> dict[str, str]:
    """Name → Lua text, with the transition table of job.py written in front."""
    table = ", ".join(f"{state.value} = {_lua_set(following)}" for state, following in TRANSITIONS.items())
    head = (
        f"local NEXT = {{{table}}}\nlocal TERMINAL = {_lua_set(TERMINAL)}\nlocal ACTIVE = {_lua_set(ACTIVE)}\n"
        f"local EVENTS_KEPT = {EVENTS_KEPT}\n"
    )
    folder = files("services.jobs") / "lua"
    prelude = (folder / "prelude.lua").read_text(encoding="utf-8")
    return {
        Path(entry.name).stem: head + prelude + entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua") and entry.name != "prelude.lua"
    }
