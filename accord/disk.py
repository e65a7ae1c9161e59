"""Writing to a volume that may be full or read-only for a while: wait and try again instead of dying.

consumes: a write that may be repeated from its beginning; waits for: room; unblocked by: the deadline, which ends in
VolumeFull, an error that does not cost the job an attempt.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from accord.errors import VolumeFull

log = logging.getLogger("accord.disk")

_T = TypeVar("_T")

WAIT_S = 600.0
"""How long a write waits for room when nobody says otherwise."""
LONGEST_PAUSE_S = 5.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
_RUST = re.compile(r"\(os error (\d+)\)")
"""How the safetensors library, which has no errno, ends its messages."""


def no_room(error: BaseException | None) -> str:
    """What the system says when an error comes from a volume that is full, over quota or read-only; else ""."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (match := _RUST.search(str(error))):
            number = int(match[1])
        if number in _NO_ROOM:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


def patiently(
    write: Callable[[], _T], *, warn: Callable[[str, str], None] = lambda _code, _message: None, wait_s: float = WAIT_S
) -> _T:
    """Return what `write` returns, repeating it while its volume has no room. Other errors pass at once.

    `warn(code, message)` hears once that it waits. Raises VolumeFull after `wait_s`.
    """
    deadline: float | None = None
    pause = 0.2
    while True:
        try:
            return write()
        except Exception as error:
            why = no_room(error)
            if not why:
                raise
            now = time.monotonic()
            if deadline is None:
                deadline = now + wait_s
                log.warning("the runs volume takes no writes (%s); waiting up to %.0f s", why, wait_s)
                warn("volume_full", f"{why}: the attempt waits up to {wait_s:.0f} s for the runs volume")
            if now >= deadline:
                raise VolumeFull(
                    f"the runs volume took no writes for {wait_s:.0f} s: {why} ({error}); free space, then it goes on"
                ) from error
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(LONGEST_PAUSE_S, pause * 2)
