"""An attempt's way to the store: its spec, its events, and the question whether it still owns the job."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import StoreUnavailable
from accord.events import Event, EventSink
from services.connections import store_url
from services.jobs.redis_store import RedisJobStore

_T = TypeVar("_T")


class StoreEventSink:
    """EventSink of one attempt. It pickles; every process that holds one connects by itself when first used.

    A store that does not answer is waited for during two thirds of the lease: after that the supervisor has stopped
    the attempt anyway.
    """

    def __init__(self, settings: Settings, job_id: str, epoch: int) -> None:
        self.job_id, self.epoch = job_id, epoch
        self._url = store_url(settings)
        self._patience_s = settings.lease_s * 2 / 3
        self._store: RedisJobStore | None = None
        self._announced = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_announced": False}

    def spec(self) -> JobSpec:
        """The job's spec. Raises JobNotFound, StoreUnavailable."""
        return self._insist(lambda store: store.get(self.job_id)).spec

    def emit(self, event: Event) -> None:
        """Add an event to the job's stream; the first one moves the job to `running`.

        Raises Fenced when a newer attempt owns the job, StoreUnavailable when the store stays away.
        """
        if not self._announced:
            self.guard()
            self._announced = True
        self._insist(lambda store: store.append(self.job_id, self.epoch, event))

    def guard(self) -> None:
        """Return while this attempt owns the job. Raises Fenced; call it before an effect becomes visible."""
        self._insist(lambda store: store.running(self.job_id, self.epoch))

    def _insist(self, call: Callable[[RedisJobStore], _T]) -> _T:
        if self._store is None:
            self._store = RedisJobStore(self._url)
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return call(self._store)
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


class QueuedEventSink:
    """Another sink for an event loop: `emit` never waits. One thread passes the events on, in their order.

    While the store is away the loop goes on and up to `room` events wait. Once passing one on has failed (Fenced, or
    StoreUnavailable at the end of the other sink's patience), nothing more is passed on and `emit` raises that error.
    It pickles without what waits in it.
    """

    def __init__(self, sink: EventSink, room: int = 1000) -> None:
        self._sink = sink
        self._waiting: queue.Queue[Event] = queue.Queue(room)
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[QueuedEventSink], tuple[EventSink, int]]:
        return QueuedEventSink, (self._sink, self._waiting.maxsize)

    def emit(self, event: Event) -> None:
        """Have an event passed on. Raises what passing on an earlier one raised; StoreUnavailable without room."""
        if self._error is not None:
            raise self._error
        if self._thread is None:
            self._thread = threading.Thread(target=self._pass_on, name="accord-events", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            raise StoreUnavailable(f"{self._waiting.maxsize} events wait for the store") from None

    def _pass_on(self) -> None:
        try:
            while True:
                self._sink.emit(self._waiting.get())
        except Exception as error:
            self._error = error
