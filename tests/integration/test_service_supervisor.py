"""The supervisor over a real store and real child processes; only the child's work is made up (fake_attempt.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.events import StateChanged
from accord.ids import new_job_id
from services.jobs.job import Job, JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import Submission
from services.node.embedded import EmbeddedStore
from services.processes import marked
from services.registry import Metrics
from services.runner import janitor
from services.runner.attempt import MARK
from services.runner.supervisor import Supervisor
from tests.integration import fake_attempt

LEASE = 3.0  # a busy machine pauses a process for longer than one would think


def alive(pid: int) -> bool:
    """A process of that id exists and is no zombie."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class Bench:
    """A store, and supervisors on it."""

    def __init__(self, root: Path, server: EmbeddedStore) -> None:
        self.root, self.server = root, server
        self.settings = Settings(
            data_dir=root, runs_dir=root / "runs", lease_s=LEASE, grace_s=1.0, retry_backoff_s=0.05,
            redis_url=server.url,  # type: ignore[arg-type]
        )  # fmt: skip
        self.settings.runs_dir.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ, "REDIS_URL": server.url, "ACCORD_DATA_DIR": str(root),
            "ACCORD_RUNS_DIR": str(root / "runs"), "ACCORD_LEASE_S": str(LEASE), "ACCORD_GRACE_S": "1.0",
            "ACCORD_RETRY_BACKOFF_S": "0.05",
        }  # fmt: skip
        self.store = RedisJobStore(server.url)
        self.metrics = Metrics(self.store)
        self.supervisor = Supervisor(
            self.settings, self.store, self.metrics, command=fake_attempt.command, environment=lambda: self.environment
        )
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.supervisor.run, args=(self.stop,), daemon=True)

    def submit(self, name: str, **changes: object) -> str:
        spec = JobSpec.parse(JobSpec.model_validate({
            "name": name, "steps": 1, "backbone": {"name": "ltx2"}, "prompts": {"train": "t", "held_out": "h"},
            "guards": {"allow_prompt_blind": True},
            "rewards": ({"name": "sync"},), "algorithm": {"name": "omninft"}, **changes,
        }).model_dump_json())  # fmt: skip
        submission = Submission(new_job_id(), name, spec.model_dump_json(), 1, max_attempts=spec.max_attempts)
        return self.store.enqueue(submission)[0].id

    def wait(self, job_id: str, condition: Callable[[Job], object], timeout_s: float = 20) -> Job:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            job = self.store.get(job_id)
            if condition(job):
                return job
            time.sleep(0.03)
        log = "\n".join(path.read_text() for path in (self.root / "runs").glob(f"{job_id}/logs/*"))
        raise AssertionError(f"{job}\n{log}")

    def state(self, job_id: str, state: JobState, epoch: int = 1) -> Job:
        return self.wait(job_id, lambda job: job.state is state and job.epoch >= epoch)

    def child(self, job_id: str, epoch: int) -> psutil.Process:
        return marked(MARK, f"{job_id}:{epoch}")[0]

    def history(self, job_id: str) -> list[str]:
        return [entry.event.state for entry in self.store.events(job_id, limit=10_000)
                if isinstance(entry.event, StateChanged)]  # fmt: skip

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[subprocess.Popen[bytes]]:
        """A supervisor in a process of its own."""
        process = subprocess.Popen([sys.executable, fake_attempt.__file__, "supervise"], env=self.environment)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: EmbeddedStore) -> Iterator[Bench]:
    made = Bench(tmp_path, server)
    made.store._redis.flushall()
    yield made
    made.stop.set()
    if made.thread.ident is not None:
        made.thread.join(20)
        assert not made.thread.is_alive()
    made.store.close()


@pytest.fixture
def running(bench: Bench) -> Bench:
    bench.thread.start()
    return bench


def test_a_job_runs_and_its_metrics_show(running: Bench) -> None:
    job_id = running.submit("succeed")
    job = running.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.step, job.lost_attempts) == (1, 1, 0)
    assert running.history(job_id) == ["queued", "starting", "running", "succeeded"]
    log = running.root / "runs" / job_id / "logs" / "attempt-1.log"
    assert log.read_text() == "attempt 1 of succeed\n"
    running.stop.set()
    running.thread.join(10)
    text = running.metrics.exposition().decode()
    for line in (
        'accord_jobs_finished_total{outcome="succeeded",reason=""} 1.0',
        "accord_attempts_total 1.0",
        "accord_queue_wait_seconds_count 1.0",
        f'accord_train_reward_mean{{job_id="{job_id}",reward="sync"}} 0.5',
        f'accord_train_loss{{job_id="{job_id}",modality="video"}} 0.1',
        'accord_reward_scores_total{outcome="valid",reward="sync"} 6.0',
        "accord_rollout_samples_total 8.0",
    ):
        assert line in text, line
    running.supervisor.training.forget(older_than_s=0)
    assert job_id not in running.metrics.exposition().decode()


def test_a_user_error_is_told_and_not_retried(running: Bench) -> None:
    job = running.state(running.submit("user error"), JobState.FAILED)
    assert (job.epoch, job.reason, job.message) == (1, Reason.USER_ERROR, "the prompt file went away")


def test_a_retryable_end_is_retried(running: Bench) -> None:
    job_id = running.submit("retryable once")
    job = running.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.lost_attempts) == (2, 1)
    assert running.history(job_id) == ["queued", "starting", "running", "queued", "starting", "running", "succeeded"]


def test_a_crash_fails_after_max_attempts(running: Bench) -> None:
    job = running.state(running.submit("crash", max_attempts=2), JobState.FAILED)
    assert (job.epoch, job.lost_attempts, job.reason) == (2, 2, Reason.CRASHED)
    assert "status 3" in job.message


def test_a_job_without_success_has_a_report_too(running: Bench) -> None:
    job_id = running.submit("crash", max_attempts=1)
    running.state(job_id, JobState.FAILED)
    folder = running.root / "runs" / job_id
    running.wait(job_id, lambda _: (folder / "artifacts.json").exists())
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["adapter_sha256"]) == ("failed", None)
    assert summary["reason"].startswith("crashed: the attempt ended with status 3")
    assert "the attempt ended with status 3" in (folder / "report.html").read_text()


def test_a_job_that_fails_with_its_owner_is_counted_and_reported(bench: Bench) -> None:
    job_id = bench.submit("hang", max_attempts=1)
    with bench.elsewhere() as supervisor:
        bench.state(job_id, JobState.RUNNING)
        supervisor.kill()
    bench.thread.start()
    job = bench.state(job_id, JobState.FAILED)
    assert job.reason is Reason.LEASE_LOST
    bench.wait(job_id, lambda _: (bench.root / "runs" / job_id / "report.html").exists())
    text = bench.metrics.exposition().decode()
    assert 'accord_jobs_finished_total{outcome="failed",reason="lease_lost"} 1.0' in text
    assert "accord_lease_lost_total 1.0" in text


def test_a_deleted_job_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor, "PERIOD_S", 0.1)
    bench.thread.start()
    deleted, kept = bench.submit("crash", max_attempts=1), bench.submit("crash", max_attempts=1)
    for job_id in (deleted, kept):
        bench.state(job_id, JobState.FAILED)
        bench.wait(job_id, lambda _, job_id=job_id: (bench.root / "runs" / job_id / "artifacts.json").exists())  # type: ignore[misc]
    bench.store.delete(deleted)
    bench.wait(kept, lambda _: not (bench.root / "runs" / deleted).exists() and not bench.store.folders_to_remove())
    assert (bench.root / "runs" / kept / "report.html").exists()


def test_a_killed_attempt_is_requeued(running: Bench) -> None:
    job_id = running.submit("killed once")
    running.state(job_id, JobState.RUNNING)
    began = time.monotonic()
    running.child(job_id, 1).kill()
    job = running.state(job_id, JobState.SUCCEEDED)
    assert (job.epoch, job.lost_attempts) == (2, 1)
    assert time.monotonic() - began < 10


def test_cancel_is_graceful(running: Bench) -> None:
    job_id = running.submit("hang")
    running.state(job_id, JobState.RUNNING)
    running.store.cancel(job_id)
    job = running.state(job_id, JobState.CANCELLED)
    assert job.reason is Reason.CANCELLED and job.epoch == 1
    assert not marked(MARK, f"{job_id}:1")


def test_cancel_kills_what_will_not_stop(running: Bench) -> None:
    job_id = running.submit("stubborn")
    running.state(job_id, JobState.RUNNING)
    began = time.monotonic()
    running.store.cancel(job_id)
    running.state(job_id, JobState.CANCELLED)
    assert 0.9 < time.monotonic() - began < 1.0 + LEASE + 4, "the grace period, not more"
    assert not marked(MARK, f"{job_id}:1")


def test_nothing_of_an_attempt_survives_it(running: Bench) -> None:
    job_id = running.submit("family")
    running.state(job_id, JobState.RUNNING)
    running.wait(job_id, lambda _: (running.root / "runs" / "grandchild").exists())
    grandchild = int((running.root / "runs" / "grandchild").read_text())
    assert alive(grandchild)
    running.store.cancel(job_id)
    running.state(job_id, JobState.CANCELLED)
    assert not alive(grandchild)


def test_max_runtime(running: Bench) -> None:
    job = running.state(running.submit("hang", max_runtime_s=0.5), JobState.FAILED)
    assert job.reason is Reason.TIMEOUT and "0.5" in job.message and job.epoch == 1


def test_going_down_requeues_at_once_without_a_lost_attempt(running: Bench) -> None:
    job_id = running.submit("hang")
    running.state(job_id, JobState.RUNNING)
    running.stop.set()
    running.thread.join(10)
    job = running.store.get(job_id)
    assert (job.state, job.reason, job.lost_attempts) == (JobState.QUEUED, Reason.DRAINED, 0)
    assert running.store.claim("next", LEASE, 1).job is not None


def test_a_paused_supervisor_loses_its_job_and_its_attempt_is_fenced(bench: Bench) -> None:
    job_id = bench.submit("hang")
    with bench.elsewhere() as first:
        bench.state(job_id, JobState.RUNNING)
        first.send_signal(signal.SIGSTOP)  # its attempt goes on
        with bench.elsewhere():
            bench.state(job_id, JobState.RUNNING, epoch=2)
            deadline = time.monotonic() + 10
            while not (bench.root / "runs" / "fenced-1").exists():
                assert time.monotonic() < deadline, "the old attempt's writes must be refused"
                time.sleep(0.05)
            first.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            assert not marked(MARK, f"{job_id}:1")
            job = bench.store.get(job_id)
            assert (job.state, job.epoch, job.lost_attempts) == (JobState.RUNNING, 2, 1)
            bench.store.cancel(job_id)
            bench.state(job_id, JobState.CANCELLED)
    assert bench.history(job_id).count("running") == 2


def test_an_attempt_dies_with_its_supervisor(bench: Bench) -> None:
    job_id = bench.submit("hang")
    with bench.elsewhere() as supervisor:
        bench.state(job_id, JobState.RUNNING)
        child = bench.child(job_id, 1)
        supervisor.kill()
        supervisor.wait(5)
        assert child.wait(5) is None or not child.is_running()
    with bench.elsewhere():
        job = bench.state(job_id, JobState.RUNNING, epoch=2)
        assert job.lost_attempts == 1
        bench.store.cancel(job_id)
        bench.state(job_id, JobState.CANCELLED)


def test_a_store_that_dies_and_comes_back_costs_nothing(running: Bench, server: EmbeddedStore) -> None:
    job_id = running.submit("hang")
    running.state(job_id, JobState.RUNNING)
    server.kill()
    time.sleep(LEASE * 0.8)
    job = running.store.get(job_id)
    assert (job.state, job.epoch) == (JobState.RUNNING, 1)
    running.store.cancel(job_id)
    running.state(job_id, JobState.CANCELLED)
