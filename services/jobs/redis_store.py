"""JobStore on any server that speaks the Redis protocol (commands of 6.2 / 7.0 only). The only file that imports redis.

Each operation is one Lua script, so it happens whole or not at all, and uses the server's clock. See lua/prelude.lua
for the keys.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from typing_extensions import override

from accord.config.settings import Settings
from accord.errors import Conflict, Fenced, JobNotFound, StoreError, StoreFull, StoreUnavailable, UnsafeStore
from accord.events import Event, Progress, StepCompleted
from accord.ids import JOB_ID, job_id_stamp
from services.connections import store_url
from services.jobs.address import hidden, secrets_in, without_password
from services.jobs.job import TERMINAL, Job, JobState, JobSummary, Reason
from services.jobs.records import SUMMARY_FIELDS, Unreadable, order_of, read_feed, read_history, read_job, read_jobs
from services.jobs.scripts import scripts
from services.jobs.server import complaints, room
from services.jobs.store import (
    ALIVE,
    IDEMPOTENCY_TTL_S,
    MESSAGE_KEPT,
    PREFIX,
    STOPPED,
    Beat,
    Claimed,
    FeedEntry,
    JobStore,
    Page,
    QueueStats,
    StoredEvent,
    Submission,
)

_UNREADABLE_WAIT_S = 60.0

_LOOK_S = 0.25
_RECORD_BYTES = 2000
"""What a job takes besides its spec, about."""
_FULL = (
    "the job store is nearly full and takes no new jobs: delete finished jobs (`accord delete JOB`), let them expire "
    "sooner (ACCORD_JOB_RETENTION_S), or raise the server's maxmemory"
)
_OTHER_JOB = "this Idempotency-Key was used with another job; use a new key for a new job"

log = logging.getLogger("accord.store")


def open_store(settings: Settings) -> JobStore:
    """Return the store that the settings point at. Connects on first use."""
    return RedisJobStore(
        store_url(settings), timeout_s=min(5.0, max(0.5, settings.lease_s / 3)),
        allow_volatile=settings.allow_volatile_store,
    )  # fmt: skip


class RedisJobStore(JobStore):
    """Thread-safe; each call borrows a connection from a pool. A call is never retried silently: the caller decides."""

    def __init__(self, url: str, *, timeout_s: float = 5.0, allow_volatile: bool = False) -> None:
        self._url, self._shown, self._secrets = url, without_password(url), secrets_in(url)
        self._timeout_s, self._allow_volatile = timeout_s, allow_volatile
        self._unreadable = Unreadable()
        self._room, self._look_again = float("inf"), 0.0
        self._blind = False
        self._connect()

    def _connect(self) -> None:
        try:
            client: Any = redis.Redis.from_url(
                self._url, decode_responses=True, socket_timeout=self._timeout_s,
                socket_connect_timeout=self._timeout_s, retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
            client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
        except (ValueError, TypeError):  # its text may hold a piece of the password
            raise StoreUnavailable(
                "REDIS_URL is not usable: expected redis://host:port/0, rediss://… or unix://path with known "
                "options, and characters like / and # in a password written as %2F and %23"
            ) from None
        self._redis = client
        self._scripts = {name: client.register_script(text) for name, text in scripts().items()}

    @override
    def ready(self) -> None:
        info = self._info()
        if info.get("loading"):  # it answers INFO already, and says wrong things of itself
            raise StoreUnavailable(f"the job store at {self._shown} is reading its files")
        found = complaints(info)
        if found and not self._allow_volatile:
            raise UnsafeStore(
                f"the job store at {self._shown} would lose jobs or cannot be used: {'; '.join(found)}. "
                "ACCORD_ALLOW_VOLATILE_STORE=1 uses it all the same"
            )
        self._guard(lambda: self._redis.set(PREFIX + "ready-check", "1", ex=60))

    def _info(self, *sections: str) -> dict[str, Any]:
        """INFO; empty where this account may not ask, which is logged once."""
        try:
            return dict(self._guard(lambda: self._redis.info(*sections)))
        except _Forbidden:
            if not self._blind:
                log.warning(
                    "this account of the job store may not call INFO: persistence, eviction, role, version and memory "
                    "of %s are not checked", self._shown,
                )  # fmt: skip
            self._blind = True
            return {}

    def _full(self, submission: Submission) -> bool:
        """True when a new job would take the room that running ones need. The server is asked a few times a second."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_S
            self._room = room(self._info("memory"))
        self._room -= len(submission.spec_json) + _RECORD_BYTES
        return self._room < 0

    @override
    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        (answer,) = self.enqueue_all([submission])
        if isinstance(answer, StoreError):
            raise answer
        return answer

    @override
    def enqueue_all(self, submissions: Sequence[Submission]) -> list[tuple[Job, bool] | StoreError]:
        """One round trip."""
        client, script = self._redis, self._scripts["enqueue"]

        def send(asked: Sequence[Submission]) -> list[Any]:
            pipe = client.pipeline(transaction=False)
            for one in asked:
                pipe.evalsha(
                    script.sha, 1, PREFIX, one.id, one.name, one.spec_json, one.steps, one.max_attempts,
                    _digest(one.key), one.fingerprint, IDEMPOTENCY_TTL_S, "1" if self._full(one) else "0",
                )  # fmt: skip
            answers: list[Any] = self._guard(lambda: pipe.execute(raise_on_error=False))
            return answers

        answers = send(submissions)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:  # a server that began anew
            self._guard(lambda: client.script_load(script.script))
            for index, answer in zip(unknown, send([submissions[index] for index in unknown]), strict=True):
                answers[index] = answer
        return [self._enqueued(client, answer) for answer in answers]

    def _enqueued(self, client: Any, answer: Any) -> tuple[Job, bool] | StoreError:
        if isinstance(answer, redis.RedisError):
            return self._meaning(client, answer)
        word, *rest = answer
        if word == "FULL":
            return StoreFull(_FULL)
        if word == "CONFLICT":
            return Conflict(_OTHER_JOB)
        try:
            return read_job(Job, rest[0]), word == "CREATED"
        except StoreError as error:
            return error

    @override
    def accepted(self, key: str, fingerprint: str) -> Job | None:
        if not key:
            return None
        word, *rest = self._run("accepted", _digest(key), fingerprint)
        if word == "CONFLICT":
            raise Conflict(_OTHER_JOB)
        return read_job(Job, rest[0]) if rest else None

    @override
    def get(self, job_id: str) -> Job:
        key = _key(job_id)
        fields = self._guard(lambda: self._redis.hgetall(key))
        if not fields:
            raise JobNotFound(f"no job {job_id!r}")
        return read_job(Job, fields)

    @override
    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        index = PREFIX + (f"in:{state.value}" if state else "all")
        upper = f"({after}" if after else "+"
        ids = self._guard(lambda: self._redis.zrevrangebylex(index, upper, "-", 0, limit + 1))
        page = ids[:limit]
        pipe = self._redis.pipeline(transaction=False)
        for job_id in page:
            pipe.hmget(f"{PREFIX}job:{job_id}", SUMMARY_FIELDS)
        found, gone = [], []
        answers = self._guard(lambda: pipe.execute(raise_on_error=False))
        for job_id, values in zip(page, answers, strict=True):
            if isinstance(values, redis.RedisError):
                self._unreadable.report("job", job_id, values)
            elif any(value is not None for value in values):
                found.append(dict(zip(SUMMARY_FIELDS, values, strict=True)) | {"id": job_id})
            else:
                gone.append(job_id)
        if gone:
            self._missing(self._run("tidy", *gone))
        jobs = read_jobs(JobSummary, found, self._unreadable)
        return Page(jobs, page[-1] if len(ids) > limit else None)

    @override
    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        word, fields, lost, gone, event_id = self._run("claim", owner, _ms(lease_s), _ms(backoff_s))
        self._missing(gone)
        job = self._claimed(fields) if word == "CLAIMED" else None
        return Claimed(job, tuple(read_jobs(Job, lost, self._unreadable)), event_id)

    def _claimed(self, fields: list[Any]) -> Job | None:
        """The job to run; one that cannot be read goes back for a while, perhaps another release can."""
        try:
            return read_job(Job, fields)
        except StoreError as error:
            record = dict(zip(fields[::2], fields[1::2], strict=True))
            self._unreadable.report("job", str(error), error)
            if JOB_ID.fullmatch(record.get("id", "")):
                self._owned("release", record["id"], record["epoch"], _ms(_UNREADABLE_WAIT_S), str(error)[:500])
            return None

    @override
    def unreadable(self) -> dict[str, int]:
        return self._unreadable.counts()

    def _missing(self, gone: list[str]) -> None:
        for job_id in gone:
            self._unreadable.report("missing_job", job_id, "it was listed, but its record is gone")

    @override
    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        return Beat(self._of("beat", job_id, epoch, _ms(lease_s))[0])

    @override
    def running(self, job_id: str, epoch: int) -> None:
        self._owned("running", job_id, epoch)

    @override
    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        return self._ended("finish", job_id, epoch, state.value, reason.value, message[:MESSAGE_KEPT])

    @override
    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        return self._ended("lose", job_id, epoch, reason.value, message[:MESSAGE_KEPT], _ms(backoff_s))

    @override
    def release(self, job_id: str, epoch: int, *, delay_s: float = 0.0, message: str = STOPPED) -> Job:
        delay_ms = _ms(delay_s) if delay_s > 0 else 0
        return self._ended("release", job_id, epoch, delay_ms, message[:MESSAGE_KEPT])

    @override
    def explain(self, why: str) -> None:
        self._run("explain", why)

    @override
    def cancel(self, job_id: str) -> Job:
        word, fields = self._of("cancel", job_id)
        job = read_job(Job, fields)
        if word == "ILLEGAL":
            raise Conflict(f"{job_id} is {job.state}, which cannot become {JobState.CANCELLING}")
        return job

    @override
    def delete(self, job_id: str) -> None:
        word, *rest = self._of("delete", job_id, "", "1")
        if word == "ACTIVE":
            raise Conflict(ALIVE.format(job_id=job_id, state=rest[0]))

    @override
    def sweep(self, retention_s: float, limit: int = 500) -> int:
        """Ids sort by creation, so only those made before the limit can have ended before it."""
        seconds, microseconds = self._guard(self._redis.time)
        latest = max(0.0, seconds + microseconds / 1e6 - retention_s)
        removed = 0
        for state in sorted(TERMINAL):
            index = f"{PREFIX}in:{state.value}"
            old = self._guard(lambda: self._redis.zrangebylex(index, "-", f"({job_id_stamp(latest)}", 0, 2 * limit))  # noqa: B023
            for job_id in old:
                if removed == limit:
                    return removed
                removed += self._run("delete", job_id, int(latest * 1000), "")[0] == "OK"
        return removed

    @override
    def folders_to_remove(self, limit: int = 100) -> list[str]:
        found = self._guard(lambda: self._redis.srandmember(PREFIX + "folders", limit))
        return sorted(job_id for job_id in found if JOB_ID.fullmatch(job_id))

    @override
    def folder_removed(self, job_id: str) -> None:
        self._guard(lambda: self._redis.srem(PREFIX + "folders", job_id))

    @override
    def append(self, job_id: str, epoch: int, event: Event) -> str:
        kind = "progress" if isinstance(event, Progress) else "step" if isinstance(event, StepCompleted) else "event"
        step = event.step if isinstance(event, StepCompleted) else ""
        return str(self._owned("append", job_id, epoch, event.model_dump_json(), kind, step)[1])

    @override
    def events(self, job_id: str, after: str = "0-0", limit: int = 500) -> list[StoredEvent]:
        cursor = "{}-{}".format(*order_of(after))
        _, dropped_to, dropped, lifecycle, steps = self._of("events", job_id, cursor, limit)
        return read_history([*lifecycle, *steps], cursor, (dropped_to, dropped), self._unreadable)[:limit]

    @override
    def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
        """`wait_s` is at most half the socket timeout, else the wait would look like a dead server."""
        cursor = "{}-{}".format(*order_of(after))
        block = _ms(min(wait_s, self._timeout_s / 2)) if wait_s > 0 else None
        return read_feed(self._guard(lambda: self._redis.xread({PREFIX + "feed": cursor}, count=limit, block=block)))

    @override
    def feed_end(self) -> str:
        newest = self._guard(lambda: self._redis.xrevrange(PREFIX + "feed", count=1))
        return str(newest[0][0]) if newest else "0-0"

    @override
    def stats(self) -> QueueStats:
        pipe = self._redis.pipeline(transaction=False)
        for state in JobState:
            pipe.zcard(PREFIX + "in:" + state.value)
        pipe.zrange(PREFIX + "in:queued", 0, 0)
        pipe.time()
        *counts, oldest, (seconds, microseconds) = self._guard(pipe.execute)
        age = 0.0
        if oldest:
            created = self._guard(lambda: self._redis.hget(f"{PREFIX}job:{oldest[0]}", "created_at"))
            if created and created.isdecimal():
                age = max(0.0, seconds + microseconds / 1e6 - int(created) / 1000)
        return QueueStats({state.value: int(count) for state, count in zip(JobState, counts, strict=True)}, age)

    @override
    def mark(self, name: str, ttl_s: float) -> bool:
        return bool(self._run("mark", name, _ms(ttl_s))[0] == "OK")

    @override
    def marked(self, name: str) -> bool:
        return bool(self._guard(lambda: self._redis.exists(PREFIX + "mark:" + name)))

    def close(self) -> None:
        """Drop the pooled connections."""
        self._redis.close()

    def _owned(self, name: str, job_id: str, epoch: int | str, *arguments: str | int) -> list[Any]:
        """Run an epoch-guarded script."""
        answer = self._of(name, job_id, epoch, *arguments)
        if answer[0] == "FENCED":
            raise Fenced(f"attempt {epoch} does not own {job_id} (attempt {answer[1]}, {answer[2]})")
        if answer[0] == "ILLEGAL":
            raise Conflict(f"{job_id} is {read_job(Job, answer[1]).state}, which cannot become {arguments[0]}")
        return answer

    def _ended(self, name: str, job_id: str, epoch: int, *arguments: str | int) -> Job:
        """Run a script that ends an attempt, and return what the job is then."""
        return read_job(Job, self._owned(name, job_id, epoch, *arguments)[1])

    def _of(self, name: str, job_id: str, *arguments: str | int) -> list[Any]:
        """Run a script about one job. Raises JobNotFound."""
        answer = self._run(name, _known(job_id), *arguments)
        if answer[0] == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        return answer

    def _run(self, name: str, *arguments: str | int) -> list[Any]:
        answer: list[Any] = self._guard(lambda: self._scripts[name](keys=[PREFIX], args=list(arguments)))
        return answer

    def _guard(self, call: Callable[[], Any]) -> Any:
        client = self._redis
        try:
            return call()
        except (redis.RedisError, OSError) as error:
            raise self._meaning(client, error) from None

    def _meaning(self, client: Any, error: Exception) -> StoreError:
        """What an error of the server or of the way to it means."""
        message, where = hidden(str(error), self._secrets), f"the job store at {self._shown}"
        if isinstance(error, redis.exceptions.NoPermissionError):
            return _Forbidden(f"{where} refused: {message}")
        # Of a script, older servers put the word that tells into the middle of the text.
        if isinstance(error, redis.exceptions.OutOfMemoryError) or "-OOM " in message:
            return StoreFull(_FULL)
        if isinstance(error, redis.ReadOnlyError) or "-READONLY " in message:
            # After a failover behind one address, old connections still lead to what was the primary.
            if client is self._redis:
                self._connect()
            client.connection_pool.disconnect(inuse_connections=False)
        refused = isinstance(error, redis.ResponseError | redis.exceptions.DataError)
        return StoreUnavailable(f"{where} {'refused' if refused else 'does not answer'}: {message}")


class _Forbidden(StoreUnavailable):
    """The account may not call this command."""


def _known(job_id: str) -> str:
    """The id, if it can be one. Raises JobNotFound: no other text becomes part of a key."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(f"no job {job_id!r}")
    return job_id


def _key(job_id: str) -> str:
    return f"{PREFIX}job:{_known(job_id)}"


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() if key else ""


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
