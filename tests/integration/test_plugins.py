"""Three packages of third parties, installed as such, train a job: an algorithm, a backbone without sound, a reward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.integration.service import REPOSITORY, Service, running_service

PACKAGES = ("best_of", "linear_video", "palette")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages in a folder of their own, a model, prompts, and colours."""
    home = tmp_path_factory.mktemp("plugins")
    sources = home / "sources"
    subprocess.run(["cp", "-r", str(REPOSITORY / "tests" / "plugins"), str(sources)], check=True)  # builds write there
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    packages = [str(sources / name) for name in PACKAGES]
    subprocess.run([*install, "--target", str(home / "site"), *packages], check=True, timeout=120)
    _python(home, "-m", "linear_video.make", str(home / "model"))
    for name, colors in (("train", ("red", "blue")), ("held_out", ("green", "white"))):
        lines = [
            {"id": color, "prompt_av": f"a {color} ball", "prompt_v": f"a {color} ball", "prompt_a": "nothing"}
            for color in colors
        ]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (home / "red.json").write_text('{"rgb": [255, 0, 0]}')
    (home / "no-colour.json").write_text('{"rgb": [256, 0, 0]}')
    return home


@pytest.fixture(scope="module")
def service(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), PYTHONPATH=_path(home)) as running:
        yield running


def _path(home: Path) -> str:
    return os.pathsep.join([str(home / "site"), str(REPOSITORY)])


def _python(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": _path(home)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


def job_of(home: Path) -> dict[str, Any]:
    return {
        "name": "plug-ins",
        "steps": 2,
        "max_attempts": 1,
        "backbone": {"name": "linear_video", "path": str(home / "model"), "lora": {"rank": 2}},
        "sampling": {"frames": 4, "height": 32, "width": 32, "fps": 8.0, "num_steps": 2},
        "prompts": {
            "train": str(home / "train.jsonl"), "held_out": str(home / "held_out.jsonl"), "per_step": 2,
            "group_size": 4,
        },
        "rewards": [{"name": "palette", "colour": str(home / "red.json")}],
        "algorithm": {"name": "best_of", "keep": 2, "finer": 3},
        "optimizer": {"learning_rate": 0.01},
        "evaluate": {"samples_per_prompt": 2, "clips": 2}, "guards": {"allow_prompt_blind": True},
    }  # fmt: skip


def test_three_packages_train_a_job(service: Service, home: Path) -> None:
    job_id = service.submit(job_of(home))
    summary = service.finish(job_id, 120)
    folder = service.run_dir(job_id)
    state = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    learned = [value for name, value in state.items() if ".lora_B." in name]
    assert len(learned) == 4 and all((value != 0).any() for value in learned)
    assert summary["state"] == "succeeded"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert all("best_of/mean" in row["metrics"] for row in metrics)
    evaluated = json.loads((folder / "evaluation" / "step-000002.json").read_text())
    assert evaluated["rewards"]["palette"]["n"] == 4
    report = (folder / "report.html").read_text()
    assert "best_of" in report and "linear_video" in report and "palette" in report
    assert len(list((folder / "clips").glob("*.mp4"))) == 4


@pytest.mark.parametrize(
    ("change", "pointer", "told"),
    [
        (
            {"rewards": [{"name": "palette", "colour": "/no/such.json"}]},
            "/rewards/0/colour",
            "not found or not allowed",
        ),
        ({"rewards": [{"name": "palette", "colour": "{home}/no-colour.json"}]}, "/rewards/0/colour", "from 0 to 255"),
        ({"algorithm": {"name": "best_of", "keep": 4}}, "/algorithm/keep", "4 of 4 samples leave none out"),
        (
            {"algorithm": {"name": "best_of", "levels": {"low": 0.6, "high": 0.9}}},
            "/algorithm/levels/low",
            "1.000, 0.5",
        ),
        ({"algorithm": {"name": "omninft"}}, "/algorithm/surgery/enabled", "no audio-to-video attention"),
        ({"sampling": {"width": 20}}, "/sampling/width", "no multiple of 8"),
        ({"rewards": [{"name": "clap"}]}, "/rewards/0", "needs audio, which linear_video lacks"),
    ],
)
def test_each_brings_its_own_checks(
    service: Service, home: Path, change: dict[str, Any], pointer: str, told: str
) -> None:
    job = job_of(home) | json.loads(json.dumps(change).replace("{home}", str(home)))
    answer = service.client.post("/v1/jobs", json=job)
    assert answer.status_code == 422, answer.text
    found = {error["pointer"]: error["detail"] for error in answer.json()["errors"]}
    assert told in found[pointer]


PLANS = """
import json, sys
from accord.config.job import JobSpec
from accord.requests import step_requests
from accord.types import Prompt
job, prompt = JobSpec.parse(sys.argv[1]), Prompt("red", "a", "b", "c")
plans = [request.plan for step in (1, 2, 3) for request in step_requests(job, [prompt], step)[:1]]
print(json.dumps([[plan.role, plan.num_steps] for plan in plans]))
"""


def test_its_own_plan_is_in_every_request(home: Path) -> None:
    plans = json.loads(_python(home, "-c", PLANS, json.dumps(job_of(home))).stdout)
    assert plans == [["policy", 2], ["policy", 5], ["policy", 8]]


def job_file(home: Path) -> str:
    """A job file with paths relative to it."""
    (home / "job.toml").write_text(
        "\n".join(
            [
                'steps = 2',
                f'backbone = {{name = "linear_video", path = "{home}/model"}}',
                'sampling = {frames = 4, num_steps = 2}',
                'prompts = {train = "train.jsonl", held_out = "held_out.jsonl", per_step = 2, group_size = 4}',
                'rewards = [{name = "palette", colour = "red.json"}]',
                'algorithm = {name = "best_of"}',
                'guards = {allow_prompt_blind = true}',
            ]
        )
    )  # fmt: skip
    return str(home / "job.toml")


def test_the_commands_know_them(home: Path) -> None:
    resolved = _python(home, "-m", "services.cli.main", "validate", job_file(home)).stdout
    assert str(home / "red.json") in resolved, "a path of a plug-in's field is made absolute"
    found = json.loads(_python(home, "-m", "services.cli.main", "plan", job_file(home), "--json").stdout)
    assert found["model"]["tokens"] == {"video": 64, "text": 1} and found["step"]["micro_batches"] == 1


def test_stochastic_steps_train_a_foreign_backbone_too(home: Path) -> None:
    changes = ("--set", 'algorithm={name="flow_grpo"}', "--set", "sampling.num_steps=4", "--out", str(home / "run"))
    _python(home, "-m", "services.cli.main", "run", job_file(home), *changes)
    state = load_file(home / "run" / "adapter" / "pytorch_lora_weights.safetensors")
    assert all((value != 0).any() for name, value in state.items() if ".lora_B." in name)
