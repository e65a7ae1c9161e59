"""Requests to workers, one group at a time each: a queue, a loop per worker, and what happens when one is lost.

Pure asyncio, no Ray. A request that was lost with its worker is issued again and, being derived from seeds, gives the
same bits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from accord.errors import AccordError, DeadlineExceeded, RolloutError
from accord.events import Event, ProcessLost
from accord.ids import PolicyVersion
from accord.types import RolloutRequest, SampleGroup


class WorkerLost(Exception):
    """The worker died or stopped answering; what it was doing must be issued again."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A published version as workers get it. `serial` tells two publications of one version apart."""

    version: PolicyVersion
    serial: int
    handle: Any
    """Handle to the PolicyState; None is version 0, as every worker loads it."""


class WorkerPort(Protocol):
    """A rollout worker as the dispatcher sees it: one group at a time."""

    name: str

    async def sample(self, request: RolloutRequest, weights: Weights) -> SampleGroup:
        """Sample one group with exactly these weights. Raises WorkerLost."""

    async def revive(self, hung: bool) -> None:
        """Come back after a loss, or after a hang, which is to be ended.

        Raises DeadlineExceeded when that fails, and what loading the model raised.
        """


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request on its way to a worker."""

    request: RolloutRequest
    weights: Weights
    group: asyncio.Future[SampleGroup]
    on_start: Callable[[], None]
    tries: int = 0


class Dispatcher:
    """Hands requests to workers. All methods run in one event loop."""

    def __init__(
        self,
        workers: Sequence[WorkerPort],
        emit: Callable[[Event], None],
        on_failure: Callable[[], Awaitable[None]],
        *,
        tries: int,
        group_deadline_s: float,
    ) -> None:
        """`on_failure` is awaited once no worker is left; `failure` says why."""
        self.failure: AccordError | None = None
        self._tries = tries
        self._group_deadline_s = group_deadline_s
        self._emit = emit
        self._on_failure = on_failure
        self._workers = list(workers)
        self._loops: list[asyncio.Task[None]] = []
        self._queue: asyncio.PriorityQueue[tuple[tuple[int, int, int, int], _Ticket]] = asyncio.PriorityQueue()
        self._issued = 0

    def start(self) -> None:
        """Put the workers to work."""
        self._loops = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def close(self) -> None:
        """Let the workers go. What was issued is not answered any more."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    def issue(
        self, lane: int, request: RolloutRequest, weights: Weights, on_start: Callable[[], None]
    ) -> asyncio.Future[SampleGroup]:
        """Queue a request: lower lanes first, then by step and prompt. Cancel the answer to take it back.

        `on_start` is called whenever a worker begins with it. The answer raises RolloutError when the group was lost as
        often as `tries` allows or no worker is left, and what the model raised.
        """
        ticket = _Ticket(request, weights, asyncio.get_running_loop().create_future(), on_start)
        self._enqueue(lane, ticket)
        return ticket.group

    def _enqueue(self, lane: int, ticket: _Ticket) -> None:
        if self.failure is not None:
            ticket.group.set_exception(self.failure)
            return
        self._issued += 1
        self._queue.put_nowait(((lane, ticket.request.step, ticket.request.prompt_index, self._issued), ticket))

    async def _serve(self, worker: WorkerPort) -> None:
        """Feed one worker until it cannot be revived."""
        while True:
            order, ticket = await self._queue.get()
            if ticket.group.done():
                continue
            ticket.on_start()
            ticket.tries += 1
            try:
                async with asyncio.timeout(self._group_deadline_s):
                    group = await worker.sample(ticket.request, ticket.weights)
            except (WorkerLost, TimeoutError) as loss:
                self._reissue(order[0], ticket, worker, loss)
                if not await self._revived(worker, loss):
                    return
            except Exception as error:
                if not ticket.group.done():
                    ticket.group.set_exception(_as_rollout_error(error, ticket.request))
            else:
                if not ticket.group.done():
                    ticket.group.set_result(group)

    def _reissue(self, lane: int, ticket: _Ticket, worker: WorkerPort, loss: BaseException) -> None:
        if ticket.group.done():
            return
        if ticket.tries < self._tries:
            self._enqueue(lane, ticket)
            return
        why = str(loss) or type(loss).__name__
        ticket.group.set_exception(
            RolloutError(f"{_named(ticket.request)} was lost {ticket.tries} times, last on {worker.name}: {why}")
        )

    async def _revived(self, worker: WorkerPort, loss: BaseException) -> bool:
        began = time.monotonic()
        hung = isinstance(loss, TimeoutError)
        cause = "hung" if hung else "died"
        try:
            await worker.revive(hung)
        except AccordError as error:
            self._emit(ProcessLost(process=worker.name, outcome=f"{cause}; given up: {error}"))
            await self._retire(worker, error)
            return False
        seconds = time.monotonic() - began
        outcome = f"{cause}; restarted, its group is sampled again"
        self._emit(ProcessLost(process=worker.name, outcome=outcome, recovery_seconds=seconds))
        return True

    async def _retire(self, worker: WorkerPort, error: AccordError) -> None:
        self._workers.remove(worker)
        if self._workers:
            return
        self.failure = RolloutError(f"no rollout worker is left; the last was {worker.name}: {error}")
        if not isinstance(error, DeadlineExceeded):
            self.failure = error
        while not self._queue.empty():
            _, ticket = self._queue.get_nowait()
            if not ticket.group.done():
                ticket.group.set_exception(self.failure)
        await self._on_failure()


def _named(request: RolloutRequest) -> str:
    return f"group {request.prompt.id!r} of step {request.step}, version {request.policy_version}"


def _as_rollout_error(error: Exception, request: RolloutRequest) -> AccordError:
    """Errors of the tree pass through; anything else a worker raised becomes one."""
    if isinstance(error, AccordError):
        return error
    return RolloutError(f"{_named(request)}: {type(error).__name__}: {error}")
