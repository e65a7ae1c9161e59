"""A real run whose policy plays a prompt-blind reward: the guard stops it, keeps the version before, and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from accord.config.contract import RewardSpec
from accord.config.guards import FEATURES
from accord.config.job import JobSpec
from accord.errors import GuardError
from accord.events import Event, StepCompleted
from accord.run_folder import ADAPTER, RunFolder
from accord.types import Clip, Modality, Prompt, Route
from reward_servers.base import RewardModel, Score
from services.runner.local import LocalSource, train_here

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"


class BrightReward(RewardSpec):
    """As bad as a reward can be: any white picture will do."""

    impl: ClassVar[str] = f"{__name__}:Bright"
    about: ClassVar[str] = "the picture is bright"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    name: Literal["bright"] = "bright"
    route: Route = "video"


class Bright(RewardModel):
    """Mean brightness."""

    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Score one clip."""
        return Score(float(clip.video_FHWC.mean()) / 255.0)


def job(**guards: Any) -> JobSpec:
    tree = {
        "steps": 5, "seed": 1, "backbone": {"name": "ltx2"},
        "sampling": {"frames": 9, "height": 32, "width": 32, "fps": 12.0, "num_steps": 3},
        "prompts": {
            "train": str(PROMPTS / "world_train.jsonl"), "held_out": str(PROMPTS / "world_heldout.jsonl"),
            "per_step": 2, "group_size": 4,
        },
        "rewards": [{"name": "picture"}],
        "algorithm": {"name": "omninft", "preset": "accord", "loss": {"reference_penalty": 0.0},
                      "credit": {"mode": "gdpo"}},
        "optimizer": {"learning_rate": 3e-2}, "cluster": {"engine": "torch", "learner_ranks": 1},
        "evaluate": {"samples_per_prompt": 2, "clips": 0},
        "guards": {"allow_prompt_blind": True, "divergence": guards},
    }  # fmt: skip
    spec = JobSpec.parse(json.dumps(tree))
    return spec.model_copy(update={"rewards": (BrightReward(),)})  # no package brings it, so no job may name it


class Kept:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def luma(self) -> list[float]:
        return [e.metrics["feature/luma/mean"] for e in self.events if isinstance(e, StepCompleted)]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder, kept = tmp_path_factory.mktemp("guard") / "run", Kept()
    with pytest.raises(GuardError) as told:
        train_here(job(sigmas=2.0, patience=1), RunFolder(folder), LocalSource(job()), kept)
    return folder, kept, str(told.value)


def test_the_run_ends_where_the_picture_left_its_band_and_says_so(stopped):
    folder, kept, told = stopped
    luma = kept.luma()
    assert 1 < len(luma) < 5, luma
    assert luma[-1] > luma[0] + 0.02
    assert any(f"{name} by " in told for name in FEATURES) and "guards/divergence/ignore" in told
    assert len(RunFolder(folder).steps()) == len(luma)


def test_the_version_inside_the_band_is_kept(stopped):
    folder, kept, told = stopped
    assert (folder / ADAPTER).is_file()
    version = int(told.rpartition("version ")[2])
    assert version < len(kept.luma())


def test_without_the_guard_the_same_run_goes_on_to_lose_its_picture(stopped, tmp_path):
    _, kept, _ = stopped
    free = Kept()
    train_here(job(action="off"), RunFolder(tmp_path / "run"), LocalSource(job()), free)
    luma = free.luma()
    assert len(luma) == 5 and luma[: len(kept.luma())] == kept.luma()  # the guard moves no bit
    assert luma[-1] > kept.luma()[-1]
