"""Event streams: one thread per process reads the store's feed and hands every event to all who follow its job.

A follower subscribes, reads the job's history from its client's cursor, then takes what the feed brings, without what
it has sent already. Whenever the feed may have missed something (its reader began anew, was too slow, or the follower's
buffer is full because its client reads slowly), the follower is *stale* and reads the history again from its cursor:
the feed is only the quick messenger, so nothing is lost or told twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from accord.errors import JobNotFound, StoreError, StoreUnavailable
from accord.events import JobEvent, StateChanged, read_event
from services.api.calls import StoreCalls
from services.jobs.job import TERMINAL, Job
from services.jobs.records import order_of
from services.jobs.store import FeedEntry, JobStore
from services.registry import Metrics

log = logging.getLogger("accord.streams")

HEARTBEAT_S = 10.0
"""A quiet stream says something this often."""
LOOK_S = 15.0
"""A quiet follower reads the history this often: another release may write events without a word to the feed."""
PATIENCE_S = 60.0
"""So long a stream stays open while the store does not answer."""
PAGE = 500
BUFFER = 1000
"""Events that wait for a slow client; beyond it they are left to the history."""
_WAIT_S = 1.0
_CLOSING_S = 0.2
_RETRY_S = 0.5
_THREADS, _READERS = 2, 100_000
END = format_sse_event(data_str="{}", event="end")
_DOWN = format_sse_event(comment="the service goes down", retry=2000)
_LATER = format_sse_event(comment="the job store does not answer", retry=5000)


@dataclass(frozen=True, slots=True)
class _Told:
    """An event as it goes over the wire; `place` is its id as numbers, empty for progress."""

    place: tuple[int, int] | tuple[()]
    text: bytes
    last: bool
    """Nothing follows it."""


@dataclass(eq=False)
class _Follower:
    """One open stream."""

    job_id: str
    place: tuple[int, int]
    """Id of the last event that was told."""
    stale: bool = True
    """It has to read the history before it goes on."""
    farewell: bytes = b""
    """What to say last, once there is nothing more to tell."""
    answered: float = field(default_factory=time.monotonic)
    """When the store answered last."""
    waiting: deque[_Told] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, told: _Told) -> None:
        """Note what the feed brought."""
        if len(self.waiting) >= BUFFER:
            self.expire()
        elif not self.stale:
            self.waiting.append(told)
            self.wake.set()

    def expire(self) -> None:
        """Leave everything to the history."""
        self.waiting.clear()
        self.stale = True
        self.wake.set()

    def drain(self) -> bytes:
        """All that waits and was not told."""
        self.wake.clear()
        told, self.waiting = self.waiting, deque()
        return self.tell(told)

    def tell(self, told: Iterable[_Told]) -> bytes:
        """The text of those that were not told yet."""
        texts = []
        for one in told:
            if one.place and one.place <= self.place:
                continue
            self.place = one.place or self.place
            texts.append(one.text)
            if one.last:
                self.farewell = END
                break
        return b"".join(texts)

    async def news(self) -> bool:
        """Wait for something; False when it stayed quiet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_S):
                return await self.wake.wait()
        return False


class Hub:
    """Serves all event streams of a process. Belongs to one event loop at a time."""

    def __init__(self, store: JobStore, metrics: Metrics, closing: threading.Event) -> None:
        self._store, self._closing = store, closing
        self._calls = StoreCalls(store, threads=_THREADS, waiting=_READERS)
        self._open = metrics.gauge("accord_event_streams")
        self._followers: dict[str, set[_Follower]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._herald: asyncio.Task[None] | None = None

    async def find(self, job_id: str) -> None:
        """Raises JobNotFound or StoreUnavailable: a stream that has begun cannot."""
        await self._calls.run(self._store.get, job_id)

    async def follow(self, job_id: str, cursor: str) -> AsyncIterator[bytes]:
        """The job's events after `cursor` as they come, a comment when it is quiet, and `end` after the last one.

        Without an `end` the client comes back with its last id: the service goes down, or its store stays away.
        """
        mine = _Follower(job_id, order_of(cursor))
        self._join(mine)
        try:
            while not (mine.farewell or self._closing.is_set()):
                text = await self._catch_up(mine) if mine.stale else mine.drain()
                if text:
                    yield text
                elif not (mine.stale or mine.farewell) and not await mine.news():
                    yield KEEPALIVE_COMMENT
                    mine.stale = mine.stale or time.monotonic() - mine.answered > LOOK_S
            yield mine.farewell or _DOWN
        finally:
            self._leave(mine)

    async def _catch_up(self, mine: _Follower) -> bytes:
        """A page of the history. What the feed brings meanwhile waits, and what it brought before is in there."""
        mine.waiting.clear()
        mine.wake.clear()
        mine.stale = False
        try:
            job, history, whole = await self._calls.run(self._read, job_id=mine.job_id, after=mine.place)
        except JobNotFound:
            mine.farewell = END
            return b""
        except StoreUnavailable:
            mine.stale = True
            if time.monotonic() - mine.answered > PATIENCE_S:
                mine.farewell = _LATER
            await asyncio.sleep(_RETRY_S * (1 + random.random()))  # not all at once
            return KEEPALIVE_COMMENT
        mine.answered = time.monotonic()
        text = mine.tell(history)
        if not whole:
            mine.stale = True
        elif job.finished:
            mine.farewell = END
        elif job.progress is not None:
            text += _told("", job.progress).text
        return text

    def _read(self, job_id: str, after: tuple[int, int]) -> tuple[Job, list[_Told], bool]:
        """The job, then a page of its history, and whether that is all there was."""
        job = self._store.get(job_id)
        found = self._store.events(job_id, "{}-{}".format(*after), PAGE)
        return job, [_told(entry.id, entry.event) for entry in found], len(found) < PAGE

    def _join(self, mine: _Follower) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._loop is not loop:
                self._loop, self._followers = loop, {}
            self._followers.setdefault(mine.job_id, set()).add(mine)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="accord-feed", daemon=True)
                self._thread.start()
            if self._herald is None or self._herald.done():
                self._herald = loop.create_task(self._end_when_closing())
            self._count()

    def _leave(self, mine: _Follower) -> None:
        with self._lock:
            others = self._followers.get(mine.job_id, set())
            others.discard(mine)
            if not others:
                self._followers.pop(mine.job_id, None)
            self._count()

    def _count(self) -> None:
        self._open.set(sum(map(len, self._followers.values())))

    async def _end_when_closing(self) -> None:
        """A stream that waits hears of the end of the service at once."""
        while self._followers:
            if self._closing.is_set():
                self._expire_all()
                return
            await asyncio.sleep(_CLOSING_S)

    def _listen(self) -> None:
        """The thread: follow the feed while anybody follows a job."""
        cursor, number = "", 0
        while not self._closing.is_set():
            with self._lock:
                if not self._followers:
                    self._thread = None
                    return
            try:
                if not cursor:
                    cursor, number = self._store.feed_end(), 0
                    self._call(self._expire_all)
                entries = self._store.feed(cursor, _WAIT_S, PAGE)
            except StoreError as error:
                if cursor:
                    log.warning("event streams wait for the job store: %s", error)
                cursor = ""
                self._closing.wait(_RETRY_S)
                continue
            if not entries:
                continue
            numbers = [number, *(entry.number for entry in entries)] if number else [entry.number for entry in entries]
            if any(after != before + 1 for before, after in pairwise(numbers)):
                self._call(self._expire_all)
            cursor, number = entries[-1].id, entries[-1].number
            wanted = [entry for entry in entries if entry.job_id in self._followers]
            if wanted:
                self._call(self._deliver, wanted)

    def _call(self, work: Callable[..., None], *arguments: object) -> None:
        """Do something on the event loop; one that has ended has no streams."""
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(work, *arguments)

    def _expire_all(self) -> None:
        for followers in self._followers.values():
            for one in followers:
                one.expire()

    def _deliver(self, entries: list[FeedEntry]) -> None:
        """Each event is written once, however many follow."""
        for entry in entries:
            followers = self._followers.get(entry.job_id)
            if not followers:
                continue
            try:
                told = _told(entry.event_id, read_event(entry.json))
            except ValueError:
                continue  # the history leaves it out, too, and counts it
            for one in followers:
                one.take(told)


def _told(event_id: str, event: JobEvent) -> _Told:
    text = format_sse_event(data_str=event.model_dump_json(), event=event.type, id=event_id or None)
    last = isinstance(event, StateChanged) and event.state in TERMINAL
    return _Told(order_of(event_id) if event_id else (), text, last)
