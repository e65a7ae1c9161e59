"""Runs a command that must not outlive its parent: `python -m services.guard PARENT_PID SIGNAL COMMAND…`.

The kernel sends SIGNAL to the command when the parent is gone (Linux; elsewhere the command just runs). This is a
program and not a `preexec_fn`, because running Python between fork and exec is not safe in a process with threads.
The kernel watches the parent's *thread* that spawned: spawn from a thread that lives as long as the child may.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_PR_SET_PDEATHSIG = 1

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Child = subprocess.Popen[bytes]


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    when_orphaned: signal.Signals = signal.SIGKILL,
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = None,
) -> Child:
    """Start `command` in its own session, tied to the calling thread's life. Its stderr goes where stdout goes.

    Proxies of the environment are not for loopback, where our processes speak to each other.
    """
    prefix = [sys.executable, "-m", "services.guard", str(os.getpid()), str(int(when_orphaned))]
    env = without_loopback_proxy(os.environ if env is None else env)
    return subprocess.Popen(
        [*prefix, *command], env=env, stdin=stdin, stdout=stdout, stderr=subprocess.STDOUT if stdout else None,
        start_new_session=True,
    )  # fmt: skip


def without_loopback_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with loopback in `no_proxy`, in both spellings: some libraries read one, some the other."""
    names = ("no_proxy", "NO_PROXY")
    given = [host.strip() for name in names for host in environment.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(host for host in (*given, *_LOOPBACK) if host))
    return {**environment, **dict.fromkeys(names, hosts)}


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    parent, number, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != int(parent):
            sys.exit(f"the parent {parent} was gone before {command[0]} could start")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
