"""How long each phase of a step took, for its line in metrics.jsonl, and when to tell of progress inside one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from accord.events import Phase

PROGRESS_SECONDS = 0.5
"""Least time between two progress events."""


class PhaseClock:
    """Seconds by phase of the step at hand. What has no step of its own counts with the next one."""

    def __init__(self, began: float | None = None) -> None:
        """`began` is the Unix time at which the attempt began; None = its start-up is not timed."""
        self.began = began
        self.seconds: dict[Phase, float] = {}
        self._carried: dict[Phase, float] = {}
        self._told = 0.0

    def next_step(self, waited_s: float, scoring_s: float) -> None:
        """A step begins, whose groups were waited for; `scoring_s` is what scoring took beyond sampling.

        Where sampling overlapped the step before, the wait is less than it took.
        """
        scoring_s = min(waited_s, scoring_s)
        self.seconds = {"rollout": round(waited_s - scoring_s, 4), "reward": round(scoring_s, 4)}
        for phase, seconds in self._carried.items():
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + seconds, 4)
        self._carried = {}

    def carry(self, phase: Phase, seconds: float) -> None:
        """Count with the next step, whose line is still to be written."""
        self._carried[phase] = round(seconds, 4)

    @contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Count what happens inside."""
        started = time.monotonic()
        yield
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - started, 4)

    def due(self, done: int, total: int) -> bool:
        """True when progress is to be told: at the end, and else now and then."""
        now = time.monotonic()
        if done != total and now - self._told < PROGRESS_SECONDS:
            return False
        self._told = now
        return True
