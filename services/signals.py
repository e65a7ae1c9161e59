"""The wish to stop, as events that every loop can look at."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Self

INTERRUPTED = 130


def leave_at_once(*_: object) -> None:
    """Handler of SIGINT while modules are loading: nothing is started yet, so there is nothing to clean up.

    A KeyboardInterrupt would not do: raised inside somebody's callback it is printed and forgotten.
    """
    os._exit(INTERRUPTED)


def interrupt_again() -> None:
    """From here on SIGINT raises KeyboardInterrupt, unless somebody has taken it over in the meantime."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Signals:
    """SIGINT, SIGTERM and SIGHUP set `stop`; a second one sets `hurry`."""

    def __init__(self) -> None:
        self.stop, self.hurry = threading.Event(), threading.Event()

    def install(self) -> Self:
        """Take over the signals of the process, and return these. Only from the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)
        return self

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()
