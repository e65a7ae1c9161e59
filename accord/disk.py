"""Writing to a disk: whole or not at all, and patiently where it may be full or read-only for a while.

`patiently` consumes: a write that may be repeated from its beginning; waits for: room; unblocked by: the deadline,
which ends in VolumeFull, an error that does not cost the job an attempt.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
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


@contextmanager
def aside(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A new name beside `path` to write to: renamed into place at the end, removed when that is not reached.

    A reader sees the old file or the new one, never a part. With `sync` the disk has it before the rename, and the
    rename before this returns.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield draft
        if sync:
            flush(draft)
        draft.replace(path)
        if sync:
            flush(path.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, *, private: bool = False, sync: bool = False) -> None:
    """Write a file so that a reader sees the old one or the new one; `private`: only its owner may read it."""
    with aside(path, sync=sync) as draft:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)


def append_whole(path: Path, line: bytes) -> None:
    """Append a line and sync it; a line that does not fit leaves nothing of itself."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def swap_in(draft: Path, folder: Path) -> None:
    """Rename a folder into place and sync that; what stood there goes. A repetition finishes what was begun."""
    replaced = draft.with_suffix(".replaced")
    if draft.exists() or not folder.exists():  # else a repetition, after the rename
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        try:
            draft.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
    flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the disk take what was written of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
