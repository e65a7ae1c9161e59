"""Ray shells around the worker and the stream, and the stream as learner ranks hold it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from typing_extensions import override

from accord.config.contract import BackboneSpec
from accord.config.job import JobSpec
from accord.config.sampling import SamplingSpec
from accord.errors import DeadlineExceeded, RolloutError, ours
from accord.events import EventSink
from accord.ids import PolicyVersion
from accord.types import (
    Clip,
    GroupSource,
    PolicyState,
    Prompt,
    RewardScorer,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
    StepGroups,
)
from rollout_workers.dispatcher import Weights, WorkerLost, WorkerPort
from rollout_workers.stream import RolloutStream

if TYPE_CHECKING:
    from rollout_workers.worker import RolloutWorker

START_DEADLINE_S = 600.0
"""A worker loads its model within this, first and after a loss."""
CALL_DEADLINE_S = 120.0
"""A call that only passes something on."""
_POLL_S = 0.2


class RolloutActor:
    """A RolloutWorker in its own process."""

    def __init__(self, spec: BackboneSpec, sampling: SamplingSpec, seed: int, threads: int, device: str) -> None:
        """Load the model. What that raises is told by the calls: Ray keeps only the text of a constructor's error."""
        self._loaded: RolloutWorker | Exception
        try:
            from rollout_workers.worker import RolloutWorker

            self._loaded = RolloutWorker(spec, sampling, seed=seed, threads=threads, device=device)
        except Exception as error:
            self._loaded = error

    def _worker(self) -> RolloutWorker:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded

    def ready(self) -> int:
        """Answer with the process id once the model is loaded. Raises what loading it raised."""
        self._worker()
        return os.getpid()

    def sample(self, request: RolloutRequest, weights: Weights) -> tuple[SampleGroup, Any, Any]:
        """Load `weights` unless they are loaded, and return the group without its heavy halves, then those.

        They travel as results of the call, so the caller owns them and they outlive this process.
        """
        worker = self._worker()
        if weights.serial != worker.serial:
            handle = weights.handle
            worker.load(ray.get(handle, timeout=CALL_DEADLINE_S) if handle is not None else None, weights.serial)
        group = worker.sample(request)
        return replace(group, data=None, clips=None), group.data, group.clips


class RayWorker(WorkerPort):
    """A RolloutActor as a WorkerPort."""

    def __init__(self, name: str, job: JobSpec) -> None:
        self.name = name
        self.job = job
        self.actor = self._create()

    def _create(self) -> Any:
        job, cluster = self.job, self.job.cluster
        options = {"num_cpus": cluster.rollout_cpus, "num_gpus": cluster.rollout_gpus, "max_restarts": -1}
        device = "cuda" if cluster.rollout_gpus > 0 else "cpu"
        remote: Any = ray.remote(RolloutActor)
        return remote.options(**options).remote(job.backbone, job.sampling, job.seed, cluster.torch_threads, device)

    @override
    async def sample(self, request: RolloutRequest, weights: Weights) -> SampleGroup:
        group, data, clips = self.actor.sample.options(num_returns=3).remote(request, weights)
        try:
            head: SampleGroup = await group
        except RayActorError as error:
            raise WorkerLost(f"{type(error).__name__}") from error
        except RayTaskError as error:
            raise _cause(error) from error
        return replace(head, data=data, clips=clips)

    async def revive(self, hung: bool) -> None:
        """Wait for Ray to restart the process; one that hangs is killed first, one that is gone is created again."""
        if hung:
            ray.kill(self.actor, no_restart=False)
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self.actor.ready.remote()
                return
            except RayTaskError as error:
                raise _cause(error) from error
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(_POLL_S)
            except RayActorError:
                await asyncio.sleep(_POLL_S)
                self.actor = self._create()
            except TimeoutError:
                break
        raise DeadlineExceeded(f"{self.name} did not come back within {START_DEADLINE_S:g} s")


class StreamActor:
    """A RolloutStream with its workers, in its own process, shared by all learner ranks."""

    def __init__(self, job: JobSpec, prompts: Sequence[Prompt], scorer: RewardScorer, events: EventSink | None) -> None:
        self.workers = [RayWorker(f"rollout worker {index}", job) for index in range(job.cluster.rollout_workers)]
        self.stream = RolloutStream(job, prompts, self.workers, scorer, events)
        self.started = False
        self.starting = asyncio.Lock()

    async def start(self) -> None:
        """Wait until every worker has its model, then begin. What waits already is not started twice."""
        async with self.starting:
            if not self.started:
                await asyncio.gather(*(worker.actor.ready.remote() for worker in self.workers))
                self.stream.start()
                self.started = True

    async def publish(self, version: PolicyVersion, state: Sequence[ray.ObjectRef[PolicyState]]) -> None:
        """See RolloutStream.publish; `state` is a list of one reference, so that it is not fetched here.

        The first one waits for the workers.
        """
        await self.start()
        await self.stream.publish(version, state[0])

    async def take(self, step: int) -> StepGroups:
        """See RolloutStream.take."""
        return await self.stream.take(step)

    async def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        """See RolloutStream.evaluate."""
        await self.start()
        return await self.stream.evaluate(requests, rewards)

    async def rescore(
        self, prompt: Prompt, clips: Sequence[Any], count: int, rewards: Sequence[str]
    ) -> dict[str, RewardScores]:
        """See RolloutStream.rescore; `clips` is a list of one reference, so that it is not fetched here."""
        return await self.stream.rescore(prompt, clips[0], count, rewards)


class StreamClient(GroupSource):
    """The stream actor as a GroupSource: pickles, and every wait has a deadline."""

    def __init__(self, actor: Any, step_deadline_s: float) -> None:
        self.actor = actor
        self.step_deadline_s = step_deadline_s

    @override
    def publish(self, state: PolicyState) -> None:
        """The first one waits for the workers' models.

        Raises:
            RolloutError: a worker could not load its model.
            DeadlineExceeded: the cluster had no room for the workers within START_DEADLINE_S.
        """
        handle = ray.put(state)
        self._get(self.actor.publish.remote(state.version, [handle]), START_DEADLINE_S + CALL_DEADLINE_S)

    @override
    def take(self, step: int) -> StepGroups:
        """Raises RolloutError, DeadlineExceeded."""
        taken: StepGroups = self._get(self.actor.take.remote(step), self.step_deadline_s)
        return taken

    @override
    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        """Raises RolloutError, DeadlineExceeded."""
        call = self.actor.evaluate.remote(list(requests), list(rewards))
        groups: list[ScoredGroup] = self._get(call, self.step_deadline_s)
        return groups

    @override
    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        handle = ray.put(list(clips))
        call = self.actor.rescore.remote(prompt, [handle], len(clips), list(rewards))
        scores: Mapping[str, RewardScores] = self._get(call, self.step_deadline_s)
        return scores

    @override
    def fetch(self, handle: Any) -> Any:
        return self._get(handle, CALL_DEADLINE_S) if isinstance(handle, ray.ObjectRef) else handle

    def stop(self) -> None:
        """End the stream and its workers."""
        ray.kill(self.actor)

    def _get(self, ref: Any, deadline_s: float) -> Any:
        try:
            return ray.get(ref, timeout=deadline_s)
        except GetTimeoutError as error:
            raise DeadlineExceeded(f"the rollout stream did not answer within {deadline_s:g} s") from error
        except RayActorError as error:
            raise RolloutError(f"the rollout stream is gone: {error}") from error
        except RayTaskError as error:
            raise _cause(error) from error


def _cause(error: RayTaskError) -> Exception:
    """The error a remote call ended with, as itself when it is one of ours."""
    return ours(error) or RolloutError(str(error))


def start_stream(
    job: JobSpec,
    prompts: Sequence[Prompt],
    scorer: RewardScorer,
    events: EventSink | None = None,
    *,
    step_deadline_s: float = 7200.0,
) -> StreamClient:
    """Start the stream and its rollout workers in the connected Ray cluster, and wait for neither.

    Loading models takes long, so the learner loads its own meanwhile; its first publication finds out how it went.
    """
    remote: Any = ray.remote(StreamActor)
    actor = remote.options(num_cpus=0).remote(job, list(prompts), scorer, events)
    return StreamClient(actor, step_deadline_s)
