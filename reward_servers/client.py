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

from accord.config.rewards import RewardSpec
from accord.errors import RewardError, RolloutError
from accord.requests import derive_seed
from accord.types import Clip, Prompt, RewardScores, ScoreReason
from reward_servers.base import RewardModel, build, score_groups

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0


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
            try:
                scores = await self._ask(spec, prompt, clips, left)
            except TimeoutError:
                reason = "timeout"
                break
            except ObjectLostError as error:
                raise RolloutError(f"the clips of prompt {prompt.id} are lost with their worker: {error}") from error
            except RayTaskError as error:
                if isinstance(error.cause, ObjectLostError):
                    raise RolloutError(f"the clips of prompt {prompt.id} are lost with their worker") from error
                log.error("reward %s failed on prompt %s: %s", reward, prompt.id, error)
                reason = "model_error"
                break
            except RayError as error:
                reason = "backpressure" if type(error).__name__ == "BackPressureError" else "unreachable"
                self._handles.pop(reward, None)
                attempt += 1
                pause = min(_pause(reward, prompt, attempt), max(0.0, deadline - time.monotonic()))
                log.warning("reward %s: attempt %d failed (%s); again in %.2f s", reward, attempt, error, pause)
                await asyncio.sleep(pause)
            else:
                return _checked(scores, reward, count, time.monotonic() - started)
        return RewardScores.failed(reward, count, reason, time.monotonic() - started)

    async def _ask(self, spec: RewardSpec, prompt: Prompt, clips: Any, timeout_s: float) -> RewardScores:
        """One call to one replica, cancelled when its time is up."""
        async with asyncio.timeout(timeout_s):
            handle = self._handles.get(spec.name)
            if handle is None:
                handle = self._handles[spec.name] = await asyncio.to_thread(_find, spec)
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


def _find(spec: RewardSpec) -> Any:
    """The handle of a spec's server; a server that is not there counts as unreachable."""
    from reward_servers.app import app_name, handle_of  # Serve takes a second to import: only where it is used

    try:
        return handle_of(app_name(spec))
    except RayError:
        raise
    except Exception as error:
        raise RayError(f"reward {app_name(spec)} has no server: {error}") from error


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
    spread = 0.5 + (derive_seed("reward-pause", reward, prompt.id, attempt) % 1000) / 1000.0
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (attempt - 1)) * spread
