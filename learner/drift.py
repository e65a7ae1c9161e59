"""The rewards of a run judge the canary set now and then; what happens where one is not what it was when the run began.

consumes: the job, the first scores in the run folder; waits for: the scores of the first comparison of an attempt, and
under `pause` for the rewards to come back, until `wait_s`; produces: a word for the step that is about to begin,
numbers for its line, warnings; unblocked by: the deadlines of the rewards, which the scorer keeps.

On the first rank alone. Later comparisons run beside the step: what they find counts from the next one on. Nothing is
drawn and nothing that trains is read, so a run has the same bits with and without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from typing import Any

from pydantic import ValidationError

from accord.canary import Canary, Size, canaries
from accord.config.contract import RewardSpec
from accord.config.job import JobSpec
from accord.drift import FILE, CanaryScores, Drift, drift
from accord.errors import UserError
from accord.run_folder import CANARIES, RunFolder
from accord.types import SERVERS_FAULT, GroupSource, PolicyState

Scores = Mapping[str, CanaryScores]

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
"""Between two comparisons while training waits: doubled from the one to the other."""


class Word(IntEnum):
    """What the step does that is about to begin."""

    GO = 0
    WAIT = 1
    """It asks again."""
    STOP = 2


class RewardWatch:
    """Compares the rewards with what they were."""

    def __init__(
        self,
        job: JobSpec,
        source: GroupSource,
        folder: RunFolder,
        warn: Callable[[str, str], None],
        write: Callable[[Callable[[], Any]], Any] = lambda call: call(),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`warn` takes a code and a message; `write` does a write that may be repeated from its beginning."""
        self.spec, self.source, self.folder = job.guards.drift, source, folder
        self.warn, self.write, self.clock, self.sleep = warn, write, clock, sleep
        rewards = [reward for reward in job.rewards if reward.scope == "clip" and reward.name not in self.spec.ignore]
        self.rewards = {reward.name: reward for reward in rewards}
        self.found: dict[str, Drift] = {}
        """What is known of each reward: of every canary, its latest comparison."""
        self.sound: PolicyState | None = None
        """The latest version whose rewards are known to be what they were."""
        self.waited = False
        """Whether the latest word came after a wait: the groups of the step may have been judged before its end."""
        self._first: dict[str, CanaryScores] | None = None
        self._said: dict[str, str] = {}
        self._looked = False
        self._pool = ThreadPoolExecutor(1, "canaries")
        self._begun: Future[Scores] | None = None
        self._state: PolicyState | None = None
        self._next = -1.0
        """When the next comparison is due; the first one of an attempt at once."""
        self._until: float | None = None
        """When the wait is over; None: nobody waits."""
        self._pause_s = FIRST_PAUSE_S
        self._unscored: dict[str, str] = {}

    @property
    def beyond(self) -> dict[str, Drift]:
        """The rewards that are not what they were."""
        return {name: found for name, found in self.found.items() if found.beyond}

    def metrics(self) -> dict[str, float | None]:
        """`canary/<reward>/{distance,degraded}` as the latest comparison has them; None where none could be made."""
        return {
            f"canary/{name}/{what}": value if found.distances else None
            for name, found in self.found.items()
            for what, value in (("distance", found.distance), ("degraded", float(found.beyond)))
        }

    def word(self, step: int, state: PolicyState) -> Word:
        """Begin a comparison when it is due and take in one that is done; `state` is what was trained before `step`.

        Waits for the first comparison of an attempt, and for every one while training waits.
        """
        self.waited = False
        now = not self._looked or self._until is not None
        if self._begun is None and (now or self.clock() >= self._next):
            self._begun, self._state = self._pool.submit(self._scores), state
        if self._begun is None or not (now or self._begun.done()):
            return Word.GO
        try:
            scores = self._begun.result()
        except Exception as error:  # whatever a source raises: it is told, and costs nothing else
            self.warn("canaries", f"step {step}: the canaries were not scored: {error!r}")
        else:
            self._take_in(step, scores)
        self._begun, self._looked, self._next = None, True, self.clock() + self.spec.every_s
        return self._decided(step)

    def why(self) -> str:
        """Each reward that is not what it was, what it said first and says now, and what to do about it."""
        said = "; ".join(self._said[name] for name in self.beyond)
        return (
            f"{said}; put its server, its weights or the machine it runs on back to what they were and submit "
            "the job again, or allow it with guards/drift/tolerance, or name it in guards/drift/ignore"
        )

    def _decided(self, step: int) -> Word:
        if not self.beyond:
            self.waited = self._until is not None
            self._until, self._pause_s = None, FIRST_PAUSE_S
            return Word.GO
        if self.spec.on_drift == "stop":
            return Word.STOP
        if self.spec.on_drift != "pause":
            return Word.GO
        left = self.spec.wait_s
        if self._until is None:
            self._until = self.clock() + left
            self.warn("training_waits", f"step {step} does not begin for up to {left:g} s: {', '.join(self.beyond)}")
        left = self._until - self.clock()
        if left <= 0:
            return Word.STOP
        self.sleep(min(self._pause_s, left))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return Word.WAIT

    def _scores(self) -> Scores:
        """Every reward's scores of its set, clip by clip. Rewards that take clips of one size are asked together."""
        by_size: dict[Size, list[RewardSpec]] = {}
        for reward in self.rewards.values():
            by_size.setdefault(Size.of(reward), []).append(reward)
        return dict(pair for rewards in by_size.values() for pair in self._judged(rewards))

    def _judged(self, rewards: Sequence[RewardSpec]) -> Iterator[tuple[str, CanaryScores]]:
        clips = canaries(rewards[0])
        found: dict[str, dict[str, tuple[float, str]]] = {reward.name: {} for reward in rewards}
        left_s = {reward.name: reward.deadline_s for reward in rewards}  # of its own time: none pays for a slow one
        for canary in clips:
            asked = [name for name, seconds in left_s.items() if seconds > 0]
            scores = self.source.rescore(canary.prompt, [canary.clip], asked) if asked else {}
            for name in found:
                if name in scores:
                    found[name][canary.name] = (scores[name].values[0], scores[name].reasons[0])
                    left_s[name] -= scores[name].seconds
                elif name not in asked:
                    found[name][canary.name] = (float("nan"), "timeout")
        for reward in rewards:
            if found[reward.name]:
                yield reward.name, CanaryScores.of(reward, clips, _whole(clips, found[reward.name]))

    def _take_in(self, step: int, scores: Scores) -> None:
        first = {**(self._noted() if self._first is None else self._first)}
        before = {*self.beyond}
        for name, now in scores.items():
            was = first.get(name)
            if was is not None and was.clips != now.clips:
                self.warn("canaries", f"{name}: the canaries are other clips than when the job began; compared anew")
            first[name] = was.filled(now) if was is not None and was.clips == now.clips else now
            seen = drift(self.rewards[name], first[name], now, self.spec.tolerance)
            kept = self.found[name].distances if name in self.found else {}
            found = Drift({**kept, **seen.distances}, seen.bound)  # without a score a canary is neither gone nor back
            self.found[name] = found
            if found.farthest in seen.distances:
                self._said[name] = _told(name, found, first[name], now)
            self._tell_unscored(step, name, first[name], now)
        if first != (self._first or {}):
            self.write(lambda: self.folder.write_whole(CANARIES, FILE.dump_json(first, indent=1) + b"\n"))
        self._first = first
        if not self.beyond:
            self.sound = self._state
        for name in self.beyond.keys() - before:
            self.warn("reward_drifted", f"step {step}: {self._said[name]}")
        for name in before - self.beyond.keys():
            self.warn("reward_recovered", f"step {step}: reward {name!r} judges the canaries as it did first")

    def _noted(self) -> dict[str, CanaryScores]:
        """Raises UserError for a file that holds none."""
        if not self.folder.exists(CANARIES):
            return {}
        try:
            return FILE.validate_json(self.folder.read(CANARIES))
        except ValidationError as error:
            raise UserError(
                f"{CANARIES} of the run folder holds no canary scores ({error.error_count()} problems); put back what "
                "the job wrote, or remove it to compare with what the rewards say now"
            ) from error

    def _tell_unscored(self, step: int, name: str, first: CanaryScores, now: CanaryScores) -> None:
        """Say to which canaries a reward gives no score and gave one first, or gives none for a fault of its own."""
        lost = {
            canary: now.reasons[canary]
            for canary, value in now.values.items()
            if value is None and (first.values[canary] is not None or now.reasons[canary] in SERVERS_FAULT)
        }
        said = ", ".join(f"{canary} ({reason})" for canary, reason in lost.items())
        if said and said != self._unscored.get(name):
            self.warn("canaries", f"step {step}: reward {name!r} gave no score for {said}; they are not compared")
        self._unscored[name] = said


def _whole(clips: Sequence[Canary], found: Mapping[str, tuple[float, str]]) -> dict[str, tuple[float, str]]:
    return {canary.name: found.get(canary.name, (float("nan"), "unreachable")) for canary in clips}


def _told(name: str, found: Drift, first: CanaryScores, now: CanaryScores) -> str:
    was, later = first.values.get(found.farthest), now.values.get(found.farthest)
    return (
        f"reward {name!r} gave canary {found.farthest!r} {was} when the job began and {later} now, "
        f"{found.distance:.3g} standard deviations of its first values apart; guards/drift/tolerance allows "
        f"{found.bound:.3g}"
    )
