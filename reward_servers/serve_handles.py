"""The scorer that asks the reward servers of a cluster, over Serve handles."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray import serve
from ray.exceptions import ObjectLostError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from typing_extensions import override

from accord.config.contract import RewardSpec
from accord.errors import RewardError, RolloutError
from accord.types import Prompt, RewardIdentity, RewardScores, ScoreReason
from reward_servers.app import app_name
from reward_servers.scorer import Scorer

log = logging.getLogger(__name__)

_POLL_S = 0.25


class ServeScorer(Scorer):
    """Scores over Serve handles, found where it is used.

    `clips` is a list[Clip] or an object reference to one. Never more groups are under way than its replicas and their
    queue take in, so that a job waits for room of itself and is refused none.
    """

    @override
    def _forget(self) -> None:
        super()._forget()
        self._room: dict[str, asyncio.Semaphore] = {}

    @override
    async def reach(self, spec: RewardSpec, again: bool) -> None:
        while True:
            try:
                if again:
                    self._reached.pop(spec.name, None)
                    await (await self._handle(spec)).ready.remote()
                else:
                    await self._handle(spec)
                return
            except (RayError, RayServeException) as error:
                log.info("reward %s is waited for: %s", spec.name, _first_line(error))
                again = True
                await asyncio.sleep(_POLL_S)

    @override
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        try:
            return await self._call(spec, prompt, clips)
        except (RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ObjectLostError):
                raise RolloutError(f"the clips of prompt {prompt.id} are lost with their worker: {cause}") from error
            log.warning("reward %s did not answer for prompt %s: %s", spec.name, prompt.id, _first_line(cause))
            if isinstance(cause, BackPressureError):
                return "backpressure"
            return "unreachable" if isinstance(cause, RayError | RayServeException) else "model_error"

    @override
    async def identify(self, spec: RewardSpec) -> RewardIdentity:
        try:
            card = await (await self._handle(spec)).card.remote()
        except (RayError, RayServeException) as error:
            raise RewardError(f"the server of reward {spec.name!r} does not answer: {_first_line(error)}") from error
        return RewardIdentity(card["version"], card["weights_digest"])

    async def _handle(self, spec: RewardSpec) -> Any:
        if spec.name not in self._reached:
            self._reached[spec.name] = await asyncio.to_thread(serve.get_app_handle, app_name(spec))
        return self._reached[spec.name]

    async def _call(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores:
        """One call by handle; a call that is given up is cancelled at the replica as well."""
        handle = await self._handle(spec)
        async with self._room.setdefault(spec.name, asyncio.Semaphore(spec.queue_bound)):
            response = handle.score.remote(prompt, clips)
            try:
                scores: RewardScores = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
        return scores


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
