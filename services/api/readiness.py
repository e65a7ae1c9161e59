"""Whether the process can do its work. However many ask at once, each check runs once: anybody may ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from accord.errors import AccordError


class Readiness:
    """Checks by name; each raises AccordError."""

    def __init__(self, checks: Mapping[str, Callable[[], None]]) -> None:
        self._checks = checks
        self._under_way: asyncio.Future[dict[str, str]] | None = None

    async def failures(self) -> dict[str, str]:
        """What each failed check said."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.ensure_future(asyncio.to_thread(self._ask))
        return await asyncio.shield(self._under_way)

    def _ask(self) -> dict[str, str]:
        failures = {}
        for name, check in self._checks.items():
            try:
                check()
            except AccordError as error:
                failures[name] = str(error)
        return failures
