"""Every registered reward is held to what all promise: `reward_servers/contract.py`.

A reward with weights is tried on a tiny checkpoint: its writer stands in `tests/tiny_checkpoints.py::WRITERS`, a line
each. A further promise is a line in `PROMISES`, and needs a model here below that breaks it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from accord.config.contract import Component, RewardSpec
from accord.config.paths import InputPath
from accord.errors import ModelError
from accord.plugins import BUILT_IN, names
from accord.types import Clip, Modality, Prompt, Route
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.contract import PROMISES, hold, judged, promised
from reward_servers.trial import Trial
from tests.tiny_checkpoints import WRITERS, spec_with_weights

STEPS = {"level": Component("loudness of the sound", low=0.0, high=1e6)}


class JudgeReward(RewardSpec):
    """A reward as learned ones are: weights in a file that has no default, no bounds, clips scored in batches."""

    impl: ClassVar[str] = f"{__name__}:Judge"
    about: ClassVar[str] = "the judge likes it"
    floor: ClassVar[float] = -10.0
    needs_sound: ClassVar[bool] = False
    prompt_anchored: ClassVar[bool] = True
    name: Literal["judge"] = "judge"
    route: Route = "both"
    path: Annotated[str, InputPath("file")]


class Judge(RewardModel):
    """A linear layer over eight statistics. Rows are computed alike in a batch of any size."""

    def __init__(self, spec: JudgeReward) -> None:
        super().__init__(spec)
        self.weights_D = np.load(spec.path)

    def score_batch(self, prompts, clips):
        features_BD = np.stack([self._features(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)])
        return [Score(float(value)) for value in (features_BD * self.weights_D).sum(axis=1)]

    @staticmethod
    def _features(prompt: Prompt, clip: Clip) -> np.ndarray:
        video, audio = clip.video_FHWC.astype(np.float64), clip.audio_CS.astype(np.float64)
        statistics = [part.flatten() for part in (video, audio)]
        found = [number for part in statistics for number in (part.mean(), part.std(), part.max())]
        return np.array([*found, float(len(prompt.prompt_av)), 1.0])


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory):
    """The trial of each reward by name; one of a third party that finds no weights cannot be tried here."""
    folder, trials = tmp_path_factory.mktemp("weights"), {}

    def make(name: str) -> RewardSpec:
        if name != "judge":
            return spec_with_weights(name, folder / name)
        np.save(folder / "judge.npy", np.random.default_rng(4).standard_normal(8) * 1e3)
        return JudgeReward(path=str(folder / "judge.npy"))

    def trial(name: str) -> Trial:
        if name not in trials:
            try:
                trials[name] = Trial(make(name))
            except (ValidationError, ModelError) as error:
                assert name not in BUILT_IN["rewards"], error
                pytest.skip(f"{name} has no weights here: {error}")
        return trials[name]

    return trial


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.name)
@pytest.mark.parametrize(
    "name",
    # Together those with weights take minutes; their own tests are quick, and `make test-all` holds them to it all.
    [*(pytest.param(one, marks=pytest.mark.slow) if one in WRITERS else one for one in names("rewards")), "judge"],
)
def test_a_reward_keeps_its_promises(name, promise, trial_of):
    trial = trial_of(name)
    if not promised(promise, trial.spec):
        pytest.skip(f"{name} compares clips")
    assert judged(trial, promise).breaches == ()


class LevelReward(RewardSpec):
    """A reward that keeps every promise, for models that break one."""

    impl: ClassVar[str] = f"{__name__}:Level"
    about: ClassVar[str] = "the sound is loud"
    range: ClassVar[tuple[float, float]] = (0.0, 1e6)
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    components: ClassVar[Mapping[str, Component]] = STEPS
    name: Literal["level"] = "level"
    route: Route = "audio"
    breaks: str = ""


class AnchoredReward(LevelReward):
    """It says so, and its model reads no text."""

    prompt_anchored: ClassVar[bool] = True


class TimidReward(LevelReward):
    """Its components end too early."""

    components: ClassVar[Mapping[str, Component]] = {"level": Component("loudness", low=0.0, high=1e-9)}


class TornReward(LevelReward):
    """What it declares contradicts itself."""

    licence: ClassVar[str] = "CC-BY-NC-4.0"
    route: Route = "video"


class SoftReward(LevelReward):
    """It promises little about company."""

    batch_tolerance: ClassVar[float] = 0.5


class Level(RewardModel):
    """Mean square of the sound, broken as the spec says."""

    built = 0

    def __init__(self, spec: LevelReward) -> None:
        super().__init__(spec)
        self.breaks, self.calls, self.wide = spec.breaks, 0, False
        Level.built += 1

    def score_batch(self, prompts, clips):
        scores = super().score_batch(prompts, clips)
        self.calls += 1
        more = {"batch": 0.1 * (len(clips) > 1), "repetition": self.calls, "built": Level.built}.get(self.breaks, 0)
        scores = [replace(score, value=score.value + more) for score in scores]
        if self.breaks == "order":
            scores = [replace(score, value=score.value + 0.1 * place) for place, score in enumerate(scores)]
        if self.breaks == "company":
            self.wide |= any(len(clip.audio_CS) == 6 or clip.sample_rate != 48_000 for clip in clips)
            scores = [replace(score, value=score.value + self.wide) for score in scores]
        return scores

    def score_clip(self, prompt, clip):
        level = float(np.square(clip.audio_CS, dtype=np.float64).sum())
        if self.breaks == "channels" and len(clip.audio_CS) > 2:
            raise RuntimeError("two channels at most")
        if self.breaks == "writes":
            clip.audio_CS[0, 0] += np.float32(0.25)
        if self.breaks == "pictures":
            level += len(clip.video_FHWC)
        if self.breaks == "text":
            level += len(prompt.prompt_a)
        if self.breaks == "zero":
            level = level if prompt.prompt_a is not None else 0.0
        if self.breaks == "long" and len(prompt.prompt_a) > 512:
            raise ValueError("too many tokens")
        if self.breaks == "number":
            return Score(0.0, {}, True, "model_error") if len(clip.audio_CS) == 1 else Score(level, {"level": level})
        if self.breaks == "chance":
            random.seed(0)
        if self.breaks == "refuses":
            return Score.invalid("unverifiable")
        return Score(level, {} if self.breaks == "components" else {"level": level})

    def curves(self, prompt, clip):
        times = np.arange(4.0) * (-1 if self.breaks == "curves" else 0.25)
        return [Curve("level", times, times**2)]


def broken(spec: RewardSpec) -> set[str]:
    return {verdict.promise.name for verdict in hold(spec) if verdict.breaches}


@pytest.mark.parametrize("breaks", ["", "built"])
def test_a_good_reward_breaks_nothing_and_an_aging_one_is_found(breaks):
    assert broken(LevelReward(breaks=breaks)) == ({"repetition"} if breaks else set())


@pytest.mark.parametrize(
    ("breaks", "promise"),
    [
        ("batch", "batch"), ("repetition", "repetition"), ("order", "order"), ("company", "company"),
        ("channels", "unusual"), ("writes", "arrays"), ("writes", "reading"), ("pictures", "needs"),
        ("text", "anchoring"), ("zero", "failure"), ("long", "text"), ("number", "unusual"), ("chance", "chance"),
        ("refuses", "ordinary"), ("components", "components"), ("curves", "curves"),
    ],
)  # fmt: skip
def test_a_reward_that_breaks_a_promise_is_found(breaks, promise):
    assert promise in broken(LevelReward(breaks=breaks))


@pytest.mark.parametrize(
    ("spec", "promise"), [(AnchoredReward, "anchoring"), (TimidReward, "components"), (TornReward, "facts")]
)
def test_a_reward_that_declares_what_is_not_so_is_found(spec, promise):
    assert broken(spec()) == {promise}


def test_company_may_move_a_score_as_far_as_the_reward_declares():
    assert "batch" in broken(LevelReward(breaks="batch"))
    assert "batch" not in broken(SoftReward(breaks="batch"))


def test_a_breach_names_the_clip_the_value_and_what_was_raised():
    (verdict,) = [one for one in hold(LevelReward(breaks="channels")) if one.promise.name == "unusual"]
    assert verdict.breaches == (
        "six channels: invalid (model_error: RuntimeError('two channels at most')), and can be measured "
        "(or is unverifiable)",
    )
