"""A reward changes while a run goes on: the canaries tell, and the run goes on, waits or stops as its job says."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from accord.canary import canaries
from accord.config.job import JobSpec
from accord.config.rewards.panel import PictureReward
from accord.drift import FILE
from accord.errors import GuardError
from accord.events import Event, StepCompleted, Warned
from accord.run_folder import ADAPTER, CANARIES, RunFolder
from accord.types import Clip, Prompt
from learner import drift
from learner.run import Run
from learner.train import train
from reward_servers.base import RewardModel, Score
from reward_servers.scorer import LocalScorer
from services.runner.local import LocalSource, train_here
from tests.integration.learner_job import PROMPTS, ReplaySource
from tests.integration.service import TERMINAL, running_service, small_job
from tests.integration.test_tiny_steps import job_of
from tests.unit.reward_servers import judge_server

SIGN = "ACCORD_TEST_SIGN"
WORLD = Path(__file__).parents[2] / "examples" / "prompts"


class Moody(RewardModel):
    """Brightness, or half of it while a file is there."""

    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Score one clip."""
        value = float(clip.video_FHWC.mean()) / 255.0
        return Score(value / 2 if Path(os.environ[SIGN]).exists() else value)


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file is there, the reward that jobs know as `picture` judges otherwise."""
    monkeypatch.setattr(PictureReward, "impl", f"{__name__}:Moody")
    monkeypatch.setenv(SIGN, str(tmp_path / "sign"))
    return tmp_path / "sign"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison is over before the next line, so that it is known which step takes it in."""
    submit = drift.ThreadPoolExecutor.submit

    def waited(*arguments: Any) -> Any:
        future = submit(*arguments)
        future.exception()
        return future

    monkeypatch.setattr(drift.ThreadPoolExecutor, "submit", waited)


class Kept:
    """Keeps what is told; `then` looks at each event."""

    def __init__(self, then: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.then = then

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.then(event)

    def warned(self, code: str) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned) and event.code == code]

    def numbers(self, what: str) -> list[float | None]:
        return [event.metrics[f"canary/picture/{what}"] for event in self.events if isinstance(event, StepCompleted)]


def after(step: int, do: Callable[[], None]) -> Callable[[Event], None]:
    return lambda event: do() if isinstance(event, StepCompleted) and event.step == step else None


class Judged(ReplaySource):
    """Samples by seed; clips that come by themselves are judged by the job's rewards."""

    def __init__(self, job: JobSpec) -> None:
        super().__init__(job)
        self.scorer, self.asked = LocalScorer(job.rewards), 0

    def rescore(self, prompt, clips, rewards):
        self.asked += 1
        return {name: asyncio.run(self.scorer.score(name, prompt, clips, len(clips))) for name in rewards}


def trained(folder: RunFolder, kept: Kept, steps: int = 2, **guard: Any) -> tuple[str, Judged]:
    """Returns the digest of the adapter, and the source."""
    torch.set_num_threads(1)
    job = job_of({"name": "omninft"}).model_dump(mode="json")
    job |= {"steps": steps, "rewards": [{"name": "picture", "route": "both"}], "checkpoint": {"every": 100}}
    job["guards"] = {"allow_prompt_blind": True, "controls": False, "drift": {"every_s": 1e-6, **guard}}
    spec = JobSpec.parse(json.dumps(job))
    source = Judged(spec)
    run = Run(spec, folder, source, kept, PROMPTS[:1])
    source.backbone, run.evaluate = run.rank.backbone, lambda step: None
    return train(run).adapter_sha256, source


@pytest.mark.usefixtures("at_once")
def test_a_run_goes_on_and_marks_the_reward_and_has_the_bits_of_one_that_does_not_look(sign, tmp_path):
    folder, blind = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "blind")
    kept = Kept(after(1, sign.touch))
    watched, _ = trained(folder, kept, steps=3)
    assert kept.numbers("degraded") == [0.0, 1.0, 1.0]
    first, then, _ = kept.numbers("distance")
    assert first == 0.0 and then is not None and then > 0.5
    (told,) = kept.warned("reward_drifted")  # once, though each step finds it
    assert told.startswith("step 2: reward 'picture' gave canary ")
    (stillness,) = [canary for canary in canaries(PictureReward()) if canary.name == "still"]
    noted = FILE.validate_json(folder.read(CANARIES))["picture"]
    assert noted.values["still"] == pytest.approx(stillness.clip.video_FHWC.mean() / 255)

    off, source = trained(blind, Kept(), steps=3, on_drift="off")
    assert watched == off, "what canaries say moves no bit"
    assert source.asked == 0 and not blind.exists(CANARIES)


@pytest.mark.usefixtures("at_once")
def test_a_run_waits_until_the_reward_is_what_it_was_and_has_its_groups_judged_again(sign, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "FIRST_PAUSE_S", 0.05)

    def then(event: Event) -> None:
        after(1, sign.touch)(event)
        if isinstance(event, Warned) and event.code == "training_waits":
            sign.unlink()

    kept = Kept(then)
    _, source = trained(RunFolder(tmp_path / "run"), kept, on_drift="pause")
    assert len(kept.warned("reward_recovered")) == 1
    assert source.published == [0, 1, 1, 2], "version 1 is published again: the groups of step 2 were begun before"
    assert kept.numbers("degraded") == [0.0, 0.0]


@pytest.mark.usefixtures("at_once")
def test_a_wait_ends(sign, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "FIRST_PAUSE_S", 0.05)
    with pytest.raises(GuardError, match="step 2 does not begin"):
        trained(RunFolder(tmp_path / "run"), Kept(after(1, sign.touch)), on_drift="pause", wait_s=0.2)


def test_an_attempt_compares_with_the_first_values_of_the_run_before_its_first_step(sign, tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        trained(folder, Kept(after(1, _die)), on_drift="stop", every_s=3600.0)
    first = folder.read(CANARIES)
    sign.touch()
    with pytest.raises(GuardError, match=r"step 1 does not begin: reward 'picture' gave canary .* see its checkpoints"):
        trained(folder, Kept(), on_drift="stop", every_s=3600.0)
    assert folder.read(CANARIES) == first


def _die() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("at_once")
def test_a_run_without_service_stops_at_a_reward_that_changed_and_keeps_the_version_before(sign, tmp_path):
    tree = {
        "steps": 2, "seed": 1, "backbone": {"name": "ltx2"},
        "sampling": {"frames": 9, "height": 32, "width": 32, "fps": 12.0, "num_steps": 1},
        "prompts": {"train": str(WORLD / "world_train.jsonl"), "held_out": str(_one_prompt(tmp_path)), "per_step": 1,
                    "group_size": 2},
        "rewards": [{"name": "picture", "route": "both"}],
        "algorithm": {"name": "omninft", "preset": "accord", "credit": {"mode": "gdpo"}},
        "cluster": {"engine": "torch", "learner_ranks": 1}, "checkpoint": {"every": 100},
        "evaluate": {"samples_per_prompt": 2, "clips": 0},
        "guards": {"allow_prompt_blind": True, "drift": {"on_drift": "stop", "every_s": 1e-6}},
    }  # fmt: skip
    job, folder = JobSpec.parse(json.dumps(tree)), RunFolder(tmp_path / "run")
    with pytest.raises(GuardError, match=r"^step 2 does not begin: reward 'picture' gave canary '\w+' ") as told:
        train_here(job, folder, LocalSource(job), Kept(after(1, sign.touch)))
    assert told.value.reason == "guard" and "guards/drift/ignore" in str(told.value)
    assert str(told.value).endswith("version 0, the last whose rewards were what they were")
    assert (folder.path() / ADAPTER).is_file()
    assert [found.step for found in folder.checkpoints()] == [1], "what was trained is not lost"


def _one_prompt(folder: Path) -> Path:
    (folder / "held_out.jsonl").write_text((WORLD / "world_heldout.jsonl").read_text().splitlines()[0] + "\n")
    return folder / "held_out.jsonl"


@pytest.mark.slow
def test_a_served_judge_that_is_exchanged_ends_a_job_of_the_service_as_a_guard(tmp_path):
    """The server of others behind a reward answers otherwise; what Accord's own remembers does not hide it."""
    with judge_server.running() as judge, running_service(tmp_path, ACCORD_REWARD_HOSTS="127.0.0.1") as service:
        judge.say([("Yes", {"Yes": 0.9, "No": 0.08})])
        rewards = [{"name": "vlm_judge", "url": judge.url, "model": "judge"}, {"name": "sound"}]
        guards = {"allow_prompt_blind": True, "drift": {"on_drift": "stop", "every_s": 0.01}}
        job_id = service.submit(small_job(steps=50, rewards=rewards, guards=guards))
        service.wait(job_id, lambda: any(event["type"] == "step" for event in service.events(job_id)), 240)
        judge.say([("Yes", {"Yes": 0.2, "No": 0.78})])
        service.wait(job_id, lambda: service.job(job_id)["state"] in TERMINAL, 240)
        ended, folder = service.job(job_id), RunFolder(service.run_dir(job_id))
        assert (ended["state"], ended["reason"], ended["attempt"]) == ("failed", "guard", 1), service.logs(job_id)
        assert "reward 'vlm_judge' gave canary" in ended["message"] and "kept: " in ended["message"]
        first = FILE.validate_json(folder.read(CANARIES))
        assert {*first} == {"vlm_judge", "sound"} and len({*first["vlm_judge"].values.values()}) == 1
        (drifted,) = [event for event in service.events(job_id) if event.get("code") == "reward_drifted"]
        assert "'vlm_judge'" in drifted["message"]
        saved = [found.step for found in folder.checkpoints()]
        assert saved[-1] == folder.steps()[-1].step < 50
