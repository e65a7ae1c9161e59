"""The rollout stream: which group is sampled when, with which version, and scored as soon as it is sampled.

Pure asyncio, no Ray. The rule is exact: the groups of step n are sampled with version max(0, n - 1 - policy_lag) and
with no other. A version, once published, releases the steps that need it; at most (policy_lag + 1) * per_step groups
are therefore under way. A group is scored by all rewards at once.

    learner                      this file                        dispatcher.py              workers, scorer
    ───────                      ─────────                        ─────────────              ───────────────
    publish(version) ──────────► holds the weights, begins the
                                 steps that they release ───┐
    evaluate(requests) ────────► one batch, before all steps┤
                                                            └───► queue (lane 0, then 1)
                                                                    │ one loop per worker ──► sample a group
                                 one task per request ◄────────── its future ◄──────────────────────┘
                                    └─ all rewards at once ─────────────────────────────────► score its clips
    take(step), every rank ◄──── the tasks of the step's batch

    who                      consumes               waits for                 produces         unblocked by
    ───────────────────────  ─────────────────────  ────────────────────────  ───────────────  ───────────────────────
    publish                  a handle to a state    nothing                   batches          –
    take                     the batch of its step  the batch, then all of    scored groups    publish; the tasks; the
                                                    its tasks                                  last worker gone (_wake)
    evaluate                 its own batch          all of its tasks          scored groups    the tasks
    _group, one per request  a future, then clips   a worker, then a scorer   a scored group   Dispatcher; the scorer
    Dispatcher._serve,       the queue              a request, then its       the future       issue; the worker; after
      one per worker                                worker                                     a loss its revival

Every wait is bounded: a group by `group_deadline_s`, a score by its reward's deadline (the scorer keeps it), a step by
`step_deadline_s`. What is taken back is cancelled: `_forget` cancels the tasks, those cancel their futures, and a loop
that comes upon such a request passes it over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accord.config.job import JobSpec
from accord.errors import DeadlineExceeded, RolloutError
from accord.events import Event, EventSink, Phase, Progress
from accord.ids import PolicyVersion
from accord.requests import sampling_version, step_requests
from accord.types import (
    Prompt,
    RewardScorer,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
    StepGroups,
)
from rollout_workers.dispatcher import Dispatcher, Weights, WorkerPort


@dataclass(slots=True, eq=False)
class _Batch:
    """Groups that were asked for together: a step's, or an evaluation's."""

    phase: Phase
    step: int
    total: int
    samples: int
    tasks: list[asyncio.Task[ScoredGroup]] = field(default_factory=list)
    together: dict[str, asyncio.Task[Sequence[RewardScores]]] = field(default_factory=dict)
    """Scores of all groups by the rewards whose scope is the step."""
    sampled: int = 0
    scored: int = 0
    started_at: float = 0.0
    sampled_at: float = 0.0
    scored_at: float = 0.0

    def start(self) -> None:
        self.started_at = self.started_at or time.monotonic()

    def cancel(self) -> None:
        for task in (*self.tasks, *self.together.values()):
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
        tries: int = 3,
        group_deadline_s: float = 900.0,
        step_deadline_s: float = 7200.0,
    ) -> None:
        self.job = job
        self.prompts = list(prompts)
        self.scorer = scorer
        self.events = events
        self.step_deadline_s = step_deadline_s
        self._dispatcher = Dispatcher(workers, self._emit, self._wake, tries=tries, group_deadline_s=group_deadline_s)
        self._weights: dict[PolicyVersion, Weights] = {}
        self._by_step = {reward.name for reward in job.rewards if reward.scope == "step"}
        self._serial = 0
        self._latest = -1
        self._steps: dict[int, _Batch] = {}
        self._changed = asyncio.Condition()

    def start(self) -> None:
        """Put the workers to work."""
        self._dispatcher.start()

    async def close(self) -> None:
        """Stop everything that is under way."""
        for batch in self._steps.values():
            batch.cancel()
        await self._dispatcher.close()
        tasks = [task for batch in self._steps.values() for task in batch.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._steps.clear()

    # ---- the learner's side ----------------------------------------------------------------------------------------

    async def publish(self, version: PolicyVersion, state: Any) -> None:
        """Make a version available and start sampling the steps it releases. `state`: handle to its PolicyState.

        Publishing a version at or below the latest one takes the stream back to it, as a learner does that resumed
        from its checkpoint: whatever was sampled from that version on is forgotten and sampled again.
        """
        lag = self.job.cluster.policy_lag
        if version <= self._latest:
            self._forget(step for step in self._steps if sampling_version(step, lag) >= version)
            self._weights = {kept: weights for kept, weights in self._weights.items() if kept < version}
        self._serial += 1
        self._weights[version] = Weights(version, self._serial, state)
        self._latest = version
        self._forget(step for step in self._steps if step <= version)
        for old in [kept for kept in self._weights if kept < version - lag]:
            del self._weights[old]
        async with self._changed:
            for step in range(version + 1, min(version + 1 + lag, self.job.steps) + 1):
                if sampling_version(step, lag) == version:
                    self._begin_step(step)
            self._changed.notify_all()

    async def take(self, step: int) -> StepGroups:
        """Return the groups of a step and what they took. Any number of callers may take the same step.

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
                    await self._changed.wait_for(lambda: step in self._steps or self._dispatcher.failure is not None)
                if step not in self._steps:
                    raise self._dispatcher.failure or RolloutError("the step was taken back while it was waited for")
                batch = self._steps[step]
                groups = await self._gather(batch)
                sampled, scored = batch.sampled_at - batch.started_at, batch.scored_at - batch.sampled_at
                return StepGroups(groups, sampled, scored)
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
        version = max((request.policy_version for request in requests), default=PolicyVersion(0))
        batch = self._issue("evaluate", version, requests, rewards, lane=0)
        try:
            async with asyncio.timeout(self.step_deadline_s):
                return await self._gather(batch)
        except TimeoutError as error:
            raise DeadlineExceeded(f"evaluation was not done after {self.step_deadline_s:g} s") from error
        finally:
            batch.cancel()

    async def rescore(self, prompt: Prompt, clips: Any, count: int, rewards: Sequence[str]) -> dict[str, RewardScores]:
        """Score clips, a group's or put together elsewhere; `clips` is a handle to a list of `count` of them."""
        results = await asyncio.gather(*(self.scorer.score(name, prompt, clips, count) for name in rewards))
        return dict(zip(rewards, results, strict=True))

    # ---- what is sampled when --------------------------------------------------------------------------------------

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
        requests, rewards = step_requests(self.job, self.prompts, step), [reward.name for reward in self.job.rewards]
        self._steps[step] = self._issue("rollout", step, requests, rewards, lane=1)

    def _issue(
        self, phase: Phase, step: int, requests: Sequence[RolloutRequest], rewards: Sequence[str], lane: int
    ) -> _Batch:
        weights = [self._weights_of(request.policy_version) for request in requests]
        batch = _Batch(phase, step, len(requests), sum(len(request.seeds) for request in requests))
        sampled = [
            self._dispatcher.issue(lane, request, held, batch.start)
            for request, held in zip(requests, weights, strict=True)
        ]
        by_step = [name for name in rewards if name in self._by_step]
        batch.together = {name: asyncio.create_task(self._step(name, requests, sampled)) for name in by_step}
        for place, (request, group) in enumerate(zip(requests, sampled, strict=True)):
            batch.tasks.append(asyncio.create_task(self._group(batch, place, request, group, rewards)))
        return batch

    def _forget(self, steps: Iterable[int]) -> None:
        for step in list(steps):
            self._steps.pop(step).cancel()

    async def _gather(self, batch: _Batch) -> list[ScoredGroup]:
        try:
            return list(await asyncio.gather(*(asyncio.shield(task) for task in batch.tasks)))
        except asyncio.CancelledError:
            if any(task.cancelled() for task in batch.tasks):
                raise RolloutError(f"step {batch.step} was taken back: an earlier version was published") from None
            raise

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ---- scoring ---------------------------------------------------------------------------------------------------

    async def _step(
        self, reward: str, requests: Sequence[RolloutRequest], sampled: Sequence[asyncio.Future[SampleGroup]]
    ) -> Sequence[RewardScores]:
        """All groups of a batch, scored together once all are sampled."""
        groups = await asyncio.gather(*(asyncio.shield(future) for future in sampled))
        prompts, counts = [request.prompt for request in requests], [len(request.seeds) for request in requests]
        return await self.scorer.score_step(reward, prompts, [group.clips for group in groups], counts)

    async def _group(
        self,
        batch: _Batch,
        place: int,
        request: RolloutRequest,
        sampled: asyncio.Future[SampleGroup],
        rewards: Sequence[str],
    ) -> ScoredGroup:
        group = await sampled
        count = len(request.seeds)
        batch.sampled += count
        batch.sampled_at = time.monotonic()
        self._emit(Progress(phase=batch.phase, step=batch.step, done=batch.sampled, total=batch.samples))
        alone = [name for name in rewards if name not in self._by_step]
        scores = await self.rescore(request.prompt, group.clips, count, alone)
        scores |= {name: (await asyncio.shield(task))[place] for name, task in batch.together.items()}
        batch.scored += 1
        batch.scored_at = time.monotonic()
        if batch.phase == "rollout":
            self._emit(Progress(phase="reward", step=batch.step, done=batch.scored, total=batch.total))
        return ScoredGroup(group, scores)

    def _emit(self, event: Event) -> None:
        if self.events is not None:
            self.events.emit(event)
