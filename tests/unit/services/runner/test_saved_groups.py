"""Groups that are saved come back as they were, and only into the job that asks for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from accord.backbones.base import Conditions
from accord.canary import canaries
from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.errors import UserError
from accord.requests import evaluation_requests, step_requests
from accord.types import (
    Clip,
    GroupData,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
    StepGroups,
    Transitions,
)
from services.runner.saved_groups import ReplayedSource, SavingSource

CONTROL = [Clip(np.full((2, 8, 8, 3), grey, np.uint8), 8.0, np.zeros((1, 9), np.float32), 8000) for grey in (1, 2)]
"""Clips that were put together for a control."""


class Made:
    """A source of made-up groups."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job

    def take(self, step: int) -> StepGroups:
        requests = step_requests(self.job, load_prompts(self.job.prompts.train), step)
        return StepGroups(self.evaluate(requests, [reward.name for reward in self.job.rewards]), 1.0, 2.0)

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        return [
            ScoredGroup(_group(request), {name: _scores(name, request) for name in rewards}) for request in requests
        ]

    def rescore(self, prompt: Any, clips: Sequence[Clip], rewards: Sequence[str]) -> dict[str, RewardScores]:
        return {name: RewardScores(name, "1", (0.5,) * len(clips), ("ok",) * len(clips)) for name in rewards}

    def publish(self, state: Any) -> None:
        raise NotImplementedError

    def fetch(self, handle: Any) -> Any:
        return handle


def _group(request: RolloutRequest) -> SampleGroup:
    made = np.random.default_rng(request.seeds[0])
    moves = Transitions(
        *(made.standard_normal(shape, dtype=np.float32) for shape in ((2, 3, 4, 5), (2, 3, 4, 5), (2, 3)))
    )
    data = GroupData({"video": made.standard_normal((3, 4, 5), dtype=np.float32)}, None, {"video": moves})
    clip = Clip(made.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8), 12.0, np.zeros((1, 8), np.float32), 16000)
    return SampleGroup(request, request.policy_version, data, [clip])


def _scores(name: str, request: RolloutRequest) -> RewardScores:
    return RewardScores(name, "1", (1.0, float("nan")), ("ok", "too_short"), 0.1, {"f1": (0.5, float("nan"))})


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    for name in ("train", "held"):
        lines = [
            {"id": f"{name} {n}/ü", "prompt_av": f"{name} {n}", "prompt_v": "v", "prompt_a": "a"} for n in range(3)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return JobSpec.parse(
        json.dumps(
            {
                "steps": 2,
                "backbone": {"name": "ltx2"},
                "prompts": {
                    "train": str(tmp_path / "train.jsonl"), "held_out": str(tmp_path / "held.jsonl"), "per_step": 2,
                    "group_size": 3,
                },
                "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
                "algorithm": {"name": "flow_grpo"},
                "cluster": {"learner_ranks": 1},
            }
        )
    )  # fmt: skip


@pytest.fixture
def saved(job: JobSpec, tmp_path: Path) -> Path:
    source = SavingSource(Made(job), tmp_path / "groups")
    source.take(1)
    held_out = load_prompts(job.prompts.held_out)
    source.evaluate(evaluation_requests(job, held_out, 0), ["sync"])  # type: ignore[arg-type]
    source.rescore(held_out[0], CONTROL, ["sync"])
    return tmp_path / "groups"


def same(found: Any, wanted: Any) -> bool:
    """Equal to the bit, and of the same types."""
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    if hasattr(wanted, "__slots__"):
        return type(found) is type(wanted) and all(
            same(getattr(found, name), getattr(wanted, name)) for name in wanted.__slots__
        )
    if isinstance(wanted, dict):
        return list(found) == list(wanted) and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return type(found) is type(wanted) and len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted) or (found != found and wanted != wanted)


def test_they_come_back_to_the_bit(job: JobSpec, saved: Path) -> None:
    replayed = ReplayedSource(job, saved)
    assert same(replayed.take(1), Made(job).take(1))
    held_out = load_prompts(job.prompts.held_out)
    requests = evaluation_requests(job, held_out, 0)  # type: ignore[arg-type]
    assert same(replayed.evaluate(requests, ["sync"]), Made(job).evaluate(requests, ["sync"]))
    with pytest.raises(UserError, match="is not there"):
        replayed.rescore(held_out[0], CONTROL[::-1], ["sync"])
    assert replayed.rescore(held_out[0], CONTROL, ["sync"])["sync"].values == (0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 9}, "seeds = "),
        ({"prompts": {"per_step": 1}}, "holds 2 groups, and the job asks for 1"),
        ({"sampling": {"num_steps": 5}}, "plan.num_steps = 10, and the job asks for 5"),
        ({"algorithm": {"dynamics": {"eta": 0.5}}}, "plan.stochastic.eta = 0.7, and the job asks for 0.5"),
        ({"rewards": [{"name": "clap"}, {"name": "sync"}]}, "no scores of clap"),
    ],
)
def test_another_job_is_told_what_differs(job: JobSpec, saved: Path, change: dict[str, Any], told: str) -> None:
    document = json.loads(job.model_dump_json())
    for key, value in change.items():
        document[key] = {**document[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError) as caught:
        ReplayedSource(JobSpec.parse(json.dumps(document)), saved).take(1)
    assert told in str(caught.value) and "step-000001" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04 no", b"\x02\0\0\0\0\0\0\0{}", None], ids=["empty", "other", "bare", "gone"]
)
def test_what_is_no_file_of_groups_is_refused(job: JobSpec, saved: Path, content: bytes | None) -> None:
    file = saved / "step-000001.safetensors"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match="--save-groups"):
        ReplayedSource(job, saved).take(1)


def test_conditions_of_a_backbone_are_kept(job: JobSpec, tmp_path: Path) -> None:
    class WithConditions(Made):
        def take(self, step: int) -> StepGroups:
            found = super().take(step)
            kept = Conditions({"text": torch.ones(1, 3, dtype=torch.bfloat16)})
            return replace(found, groups=[replace(one, group=replace(one.group, clips=kept)) for one in found.groups])

    SavingSource(WithConditions(job), tmp_path / "groups").take(1)
    found = ReplayedSource(job, tmp_path / "groups").take(1).groups[0].group.clips
    assert isinstance(found, Conditions) and found["text"].dtype == torch.bfloat16


def test_what_rewards_say_of_canaries_belongs_to_the_run_and_is_not_kept(job: JobSpec, tmp_path: Path) -> None:
    (*_, canary) = canaries(job.rewards[0])
    scores = SavingSource(Made(job), tmp_path / "groups").rescore(canary.prompt, [canary.clip], ["sync"])
    assert scores["sync"].values == (0.5,)
    assert not (tmp_path / "groups").exists()
    assert ReplayedSource(job, tmp_path / "groups").rescore(canary.prompt, [canary.clip], ["sync"]) == {}
