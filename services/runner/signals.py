"""The wish to stop, as events that every loop can look at."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Signals:
    """SIGINT, SIGTERM and SIGHUP set `stop`; a second one sets `hurry`."""

    def __init__(self) -> None:
        self.stop, self.hurry = threading.Event(), threading.Event()

    def install(self) -> None:
        """Take over the signals of the process. Only from the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()
