"""A run folder as a finished job leaves it: real files of realistic numbers and real clips of the world."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from accord.config.job import JobSpec
from accord.events import StepCompleted
from accord.media import write_mp4
from accord.run_folder import RunFolder
from accord.seeds import derive_seed
from accord.world.scene import CLEAN, HELD_OUT_PROMPTS, Imperfections, make_clip, write_prompt_file

RUN_JOB_ID = "job-01jdemo0000example0000000"
BROKEN = Imperfections(offset=1.0, hiss=1.0, flicker=0.8, wrong_colour=0.5, wrong_sound=0.3)
REWARDS = {
    "sound": (0.48, 0.80, 0.24),
    "clap": (0.75, 0.96, 0.34),
    "text_video": (0.58, 0.90, 0.40),
    "sync": (0.21, 0.33, 0.20),
    "temporal_flicker": (0.301, 0.304, 0.05),
}
HELD_OUT = {
    "video_distance": (3.32, 2.41, 0.10), "audio_distance": (0.48, 0.49, 0.05), "video_diversity": (0.44, 0.52, 0.02),
    "audio_diversity": (0.89, 0.70, 0.03), "sync_shuffled": (0.05, 0.055, 0.02), "sync_gap": (0.16, 0.275, 0.02),
    "sync_offset_ms_median": (297.0, 118.0, 21.0),
}  # fmt: skip
SEEDS = [derive_seed(7, "evaluate", index, 0) for index in range(8)]


def make_job(held_out: Path, names: Sequence[str] = tuple(REWARDS)) -> JobSpec:
    """The job the run folder is of."""
    tree = {
        "name": "tiny omninft demo",
        "seed": 7,
        "steps": 17,
        "backbone": {"name": "ltx2"},
        "prompts": {"train": "train.jsonl", "held_out": str(held_out)},
        "rewards": [{"name": name, "weight": 0.0 if name == "temporal_flicker" else 1.0} for name in names],
        "algorithm": {"name": "omninft"},
    }
    return JobSpec.parse(json.dumps(tree))


def make_run(
    run_dir: Path, *, steps: int = 17, pairs: int = 6, after: bool = True, names: Sequence[str] = tuple(REWARDS)
) -> JobSpec:
    """Fill `run_dir` with all that an attempt writes; without `after` it was killed before its last evaluation."""
    job = make_job(run_dir.with_name("held_out.jsonl"), names)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_prompt_file(HELD_OUT_PROMPTS, Path(job.prompts.held_out))
    (run_dir / "spec.json").write_text(job.model_dump_json(indent=2))
    (run_dir / "metrics.jsonl").write_text("".join(_step(n).model_dump_json() + "\n" for n in range(1, steps + 1)))
    (run_dir / "adapter").mkdir()
    (run_dir / "adapter" / "pytorch_lora_weights.safetensors").write_bytes(b"weights of the adapter")
    (run_dir / "checkpoints" / "step-000017").mkdir(parents=True)
    (run_dir / "checkpoints" / "step-000017" / "manifest.json").write_text("{}")
    _evaluation(run_dir, 0, pairs)
    if after:
        _evaluation(run_dir, job.steps, pairs)
    return job


def _step(number: int) -> StepCompleted:
    rng = np.random.default_rng([3, number])
    done = 1 - math.exp(-number / 6)
    metrics: dict[str, float | None] = {}
    for name, (low, high, std) in REWARDS.items():
        metrics[f"reward/{name}/mean"] = low + (high - low) * done + float(rng.normal()) * std / 8
        metrics[f"reward/{name}/std"] = std * (1 - 0.4 * done)
        metrics[f"reward/{name}/valid_ratio"] = 1.0
    for modality, scale in (("video", 0.9), ("audio", 0.6)):
        metrics[f"loss/{modality}"] = scale * (1 + 0.08 * float(rng.normal()))
        metrics[f"loss/reference/{modality}"] = 0.02 * scale * done
        metrics[f"advantage/{modality}/std"] = 0.9 + 0.05 * float(rng.normal())
    metrics |= {"grad_norm": 0.8 + 0.3 * float(rng.random()), "learning_rate": 2e-3, "region/max": None}
    return StepCompleted(
        at=1.8e9 + 15 * number, step=number, policy_version=number, metrics=metrics, samples=64,
        phase_seconds={
            "rollout": 7 + float(rng.random()), "reward": 1.4, "learn": 6 + float(rng.random()), "publish": 0.1,
            "checkpoint": 0.3 if number % 5 == 0 else 0.0, "startup": 20.0 if number == 1 else 0.0,
        },
    )  # fmt: skip


def _evaluation(run_dir: Path, step: int, pairs: int) -> None:
    """One evaluation as learner/evaluate.py writes it."""
    side = 1 if step else 0
    rewards = {name: _estimate(values[side], values[2] / 8) for name, values in REWARDS.items()}
    held_out = {name: _estimate(values[side], values[2]) for name, values in HELD_OUT.items()}
    change = {name: _estimate(high - low, std / 6) for name, (low, high, std) in REWARDS.items()}
    change |= {name: _estimate(HELD_OUT[name][1] - HELD_OUT[name][0], 0.03) for name in ("sync_shuffled", "sync_gap")}
    samples = []
    for index in range(8):
        prompt, seed = HELD_OUT_PROMPTS[index], SEEDS[index]
        samples.append({"prompt": prompt.id, "seed": seed, "scores": {"sync": 0.2}, "reasons": {"sync": "ok"}})
        if index < pairs:
            clip = make_clip(prompt, 11, index, CLEAN if step else BROKEN).clip
            write_mp4(clip, RunFolder(run_dir), f"clips/{prompt.id}-{seed}-{'tuned' if step else 'base'}.mp4")
    body = {
        "at": 0.0, "type": "evaluation", "step": step, "role": "policy", "rewards": rewards, "held_out": held_out,
        "standard_errors": "prompts are the independent draws", "seconds": 12.5, "change": change if step else {},
        "samples": samples,
    }  # fmt: skip
    (run_dir / "evaluation").mkdir(exist_ok=True)
    (run_dir / "evaluation" / f"step-{step:06d}.json").write_text(json.dumps(body))


def _estimate(mean: float, sem: float | None) -> dict[str, float | int | None]:
    return {"mean": mean, "sem": sem, "n": 64}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    run_dir = tmp_path_factory.mktemp("runs") / RUN_JOB_ID
    make_run(run_dir, pairs=3)
    return run_dir


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder of one's own, of a job with one reward: `new_run(steps=3, pairs=1)`."""

    def make(**options: object) -> Path:
        make_run(tmp_path / RUN_JOB_ID, names=("sync",), **options)  # type: ignore[arg-type]
        return tmp_path / RUN_JOB_ID

    return make
