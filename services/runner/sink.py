"""An attempt's way to the store: its spec, its events, and the question whether it still owns the job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import Fenced, StoreUnavailable
from accord.events import Event
from services.jobs.job import ACTIVE
from services.jobs.redis_store import RedisJobStore, store_url

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

    def __repr__(self) -> str:
        return f"StoreEventSink({self.job_id}, attempt {self.epoch})"

    def spec(self) -> JobSpec:
        """The job's spec. Raises JobNotFound, StoreUnavailable."""
        return self._insist(lambda store: store.get(self.job_id)).spec

    def emit(self, event: Event) -> None:
        """Add an event to the job's stream; the first one moves the job to `running`.

        Raises Fenced when a newer attempt owns the job, StoreUnavailable when the store stays away.
        """
        if not self._announced:
            self._insist(lambda store: store.running(self.job_id, self.epoch))
            self._announced = True
        self._insist(lambda store: store.append(self.job_id, self.epoch, event))

    def guard(self) -> None:
        """Return while this attempt owns the job. Raises Fenced; call it before an effect becomes visible."""
        job = self._insist(lambda store: store.get(self.job_id))
        if job.epoch != self.epoch or job.state not in ACTIVE:
            raise Fenced(
                f"attempt {self.epoch} does not own {self.job_id} (attempt {job.epoch}, {job.state})"
            )  # fmt: skip

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
