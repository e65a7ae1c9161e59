"""One learner rank as a program: runs jobs on the tiny model with groups made up from derived seeds.

    python learner_job.py DIRECTORY LEGS.json          (RANK, WORLD_SIZE, MASTER_* set: one of several ranks)

A leg is {"name", "engine", "zero_stage", "ranks", "steps", "stop_after", "micro_batch", …}; results go to
DIRECTORY/<name>.json. A leg that names the folder of an earlier one resumes from its checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import torch

from accord.clip_features import features
from accord.config.job import JobSpec
from accord.requests import sampling_version, step_requests
from accord.run_folder import RunFolder
from accord.seeds import derive_seed
from accord.types import Clip, GroupData, Prompt, RewardScores, SampleGroup, ScoredGroup, StepGroups

PROMPTS = [Prompt(f"p{i}", f"a red ball with sound {i}", "a red ball", f"sound {i}") for i in range(6)]


class ReplaySource:
    """A GroupSource without workers: latents and scores are functions of the request. Remembers what was published."""

    def __init__(self, job: JobSpec, backbone=None) -> None:
        """`backbone` says the latents' shapes and encodes the prompts."""
        self.job, self.backbone, self.published = job, backbone, []

    def publish(self, state) -> None:
        self.published.append(int(state.version))

    def take(self, step: int):
        assert not self.published or sampling_version(step, self.job.cluster.policy_lag) in self.published
        return StepGroups([self._group(request) for request in step_requests(self.job, PROMPTS, step)], 0.0, 0.0)

    def evaluate(self, requests, rewards):
        return [self._group(request) for request in requests]

    def rescore(self, prompt, clips, rewards):
        return {
            name: self._scores(name, [derive_seed(prompt.id, name, i) for i in range(len(clips))]) for name in rewards
        }

    def fetch(self, handle):
        return handle

    def _group(self, request) -> ScoredGroup:
        shapes = self.backbone.latent_shapes()
        generators = [np.random.default_rng(seed) for seed in request.seeds]
        latents = {
            modality: np.stack([g.standard_normal(shape, dtype=np.float32) for g in generators])
            for modality, shape in shapes.items()
        }
        weights = np.stack([1 + g.random(shapes["video"][0], dtype=np.float32) for g in generators])
        clips = [
            Clip(g.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), 12.0, g.random((1, 800), dtype=np.float32), 16000)
            for g in generators
        ]
        group = SampleGroup(
            request,
            request.policy_version,
            GroupData(latents, self.backbone.encode([request.prompt.prompt_av]), weights),
            clips,
            features(clips),
        )
        return ScoredGroup(group, {r.name: self._scores(r.name, request.seeds) for r in self.job.rewards})

    @staticmethod
    def _scores(name, seeds) -> RewardScores:
        values = [derive_seed(seed, name) % 1000 / 1000 for seed in seeds]
        valid = [value > 0.1 for value in values]
        return RewardScores(
            name, "1", tuple(value if ok else math.nan for value, ok in zip(values, valid, strict=True)),
            tuple("ok" if ok else "timeout" for ok in valid), 0.01,
            {"offset_s": tuple(value / 10 for value in values)},
        )  # fmt: skip


def job_of(leg: dict) -> JobSpec:
    return JobSpec.model_validate_json(
        json.dumps(
            {
                "seed": 7,
                "steps": leg.get("steps", 3),
                "backbone": {
                    "name": "ltx2", "path": leg["model"], "lora": {"rank": 4, "alpha": 8.0},
                    "gradient_checkpointing": leg.get("gradient_checkpointing", False),
                },
                "sampling": {"num_steps": 4},
                "prompts": {"train": "t", "held_out": "h", "per_step": 2, "group_size": 3},
                "rewards": [{"name": "sync"}, {"name": "text_video"}, {"name": "sound"}],
                "algorithm": leg.get("algorithm", {"name": "omninft"}),
                "optimizer": {
                    "micro_batch": leg["micro_batch"], "max_grad_norm": leg["max_grad_norm"],
                    "learning_rate": leg["learning_rate"],
                },
                "cluster": {
                    "engine": leg["engine"], "zero_stage": leg.get("zero_stage", 2), "learner_ranks": leg["ranks"],
                    "policy_lag": leg.get("policy_lag", 0),
                },
                "checkpoint": {"every": 1, "keep": 2},
                "evaluate": {"samples_per_prompt": 2, "clips": 0},
                "guards": leg.get("guards", {}),
            }
        )
    )  # fmt: skip


class Stopped(Exception):
    """Ends a leg early, as a crash would."""


class Sink:
    """Keeps events; stops the run after a given step's checkpoint."""

    def __init__(self, stop_after: int | None) -> None:
        self.events, self.stop_after = [], stop_after

    def emit(self, event) -> None:
        self.events.append(event)


def run_leg(leg: dict, directory: Path) -> dict:
    from learner.run import Run
    from learner.train import train

    job = job_of(leg)
    source, sink = ReplaySource(job), Sink(leg.get("stop_after"))
    run = Run(job, RunFolder(directory / leg.get("folder", leg["name"])), source, sink, PROMPTS[:3])
    source.backbone = run.rank.backbone  # which loads its text parts for this; the ranks of a service never do
    if leg.get("stop_after"):
        save = run.save

        def save_then_die(step: int) -> None:
            save(step)
            if step == leg["stop_after"]:
                raise Stopped

        run.save = save_then_die
    result = None
    with contextlib.suppress(Stopped):
        result = train(run)
    states = {role: run.engine.adapter_state(role) for role in run.engine.roles}
    digest = hashlib.sha256()
    for name in sorted(states["policy"]):
        for state in states.values():
            digest.update(state[name].tobytes())
    if run.ranks.first:
        np.savez(directory / f"{leg['name']}.npz", **states["policy"])
    return {
        "digest": digest.hexdigest(),
        "result": None if result is None else {"version": result.policy_version, "sha256": result.adapter_sha256},
        "published": source.published,
        "events": [event.model_dump(mode="json") for event in sink.events],
    }


def main() -> None:
    directory, legs = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    for leg in legs:
        outcome = run_leg(leg, directory)
        if os.environ.get("RANK", "0") == "0":
            (directory / f"{leg['name']}.json").write_text(json.dumps(outcome))
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
