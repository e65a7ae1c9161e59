"""JobStore on any server that speaks the Redis protocol (commands of 6.2 / 7.0 only). The only file that imports redis.

Each operation is one Lua script, so it happens whole or not at all, and uses the server's clock. See lua/prelude.lua
for the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from accord.config.settings import Settings
from accord.errors import Conflict, Fenced, JobNotFound, StoreError, StoreUnavailable
from accord.events import Event, Progress, StepCompleted
from accord.ids import JOB_ID
from services.jobs.address import hidden, secrets_in, without_password
from services.jobs.job import Job, JobState, JobSummary, Reason
from services.jobs.records import (
    SUMMARY_FIELDS,
    Unreadable,
    order_of,
    read_feed,
    read_history,
    read_job,
    read_jobs,
)
from services.jobs.scripts import scripts
from services.jobs.store import (
    IDEMPOTENCY_TTL_S,
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

PREFIX = "accord:{jobs}:"
URL_FILE = "store.url"
"""File in the data directory where an embedded store leaves its address (mode 0600: it holds the password)."""
_UNREADABLE_WAIT_S = 60.0

_OTHER_JOB = "this Idempotency-Key was used with another job; use a new key for a new job"


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


class RedisJobStore:
    """Thread-safe; each call borrows a connection from a pool. A call is never retried silently: the caller decides."""

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self._shown, self._secrets = without_password(url), secrets_in(url)
        self._timeout_s = timeout_s
        try:
            self._redis: Any = redis.Redis.from_url(
                url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
        except ValueError:  # its words may hold a part of the password
            raise StoreUnavailable(
                f"REDIS_URL is not usable ({self._shown}); expected redis://user:password@host:port/0, with special "
                "characters of the password percent-encoded"
            ) from None
        self._scripts = {name: self._redis.register_script(text) for name, text in scripts().items()}
        self._unreadable = Unreadable()

    def ready(self) -> None:
        """See JobStore."""
        self._guard(lambda: self._redis.set(PREFIX + "ready-check", "1", ex=60))

    def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """See JobStore."""
        (answer,) = self.enqueue_all([submission])
        if isinstance(answer, StoreError):
            raise answer
        return answer

    def enqueue_all(self, submissions: Sequence[Submission]) -> list[tuple[Job, bool] | StoreError]:
        """See JobStore. One round trip."""
        script = self._scripts["enqueue"]

        def send(asked: Sequence[Submission]) -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            for one in asked:
                pipe.evalsha(
                    script.sha, 1, PREFIX, one.id, one.name, one.spec_json, one.steps, one.max_attempts,
                    _digest(one.key), one.fingerprint, IDEMPOTENCY_TTL_S, "0",
                )  # fmt: skip
            answers: list[Any] = self._guard(lambda: pipe.execute(raise_on_error=False))
            return answers

        answers = send(submissions)
        unknown = [index for index, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:  # a server that began anew
            self._guard(lambda: self._redis.script_load(script.script))
            for index, answer in zip(unknown, send([submissions[index] for index in unknown]), strict=True):
                answers[index] = answer
        return [self._enqueued(answer) for answer in answers]

    def _enqueued(self, answer: Any) -> tuple[Job, bool] | StoreError:
        if isinstance(answer, redis.RedisError):
            return self._unavailable("refused", answer)
        word, *rest = answer
        if word == "CONFLICT":
            return Conflict(_OTHER_JOB)
        try:
            return read_job(Job, rest[0]), word == "CREATED"
        except StoreError as error:
            return error

    def accepted(self, key: str, fingerprint: str) -> Job | None:
        """See JobStore."""
        if not key:
            return None
        word, *rest = self._run("accepted", _digest(key), fingerprint)
        if word == "CONFLICT":
            raise Conflict(_OTHER_JOB)
        return read_job(Job, rest[0]) if rest else None

    def get(self, job_id: str) -> Job:
        """See JobStore."""
        key = _key(job_id)
        fields = self._guard(lambda: self._redis.hgetall(key))
        if not fields:
            raise JobNotFound(f"no job {job_id!r}")
        return read_job(Job, fields)

    def page(self, *, limit: int = 50, after: str | None = None, state: JobState | None = None) -> Page:
        """See JobStore."""
        index = PREFIX + (f"in:{state.value}" if state else "all")
        upper = f"({after}" if after else "+"
        ids = self._guard(lambda: self._redis.zrevrangebylex(index, upper, "-", 0, limit + 1))
        page = ids[:limit]
        pipe = self._redis.pipeline(transaction=False)
        for job_id in page:
            pipe.hmget(f"{PREFIX}job:{job_id}", SUMMARY_FIELDS)
        found, gone = [], []
        for job_id, values in zip(page, self._guard(pipe.execute), strict=True):
            if any(value is not None for value in values):
                found.append(dict(zip(SUMMARY_FIELDS, values, strict=True)) | {"id": job_id})
            else:
                gone.append(job_id)
        if gone:
            self._missing(self._run("tidy", *gone))
        jobs = read_jobs(JobSummary, found, self._unreadable)
        return Page(jobs, page[-1] if len(ids) > limit else None)

    def claim(self, owner: str, lease_s: float, backoff_s: float) -> Claimed:
        """See JobStore."""
        word, fields, lost, gone = self._run("claim", owner, _ms(lease_s), _ms(backoff_s))
        self._missing(gone)
        job = self._claimed(fields) if word == "CLAIMED" else None
        return Claimed(job, tuple(read_jobs(Job, lost, self._unreadable)))

    def _claimed(self, fields: list[Any]) -> Job | None:
        """The job to run; one that cannot be read goes back for a while, perhaps another release can."""
        try:
            return read_job(Job, fields)
        except StoreError as error:
            record = dict(zip(fields[::2], fields[1::2], strict=True))
            self._unreadable.report("job", str(error), error)
            if JOB_ID.fullmatch(record.get("id", "")):
                self.release(record["id"], int(record["epoch"]), delay_s=_UNREADABLE_WAIT_S, message=str(error)[:500])
            return None

    def unreadable(self) -> dict[str, int]:
        """See JobStore."""
        return self._unreadable.counts()

    def _missing(self, gone: list[str]) -> None:
        for job_id in gone:
            self._unreadable.report("missing_job", job_id, "it was listed, but its record is gone")

    def beat(self, job_id: str, epoch: int, lease_s: float) -> Beat:
        """See JobStore."""
        word = self._run("beat", _known(job_id), epoch, _ms(lease_s))[0]
        if word == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        return Beat(word)

    def running(self, job_id: str, epoch: int) -> None:
        """See JobStore."""
        self._owned("running", job_id, epoch)

    def finish(self, job_id: str, epoch: int, state: JobState, reason: Reason, message: str = "") -> Job:
        """See JobStore."""
        return read_job(Job, self._owned("finish", job_id, epoch, state.value, reason.value, message)[1])

    def lose(self, job_id: str, epoch: int, reason: Reason, message: str, backoff_s: float) -> Job:
        """See JobStore."""
        return read_job(Job, self._owned("lose", job_id, epoch, reason.value, message, _ms(backoff_s))[1])

    def release(self, job_id: str, epoch: int, *, delay_s: float = 0.0, message: str = STOPPED) -> Job:
        """See JobStore."""
        delay_ms = _ms(delay_s) if delay_s > 0 else 0
        return read_job(Job, self._owned("release", job_id, epoch, delay_ms, message)[1])

    def explain(self, why: str) -> None:
        """See JobStore."""
        self._run("explain", why)

    def cancel(self, job_id: str) -> Job:
        """See JobStore."""
        word, *rest = self._run("cancel", _known(job_id))
        if word == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        job = read_job(Job, rest[0])
        if word == "ILLEGAL":
            raise Conflict(f"{job_id} is {job.state}, which cannot become {JobState.CANCELLING}")
        return job

    def append(self, job_id: str, epoch: int, event: Event) -> str:
        """See JobStore."""
        kind = "progress" if isinstance(event, Progress) else "step" if isinstance(event, StepCompleted) else "event"
        step = event.step if isinstance(event, StepCompleted) else ""
        return str(self._owned("append", job_id, epoch, event.model_dump_json(), kind, step)[1])

    def events(self, job_id: str, after: str = "0-0", limit: int = 500, wait_s: float = 0.0) -> list[StoredEvent]:
        """See JobStore. `wait_s` is at most half the socket timeout, else the wait would look like a dead server."""
        cursor = "{}-{}".format(*order_of(after))
        found = self._history(job_id, cursor, limit)
        if found or wait_s <= 0:
            return found
        streams = {f"{_key(job_id)}:{name}": cursor for name in ("ev", "st")}
        self._guard(lambda: self._redis.xread(streams, count=1, block=self._block(wait_s)))
        return self._history(job_id, cursor, limit)

    def _history(self, job_id: str, after: str, limit: int) -> list[StoredEvent]:
        word, *rest = self._run("events", _known(job_id), after, limit)
        if word == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        dropped_to, dropped, lifecycle, steps = rest
        return read_history([*lifecycle, *steps], after, dropped_to, int(dropped), self._unreadable)[:limit]

    def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
        """See JobStore. `wait_s` is bounded as in `events`."""
        cursor = "{}-{}".format(*order_of(after))
        block = self._block(wait_s) if wait_s > 0 else None
        return read_feed(self._guard(lambda: self._redis.xread({PREFIX + "feed": cursor}, count=limit, block=block)))

    def feed_end(self) -> str:
        """See JobStore."""
        newest = self._guard(lambda: self._redis.xrevrange(PREFIX + "feed", count=1))
        return str(newest[0][0]) if newest else "0-0"

    def _block(self, wait_s: float) -> int:
        return _ms(min(wait_s, self._timeout_s / 2))

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
            created = self._guard(lambda: self._redis.hget(f"{PREFIX}job:{oldest[0]}", "created_at"))
            if created and created.isdecimal():
                age = max(0.0, seconds + microseconds / 1e6 - int(created) / 1000)
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
        answer = self._run(name, _known(job_id), epoch, *arguments)
        if answer[0] == "MISSING":
            raise JobNotFound(f"no job {job_id!r}")
        if answer[0] == "FENCED":
            raise Fenced(f"attempt {epoch} does not own {job_id} (attempt {answer[1]}, {answer[2]})")
        if answer[0] == "ILLEGAL":
            raise Conflict(f"{job_id} is {read_job(Job, answer[1]).state}, which cannot become {arguments[0]}")
        return answer

    def _run(self, name: str, *arguments: str | int) -> list[Any]:
        answer: list[Any] = self._guard(lambda: self._scripts[name](keys=[PREFIX], args=list(arguments)))
        return answer

    def _guard(self, call: Any) -> Any:
        try:
            return call()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise self._unavailable("does not answer", error) from None
        except redis.ResponseError as error:
            raise self._unavailable("refused", error) from None

    def _unavailable(self, what: str, error: Exception) -> StoreUnavailable:
        """A server may repeat what it was sent, a client what it was given: the password goes no further."""
        return StoreUnavailable(f"the job store at {self._shown} {what}: {hidden(str(error), self._secrets)}")


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
