"""What every registered reward promises: declared facts, an answer to any input, the same bits in any company."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from pydantic import ValidationError

from accord.config.contract import RewardSpec
from accord.config.paths import InputPath
from accord.errors import ModelError
from accord.plugins import BUILT_IN, names
from accord.types import Clip, Prompt, Route
from accord.world.scene import FPS, IMPERFECT, SAMPLE_RATE, make_clips
from reward_servers.base import RewardModel, Score, build, score_groups, unusable
from tests.tiny_checkpoints import spec_with_weights

PROMPT = Prompt("red-bouncing-bell", "a red ball bouncing with a bell sound", "a red ball bouncing", "a bell sound")


class JudgeReward(RewardSpec):
    """A reward as learned ones are: weights in a file that has no default, no bounds, clips scored in batches."""

    impl: ClassVar[str] = f"{__name__}:Judge"
    about: ClassVar[str] = "the judge likes it"
    floor: ClassVar[float] = -10.0
    needs_sound: ClassVar[bool] = False
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


REWARDS = [*names("rewards"), "judge"]


@pytest.fixture(scope="module")
def spec_of(tmp_path_factory):
    """A spec of each reward by name: with its defaults; one of a third party that has none cannot be tried here."""
    folder = tmp_path_factory.mktemp("weights")
    weights = folder / "weights.npy"
    np.save(weights, np.random.default_rng(4).standard_normal(8) * 1e3)

    def make(name: str) -> RewardSpec:
        if name == "judge":
            return JudgeReward(path=str(weights))
        try:
            return spec_with_weights(name, folder / name)
        except ValidationError as error:
            assert name not in BUILT_IN["rewards"], error
            pytest.skip(f"{name} has fields without a default: {error}")

    return make


@pytest.fixture(scope="module")
def models(spec_of):
    """Models by name, built when they are asked for."""

    class Models(dict):
        def __missing__(self, name: str) -> RewardModel:
            try:
                self[name] = build(spec_of(name))
            except ModelError as error:
                assert name not in BUILT_IN["rewards"], error
                pytest.skip(f"{name} finds no weights where its defaults point: {error}")
            return self[name]

    return Models()


@pytest.fixture(scope="module")
def clips():
    return [made.clip for made in make_clips(6, 5, IMPERFECT)]


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_says_what_it_is(name, spec_of):
    spec = spec_of(name)
    assert spec.name == name and spec.about and spec.__doc__
    assert spec.route in {"video", "audio", "both"}
    assert set(spec.needs) <= {"video", "audio"} and spec.needs
    assert spec.route == "both" or spec.route in spec.needs
    low, high = spec.range
    assert spec.version and low <= spec.floor <= high


def _world() -> tuple[np.ndarray, np.ndarray]:
    clip = next(make_clips(1, 5))
    return clip.video, clip.audio[None]


VIDEO, AUDIO = _world()
RNG = np.random.default_rng(0)
NOISE_VIDEO = RNG.integers(0, 256, VIDEO.shape, dtype=np.uint8)


def _with(video=VIDEO, audio=AUDIO, fps=FPS, rate=SAMPLE_RATE) -> Clip:
    return Clip(video, fps, audio, rate)


def _audio(samples: int, channels: int = 1) -> np.ndarray:
    return (0.1 * RNG.standard_normal((channels, samples))).astype(np.float32)


MEASURABLE = {
    "three frames": _with(video=VIDEO[:3]),
    "black": _with(video=np.zeros_like(VIDEO)),
    "one colour": _with(video=np.full_like(VIDEO, 200)),
    "noise": _with(video=NOISE_VIDEO),
    "odd size": _with(video=np.ascontiguousarray(VIDEO[:, :31, :29])),
    "smallest": _with(video=np.ascontiguousarray(VIDEO[:, :8, :8])),
    "wide": _with(video=np.repeat(VIDEO, 5, axis=2)),
    "large": _with(video=np.repeat(np.repeat(VIDEO, 6, axis=1), 6, axis=2)),
    "silence": _with(audio=np.zeros_like(AUDIO)),
    "barely any sound": _with(audio=AUDIO * 1e-4),
    "full scale": _with(audio=np.sign(AUDIO) * np.float32(1.0)),
    "noise sound": _with(audio=_audio(AUDIO.shape[1])),
    "short sound": _with(audio=_audio(1700)),
    "long sound": _with(audio=_audio(3 * AUDIO.shape[1])),
    "stereo": _with(audio=np.repeat(AUDIO, 2, axis=0)),
    "six channels": _with(audio=_audio(32_000, 6)),
    "channels that cancel": _with(audio=np.concatenate([AUDIO, -AUDIO])),
    "8 kHz": _with(audio=_audio(16_000), rate=8_000),
    "44.1 kHz": _with(audio=_audio(88_200), rate=44_100),
    "48 kHz": _with(audio=_audio(96_000), rate=48_000),
    "fast": _with(fps=60.0),
    "slow": _with(fps=0.5),
}
UNUSABLE = {
    "one frame": ("video", _with(video=VIDEO[:1])),
    "two frames": ("video", _with(video=VIDEO[:2])),
    "no frame": ("video", _with(video=VIDEO[:0])),
    "float frames": ("video", _with(video=VIDEO.astype(np.float32))),
    "no samples": ("audio", _with(audio=AUDIO[:, :0])),
    "one sample": ("audio", _with(audio=AUDIO[:, :1])),
    "399 samples": ("audio", _with(audio=AUDIO[:, :399])),
    "not a number": ("audio", _with(audio=np.where(np.arange(AUDIO.shape[1]) == 7, np.float32(np.nan), AUDIO))),
    "infinite": ("audio", _with(audio=np.where(np.arange(AUDIO.shape[1]) == 7, np.float32(np.inf), AUDIO))),
    "double precision": ("audio", _with(audio=AUDIO.astype(np.float64))),
}


def near(values: tuple[float, ...], model: RewardModel) -> object:
    """Equal to these within what the reward declares, which is to the bit unless it says otherwise."""
    return pytest.approx(values, abs=model.spec.batch_tolerance, rel=0)


@pytest.mark.parametrize("name", REWARDS)
def test_whatever_can_be_measured_gets_a_number_in_range(name, models):
    model = models[name]
    (scores,) = score_groups(model, [PROMPT], [list(MEASURABLE.values())])
    low, high = model.spec.range
    for kind, value, valid, reason in zip(MEASURABLE, scores.values, scores.valid, scores.reasons, strict=True):
        assert valid or reason == unusable(MEASURABLE[kind], model.spec) == "too_small", (kind, reason)
        assert not valid or low <= value <= high, (kind, value)


@pytest.mark.parametrize("name", REWARDS)
def test_what_cannot_be_measured_is_invalid_and_spoils_nothing(name, models, clips):
    model = models[name]
    bad = list(UNUSABLE.values())
    group = [clips[0], *(clip for _, clip in bad), clips[1]]
    (scores,) = score_groups(model, [PROMPT], [group])
    (alone,) = score_groups(model, [PROMPT], [clips[:2]])
    assert (scores.values[0], scores.values[-1]) == near(alone.values, model)
    for kind, (modality, _), value, valid, reason in zip(
        UNUSABLE, bad, scores.values[1:-1], scores.valid[1:-1], scores.reasons[1:-1], strict=True
    ):
        if modality in model.spec.needs and unusable(UNUSABLE[kind][1], model.spec):
            assert not valid and math.isnan(value), kind
            assert reason in {"too_short", "non_finite", "bad_media"}, kind
        else:
            assert valid, kind


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize("text", ["", "?", "a red ball bouncing " * 150, "ein Ball, der hüpft\n\x00"])
def test_any_text_is_answered(name, text, models, clips):
    (scores,) = score_groups(models[name], [Prompt("t", text, text, text)], [clips[:2]])
    assert len(scores.values) == 2
    assert all(valid or reason == "unverifiable" for valid, reason in zip(scores.valid, scores.reasons, strict=True))


@pytest.mark.parametrize("name", REWARDS)
def test_a_score_has_the_same_bits_in_any_company(name, models, clips, spec_of):
    model, other = models[name], Prompt("blue-sliding-drum", "x", "a blue ball sliding", "a drum sound")
    alone = [score_groups(model, [PROMPT], [[clip]])[0].values[0] for clip in clips]
    together = score_groups(model, [PROMPT], [clips])[0].values
    backwards = score_groups(model, [PROMPT], [clips[::-1]])[0].values[::-1]
    batched = score_groups(model, [other, PROMPT, PROMPT], [clips[2:4], clips[:3], clips[3:]])
    fresh = score_groups(build(spec_of(name)), [PROMPT], [clips])[0].values
    for other_way in (tuple(alone), backwards, batched[1].values + batched[2].values, fresh):
        assert other_way == near(together, model)


@pytest.mark.parametrize("name", REWARDS)
def test_clips_are_read_and_never_written(name, models, clips):
    frozen = []
    for clip in clips[:2]:
        video, audio = clip.video_FHWC.copy(), clip.audio_CS.copy()
        video.setflags(write=False)
        audio.setflags(write=False)
        frozen.append(Clip(video, clip.fps, audio, clip.sample_rate))
    (scores,) = score_groups(models[name], [PROMPT], [frozen])
    assert scores.values == score_groups(models[name], [PROMPT], [clips[:2]])[0].values
