"""What a loss measures from is the policy that sampled, however many versions ago that was."""

import json
from pathlib import Path

import pytest
import torch

import accord
from accord.backbones.adapters import load_adapter_state, role
from accord.backbones.ltx2 import model
from accord.backbones.ltx2.model import LTX2Backbone
from accord.config.job import JobSpec
from accord.run_folder import RunFolder
from learner.run import Run
from learner.train import train
from tests.integration.learner_job import PROMPTS, ReplaySource, run_leg

TINY = Path(accord.__file__).parent / "world" / "pretrained" / "tiny-ltx2"


def job_of(lag: int, algorithm: str) -> JobSpec:
    tree = {
        "seed": 5, "steps": lag + 3, "backbone": {"name": "ltx2", "lora": {"rank": 4, "alpha": 8.0}},
        "sampling": {"frames": 9, "num_steps": 3}, "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
        "prompts": {"train": "t", "held_out": "h", "per_step": 1, "group_size": 3},
        "algorithm": {"name": algorithm, "sigmas": {"per_sample": 1}, "old_policy": {"start": 0.5}},
        "optimizer": {"learning_rate": 1e-2, "micro_batch": 3},
        "cluster": {"engine": "torch", "learner_ranks": 1, "policy_lag": lag},
        "evaluate": {"samples_per_prompt": 2, "clips": 0},
    }  # fmt: skip
    return JobSpec.parse(json.dumps(tree))


def load(job: JobSpec) -> LTX2Backbone:
    return LTX2Backbone.load(job.backbone, job.sampling, without=("decoders",), seed=job.seed)


class Keeping(ReplaySource):
    """Keeps what was published and the version that each step's groups are stamped with."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.states, self.stamps = {}, []

    def publish(self, state) -> None:
        super().publish(state)
        self.states[state.version] = state

    def take(self, step):
        taken = super().take(step)
        self.stamps.append(taken.groups[0].group.policy_version)
        return taken


@pytest.fixture(scope="module")
def sampler() -> LTX2Backbone:
    """A second copy of the model, as a rollout worker holds it."""
    torch.set_num_threads(1)
    return load(job_of(0, "awm"))


def test_a_rank_loads_nothing_but_the_network_that_it_trains(sampler, tmp_path, monkeypatch):
    loaded, load_one = [], model.load_component

    def watched(directory, *more):
        loaded.append(directory.name)
        return load_one(directory, *more)

    monkeypatch.setattr(model, "load_component", watched)
    job = job_of(0, "awm")
    run = Run(job, RunFolder(tmp_path), Keeping(job, sampler), None, PROMPTS[:2])
    train(run)
    assert loaded == ["transformer"]


@pytest.mark.parametrize(
    ("lag", "algorithm"), [(0, "awm"), (1, "awm"), (2, "awm"), (3, "awm"), (1, "omninft"), (2, "crd")]
)
def test_old_in_the_learner_is_the_policy_that_sampled(sampler, tmp_path, lag, algorithm):
    job = job_of(lag, algorithm)
    source = Keeping(job, sampler)
    run = Run(job, RunFolder(tmp_path), source, None, PROMPTS[:2])
    rank, engine = run.rank, run.engine
    seen, loss, velocity = [], rank.algorithm.loss, engine.velocity

    def watched_velocity(*inputs):
        watched_velocity.inputs = inputs
        return velocity(*inputs)

    def watched_loss(batch, predictions):
        seen.append((watched_velocity.inputs, predictions["old"]))
        return loss(batch, predictions)

    engine.velocity, rank.algorithm.loss = watched_velocity, watched_loss
    train(run)

    assert source.stamps == [max(0, step - 1 - lag) for step in range(1, job.steps + 1)] and len(seen) == job.steps
    for (inputs, found), stamp in zip(seen, source.stamps, strict=True):
        for version in {stamp, source.stamps[-1]}:
            load_adapter_state(sampler.velocity_model, "old", source.states[version].adapters["old"])
            with torch.no_grad(), role(sampler.velocity_model, "old"):
                expected = sampler.velocity_model(*inputs)
            for modality, value in expected.items():
                assert torch.equal(value, found[modality]) == (version == stamp)
    newest = source.states[job.steps]  # and the old policy goes on from the latest one, not from the sampler's
    before, policy = source.states[job.steps - 1].adapters["old"], newest.adapters["policy"]
    eta = rank.algorithm.eta(job.steps)
    assert 0 < eta < 1
    for key, value in newest.adapters["old"].items():
        followed = torch.from_numpy(before[key].copy()).mul_(eta).add_(torch.from_numpy(policy[key]), alpha=1 - eta)
        assert torch.equal(torch.from_numpy(value), followed)


def test_a_lagging_run_resumed_in_the_middle_ends_in_the_same_bits(tmp_path):
    leg = {
        "engine": "torch", "ranks": 1, "steps": 4, "policy_lag": 2, "model": str(TINY), "max_grad_norm": 1.0,
        "learning_rate": 3e-3, "micro_batch": 6, "algorithm": {"name": "awm", "sigmas": {"per_sample": 1}},
    }  # fmt: skip
    straight = run_leg({**leg, "name": "straight"}, tmp_path)
    cut = run_leg({**leg, "name": "cut", "folder": "resumed", "stop_after": 3}, tmp_path)
    resumed = run_leg({**leg, "name": "resumed"}, tmp_path)
    assert cut["result"] is None and resumed["published"][:3] == [1, 2, 3]
    assert resumed["digest"] == straight["digest"] and resumed["result"] == straight["result"]
    ratios = [event["metrics"]["ratio/video"] for event in straight["events"] if event["type"] == "step"]
    assert ratios[0] == 1.0 and all(ratio != 1.0 for ratio in ratios[1:])  # the samples are no longer the policy's own
