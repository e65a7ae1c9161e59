"""Finding and ending processes that carry a mark in their environment, wherever they were re-parented to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """Processes of this user whose environment has `name=value`, this process excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def end(processes: Iterable[psutil.Process], grace_s: float) -> int:
    """SIGTERM, wait up to `grace_s`, SIGKILL. Returns how many needed the latter."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return len(alive)


def end_all(name: str, value: str, deadline_s: float = 15.0) -> None:
    """End marked processes until none is left: some may start others while they go."""
    deadline = time.monotonic() + deadline_s
    while (left := marked(name, value)) and time.monotonic() < deadline:
        end(left, 0.5)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the whole process group of a child that leads its own session; a group that is gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def stop(process: subprocess.Popen[bytes], grace_s: float) -> int:
    """SIGTERM to a child, SIGKILL to its group after `grace_s`. Returns its exit status."""
    if process.poll() is None and grace_s > 0:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(grace_s)
    signal_group(process, signal.SIGKILL)
    return process.wait(10)
