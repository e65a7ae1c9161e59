"""Whose run folder it is: a run without service goes on with its own job alone, and by itself."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.errors import UserError
from accord.events import Event
from accord.run_folder import SPEC, RunFolder
from services.runner.local import run_here


class Silent:
    def emit(self, event: Event) -> None:
        raise AssertionError(f"nothing begins, so nothing is told: {event}")


def job(seed: int = 0) -> JobSpec:
    tree = {
        "steps": 1, "seed": seed, "backbone": {"name": "ltx2"}, "guards": {"allow_prompt_blind": True},
            "rewards": [{"name": "sync"}],
        "prompts": {"train": "/p/train", "held_out": "/p/held_out"}, "algorithm": {"name": "awm"},
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
