"""What a reward is: a model that scores clips, and the wrapper that keeps one bad clip from spoiling anything.

Two cases are kept apart on purpose:

* A clip that *cannot be measured* (NaN samples, wrong type, one frame, no sound at all where samples should be) comes
  back invalid. It has no value, so it enters no statistic.
* A clip that *can* be measured and is *empty* (silence, nothing moves) comes back valid at the model's `floor`, with
  the reason beside it. Were it invalid, a policy could escape every penalty by falling silent.

Scores depend on the clip and the prompt alone. A model therefore computes clip by clip (or with shapes that do not
depend on the company), so that batching, replicas and retries never change a bit of a score.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from accord.config.contract import RewardSpec
from accord.config.rewards import MIN_AUDIO_S, MIN_FRAMES
from accord.plugins import load_impl
from accord.types import Clip, Modality, Prompt, RewardScores, ScoreReason

log = logging.getLogger(__name__)

SILENCE_PEAK = 1e-3
"""Sound whose largest sample stays below -60 dBFS counts as silence."""


@dataclass(frozen=True, slots=True)
class Score:
    """One clip's score by one model."""

    value: float
    """Higher is better."""
    components: Mapping[str, float] = field(default_factory=dict)
    valid: bool = True
    reason: ScoreReason = "ok"

    @classmethod
    def invalid(cls, reason: ScoreReason) -> Score:
        """No value, for the given reason."""
        return cls(math.nan, {}, False, reason)


class RewardModel(ABC):
    """Scores clips against prompts. Knows nothing of servers; one instance lives in each replica.

    Subclasses are constructed with their spec, raise on wrong configuration (a missing checkpoint) right there, and
    override `score_clip`; a model that gains from batching overrides `score` and keeps its scores independent of the
    batch.
    """

    version: ClassVar[str]
    """Changes whenever the same clip may get another value."""
    range: ClassVar[tuple[float, float]]
    """Smallest and largest value."""
    floor: ClassVar[float]
    """Value of a clip that is empty where this model looks."""
    needs_sound: ClassVar[bool] = True
    """Whether silence is emptiness (`floor`) for this model, if it looks at audio at all."""

    def __init__(self, spec: RewardSpec) -> None:
        self.spec = spec
        self._told: set[str] = set()

    @property
    def needs(self) -> tuple[Modality, ...]:
        """Modalities it looks at."""
        return self.spec.needs

    @abstractmethod
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Score one clip that passed `unusable`."""

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Clip]]) -> list[list[Score]]:
        """Score groups of clips, one prompt per group. Lengths and order are kept."""
        return [
            [self._one(prompt, clip) for clip in clips] for prompt, clips in zip(prompts, groups, strict=True)
        ]  # fmt: skip

    def empty(self, reason: ScoreReason, components: Mapping[str, float] | None = None) -> Score:
        """The floor: a valid score for a clip with nothing to measure in it."""
        return Score(self.floor, components or {}, True, reason)

    def _one(self, prompt: Prompt, clip: Clip) -> Score:
        """One clip, guarded: whatever goes wrong stays with this sample."""
        try:
            reason = unusable(clip, self.needs)
            if reason is not None:
                return Score.invalid(reason)
            if "audio" in self.needs and self.needs_sound and float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK:
                return self.empty("silent_audio")
            score = self.score_clip(prompt, clip)
        except Exception as error:
            self._tell(prompt, error)
            return Score.invalid("model_error")
        if score.valid and not math.isfinite(score.value):
            log.warning("reward %s gave %r for a clip of prompt %s", self.spec.name, score.value, prompt.id)
            return Score.invalid("non_finite")
        return score

    def _tell(self, prompt: Prompt, error: Exception) -> None:
        """Log a failed clip in one line, with its traceback the first time."""
        first = repr(error) not in self._told
        self._told.add(repr(error))
        log.warning(
            "reward %s could not score a clip of prompt %s: %r", self.spec.name, prompt.id, error, exc_info=first
        )


def unusable(clip: Clip, needs: Sequence[Modality]) -> ScoreReason | None:
    """Say why a clip cannot be measured, or None. Only the modalities in `needs` are looked at."""
    reason: ScoreReason | None = None
    if "video" in needs:
        reason = _unusable_video(clip.video_FHWC, clip.fps)
    if reason is None and "audio" in needs:
        reason = _unusable_audio(clip.audio_CS, clip.sample_rate)
    return reason


def _unusable_video(video: object, fps: float) -> ScoreReason | None:
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        return "bad_media"
    if not _positive(fps) or min(video.shape[1:3]) < 8:
        return "bad_media"
    return "too_short" if video.shape[0] < MIN_FRAMES else None


def _unusable_audio(audio: object, sample_rate: int) -> ScoreReason | None:
    if not isinstance(audio, np.ndarray) or audio.dtype != np.float32 or audio.ndim != 2 or audio.shape[0] < 1:
        return "bad_media"
    if not _positive(sample_rate):
        return "bad_media"
    if audio.shape[1] < MIN_AUDIO_S * sample_rate:
        return "too_short"
    return None if np.isfinite(audio).all() else "non_finite"


def _positive(rate: object) -> bool:
    return isinstance(rate, int | float) and math.isfinite(rate) and rate > 0


def build(spec: RewardSpec) -> RewardModel:
    """Construct the model of a spec. Raises what its constructor raises, e.g. ModelError for a missing checkpoint."""
    model: RewardModel = load_impl(spec)(spec)
    return model


def score_groups(model: RewardModel, prompts: Sequence[Prompt], groups: Sequence[Sequence[Clip]]) -> list[RewardScores]:
    """Score groups and pack them: the one way from a model to RewardScores, in every shell.

    A model that raises, or returns the wrong number of scores, makes the groups invalid (`model_error`).
    """
    name, version = model.spec.name, model.version
    started = time.monotonic()
    try:
        scored = model.score(prompts, groups)
        if [len(scores) for scores in scored] != [len(clips) for clips in groups]:
            raise ValueError(f"reward {name} returned a wrong number of scores")
    except Exception:
        log.exception("reward %s failed on a batch of %d groups", name, len(groups))
        return [RewardScores.failed(name, len(clips), "model_error") for clips in groups]
    seconds = time.monotonic() - started
    return [pack(name, version, scores, seconds) for scores in scored]


def pack(name: str, version: str, scores: Sequence[Score], seconds: float) -> RewardScores:
    """One group's scores as the noun that travels. Components absent from a sample are NaN."""
    checked = [
        score if not score.valid or math.isfinite(score.value) else Score.invalid("non_finite") for score in scores
    ]
    keys = sorted({key for score in checked for key in score.components})
    return RewardScores(
        reward=name,
        version=version,
        values=tuple(float(score.value) if score.valid else math.nan for score in checked),
        reasons=tuple(score.reason for score in checked),
        seconds=seconds,
        components={key: tuple(float(score.components.get(key, math.nan)) for score in checked) for key in keys},
    )
