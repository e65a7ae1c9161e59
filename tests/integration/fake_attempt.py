"""A stand-in for launch.py: does what the job's name says. `supervise` as first argument runs a supervisor over it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from accord.config.settings import Settings
from accord.disk import patiently
from accord.errors import Fenced, VolumeFull
from accord.events import Failed, Progress, StepCompleted, Warned
from services.jobs.redis_store import open_store
from services.runner.sink import StoreEventSink

FAILURES = {
    "user error": (10, "user_error", "the prompt file went away"),
    "retryable once": (11, "rollout", "a worker went away"),
    "reward down": (15, "reward", "sync is down"),
    "away": (14, "unreachable", "Ray is away"),
}
"""Name of the job → exit status, and reason and message of its event."""


def command(job_id: str, epoch: int) -> list[str]:
    return [sys.executable, __file__, "--job-id", job_id, "--epoch", str(epoch)]


def supervise() -> None:
    from services.registry import Metrics
    from services.runner.supervisor import Supervisor
    from services.signals import Signals

    signals = Signals().install()
    settings = Settings()
    store = open_store(settings)
    Supervisor(settings, store, Metrics(store), command=command).run(signals.stop)


def write_until_enough(settings: Settings, sink: StoreEventSink, job_id: str) -> int:
    """Append to a file of the run folder until `enough` appears beside it, as an attempt does: with patience."""
    path = settings.runs_dir / job_id / "rows"
    while not (settings.runs_dir / "enough").exists():
        try:
            patiently(
                lambda: append_whole(path, bytes(4096)), wait_s=settings.disk_wait_s,
                warn=lambda code, message: sink.emit(Warned(code=code, message=message)),
            )  # fmt: skip
        except VolumeFull as error:
            sink.emit(Failed(reason=error.reason, message=str(error), retryable=True))
            return 14
        time.sleep(0.1)
    return 0


def append_whole(path: Path, row: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(row)


def attempt(job_id: str, epoch: int) -> int:
    settings = Settings()
    sink = StoreEventSink(settings, job_id, epoch)
    kind = sink.spec().name
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif kind != "plain":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(13))
    sink.emit(Progress(phase="startup", step=0, done=1, total=1))
    print(f"attempt {epoch} of {kind}", flush=True)
    first = epoch == 1
    if kind == "succeed" or (kind in {"killed once", "retryable once"} and not first):
        metrics = {"reward/sync/mean": 0.5, "reward/sync/valid_ratio": 0.75, "loss/video": 0.1}
        sink.emit(StepCompleted(step=1, policy_version=1, metrics=metrics, phase_seconds={"learn": 1.5}, samples=8))
        return 0
    if kind in FAILURES and (first or kind != "retryable once"):
        code, reason, message = FAILURES[kind]
        sink.emit(Failed(reason=reason, message=message, retryable=code != 10))
        return code
    if kind == "write":
        return write_until_enough(settings, sink, job_id)
    if kind in {"crash", "long"}:
        time.sleep(settings.lease_s / 2 if kind == "long" else 0)
        return 3 if kind == "crash" else 0
    if kind == "family":  # a grandchild that hides in its own session
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (settings.runs_dir / "grandchild").write_text(str(child.pid))
    done = 0
    while True:
        done += 1
        time.sleep(0.05)
        try:
            sink.emit(Progress(phase="rollout", step=1, done=done, total=10**6))
        except Fenced:
            Path(settings.runs_dir / f"fenced-{epoch}").touch()
            return 12


if __name__ == "__main__":
    if sys.argv[1:] == ["supervise"]:
        supervise()
        sys.exit(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("--job-id")
    parser.add_argument("--epoch", type=int)
    arguments = parser.parse_args()
    assert os.environ["ACCORD_ATTEMPT"] == f"{arguments.job_id}:{arguments.epoch}"
    assert threading.active_count() == 1
    sys.exit(attempt(arguments.job_id, arguments.epoch))
