"""The scorer that asks the reward servers of a cluster, over Serve handles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray import serve
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from typing_extensions import override

from accord.config.contract import RewardSpec
from accord.errors import AccordError, RewardError, RolloutError
from accord.types import Prompt, RewardIdentity, RewardScores, ScoreReason
from reward_servers.placement import Application, by_reward
from reward_servers.scorer import Scorer

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_POLL_S = 0.25
_JOIN_S = 0.002
"""How long the call of a pack waits for the rewards of its group; they are asked for together."""


class ServeScorer(Scorer):
    """Scores over Serve handles, found where it is used.

    `clips` is a list[Clip] or an object reference to one. Never more groups are under way than its replicas and their
    queue take in, so that a job waits for room of itself and is refused none.
    """

    @override
    def _forget(self) -> None:
        super()._forget()
        self._applications = by_reward(list(self._specs.values()))
        self._finding: dict[str, asyncio.Lock] = {}
        self._room: dict[str, asyncio.Semaphore] = {}
        self._joint: dict[tuple[str, int, int], _JointCall] = {}
        """Calls that others may still join, by application, prompt and clips."""

    @override
    async def reach(self, spec: RewardSpec, again: bool) -> None:
        name = self._applications[spec.name].name
        while True:
            try:
                if again:
                    await (await self._handle(name)).ready.remote()
                else:
                    await self._handle(name)
                return
            except (RayError, RayServeException) as error:
                log.info("reward %s is waited for: %s", spec.name, _first_line(error))
                self._reached.pop(name, None)
                again = True
                await asyncio.sleep(_POLL_S)

    @override
    async def identify(self, spec: RewardSpec) -> RewardIdentity:
        try:
            found: RewardIdentity = await (await self._handle(self._applications[spec.name].name)).identify.remote(
                spec.name
            )
        except (RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, AccordError):
                raise cause from error
            raise RewardError(f"the server of reward {spec.name!r} does not answer: {_first_line(error)}") from error
        return found

    @override
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        return await self._asked(spec, prompt, self._alone(spec, prompt, clips))

    async def _alone(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores:
        return (await self._join(self._applications[spec.name], spec.name, prompt, clips))[spec.name]

    @override
    async def ask_step(
        self, spec: RewardSpec, prompts: Sequence[Prompt], clips: Sequence[Any]
    ) -> list[RewardScores] | ScoreReason:
        return await self._asked(spec, prompts[0], self._step(spec, list(prompts), clips))

    async def _step(self, spec: RewardSpec, prompts: list[Prompt], clips: Sequence[Any]) -> list[RewardScores]:
        handle = await self._handle(self._applications[spec.name].name)
        response = handle.score_step.remote(spec.name, prompts, *clips)  # references at the top level become values
        try:
            scores: list[RewardScores] = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return scores

    async def _asked(
        self, spec: RewardSpec, prompt: Prompt, answer: Coroutine[Any, Any, _Answer]
    ) -> _Answer | ScoreReason:
        """What a replica answers, or why none does."""
        try:
            return await answer
        except (RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ObjectLostError):
                raise RolloutError(f"the clips of prompt {prompt.id} are lost with their worker: {cause}") from error
            log.warning("reward %s did not answer for prompt %s: %s", spec.name, prompt.id, _first_line(cause))
            if isinstance(cause, BackPressureError):
                return "backpressure"
            return "unreachable" if isinstance(cause, RayError | RayServeException) else "model_error"

    async def _handle(self, application: str) -> Any:
        async with self._finding.setdefault(application, asyncio.Lock()):
            if application not in self._reached:
                self._reached[application] = await asyncio.to_thread(serve.get_app_handle, application)
            return self._reached[application]

    async def _join(self, application: Application, reward: str, prompt: Prompt, clips: Any) -> dict[str, RewardScores]:
        """Be part of the one call that scores these clips with a whole pack. It ends when its last reward goes."""
        key = (application.name, id(prompt), id(clips))
        joint = self._joint.get(key)
        if joint is None:
            joint = _JointCall([])
            if len(application.specs) > 1:
                self._joint[key] = joint
            joint.task = asyncio.create_task(self._call(application, joint.rewards, prompt, clips, key))
        joint.rewards.append(reward)
        joint.waiting += 1
        try:
            return await asyncio.shield(joint.task)
        finally:
            joint.waiting -= 1
            if not joint.waiting:
                joint.task.cancel()

    async def _call(
        self, application: Application, rewards: list[str], prompt: Prompt, clips: Any, key: tuple[str, int, int]
    ) -> dict[str, RewardScores]:
        """One call by handle; a call that is given up is cancelled at the replica as well."""
        try:
            if key in self._joint:
                await asyncio.sleep(_JOIN_S)
            handle = await self._handle(application.name)
            async with self._room.setdefault(application.name, asyncio.Semaphore(application.queue_bound)):
                self._joint.pop(key, None)
                response = handle.score.remote(prompt, clips, tuple(rewards))
                try:
                    scores: dict[str, RewardScores] = await response
                except asyncio.CancelledError:
                    response.cancel()
                    raise
            return scores
        finally:
            self._joint.pop(key, None)


@dataclass(eq=False)
class _JointCall:
    """A call, who wants its answer, and for which rewards."""

    rewards: list[str]
    waiting: int = 0
    task: asyncio.Task[dict[str, RewardScores]] = field(init=False)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
