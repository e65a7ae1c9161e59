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
from accord.errors import Fenced
from accord.events import Failed, Progress, StepCompleted
from services.jobs.redis_store import open_store
from services.runner.sink import StoreEventSink


def command(job_id: str, epoch: int) -> list[str]:
    return [sys.executable, __file__, "--job-id", job_id, "--epoch", str(epoch)]


def supervise() -> None:
    from services.api.metrics import Metrics
    from services.runner.runner import Supervisor
    from services.runner.signals import Signals

    signals = Signals()
    signals.install()
    settings = Settings()
    store = open_store(settings)
    Supervisor(settings, store, Metrics(store), command=command).run(signals.stop)


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
    if kind == "user error":
        sink.emit(Failed(reason="user_error", message="the prompt file went away", retryable=False))
        return 10
    if kind == "retryable once":
        sink.emit(Failed(reason="rollout", message="a worker went away", retryable=True))
        return 11
    if kind == "crash":
        return 3
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
