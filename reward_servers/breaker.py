"""A circuit breaker for one reward: after so many failures in a row nobody waits for it until a probe has succeeded.

    closed ── `after` failures in a row ──► open ── a pause is over ──► probing ── an answer ──► closed
                                             ▲                            │
                                             └──── a failure, twice the pause, up to LONGEST_PAUSE_S

Pure bookkeeping over a clock; who calls, and how, is the scorer's affair.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0


class Breaker:
    """Counts failures in a row. An answer, whoever asked for it, closes it."""

    def __init__(self, after: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._after, self._clock = after, clock
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._probe_at: float | None = None
        """When it may be tried again; None while it is closed."""

    @property
    def open(self) -> bool:
        """Whether calls are not made."""
        return self._probe_at is not None

    def answered(self) -> None:
        """A call came back with scores."""
        self._failures, self._pause_s, self._probe_at = 0, FIRST_PAUSE_S, None

    def failed(self) -> bool:
        """A call came back without scores. True when that opens it."""
        self._failures += 1
        if self.open or self._failures < self._after:
            return False
        self._probe_at = self._clock() + self._pause_s
        return True

    def take_probe(self) -> bool:
        """Whether the caller is to probe now; at most one is told so in each pause. It reports with `answered` or
        `probe_failed`."""
        if self._probe_at is None or self._clock() < self._probe_at:
            return False
        self._probe_at = float("inf")
        return True

    def probe_failed(self) -> None:
        """The probe brought nothing: wait twice as long for the next."""
        if self.open:
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._probe_at = self._clock() + self._pause_s
