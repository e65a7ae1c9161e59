"""What a submitter may name, posted to a real API: refused by field, in time, and nothing outside is told.

The files are looked at in child processes; `slow` ones are made by a stand-in for the child that never answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from accord.config import files
from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import Overloaded, SpecError
from services.api.app import create_app
from services.api.preflight import Pool, SpecCheck
from tests.memory_store import InMemoryJobStore

STUCK = (sys.executable, "-c", "import sys, time\nsys.stdin.readline(); print(flush=True); time.sleep(600)")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    root = tmp_path / "in"
    root.mkdir()
    for name, color in (("train", "red"), ("held", "blue")):
        line = {"id": name, "prompt_av": f"a {color} ball", "prompt_v": "a ball", "prompt_a": "a beep"}
        (root / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "secret.jsonl").write_text('{"key": "not for you"}\n')
    return Settings(data_dir=root / "data", runs_dir=root / "runs", input_roots=(root,), api_key="k" * 32)  # type: ignore[arg-type]


@pytest.fixture
def spec(settings: Settings, tmp_path: Path) -> dict[str, Any]:
    return {
        "steps": 1,
        "backbone": {"name": "ltx2"},
        "prompts": {"train": str(tmp_path / "in/train.jsonl"), "held_out": str(tmp_path / "in/held.jsonl")},
        "guards": {"allow_prompt_blind": True},
        "rewards": [{"name": "sync"}, {"name": "clap"}],
        "algorithm": {"name": "omninft"},
    }


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    made = TestClient(create_app(settings, InMemoryJobStore()), raise_server_exceptions=False)
    made.headers["Authorization"] = f"Bearer {'k' * 32}"
    with made:
        yield made


def put(spec: dict[str, Any], pointer: str, value: str) -> None:
    *way, last = pointer.strip("/").split("/")
    place: Any = spec
    for part in way:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[last] = value


POINTERS = ("/prompts/train", "/prompts/held_out", "/backbone/path", "/backbone/init_lora", "/rewards/1/path")


@pytest.mark.parametrize("pointer", POINTERS)
def test_every_bad_path_in_every_field_is_422_by_name(
    client: TestClient, spec: dict[str, Any], tmp_path: Path, pointer: str
) -> None:
    root = tmp_path / "in"
    os.mkfifo(root / "fifo")
    (root / "away").symlink_to(tmp_path / "secret.jsonl")
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / "mine").write_text("key")
    (root / "runs" / "job-other").mkdir(parents=True)
    (root / "runs" / "job-other" / "adapter.safetensors").write_bytes(b"\0" * 64)
    outside = ["/dev/zero", "/dev/stdin", "/proc/self/environ", "/etc/passwd", "/", str(tmp_path / "secret.jsonl"),
               str(tmp_path / "none.jsonl"), str(root / "away"), str(root / "../secret.jsonl"), str(root / "data/mine"),
               str(root / "runs/job-other/adapter.safetensors"), "relative.jsonl", str(root / "none")]  # fmt: skip
    for path in [*outside, str(root / "fifo"), "a\0b", "~nouser/x", "~/x", "x" * 300, "/" + "y" * 256, "builtin:../.."]:
        put(spec, pointer, path)
        began = time.monotonic()
        answer = client.post("/v1/jobs", json=spec)
        assert answer.status_code == 422, (path, answer.text)
        errors = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
        assert pointer in errors and "not for you" not in answer.text
        if path in outside:
            assert errors[pointer].endswith(files.NOT_FOUND) or "model_index" in errors[pointer], path
        assert time.monotonic() - began < 20


def test_what_lies_inside_is_taken_and_looked_at_once(
    client: TestClient, spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.post("/v1/jobs", json=spec).status_code == 202
    monkeypatch.setattr(Pool, "ask", lambda *_: pytest.fail("looked at again"))
    assert client.post("/v1/jobs", json={**spec, "seed": 3, "labels": {"a": "b"}}).status_code == 202
    monkeypatch.undo()
    monkeypatch.setattr("services.api.preflight.LATELY_S", 0.0)
    assert client.post("/v1/jobs", json=spec).status_code == 202
    (tmp_path / "in/train.jsonl").write_text("not json\n")
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422 and "line 1" in answer.text


def test_a_look_that_hangs_is_ended_and_told(settings: Settings, spec: dict[str, Any]) -> None:
    quick = settings.model_copy(update={"preflight_s": 0.3})
    check = SpecCheck(quick, threading.Event(), STUCK)
    app = create_app(quick, InMemoryJobStore(), check_spec=check)
    client = TestClient(app, headers={"Authorization": f"Bearer {'k' * 32}"})
    answer = client.post("/v1/jobs", json=spec)
    assert answer.status_code == 503 and answer.headers["retry-after"] and "0.3 s" in answer.json()["detail"]
    assert await_end(), "the child is ended"


def test_more_than_can_wait_are_told_at_once_and_closing_ends_the_rest(
    settings: Settings, spec: dict[str, Any]
) -> None:
    closing = threading.Event()
    patient = settings.model_copy(update={"preflight_s": 120.0, "preflight_workers": 1})
    check = SpecCheck(patient, closing, STUCK)
    told: list[str] = []

    def ask(number: int) -> None:
        job = JobSpec.parse(json.dumps({**spec, "optimizer": {"max_grad_norm": 1.0 + number}}))
        with pytest.raises(Overloaded) as caught:
            check(job)
        told.append(str(caught.value))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while len(told) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(told) == 3 and all("too many jobs" in text for text in told)
    closing.set()
    for thread in threads:
        thread.join(10)
    assert len(told) == 12 and await_end()


def test_jobs_that_name_the_same_files_wait_for_one_look(
    settings: Settings, spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check, job = SpecCheck(settings, threading.Event()), JobSpec.parse(json.dumps(spec))
    asked, passed, real = [], [], Pool.ask
    monkeypatch.setattr(Pool, "ask", lambda *arguments: asked.append(1) or real(*arguments))
    threads = [threading.Thread(target=lambda: (check(job), passed.append(1))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(passed) == 40 and asked == [1]


def test_a_check_that_finds_a_problem_names_it_each_time(settings: Settings, spec: dict[str, Any]) -> None:
    check = SpecCheck(settings, threading.Event())
    spec["sampling"] = {"frames": 24}
    for _ in range(2):
        with pytest.raises(SpecError, match="/sampling/frames"):
            check(JobSpec.parse(json.dumps(spec)))


def stuck() -> list[int]:
    """Stand-ins that live."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            found += [child.pid] if "sleep(600)" in " ".join(child.cmdline()) else []
    return found


def await_end() -> bool:
    deadline = time.monotonic() + 30
    while stuck() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not stuck()
