"""How files that a submitter names are opened: below allowed roots, regular ones only, bounded, never a device.

`reading(roots)` sets what is allowed for the block; without it everything is. Every reader of the light modules opens
through here, so what a job's check looked at is known afterwards: a later check that finds the same inode, size and
times need not read again.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import accord
from accord.config.paths import MIB
from accord.errors import InputError

JSON_BYTES = 64 * MIB
"""Largest config or index."""
MAX_ENTRIES = 10_000
"""Most files and folders below a directory that a job names."""
NOT_FOUND = (
    "not found or not allowed; jobs may name what lies below the folders in ACCORD_INPUT_ROOTS, run folders only where "
    "one is such a folder"
)

Stamp = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of content and of status (which cannot be set by hand)."""
Seen = dict[str, Stamp]
Fact = TypeVar("Fact")

_PACKAGE = Path(accord.__file__).resolve().parent
_SHIPPED = (str(_PACKAGE / "world" / "pretrained"), str(_PACKAGE.parent / "reward_servers" / "checkpoints"))
_FACTS_KEPT = 32


@dataclass(frozen=True, slots=True)
class Roots:
    """Real paths of folders: whose content may be read, and whose may not although it lies in one of them."""

    allowed: tuple[str, ...] = ("/",)
    refused: tuple[str, ...] = ()

    @classmethod
    def of(cls, allowed: tuple[Path, ...], refused: tuple[Path, ...]) -> Roots:
        """Roots from settings."""
        return cls(tuple(map(os.path.realpath, allowed)), tuple(map(os.path.realpath, refused)))

    def hold(self, real: str) -> bool:
        """Whether a real path may be read: the innermost folder that holds it decides."""
        allowed = max((len(root) for root in (*self.allowed, *_SHIPPED) if _inside(real, root)), default=0)
        return allowed > max((len(root) for root in self.refused if _inside(real, root)), default=0)


def _inside(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip("/") + "/")


_roots: ContextVar[Roots] = ContextVar("roots", default=Roots())  # noqa: B039 - frozen
_seen: ContextVar[Seen | None] = ContextVar("seen", default=None)


@contextmanager
def reading(roots: Roots) -> Iterator[Seen]:
    """Allow `roots` alone in the block; yields what was opened or listed in it, by path."""
    seen: Seen = {}
    allowed, watched = _roots.set(roots), _seen.set(seen)
    try:
        yield seen
    finally:
        _seen.reset(watched)
        _roots.reset(allowed)


def stamp_of(path: str) -> Stamp | None:
    """What tells one state of a file from another; None when there is nothing to be seen."""
    try:
        return _stamp(os.stat(path))  # noqa: PTH116 - a Path for each costs more than the call
    except (OSError, ValueError):
        return None


def unchanged(seen: Mapping[str, Stamp]) -> bool:
    """True while every file is what it was."""
    return all(stamp_of(path) == stamp for path, stamp in seen.items())


def open_file(path: str | Path, max_bytes: int) -> BinaryIO:
    """Open a file for reading. Raises InputError: not found or not allowed, no regular file, or too big."""
    handle, found = _hold(path)
    try:
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: is not a regular file")
        if found.st_size > max_bytes:
            raise InputError(f"{path}: has {found.st_size} bytes; at most {max_bytes} are read")
        file = os.fdopen(os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _absent(path, error) from error
    finally:
        os.close(handle)
    _note(path, found)
    return file


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Read a whole file. Raises InputError as `open_file` does, and when it grows meanwhile."""
    with open_file(path, max_bytes) as file:
        content = read_some(file, path, max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{path}: grows while it is read; at most {max_bytes} bytes are")
    return content


def read_some(file: BinaryIO, path: str | Path, count: int) -> bytes:
    """Read at most `count` bytes of an open file. Raises InputError when its disk does not give them."""
    try:
        return file.read(count)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); is its disk in order?") from error


def files_below(folder: str | Path) -> list[Path]:
    """Return every file below a folder, sorted. Links are followed as far as the roots allow.

    Raises InputError: not found or not allowed (the folder or anything in it), no folder, or more than MAX_ENTRIES.
    """
    files: list[Path] = []
    waiting, entries, listed = [Path(folder)], 0, set[tuple[int, int]]()
    while waiting:
        place = waiting.pop()
        handle, found = _hold(place)
        try:
            if not stat.S_ISDIR(found.st_mode):
                raise InputError(f"{place}: is not a folder")
            if (found.st_dev, found.st_ino) in listed:
                continue  # a link back up
            listed.add((found.st_dev, found.st_ino))
            for name in _names(handle, place):
                entries += 1
                if entries > MAX_ENTRIES:
                    raise InputError(f"{folder}: holds more than {MAX_ENTRIES} files; name the folder of one model")
                (waiting if _is_folder(place / name) else files).append(place / name)
        finally:
            os.close(handle)
        _note(place, found)
    return sorted(files)


def kind_of(path: str | Path) -> Literal["file", "directory"] | None:
    """What a path leads to; None for what is not there, may not be read, or is neither."""
    try:
        handle, found = _hold(path)
    except InputError:
        return None
    os.close(handle)
    if stat.S_ISDIR(found.st_mode):
        return "directory"
    return "file" if stat.S_ISREG(found.st_mode) else None


def _names(handle: int, place: Path) -> list[str]:
    """Names in a folder, as far as they can matter: one more than are allowed."""
    try:
        with os.scandir(f"/proc/self/fd/{handle}") as entries:
            return [entry.name for entry in islice(entries, MAX_ENTRIES + 1)]
    except OSError as error:
        raise _absent(place, error) from error


def _is_folder(path: Path) -> bool:
    """Checks the entry too: what is neither a file nor a folder, or lies outside the roots, is refused."""
    handle, found = _hold(path)
    os.close(handle)
    if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is not a regular file")
    return stat.S_ISDIR(found.st_mode)


def _hold(path: str | Path) -> tuple[int, os.stat_result]:
    """A handle on what a path leads to, links resolved, without opening it, and what it is.

    What the handle turns out to be is checked, not what stood there a moment before.
    """
    handle = -1
    try:
        real = os.path.realpath(path, strict=True)
        if _roots.get().hold(real):
            handle = os.open(real, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            if str(Path(f"/proc/self/fd/{handle}").readlink()) == real:
                return handle, os.fstat(handle)
    except (OSError, ValueError) as error:
        _close(handle)
        raise _absent(path, error) from error
    _close(handle)
    raise _absent(path, None)


def _absent(path: str | Path, error: Exception | None) -> InputError:
    """Where roots are set, the answer never tells what exists outside them, nor who may read it."""
    confined = _roots.get() != Roots()
    return InputError(f"{path}: {NOT_FOUND if confined else getattr(error, 'strerror', None) or 'not found'}")


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


def _stamp(found: os.stat_result) -> Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _note(path: str | Path, found: os.stat_result) -> None:
    seen = _seen.get()
    if seen is not None:
        seen[str(path)] = _stamp(found)


_facts: OrderedDict[tuple[str, str, Roots], tuple[Seen, object]] = OrderedDict()


def remembered(read: Callable[[str], Fact], path: str) -> Fact:
    """Return `read(path)`, from memory while none of the files that it opened or listed has changed."""
    roots = _roots.get()
    key = (f"{read.__module__}.{read.__qualname__}", path, roots)
    entry = _facts.pop(key, None)
    if entry is None or not unchanged(entry[0]):
        with reading(roots) as seen:
            entry = (seen, read(path))
    _facts[key] = entry
    while len(_facts) > _FACTS_KEPT:
        _facts.popitem(last=False)
    outer = _seen.get()
    if outer is not None:
        outer |= entry[0]
    return entry[1]  # type: ignore[return-value]
