"""A reward's server fails: a run goes on without an optional one, and stops at a required one with all it has."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accord.config.job import JobSpec
from accord.errors import RewardError
from accord.events import StepCompleted, Warned
from accord.run_folder import RunFolder
from accord.seeds import derive_seed
from accord.types import RewardScores, ScoreReason, StepGroups
from learner.run import Run
from learner.train import train
from tests.integration.learner_job import PROMPTS, ReplaySource, Sink
from tests.integration.test_tiny_steps import job_of

STEPS = 3


class Failing(ReplaySource):
    """Scores of two rewards by seed; in step `at` the server of text_video fails for the first `samples` of a group."""

    def __init__(self, job: JobSpec, at: int, samples: int, reason: ScoreReason) -> None:
        super().__init__(job)
        self.at, self.samples, self.reason = at, samples, reason

    @staticmethod
    def _scores(name, seeds):
        values = tuple(derive_seed(seed, name) % 1000 / 1000 for seed in seeds)
        return RewardScores(name, "1", values, ("ok",) * len(values), 0.01)

    def take(self, step: int) -> StepGroups:
        taken = super().take(step)
        if step != self.at:
            return taken
        groups = []
        for group in taken.groups:
            scores = group.scores["text_video"]
            values = (math.nan,) * self.samples + scores.values[self.samples :]
            reasons = (self.reason,) * self.samples + scores.reasons[self.samples :]
            failed = replace(scores, values=values, reasons=reasons)
            groups.append(replace(group, scores={**group.scores, "text_video": failed}))
        return replace(taken, groups=groups)


def run_of(folder: Path, *, required: bool, samples: int) -> tuple[Run, Sink]:
    torch.set_num_threads(1)
    job = job_of({"name": "omninft"})
    first = job.rewards[0].model_copy(update={"required": required})
    update = {"steps": STEPS, "rewards": (first, *job.rewards[1:])}
    job = job.model_copy(update={**update, "checkpoint": job.checkpoint.model_copy(update={"every": 10})})
    source, sink = Failing(job, STEPS, samples, "unreachable"), Sink(None)
    run = Run(job, RunFolder(folder), source, sink, PROMPTS[:1])
    source.backbone = run.rank.backbone
    run.evaluate = lambda step: None
    return run, sink


def test_a_required_reward_that_is_down_stops_the_run_at_a_checkpoint_of_all_that_was_trained(tmp_path):
    run, _ = run_of(tmp_path, required=True, samples=3)
    with pytest.raises(RewardError, match=r"'text_video' is required and none .*unreachable"):
        train(run)
    assert [found.step for found in run.folder.checkpoints()] == [STEPS - 1]
    again, _ = run_of(tmp_path, required=True, samples=0)
    assert again.restore() == STEPS - 1


def test_a_step_goes_on_without_an_optional_reward_and_says_so(tmp_path):
    run, sink = run_of(tmp_path, required=False, samples=1)
    train(run)
    told = [event for event in sink.events if isinstance(event, Warned)]
    assert [event.code for event in told] == ["reward_dropped"]
    assert "step 3 is trained without reward 'text_video': 2 × unreachable" in told[0].message
    dropped = [event.metrics["reward/text_video/dropped"] for event in sink.events if isinstance(event, StepCompleted)]
    assert dropped == [0.0, 0.0, 1.0]
