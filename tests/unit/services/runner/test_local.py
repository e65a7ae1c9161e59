"""A run without service goes on with its own job alone, and by itself; an evaluation asks the rewards that it names."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from accord.config.contract import RewardSpec
from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.config.settings import Settings
from accord.errors import UserError
from accord.events import Event
from accord.ids import PolicyVersion
from accord.requests import evaluation_requests
from accord.run_folder import SPEC, RunFolder
from accord.types import Clip, Modality, Prompt, Route
from reward_servers.base import RewardModel, Score
from services.runner.local import LocalSource, run_here

PROMPTS = Path(__file__).parents[4] / "examples" / "prompts"


class Silent:
    def emit(self, event: Event) -> None:
        raise AssertionError(f"nothing begins, so nothing is told: {event}")


class CrowdReward(RewardSpec):
    """Judges all clips of a step together."""

    impl: ClassVar[str] = f"{__name__}:Crowd"
    scope: ClassVar[Literal["step"]] = "step"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    name: Literal["crowd"] = "crowd"
    route: Route = "video"


class Crowd(RewardModel):
    """Says how many it was given."""

    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Sequence[Score]:
        """Score clips together."""
        return [Score(float(len(clips)))] * len(clips)


def job(seed: int = 0) -> JobSpec:
    tree = {
        "steps": 1, "seed": seed, "backbone": {"name": "ltx2"}, "guards": {"allow_prompt_blind": True},
        "sampling": {"frames": 9, "height": 32, "width": 32, "fps": 12.0, "num_steps": 1},
        "rewards": [{"name": "sync"}],
        "prompts": {"train": str(PROMPTS / "world_train.jsonl"), "held_out": str(PROMPTS / "world_heldout.jsonl")},
        "algorithm": {"name": "awm"}, "evaluate": {"samples_per_prompt": 2},
    }  # fmt: skip
    return JobSpec.parse(json.dumps(tree))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def held(folder: RunFolder) -> Iterator[None]:
    """As another process holds it."""
    folder.path().mkdir()
    place = os.open(folder.path(), os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    yield
    os.close(place)


def test_a_folder_of_another_job_is_refused_as_it_is(folder: RunFolder) -> None:
    folder.write_whole(SPEC, job())
    with pytest.raises(UserError, match=r"the run of another job: /seed is 0, this job has 7; go on with the job file"):
        run_here(Settings(), job(seed=7), folder, Silent())
    assert JobSpec.parse(folder.read(SPEC)) == job(), "the refused job has left no trace"


@pytest.mark.usefixtures("held")
def test_two_runs_at_once_do_not_share_a_folder(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"another run writes to .*/run; wait for its end, or give another folder"):
        run_here(Settings(), job(), folder, Silent())
    assert not folder.exists(SPEC)


def test_an_evaluation_asks_no_reward_that_it_does_not_name() -> None:
    spec = job()
    spec = spec.model_copy(update={"rewards": (*spec.rewards, CrowdReward())})  # no package brings it
    source = LocalSource(spec)
    requests = evaluation_requests(spec, load_prompts(spec.prompts.held_out)[:2], PolicyVersion(0))
    for named in (["sync"], ["crowd"], ["sync", "crowd"]):
        groups = source.evaluate(requests, named)
        assert [set(group.scores) for group in groups] == [set(named)] * 2
    assert [group.scores["crowd"].values for group in groups] == [(4.0, 4.0)] * 2, "of all prompts together"
