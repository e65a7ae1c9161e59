"""Scorers: what asks the reward servers, and its twin that scores in this process.

A score is a pure function of clip and prompt, so asking again after a lost replica is safe and gives the same bits.
Whatever happens on the way, the answer has the right length; what could not be scored by the deadline is invalid.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ray.exceptions import ObjectLostError, RayError, RayTaskError

from accord.config.contract import RewardSpec
from accord.errors import RewardError, RolloutError
from accord.seeds import Purpose, derive_seed
from accord.types import Clip, Prompt, RewardScores, ScoreReason
from reward_servers import app
from reward_servers.base import RewardModel, build, score_groups

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
_ASK_AGAIN: frozenset[ScoreReason] = frozenset({"unreachable", "backpressure"})


class ServeScorer:
    """Scores over Serve handles. Picklable: it carries specs, and finds its handles where it is used.

    Each call has the spec's `deadline_s` for everything: waiting, scoring, trying again. Replicas that die, refuse for
    lack of room, or are not there yet are asked again after growing pauses until the deadline.
    """

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._handles: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Specs travel, handles do not."""
        return {"_specs": self._specs, "_handles": {}}

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score `count` clips; `clips` is a list[Clip] or an object reference to one.

        Raises:
            RewardError: `reward` is not among the specs.
            RolloutError: the clips behind the reference are gone with the process that made them.
        """
        spec = _spec_named(self._specs, reward)
        started = time.monotonic()
        deadline = started + spec.deadline_s
        reason: ScoreReason = "timeout"
        attempt = 0
        while (left := deadline - time.monotonic()) > 0:
            outcome = await self._ask(spec, prompt, clips, left)
            if isinstance(outcome, RewardScores):
                return _checked(outcome, reward, count, time.monotonic() - started)
            reason = outcome
            if reason not in _ASK_AGAIN:
                break
            attempt += 1
            await asyncio.sleep(min(_pause(reward, prompt, attempt), max(0.0, deadline - time.monotonic())))
        log.error("reward %s gave no score for prompt %s within %.1f s: %s", reward, prompt.id, spec.deadline_s, reason)
        return RewardScores.failed(reward, count, reason, time.monotonic() - started)

    async def _ask(self, spec: RewardSpec, prompt: Prompt, clips: Any, timeout_s: float) -> RewardScores | ScoreReason:
        """One call to one replica, cancelled when its time is up: scores, or why there are none."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(spec, prompt, clips)
        except TimeoutError:
            return "timeout"
        except (RayError, app.RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ObjectLostError):
                raise RolloutError(f"the clips of prompt {prompt.id} are lost with their worker: {cause}") from error
            self._handles.pop(spec.name, None)
            log.warning("reward %s did not answer for prompt %s: %s", spec.name, prompt.id, _first_line(cause))
            if isinstance(cause, app.BackPressureError):
                return "backpressure"
            return "unreachable" if isinstance(cause, RayError | app.RayServeException) else "model_error"

    async def _call(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores:
        """One call by handle; a call that is given up is cancelled at the replica as well."""
        handle = self._handles.get(spec.name)
        if handle is None:
            handle = self._handles[spec.name] = await asyncio.to_thread(app.handle_of, app.app_name(spec))
        response = handle.score.remote(prompt, clips)
        try:
            scores: RewardScores = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return scores


class LocalScorer:
    """Scores in this process, off the event loop: one process, no cluster. Handles are the objects themselves."""

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._models: dict[str, RewardModel] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Specs travel, models are built where they are used."""
        return {"_specs": self._specs, "_models": {}}

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score `count` clips in `clips`, a list[Clip]. Raises RewardError for an unknown reward."""
        spec = _spec_named(self._specs, reward)
        started = time.monotonic()
        scores = await asyncio.to_thread(self._score, spec, prompt, clips)
        return _checked(scores, reward, count, time.monotonic() - started)

    def _score(self, spec: RewardSpec, prompt: Prompt, clips: Sequence[Clip]) -> RewardScores:
        if spec.name not in self._models:
            self._models[spec.name] = build(spec)
        return score_groups(self._models[spec.name], [prompt], [clips])[0]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _spec_named(specs: dict[str, RewardSpec], reward: str) -> RewardSpec:
    if reward not in specs:
        raise RewardError(f"no reward {reward!r} here; there are {', '.join(sorted(specs)) or 'none'}")
    return specs[reward]


def _checked(scores: RewardScores, reward: str, count: int, seconds: float) -> RewardScores:
    """An answer of the wrong length is no answer."""
    if len(scores.values) != count:
        log.error("reward %s answered %d scores for %d clips", reward, len(scores.values), count)
        return RewardScores.failed(reward, count, "model_error", seconds)
    return replace(scores, seconds=seconds)


def _pause(reward: str, prompt: Prompt, attempt: int) -> float:
    """Growing pauses, spread by a hash so that callers do not return in step."""
    spread = 0.5 + (derive_seed(Purpose.REWARD_PAUSE, reward, prompt.id, attempt) % 1000) / 1000.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * spread
