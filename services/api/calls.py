"""The store, for code on the event loop: threads of its own, a bound on who waits, and one round trip for submissions
that come together.

The pool that serves files and looks at jobs' inputs may be full of slow disks; a call to the store never waits for it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from accord.errors import StoreUnavailable
from services.jobs.job import Job
from services.jobs.store import JobStore, Submission

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
"""The interpreter runs one at a time; more would only take turns."""
WAITING = 512
"""Calls that may wait at once: a store that hangs is told to callers, not to the memory."""
WAIT_S = 10.0
"""Longest wait for an answer, the turn included: while the store hangs, each caller would wait for all before it."""
SWITCH_S = 0.0005
TOGETHER = 64
"""Most submissions in one round trip."""


class StoreCalls:
    """Awaitable calls of one store. Belongs to one event loop at a time."""

    def __init__(self, store: JobStore, *, threads: int = THREADS, waiting: int | None = None) -> None:
        # A thread that comes back from the store waits for the event loop to let go, 5 ms each time unless told less.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._store = store
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="accord-store")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="accord-submit")
        self._waiting, self._most = 0, waiting or WAITING
        self._pending: list[tuple[Submission, asyncio.Future[tuple[Job, bool]]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the store in a thread. Raises what it raises; StoreUnavailable when too many wait, or this
        one did for too long.
        """
        self._admit(self._waiting)
        self._waiting += 1
        try:
            return await _in_time(
                asyncio.get_running_loop().run_in_executor(self._readers, lambda: call(*args, **kwargs))
            )
        finally:
            self._waiting -= 1

    async def enqueue(self, submission: Submission) -> tuple[Job, bool]:
        """`JobStore.enqueue`, together with whoever else submits right now."""
        self._admit(len(self._pending))
        answer: asyncio.Future[tuple[Job, bool]] = asyncio.get_running_loop().create_future()
        self._pending.append((submission, answer))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await _in_time(answer)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending[:TOGETHER], self._pending[TOGETHER:]
            batch = [one for one in batch if not one[1].done()]  # nobody waits for it any more
            if not batch:
                continue
            try:
                found: Sequence[tuple[Job, bool] | Exception] = await loop.run_in_executor(
                    self._writer, self._store.enqueue_all, [submission for submission, _ in batch]
                )
            except Exception as error:  # each of them hears of it
                found = [error] * len(batch)
            for (_, answer), result in zip(batch, found, strict=True):
                if answer.done():  # its client left
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

    def close(self) -> None:
        """End the threads; calls in flight end by the store's own deadline."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer.shutdown(wait=False, cancel_futures=True)

    def _admit(self, waiting: int) -> None:
        if waiting >= self._most:
            raise StoreUnavailable(f"{waiting} calls already wait for the job store; try again in a moment")


async def _in_time(answer: asyncio.Future[T]) -> T:
    """Wait for an answer; one whose turn has not come is given up."""
    try:
        async with asyncio.timeout(WAIT_S) as wait:
            return await answer
    except TimeoutError:
        if not wait.expired():
            raise
        raise StoreUnavailable(
            f"the job store did not answer within {WAIT_S:g} s; send the same again in a moment, a job with its "
            "Idempotency-Key"
        ) from None
