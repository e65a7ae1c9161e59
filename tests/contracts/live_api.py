"""The API as it is served: on a port, over a real store that holds jobs in every state, with files."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from accord.config.settings import Settings
from accord.events import CheckpointSaved, Progress, StepCompleted, Warned
from accord.ids import new_job_id
from services.api.server import Api
from services.jobs.job import JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import Submission
from services.node.embedded import EmbeddedStore
from services.node.service import prepare_directories
from services.registry import Metrics

KEY = "a-key-for-these-tests"
TEXTS = {"prompt_av": "a red ball", "prompt_v": "a red ball", "prompt_a": "a beep"}


@dataclass(frozen=True)
class LiveApi:
    host: str
    port: int
    store: RedisJobStore
    spec: dict[str, Any]
    jobs: dict[str, str]
    """State → id of a job in it."""

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://{self.host}:{self.port}", headers={"Authorization": f"Bearer {KEY}"}, timeout=30
        )

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=30)


@contextlib.contextmanager
def live_api(root: Path, **settings: Any) -> Iterator[LiveApi]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    made = Settings(
        data_dir=root / "data", runs_dir=root / "runs", input_roots=(root,), api_key=KEY, port=port, **settings
    )  # fmt: skip
    prepare_directories(made)
    with EmbeddedStore(root / "store") as server:
        store = RedisJobStore(server.url)
        spec = spec_in(root)
        jobs = _fill(store, made.runs_dir, json.dumps(spec))
        api = Api(made, store, Metrics(store), {})
        api.start()
        try:
            yield LiveApi(made.host, port, store, spec, jobs)
        finally:
            api.stop()
            store.close()


def spec_in(root: Path) -> dict[str, Any]:
    """A job that is accepted, with its prompt files."""
    for name in ("train", "held"):
        (root / f"{name}.jsonl").write_text(json.dumps({"id": name, **TEXTS, "prompt_av": f"{name} ball"}) + "\n")
    return {
        "name": "a job", "steps": 3, "backbone": {"name": "ltx2"},
        "prompts": {"train": str(root / "train.jsonl"), "held_out": str(root / "held.jsonl")},
        "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}, {"name": "clap", "weight": 0.5}], "algorithm": {"name": "omninft"},
    }  # fmt: skip


def _fill(store: RedisJobStore, runs: Path, spec_json: str) -> dict[str, str]:
    jobs = {}
    for state in ("succeeded", "failed", "cancelled", "running"):
        job_id = store.enqueue(Submission(new_job_id(), state, spec_json, 3))[0].id
        jobs[state] = job_id
        store.claim("me", 3600, 1)
        store.running(job_id, 1)
        store.append(job_id, 1, Progress(phase="rollout", step=1, done=1, total=2))
        store.append(job_id, 1, CheckpointSaved(step=1, path="x", bytes=1, seconds=0.1))
        store.append(job_id, 1, Warned(code="odd", message="\x00 \ud7ff 'quotes' <b>"))
        step = StepCompleted(step=1, policy_version=1, metrics={"loss/total": None}, phase_seconds={}, samples=4)
        store.append(job_id, 1, step)
        if state == "cancelled":
            store.cancel(job_id)
        if state != "running":
            store.finish(job_id, 1, JobState(state), Reason.NONE)
        _leave_files(runs / job_id, step)
    jobs["queued"] = store.enqueue(Submission(new_job_id(), "queued", spec_json, 3))[0].id
    return jobs


def _leave_files(folder: Path, step: StepCompleted) -> None:
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-000001" / "manifest.json").write_text('{"step": 1}')
    (folder / "metrics.jsonl").write_text(step.model_dump_json() + '\n{"step": 2, "metr')
    (folder / "clip.mp4").write_bytes(bytes(range(256)) * 40)
    (folder / "report.html").write_text("<h1>hi</h1>")
    names = {"clip": ("clip.mp4", "video/mp4"), "report": ("report.html", "text/html; charset=utf-8"),
             "nul": ("a\x00b", "text/plain"), "long": ("x" * 300, "text/plain"), "up": ("../../etc", "text/plain"),
             "gone": ("gone.json", "application/json")}  # fmt: skip
    listed = [
        {"id": ident, "name": name, "media_type": kind, "bytes": 1, "sha256": "0"}
        for ident, (name, kind) in names.items()
    ]
    (folder / "artifacts.json").write_text(json.dumps({"artifacts": [*listed, {"id": 3}, "x"]}))
