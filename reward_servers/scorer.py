"""What every scorer does: ask for scores until the reward's deadline, and answer whole whatever happens on the way.

A score is a pure function of clip and prompt, so asking again is safe and gives the same bits. The deadline and the
length of an answer are looked at here and nowhere else; that values are finite is the model's wrapper's (base.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import override

from accord.config.contract import RewardSpec
from accord.errors import RewardError
from accord.plugins import answering
from accord.seeds import Purpose, derive_seed
from accord.types import Clip, Prompt, RewardScores, ScoreReason
from reward_servers.base import build, score_groups

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
_ASK_AGAIN: frozenset[ScoreReason] = frozenset({"unreachable", "backpressure"})


class Scorer(ABC):
    """A RewardScorer for the rewards of a job. Subclasses say how one is asked. Picklable: it carries specs.

    Each call has the spec's `deadline_s` for everything: waiting, scoring, trying again after growing pauses.
    """

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._reached: dict[str, Any] = {}
        """What is asked, by reward, as this process found or built it."""

    def __getstate__(self) -> dict[str, Any]:
        """Specs travel, what is asked does not."""
        return {"_specs": self._specs, "_reached": {}}

    @abstractmethod
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        """Ask once: scores, or why there are none. Cancelled when the deadline has passed."""

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score the `count` clips behind the handle `clips`.

        Raises:
            RewardError: `reward` is not among the specs.
            RolloutError: the clips behind a reference are gone with the process that made them.
        """
        if reward not in self._specs:
            raise RewardError(f"no reward {reward!r} here; there are {', '.join(sorted(self._specs)) or 'none'}")
        spec = self._specs[reward]
        started = time.monotonic()
        deadline = started + spec.deadline_s
        reason: ScoreReason = "timeout"
        attempt = 0
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    outcome = await self.ask(spec, prompt, clips)
            except TimeoutError:
                outcome = "timeout"
            if isinstance(outcome, RewardScores):
                return _checked(outcome, reward, count, time.monotonic() - started)
            if attempt == 0 or outcome != "timeout":  # what was left for asking again says less than the first answer
                reason = outcome
            if outcome not in _ASK_AGAIN:
                break
            attempt += 1
            await asyncio.sleep(min(_pause(reward, prompt, attempt), max(0.0, deadline - time.monotonic())))
        log.error("reward %s gave no score for prompt %s within %.1f s: %s", reward, prompt.id, spec.deadline_s, reason)
        return RewardScores.failed(reward, count, reason, time.monotonic() - started)


class LocalScorer(Scorer):
    """Scores in this process, off the event loop: no cluster. Handles are the objects themselves."""

    @override
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        return await asyncio.to_thread(self._score, spec, prompt, clips)

    def _score(self, spec: RewardSpec, prompt: Prompt, clips: Sequence[Clip]) -> RewardScores:
        if spec.name not in self._reached:
            with answering(spec, spec.impl):
                self._reached[spec.name] = build(spec)
        return score_groups(self._reached[spec.name], [prompt], [clips])[0]


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
