"""How many of something callers may hold at once: in all, and one address."""

from __future__ import annotations

from collections import Counter
from enum import Enum


class Refusal(Enum):
    """Why a slot was not given."""

    CLIENT = "this address"
    ALL = "the service"


class Slots:
    """A count per address. Not thread-safe: it belongs to one event loop."""

    def __init__(self, in_all: int, per_client: int) -> None:
        self.in_all, self.per_client = in_all, per_client
        self._taken: Counter[str] = Counter()
        self._sum = 0

    def take(self, client: str) -> Refusal | None:
        """Take a slot, or say why there is none."""
        if self._taken[client] >= self.per_client:
            return Refusal.CLIENT
        if self._sum >= self.in_all:
            if not self._taken[client]:
                del self._taken[client]
            return Refusal.ALL
        self._taken[client] += 1
        self._sum += 1
        return None

    def free(self, client: str) -> None:
        """Give a slot back."""
        self._sum -= 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
