"""The rollout stream: which group is sampled when, with which version, and what happens when a worker dies.

Pure asyncio, no Ray. The rule is exact: the groups of step n are sampled with version max(0, n - 1 - policy_lag) and
with no other. A version, once published, releases the steps that need it; at most (policy_lag + 1) * per_step groups
are therefore under way. A request that was lost with its worker is issued again and, being derived from seeds, gives
the same bits. A group is scored by all rewards at once as soon as it is sampled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from accord.config.job import JobSpec
from accord.errors import AccordError, DeadlineExceeded, RolloutError
from accord.events import Event, EventSink, Phase, ProcessLost, Progress
from accord.ids import PolicyVersion
from accord.requests import sampling_version, step_requests
from accord.types import (
    PolicyState,
    Prompt,
    RewardScorer,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
)


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
    """A rollout worker as the stream sees it: one group at a time."""

    name: str

    async def sample(self, request: RolloutRequest, weights: Weights) -> SampleGroup:
        """Sample one group with exactly these weights. Raises WorkerLost."""
        ...

    async def revive(self, hung: bool) -> None:
        """Come back after a loss, or after a hang, which is to be ended.

        Raises DeadlineExceeded when that fails, and what loading the model raised.
        """
        ...


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request on its way to a worker."""

    request: RolloutRequest
    weights: Weights
    group: asyncio.Future[SampleGroup]
    on_start: Callable[[], None]
    tries: int = 0


@dataclass(slots=True, eq=False)
class _Batch:
    """Groups that were asked for together: a step's, or an evaluation's."""

    phase: Phase
    step: int
    total: int
    samples: int
    tasks: list[asyncio.Task[ScoredGroup]] = field(default_factory=list)
    sampled: int = 0
    scored: int = 0
    started_at: float | None = None
    sampled_at: float = 0.0
    scored_at: float = 0.0

    def start(self) -> None:
        if self.started_at is None:
            self.started_at = time.monotonic()

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


class RolloutStream:
    """Turns published versions into scored groups. All methods run in one event loop."""

    def __init__(
        self,
        job: JobSpec,
        prompts: Sequence[Prompt],
        workers: Sequence[WorkerPort],
        scorer: RewardScorer,
        events: EventSink | None = None,
        *,
        keep: Callable[[PolicyState], Any] = lambda state: state,
        tries: int = 3,
        group_deadline_s: float = 900.0,
        step_deadline_s: float = 7200.0,
    ) -> None:
        """`keep` stores a published state and returns the handle that workers get."""
        self.job = job
        self.prompts = list(prompts)
        self.scorer = scorer
        self.events = events
        self.tries = tries
        self.group_deadline_s = group_deadline_s
        self.step_deadline_s = step_deadline_s
        self._keep = keep
        self._workers = list(workers)
        self._loops: list[asyncio.Task[None]] = []
        self._queue: asyncio.PriorityQueue[tuple[tuple[int, int, int, int], _Ticket]] = asyncio.PriorityQueue()
        self._issued = 0
        self._weights: dict[PolicyVersion, Weights] = {}
        self._serial = 0
        self._latest = -1
        self._steps: dict[int, _Batch] = {}
        self._seconds: dict[int, dict[Phase, float]] = {}
        self._changed = asyncio.Condition()
        self._failure: AccordError | None = None

    def start(self) -> None:
        """Put the workers to work."""
        self._loops = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def close(self) -> None:
        """Stop everything that is under way."""
        for batch in self._steps.values():
            batch.cancel()
        for loop in self._loops:
            loop.cancel()
        pending = [*self._loops, *(task for batch in self._steps.values() for task in batch.tasks)]
        await asyncio.gather(*pending, return_exceptions=True)
        self._steps.clear()

    # ---- the learner's side ----------------------------------------------------------------------------------------

    async def publish(self, state: PolicyState) -> None:
        """Make a version available and start sampling the steps it releases.

        Publishing a version at or below the latest one takes the stream back to it, as a learner does that resumed
        from its checkpoint: whatever was sampled from that version on is forgotten and sampled again.
        """
        version, lag = state.version, self.job.cluster.policy_lag
        if version <= self._latest:
            self._forget(step for step in self._steps if sampling_version(step, lag) >= version)
            self._weights = {kept: weights for kept, weights in self._weights.items() if kept < version}
        self._serial += 1
        self._weights[version] = Weights(version, self._serial, self._keep(state))
        self._latest = version
        self._forget(step for step in self._steps if step <= version)
        for old in [kept for kept in self._weights if kept < version - lag]:
            del self._weights[old]
        async with self._changed:
            for step in range(version + 1, min(version + 1 + lag, self.job.steps) + 1):
                if sampling_version(step, lag) == version:
                    self._begin_step(step)
            self._changed.notify_all()

    async def take(self, step: int) -> list[ScoredGroup]:
        """Return the groups of a step in prompt order. Any number of callers may take the same step.

        Raises:
            RolloutError: a group was lost more often than `tries` allows, or no worker is left.
            DeadlineExceeded: the version it needs was not published, or the step took longer than `step_deadline_s`.
        """
        if step <= self._latest:
            raise RolloutError(f"the groups of step {step} are gone: version {self._latest} was trained from them")
        needed = sampling_version(step, self.job.cluster.policy_lag)

        try:
            async with asyncio.timeout(self.step_deadline_s):
                async with self._changed:
                    await self._changed.wait_for(lambda: step in self._steps or self._failure is not None)
                return await self._gather(self._steps.get(step))
        except TimeoutError as error:
            latest = f"latest published version: {self._latest}"
            message = f"step {step} (version {needed}) was not there after {self.step_deadline_s:g} s; {latest}"
            raise DeadlineExceeded(message) from error

    async def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        """Sample and score requests with versions that are held; version 0 always is. Goes ahead of training steps.

        Raises:
            RolloutError: a version is not held, or sampling failed.
            DeadlineExceeded: it took longer than `step_deadline_s`.
        """
        weights = [self._weights_of(request.policy_version) for request in requests]
        version = max((request.policy_version for request in requests), default=PolicyVersion(0))
        batch = self._batch("evaluate", version, requests)
        self._issue(batch, requests, weights, rewards, lane=0)
        try:
            async with asyncio.timeout(self.step_deadline_s):
                return await self._gather(batch)
        except TimeoutError as error:
            raise DeadlineExceeded(f"evaluation was not done after {self.step_deadline_s:g} s") from error
        finally:
            batch.cancel()

    async def rescore(self, prompt: Prompt, clips: Any, count: int, rewards: Sequence[str]) -> dict[str, RewardScores]:
        """Score clips that were put together elsewhere; `clips` is a handle to a list of `count` clips."""
        return await self._scores(prompt, clips, count, rewards)

    def phase_seconds(self, step: int) -> dict[Phase, float]:
        """Wall time of a step: `rollout` from first to last sample, `reward` what scoring took beyond that."""
        return self._seconds.get(step, {})

    # ---- scheduling ------------------------------------------------------------------------------------------------

    def _weights_of(self, version: PolicyVersion) -> Weights:
        if version in self._weights:
            return self._weights[version]
        if version == 0:
            return Weights(version, 0, None)
        held = ", ".join(map(str, sorted(self._weights))) or "none"
        raise RolloutError(f"version {version} is not held any more; held: 0, {held}")

    def _begin_step(self, step: int) -> None:
        if step in self._steps:
            return
        requests = step_requests(self.job, self.prompts, step)
        batch = self._steps[step] = self._batch("rollout", step, requests)
        weights = [self._weights_of(request.policy_version) for request in requests]
        self._issue(batch, requests, weights, [reward.name for reward in self.job.rewards], lane=1)

    def _batch(self, phase: Phase, step: int, requests: Sequence[RolloutRequest]) -> _Batch:
        return _Batch(phase, step, len(requests), sum(len(request.seeds) for request in requests))

    def _issue(
        self,
        batch: _Batch,
        requests: Sequence[RolloutRequest],
        weights: Sequence[Weights],
        rewards: Sequence[str],
        lane: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        for request, held in zip(requests, weights, strict=True):
            ticket = _Ticket(request, held, loop.create_future(), batch.start)
            self._enqueue(lane, ticket)
            batch.tasks.append(asyncio.create_task(self._group(batch, ticket, rewards)))

    def _enqueue(self, lane: int, ticket: _Ticket) -> None:
        if self._failure is not None:
            ticket.group.set_exception(self._failure)
            return
        self._issued += 1
        self._queue.put_nowait(((lane, ticket.request.step, ticket.request.prompt_index, self._issued), ticket))

    def _forget(self, steps: Iterable[int]) -> None:
        for step in list(steps):
            batch = self._steps.pop(step)
            batch.cancel()
            for old in sorted(self._seconds)[:-64]:
                del self._seconds[old]

    async def _gather(self, batch: _Batch | None) -> list[ScoredGroup]:
        if batch is None:
            raise self._failure or RolloutError("the step was taken back while it was waited for")
        try:
            return list(await asyncio.gather(*(asyncio.shield(task) for task in batch.tasks)))
        except asyncio.CancelledError:
            if any(task.cancelled() for task in batch.tasks):
                raise RolloutError(f"step {batch.step} was taken back: an earlier version was published") from None
            raise

    # ---- sampling --------------------------------------------------------------------------------------------------

    async def _serve(self, worker: WorkerPort) -> None:
        """Feed one worker until it cannot be revived."""
        while True:
            order, ticket = await self._queue.get()
            if ticket.group.done():
                continue
            ticket.on_start()
            ticket.tries += 1
            try:
                async with asyncio.timeout(self.group_deadline_s):
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
        if ticket.tries < self.tries:
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
        self._failure = RolloutError(f"no rollout worker is left; the last was {worker.name}: {error}")
        if not isinstance(error, DeadlineExceeded):
            self._failure = error
        while not self._queue.empty():
            _, ticket = self._queue.get_nowait()
            if not ticket.group.done():
                ticket.group.set_exception(self._failure)
        async with self._changed:
            self._changed.notify_all()

    # ---- scoring ---------------------------------------------------------------------------------------------------

    async def _group(self, batch: _Batch, ticket: _Ticket, rewards: Sequence[str]) -> ScoredGroup:
        try:
            group = await ticket.group
        except asyncio.CancelledError:
            ticket.group.cancel()
            raise
        count = len(ticket.request.seeds)
        batch.sampled += count
        batch.sampled_at = time.monotonic()
        self._emit(Progress(phase=batch.phase, step=batch.step, done=batch.sampled, total=batch.samples))
        scores = await self._scores(ticket.request.prompt, group.clips, count, rewards)
        batch.scored += 1
        batch.scored_at = time.monotonic()
        if batch.phase == "rollout":
            self._emit(Progress(phase="reward", step=batch.step, done=batch.scored, total=batch.total))
            self._clock(batch)
        return ScoredGroup(group, scores)

    def _clock(self, batch: _Batch) -> None:
        if batch.scored == batch.total and batch.started_at is not None:
            rollout, reward = batch.sampled_at - batch.started_at, batch.scored_at - batch.sampled_at
            self._seconds[batch.step] = {"rollout": rollout, "reward": reward}

    async def _scores(self, prompt: Prompt, clips: Any, count: int, rewards: Sequence[str]) -> dict[str, RewardScores]:
        results = await asyncio.gather(*(self.scorer.score(name, prompt, clips, count) for name in rewards))
        return dict(zip(rewards, results, strict=True))

    def _emit(self, event: Event) -> None:
        if self.events is not None:
            self.events.emit(event)


def _named(request: RolloutRequest) -> str:
    return f"group {request.prompt.id!r} of step {request.step}, version {request.policy_version}"


def _as_rollout_error(error: Exception, request: RolloutRequest) -> AccordError:
    """Errors of the tree pass through; anything else a worker raised becomes one."""
    if isinstance(error, AccordError):
        return error
    return RolloutError(f"{_named(request)}: {type(error).__name__}: {error}")
