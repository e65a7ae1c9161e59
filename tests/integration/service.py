"""A whole Accord service for tests: `accord up` in its own data folder, spoken to over REST only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
TERMINAL = {"succeeded", "failed", "cancelled"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Service:
    process: subprocess.Popen[bytes]
    root: Path
    client: httpx.Client

    def submit(self, spec: dict[str, Any], **headers: str) -> str:
        answer = self.client.post("/v1/jobs", json=spec, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/jobs/{job_id}").raise_for_status().json())

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events so far, through the JSON page."""
        answer = self.client.get(
            f"/v1/jobs/{job_id}/events", headers={"Accept": "application/json"}, params={"limit": 10000}
        )
        page = answer.raise_for_status().json()
        return [entry.get("event", entry) for entry in page.get("items", page)]

    def wait(self, job_id: str, until: Callable[[], Any], timeout_s: float) -> Any:
        """Poll until `until()` is true; a job that ended too early fails the test with its log."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = until()
            if found:
                return found
            if self.job(job_id)["state"] in TERMINAL:
                found = until()
                if found:
                    return found
                raise AssertionError(f"{job_id} ended early\n{self.logs(job_id)}")
            time.sleep(0.1)
        raise AssertionError(f"{job_id}: waited {timeout_s} s\n{self.logs(job_id)}")

    def finish(self, job_id: str, timeout_s: float = 240) -> dict[str, Any]:
        """Wait for the end, demand success, return summary.json."""
        self.wait(job_id, lambda: self.job(job_id)["state"] in TERMINAL, timeout_s)
        job = self.job(job_id)
        assert job["state"] == "succeeded", f"{job}\n{self.logs(job_id)}"
        return dict(json.loads((self.run_dir(job_id) / "summary.json").read_text()))

    def run_dir(self, job_id: str) -> Path:
        return self.root / "runs" / job_id

    def logs(self, job_id: str) -> str:
        parts = [path.read_text()[-6000:] for path in sorted(self.run_dir(job_id).glob("logs/*.log"))]
        return "\n---\n".join(parts)

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of this service whose command line contains `title`, oldest first."""
        found = []
        for process in psutil.process_iter(["cmdline", "create_time"]):
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.info["cmdline"] or [])
                if title in command and self._ours(process):
                    found.append(process)
        return sorted(found, key=lambda process: process.info["create_time"])

    def _ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get("ACCORD_DATA_DIR") == str(self.root / "data")
        return False


@contextlib.contextmanager
def running_service(root: Path, **settings: str) -> Iterator[Service]:
    port = free_port()
    environment = {
        **os.environ,
        "ACCORD_DATA_DIR": str(root / "data"),
        "ACCORD_RUNS_DIR": str(root / "runs"),
        "ACCORD_PORT": str(port),
        "ACCORD_GRACE_S": "10",
        "ACCORD_REWARDS_PORT": "0",  # nobody asks here; tests/integration/test_rewards_serve.py does
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),  # loopback needs no proxy
        **settings,
    }
    for name in ("REDIS_URL", "RAY_ADDRESS"):
        environment.pop(name, None)
    log = (root / "up.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli.main", "up"], cwd=REPOSITORY, env=environment, stdout=log,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        client = _connect(process, port, root)
        yield Service(process, root, client)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        log.close()


def _connect(process: subprocess.Popen[bytes], port: int, root: Path) -> httpx.Client:
    base = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError("accord up ended:\n" + (root / "up.log").read_text())
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(base + "/readyz", timeout=2).status_code == 200:
                key = (root / "data" / "api-key").read_text().strip()
                return httpx.Client(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        time.sleep(0.1)
    raise AssertionError("not ready in 60 s:\n" + (root / "up.log").read_text())


def small_job(**changes: Any) -> dict[str, Any]:
    """A 3-step job on the built-in model, small enough for tests."""
    prompts = REPOSITORY / "examples" / "prompts"
    job: dict[str, Any] = {
        "name": "small",
        "seed": 7,
        "steps": 3,
        "backbone": {"name": "ltx2", "lora": {"rank": 4}},
        "sampling": {"num_steps": 3},
        "prompts": {
            "train": str(prompts / "world_train.jsonl"),
            "held_out": str(Path(__file__).with_name("held_out_two.jsonl")),
            "per_step": 2,
            "group_size": 4,
        },
        "rewards": [{"name": "sound"}, {"name": "text_video"}, {"name": "sync"}],
        "algorithm": {"name": "omninft"},
        "guards": {"allow_prompt_blind": True},
        "cluster": {"rollout_workers": 1, "learner_ranks": 2, "zero_stage": 2},
        "checkpoint": {"every": 1},
        "evaluate": {"samples_per_prompt": 2, "clips": 2},
    }
    for key, value in changes.items():
        job[key] = {**job[key], **value} if isinstance(value, dict) and isinstance(job.get(key), dict) else value
    return job
