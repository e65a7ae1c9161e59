"""A real Prometheus scrapes our registry while a job reports; every panel of the dashboard then shows something."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import redis

from accord.events import CheckpointSaved, Failed, ProcessLost, StepCompleted

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not on PATH (Debian has it)")

SECONDS = 8


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _report(job_id, training, metrics, step):
    """One second in the life of a job."""
    numbers = {"grad_norm": 1.0, "learning_rate": 1e-3}
    for modality in ("video", "audio"):
        numbers |= {f"loss/{modality}": 1.0, f"loss/reference/{modality}": 0.1}
        numbers |= {f"ratio/{modality}": 1.0, f"clipped/{modality}": 0.0}
        numbers |= {f"advantage/{modality}/std": 1.0, f"advantage/{modality}/zero_ratio": 0.1}
    numbers |= {"feature/luma/mean": 0.5, "control/sync/prompt_gap": 0.1, "control/sync/sound_gap": 0.2}
    numbers |= {"reward/sync/saturated": 0.1, "reward/sync/flat_groups": 1.0}
    for field, value in {"mean": 0.4, "std": 0.2, "valid_ratio": 0.9, "dropped": 0.0, "invalid/timeout": 1.0}.items():
        numbers[f"reward/sync/{field}"] = value
    phases = {"rollout": 0.5, "reward": 0.2, "learn": 0.2, "publish": 0.05}
    training.observe(
        job_id, StepCompleted(step=step, policy_version=step, metrics=numbers, phase_seconds=phases, samples=64)
    )
    training.observe(job_id, CheckpointSaved(step=step, path="x", bytes=1000, seconds=0.2))
    training.observe(job_id, ProcessLost(process="rollout worker 0", outcome="restarted", recovery_seconds=1.0))
    training.observe(job_id, Failed(reason="nonfinite", message="x", retryable=False))
    for name in ("accord_lease_lost_total", "accord_lease_fenced_writes_total", "accord_attempts_total"):
        metrics.counter(name).inc()
    metrics.counter("accord_jobs_finished_total").labels(outcome="succeeded", reason="").inc()
    metrics.histogram("accord_queue_wait_seconds").observe(1.0)
    metrics.counter("accord_runner_errors_total").labels(where="loop").inc()
    metrics.gauge("accord_runner_can_claim").labels(check="ray").set(1)
    metrics.gauge("accord_runs_volume_free_bytes").set(1e9)
    route = {"route": "/v1/jobs", "method": "GET", "status": "200"}
    metrics.histogram("accord_http_request_duration_seconds").labels(**route).observe(0.01)


def _ask(port, expression):
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def _await_ready(port, process):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "prometheus ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("prometheus was not ready in 30 s")


def test_every_panel_shows_something(tmp_path):
    prometheus_client = pytest.importorskip("prometheus_client")
    from accord.ids import new_job_id
    from services.jobs.redis_store import PREFIX, RedisJobStore
    from services.jobs.store import Submission
    from services.node.embedded import EmbeddedStore
    from services.registry import Metrics
    from services.runner.prometheus import TrainingMetrics

    server_of_store = EmbeddedStore(tmp_path / "store")
    server_of_store.start()
    store = RedisJobStore(server_of_store.url)
    for _ in range(2):
        torn, _ = store.enqueue(Submission(id=new_job_id(), name="x", spec_json="{}", steps=1))
    redis.Redis.from_url(server_of_store.url).hset(f"{PREFIX}job:{torn.id}", "epoch", "torn")
    metrics = Metrics(store)
    training = TrainingMetrics(metrics)
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=metrics.registry)
    port = _free_port()
    config = tmp_path / "prometheus.yml"
    scrape = {"job_name": "accord", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}))
    process = subprocess.Popen(
        [
            PROMETHEUS, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
        ]
    )  # fmt: skip
    try:
        _await_ready(port, process)
        for step in range(1, SECONDS + 1):
            _report("job-1", training, metrics, step)
            store.page()  # lists all but the record that is torn
            time.sleep(1)
        board = json.loads((ROOT / "helm" / "files" / "accord.json").read_text())
        empty = []
        for panel in (panel for panel in board["panels"] if panel["type"] != "row"):
            for target in panel["targets"]:
                expression = target["expr"]
                for name, value in {
                    "$__rate_interval": "5s",
                    "$__range": "1m",
                    "$job_id": ".*",
                    "$reward": "sync",
                }.items():
                    expression = expression.replace(name, value)
                if "ray_" not in expression and not _ask(port, expression):
                    empty.append(f"{panel['title']}: {expression}")
        assert empty == []
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        store.close()
        server_of_store.stop()
        thread.join(10)
