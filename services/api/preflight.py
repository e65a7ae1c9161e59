"""Looks at the files of submitted jobs: in processes of its own, each look with a deadline, and never the same twice.

A path can lead to a disk that hangs, and a file can be slow to read; neither may hold a thread of the API for longer
than the deadline. So the looking is done by few child processes (`preflight_child.py`), which are killed when they are
late. Of a job that passed, the files' inodes, sizes and times are kept: while these stay, the same files with the same
settings pass again for the price of a few `stat` calls.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

from accord.config.files import Seen, Stamp, unchanged
from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import Overloaded, PluginError, SpecError

log = logging.getLogger("accord.preflight")

COMMAND = (sys.executable, "-m", "services.api.preflight_child")
START_S = 30.0
"""Time for a child to start; not counted against the deadline of the look it starts for."""
_WAITING_PER_WORKER = 8
"""Submissions that may wait for each child; more are told to come back."""
_PASSED_KEPT = 1024
LATELY_S = 1.0
"""So long even the `stat` calls are saved: jobs that come together, as a sweep over seeds, name the same files. The
attempt looks again before it trains."""
_NOT_LOOKED_AT = {"name", "seed", "steps", "labels", "max_attempts", "max_runtime_s"}
"""Fields of a job that no file can contradict."""


class SpecCheck:
    """The check that `create_app` uses. Call it with a valid spec; `closing` ends every wait."""

    def __init__(self, settings: Settings, closing: threading.Event, command: Sequence[str] = COMMAND) -> None:
        self.roots = settings.roots
        self.deadline_s = settings.preflight_s
        self._pool = _shared_pool(tuple(command), settings.preflight_workers)
        self._passed: OrderedDict[bytes, tuple[Seen, float]] = OrderedDict()  # with when it was last looked at
        self._turns: weakref.WeakValueDictionary[bytes, threading.Lock] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._closing = closing

    def __call__(self, spec: JobSpec) -> None:
        """Return when the job's files are in order.

        Raises:
            SpecError: they are not; it names the fields.
            PluginError: a plug-in of the job breaks its contract.
            Overloaded: they could not be looked at in time.
        """
        key = _inputs_of(spec)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        # Jobs that name the same files wait for the first look, not for a child each.
        deadline = time.monotonic() + self.deadline_s
        while not turn.acquire(timeout=0.1):
            if self._closing.is_set() or time.monotonic() > deadline:
                raise Overloaded("the job's files are being looked at for another submission; submit this one again")
        try:
            self._look(key, spec)
        finally:
            turn.release()

    def _look(self, key: bytes, spec: JobSpec) -> None:
        with self._lock:
            passed = self._passed.get(key)
        if passed is not None and unchanged(passed[0]):
            self._note(key, passed[0])
            return
        question = json.dumps({"spec": spec.model_dump_json(), "roots": [self.roots.allowed, self.roots.refused]})
        answer = json.loads(self._pool.ask(question.encode() + b"\n", self.deadline_s, self._closing.is_set))
        if "fault" in answer:
            raise PluginError(answer["fault"])
        if answer["problems"]:
            raise SpecError([(pointer, message) for pointer, message in answer["problems"]])
        self._note(key, {path: _stamp(stamp) for path, stamp in answer["seen"].items()})

    def lately(self, spec: JobSpec) -> bool:
        """True when these files were in order a moment ago. Touches no disk, so the event loop may ask."""
        with self._lock:
            passed = self._passed.get(_inputs_of(spec))
            return passed is not None and time.monotonic() - passed[1] < LATELY_S

    def _note(self, key: bytes, seen: Seen) -> None:
        with self._lock:
            self._passed[key] = seen, time.monotonic()
            self._passed.move_to_end(key)
            if len(self._passed) > _PASSED_KEPT:
                self._passed.popitem(last=False)


def _inputs_of(spec: JobSpec) -> bytes:
    """What the files of a job have to fit."""
    return hashlib.sha256(spec.model_dump_json(exclude=_NOT_LOOKED_AT).encode()).digest()


def _stamp(values: Sequence[int]) -> Stamp:
    device, inode, size, changed, touched = values
    return device, inode, size, changed, touched


@functools.cache
def _shared_pool(command: tuple[str, ...], size: int) -> Pool:
    """One pool per process, however many apps it holds."""
    return Pool(command, size)


class Pool:
    """Children that answer one line with one line. Made when first needed, kept, and replaced when one is killed."""

    def __init__(self, command: Sequence[str], size: int) -> None:
        self._command, self._size = command, size
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)
        self._room = threading.BoundedSemaphore(size * (1 + _WAITING_PER_WORKER))
        self._killed: list[subprocess.Popen[bytes]] = []

    def ask(self, line: bytes, deadline_s: float, closed: Callable[[], bool]) -> bytes:
        """Return the answer to a line. Raises Overloaded when there is none in time."""
        if not self._room.acquire(blocking=False):
            raise Overloaded("too many jobs are being checked at once; submit this one again in a moment")
        try:
            child = self._take(time.monotonic() + deadline_s, closed)
            try:
                child = child or self._start(closed)
                answer = child.ask(line, deadline_s, closed)
            except BaseException:
                self._kill(child)
                child = None
                raise
            finally:
                self._idle.put(child)
            return answer
        finally:
            self._room.release()

    def _take(self, deadline: float, closed: Callable[[], bool]) -> _Child | None:
        while time.monotonic() < deadline and not closed():
            try:
                return self._idle.get(timeout=0.1)
            except queue.Empty:
                continue
        raise Overloaded("the service is still looking at the files of other jobs; submit this one again in a moment")

    def _start(self, closed: Callable[[], bool]) -> _Child:
        self._killed = [process for process in self._killed if process.poll() is None]
        if len(self._killed) > 4 * self._size:
            raise Overloaded("a disk that jobs name does not answer; submit the job again when it does")
        child = _Child(self._command)
        try:
            child.ask(b"\n", START_S, closed)
        except BaseException:
            self._kill(child)
            raise
        return child

    def _kill(self, child: _Child | None) -> None:
        if child is not None:
            child.process.kill()
            self._killed.append(child.process)  # one that waits for a disk ends when the disk answers


class _Child:
    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._back = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._back, False)
        self._end = weakref.finalize(self, self.process.kill)

    def ask(self, line: bytes, deadline_s: float, closed: Callable[[], bool]) -> bytes:
        """Write a line, read a line. Raises Overloaded when the child is late, has ended, or the service closes."""
        deadline = time.monotonic() + deadline_s
        answer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._back, selectors.EVENT_READ)
            selector.register(self._to, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                if closed() or time.monotonic() > deadline:
                    raise Overloaded(
                        f"the files that the job names could not be looked at within {deadline_s:g} s; "
                        "submit it again in a moment, and see whether their disk is slow"
                    )
                for key, _ in selector.select(0.1):
                    if key.fd == self._back:
                        answer += self._read()
                    else:
                        line = line[self._write(line) :]
                        if not line:
                            selector.unregister(self._to)
        return bytes(answer)

    def _read(self) -> bytes:
        part = os.read(self._back, 1 << 16)
        if not part:
            log.error("the process that looks at jobs' files ended with status %s", self.process.poll())
            raise Overloaded("looking at the job's files failed; submit it again, and see the service's log")
        return part

    def _write(self, line: bytes) -> int:
        try:
            return os.write(self._to, line[: 1 << 16])
        except BrokenPipeError:
            return len(line)  # its end is read next
