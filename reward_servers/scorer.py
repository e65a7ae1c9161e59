"""What every scorer does: ask for scores until the reward's deadline, and answer whole whatever happens on the way.

A score is a pure function of clip and prompt, so asking again is safe and gives the same bits. It is asked again at
most twice, and only when the call was lost on its way or found no room; a clip that takes its server down with it does
so three times and not until the deadline. Waiting until there is a server is no asking: one that is started again after
a death takes the time it takes.

The deadline, the length of an answer, and whether a reward that failed again and again is asked at all (breaker.py) are
looked at here and nowhere else; that values are finite is the model's wrapper's (base.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from typing_extensions import override

from accord.canary import is_canary
from accord.config.contract import RewardSpec
from accord.errors import AccordError, RewardError
from accord.plugins import answering
from accord.seeds import Purpose, derive_seed
from accord.types import SERVERS_FAULT, Clip, Prompt, RewardIdentity, RewardScores, ScoreReason
from reward_servers.base import RewardModel, build, score_groups
from reward_servers.breaker import Breaker

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", RewardScores, list[RewardScores])

RETRIES = 2
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
_ASK_AGAIN: frozenset[ScoreReason] = frozenset({"unreachable", "backpressure"})
_UNANSWERED = SERVERS_FAULT - {"model_error"}
"""Reasons of a model that asks a server of others, and whose asking came to nothing."""


class Scorer(ABC):
    """A RewardScorer for the rewards of a job. Subclasses say how one is asked. Picklable: it carries specs.

    Each call has the spec's `deadline_s` for everything: waiting, scoring, asking again after growing pauses.
    """

    breaks: ClassVar[bool] = True
    """Whether a reward that failed `break_after` times in a row is left alone for a while."""

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._forget()

    def _forget(self) -> None:
        self._reached: dict[str, Any] = {}
        """What is asked, by reward, as this process found or built it."""
        self._breakers: dict[str, Breaker] = {}
        self._probes: set[asyncio.Task[None]] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Specs travel, what is asked and how that went does not."""
        return {"_specs": self._specs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As new."""
        self._specs = state["_specs"]
        self._forget()

    async def reach(self, spec: RewardSpec, again: bool) -> None:
        """Wait until there is somebody to ask; `again`: the last one asked was lost, or had no room. Cancelled when the
        deadline has passed. Default: there always is."""
        del spec, again

    @abstractmethod
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        """Ask once: scores, or why there are none. Cancelled when the deadline has passed."""

    @abstractmethod
    async def ask_step(
        self, spec: RewardSpec, prompts: Sequence[Prompt], clips: Sequence[Any]
    ) -> list[RewardScores] | ScoreReason:
        """Ask once for all groups of a step, as `ask`."""

    @abstractmethod
    async def identify(self, spec: RewardSpec) -> RewardIdentity:
        """What the model that answers for a reward says it is. Cancelled when the deadline has passed."""

    async def roster(self) -> dict[str, RewardIdentity]:
        """Who answers for each reward.

        Raises:
            RewardError: one does not answer by its deadline, or runs another version than this release has.
        """
        found = {}
        for name, spec in self._specs.items():
            try:
                async with asyncio.timeout(spec.deadline_s):
                    await self.reach(spec, again=False)
                    found[name] = identity = await self.identify(spec)
            except TimeoutError as error:
                raise RewardError(f"reward {name!r} did not say what it is within {spec.deadline_s:g} s") from error
            if identity.version != spec.version:
                raise RewardError(
                    f"the server of reward {name!r} runs version {identity.version!r}, this release has "
                    f"{spec.version!r}; it ends by itself once no job of the other release uses it"
                )
        return found

    async def score(self, reward: str, prompt: Prompt, clips: Any, count: int) -> RewardScores:
        """Score the `count` clips behind the handle `clips`.

        Raises:
            RewardError: `reward` is not among the specs.
            RolloutError: the clips behind a reference are gone with the process that made them.
        """
        spec = self._spec(reward)
        breaker = self._breakers.setdefault(reward, Breaker(spec.break_after))
        if breaker.open and self.breaks:
            if breaker.take_probe():
                probe = asyncio.create_task(self._probe(breaker, spec, prompt, clips))
                self._probes.add(probe)
                probe.add_done_callback(self._probes.discard)
            return RewardScores.failed(reward, count, "circuit_open")
        started = time.monotonic()
        outcome = await self._by_deadline(spec, prompt, partial(self.ask, spec, prompt, clips))
        seconds = time.monotonic() - started
        scores = (
            _checked(outcome, reward, count, seconds)
            if isinstance(outcome, RewardScores)
            else RewardScores.failed(reward, count, outcome, seconds)
        )
        if _counts(outcome):
            breaker.answered()
            return scores
        reasons = ", ".join(sorted({*scores.reasons}))
        log.error("reward %s gave no score for prompt %s: %s after %.1f s", reward, prompt.id, reasons, seconds)
        # A server may refuse what is as small as canaries are, and judge the job's own clips.
        if not is_canary(prompt) and breaker.failed() and self.breaks:
            log.error("reward %s failed %d times in a row; it is probed now and then", reward, spec.break_after)
        return scores

    async def score_step(
        self, reward: str, prompts: Sequence[Prompt], clips: Sequence[Any], counts: Sequence[int]
    ) -> list[RewardScores]:
        """Score the groups of a step together, each behind its handle. Raises as `score` does."""
        spec = self._spec(reward)
        started = time.monotonic()
        outcome = await self._by_deadline(spec, prompts[0], partial(self.ask_step, spec, prompts, clips))
        seconds = time.monotonic() - started
        if isinstance(outcome, list):
            return [_checked(scores, reward, count, seconds) for scores, count in zip(outcome, counts, strict=True)]
        log.error("reward %s gave no score for a step of %d prompts: %s", reward, len(prompts), outcome)
        return [RewardScores.failed(reward, count, outcome, seconds) for count in counts]

    async def _by_deadline(
        self, spec: RewardSpec, prompt: Prompt, ask: Callable[[], Awaitable[_Answer | ScoreReason]]
    ) -> _Answer | ScoreReason:
        """Ask, at most 1 + RETRIES times."""
        reason: ScoreReason = "unreachable"
        try:
            async with asyncio.timeout(spec.deadline_s):
                for attempt in range(1 + RETRIES):
                    if attempt:
                        await asyncio.sleep(_pause(spec.name, prompt, attempt))
                    await self.reach(spec, again=attempt > 0)
                    if attempt == 0:  # of later ones, that the time was over says less than why the first was lost
                        reason = "timeout"
                    outcome = await ask()
                    if not isinstance(outcome, str) or outcome not in _ASK_AGAIN:
                        return outcome
                    reason = outcome
        except TimeoutError:
            pass
        return reason

    def _spec(self, reward: str) -> RewardSpec:
        if reward not in self._specs:
            raise RewardError(f"no reward {reward!r} here; there are {', '.join(sorted(self._specs)) or 'none'}")
        return self._specs[reward]

    async def _probe(self, breaker: Breaker, spec: RewardSpec, prompt: Prompt, clips: Any) -> None:
        """Ask for a step that does not wait for it."""
        try:
            outcome = await self._by_deadline(spec, prompt, partial(self.ask, spec, prompt, clips))
        except AccordError as error:
            log.info("the probe of reward %s came to nothing: %s", spec.name, error)
        else:
            if _counts(outcome):
                breaker.answered()
                log.warning("reward %s answers again", spec.name)
        finally:
            breaker.probe_failed()


class LocalScorer(Scorer):
    """Scores in this process, off the event loop: no cluster. Handles are the objects themselves.

    A model is asked by one thread at a time; none has to bear two at once.
    """

    breaks: ClassVar[bool] = False

    @override
    def _forget(self) -> None:
        super()._forget()
        self._asking = {name: threading.Lock() for name in self._specs}

    @override
    async def ask(self, spec: RewardSpec, prompt: Prompt, clips: Any) -> RewardScores | ScoreReason:
        return (await asyncio.to_thread(self._scores, spec, [prompt], [clips]))[0]

    @override
    async def ask_step(
        self, spec: RewardSpec, prompts: Sequence[Prompt], clips: Sequence[Any]
    ) -> list[RewardScores] | ScoreReason:
        return await asyncio.to_thread(self._scores, spec, prompts, clips)

    @override
    async def identify(self, spec: RewardSpec) -> RewardIdentity:
        return await asyncio.to_thread(lambda: self._model(spec).identity())

    def _scores(
        self, spec: RewardSpec, prompts: Sequence[Prompt], clips: Sequence[Sequence[Clip]]
    ) -> list[RewardScores]:
        with self._asking[spec.name]:
            return score_groups(self._model(spec), prompts, clips)

    def _model(self, spec: RewardSpec) -> RewardModel:
        if spec.name not in self._reached:
            with answering(spec, spec.impl):
                self._reached[spec.name] = build(spec)
        model: RewardModel = self._reached[spec.name]
        return model


def _counts(outcome: RewardScores | ScoreReason) -> bool:
    """Whether somebody answered: not where no clip has a score and a server of others is the reason."""
    return isinstance(outcome, RewardScores) and (any(outcome.valid) or _UNANSWERED.isdisjoint(outcome.reasons))


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
