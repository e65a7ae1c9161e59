"""The promise: same job, same bits, however many workers and whatever is killed on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.integration.service import REPOSITORY, Service, running_service, small_job


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("exact")) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> dict[str, Any]:
    return service.finish(service.submit(small_job()))


def after_step(service: Service, job_id: str, step: int) -> None:
    def stepped() -> bool:
        return any(event["type"] == "step" and event["step"] == step for event in service.events(job_id))

    service.wait(job_id, stepped, 120)


def kill(service: Service, title: str) -> None:
    victims = service.processes(title)
    assert victims, f"no process with {title!r} to kill"
    victims[-1].kill()


def test_the_job_trains(service: Service, undisturbed: dict[str, Any]) -> None:
    """The control: what is equal below is not an adapter that never moved."""
    tensors = load_file(service.run_dir(undisturbed["job_id"]) / "adapter" / "pytorch_lora_weights.safetensors")
    moved = [np.abs(value).max() for name, value in tensors.items() if ".lora_B." in name]
    assert min(moved) > 1e-5 and undisturbed["policy_version"] == 3


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("workers", "victims"),
    [
        (2, ("ray::RolloutActor", "ray::ServeReplica:sync")),
        (1, ("ray::RayTrainWorker",)),
        (1, ("services.runner.launch",)),
    ],
    ids=["two rollout workers, one killed, then a reward replica", "learner rank", "attempt"],
)
def test_neither_workers_nor_kills_change_a_bit(
    service: Service, undisturbed: dict[str, Any], workers: int, victims: tuple[str, ...]
) -> None:
    """One victim after each step."""
    job_id = service.submit(small_job(name="killed", cluster={"rollout_workers": workers}))
    for step, title in enumerate(victims, start=1):
        after_step(service, job_id, step)
        kill(service, title)
    summary = service.finish(job_id)
    assert summary["adapter_sha256"] == undisturbed["adapter_sha256"], f"{victims} were killed, the adapter changed"
    assert summary["policy_version"] == 3
    lost = [event for event in service.events(job_id) if event["type"] == "process_lost"]
    told = [event for event in lost if event["process"] == "learner rank"]
    assert len(told) == victims.count("ray::RayTrainWorker"), "a lost rank is told of once, by the group after it"
    assert all("restarted from the latest checkpoint" in event["outcome"] for event in told)


@pytest.mark.timeout(600)
def test_nor_with_recorded_steps_that_were_sampled_one_version_ahead(service: Service) -> None:
    """Flow-GRPO whose rollouts overlap the update: a rollout worker, then the attempt is killed."""
    algorithm = {"name": "flow_grpo"}
    calm = service.finish(service.submit(small_job(algorithm=algorithm, cluster={"policy_lag": 1})))
    cluster = {"policy_lag": 1, "rollout_workers": 2}
    job_id = service.submit(small_job(name="killed", algorithm=algorithm, cluster=cluster))
    for step, title in enumerate(("ray::RolloutActor", "services.runner.launch"), start=1):
        after_step(service, job_id, step)
        kill(service, title)
    summary = service.finish(job_id)
    assert summary["adapter_sha256"] == calm["adapter_sha256"]
    assert summary["policy_version"] == 3


def toml(value: Any) -> str:
    """A value of a job as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return f"[{', '.join(map(toml, value))}]" if isinstance(value, list) else json.dumps(value)


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`accord run` in `folder`."""
    command = [sys.executable, "-m", "services.cli.main", "run", "job.toml", *arguments]
    environment = os.environ | {"ACCORD_RUNS_DIR": str(folder), "PYTHONPATH": str(REPOSITORY), "COLUMNS": "400"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.timeout(400)
def test_nor_does_a_run_without_service_that_is_killed_and_goes_on(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Without store and Ray: two ranks, killed after a step; then the groups that were saved, learned from again."""
    (tmp_path / "job.toml").write_text("\n".join(f"{key} = {toml(value)}" for key, value in small_job().items()))
    first = started(tmp_path, "--save-groups", "groups")
    for line in first.stdout or ():
        if line.startswith("checkpoint of step 2"):
            break
    ranks = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait(10)
    assert ranks and not psutil.wait_procs(ranks, timeout=30)[1], "the other rank outlived the first"
    for arguments in (("--out", "job", "--save-groups", "groups"), ("--replay-groups", "groups")):
        text, _ = (process := started(tmp_path, *arguments)).communicate(timeout=180)
        assert process.returncode == 0, text
    summaries = [json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("job", "job-2")]
    assert {summary["adapter_sha256"] for summary in summaries} == {undisturbed["adapter_sha256"]}
    text, _ = (process := started(tmp_path, "--replay-groups", "groups", "--set", "seed=8")).communicate(timeout=60)
    assert process.returncode == 2 and "seeds = " in text and "the job asks for" in text
    process = started(tmp_path, "--replay-groups", "groups", "--out", "torn")
    for line in process.stdout or ():
        if line.startswith("checkpoint of step 1"):
            ranks = [child for child in psutil.Process(process.pid).children() if "spawn_main(" in str(child.cmdline())]
            ranks[0].kill()
    assert process.wait(60) == 1 and "a learner rank ended before its time" in line


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        job_id = service.submit(small_job(steps=50))
        service.wait(job_id, lambda: service.job(job_id)["state"] == "running", 60)
        time.sleep(2)
    assert service.processes("") == []
    assert not list((tmp_path / "data").rglob("*.sock"))
