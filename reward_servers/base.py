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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from accord.config.contract import RewardSpec
from accord.plugins import load_impl
from accord.types import Clip, Modality, Prompt, RewardIdentity, RewardScores, ScoreReason

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


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A course of time that a score came from, to be looked at."""

    label: str
    times_s: NDArray[np.float64]
    """Rising [N], seconds from the clip's start."""
    values: NDArray[np.float64]
    """[N]; NaN where there is none."""
    unit: str = ""


class RewardModel:
    """Scores clips against prompts. Knows nothing of servers; one instance lives in each replica.

    Subclasses are constructed with their spec, raise on wrong configuration (a missing checkpoint) right there, and
    override `score_clip`; one that gains from batching overrides `score_batch` instead and keeps its scores independent
    of the batch. `score` guards either: whatever goes wrong stays with its sample.
    """

    weights_digest: str = ""
    """SHA-256 of the weights that it loaded, hexadecimal; "" = it has none."""

    def __init__(self, spec: RewardSpec) -> None:
        if (type(self).score_clip, type(self).score_batch, type(self).score_set) == _NOT_OVERRIDDEN:
            raise TypeError(f"{type(self).__name__} overrides none of score_clip, score_batch and score_set")
        self.spec = spec
        self._told: set[str] = set()

    def identity(self) -> RewardIdentity:
        """Who judges, as the job's roster notes it. Default: the spec's version and the weights that were loaded.

        Raises RewardError or UserError where that has to be found out and cannot be, or is not what the job says.
        """
        return RewardIdentity(self.spec.version, self.weights_digest)

    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Score one clip that can be measured."""
        return self.score_batch([prompt], [clip])[0]

    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Sequence[Score]:
        """Score clips that can be measured, one prompt each, of any number of groups. Length and order are kept.

        When it raises for several clips, each is asked for alone.
        """
        return [self._alone(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]

    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Sequence[Score]:
        """Score clips together, where the `scope` of the spec is not the clip: all of a prompt, or all of a step.

        They can be measured and are two or more. Length and order are kept. When it raises, none has a score.
        """
        del prompts, clips
        raise TypeError(f"{type(self).__name__} has the scope {self.spec.scope!r} and does not override score_set")

    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """What the score of a clip that can be measured came from, over time: for people, never for a value.

        Default: none. `accord rewards score --plot` draws them, each with its own axis.
        """
        del prompt, clip
        return ()

    @final
    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Clip]]) -> list[list[Score]]:
        """Score groups of clips, one prompt per group. Lengths and order are kept, and nothing is raised.

        Models see arrays without gaps: a sum over a view may differ in its last bit.
        """
        if self.spec.scope == "group":
            return [self._scored([prompt] * len(clips), clips) for prompt, clips in zip(prompts, groups, strict=True)]
        asked = [prompt for prompt, clips in zip(prompts, groups, strict=True) for _ in clips]
        found = iter(self._scored(asked, [clip for clips in groups for clip in clips]))
        return [[next(found) for _ in clips] for clips in groups]

    def _scored(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Score those that can be measured, together where that is the scope."""
        scores = [self._unmeasured(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]
        rest = [place for place, score in enumerate(scores) if score is None]
        seen = [(prompts[place], contiguous(clips[place], self.spec.needs)) for place in rest]
        batches = self._batches([clip for _, clip in seen]) if self.spec.scope == "clip" else [list(range(len(seen)))]
        if self.spec.scope != "clip" and len(seen) < 2:
            scores = [score or Score.invalid("too_few") for score in scores]
            batches = []
        for batch in batches:
            for place, score in zip(batch, self._guarded([seen[place] for place in batch]), strict=True):
                scores[rest[place]] = score
        return [score for score in scores if score is not None]

    def _batches(self, clips: Sequence[Clip]) -> list[list[int]]:
        """Which clips one forward holds: those of one shape, as many as `max_batch_pixels` allows."""
        batches: dict[tuple[tuple[int, ...], ...], list[list[int]]] = {}
        for place, clip in enumerate(clips):
            video = clip.video_FHWC.shape if "video" in self.spec.needs else (0,)
            alike = batches.setdefault((video, clip.audio_CS.shape if "audio" in self.spec.needs else ()), [[]])
            pixels, most = math.prod(video[:3]), self.spec.max_batch_pixels
            if most and alike[-1] and (len(alike[-1]) + 1) * pixels > most:
                alike.append([])
            alike[-1].append(place)
        return [batch for alike in batches.values() for batch in alike]

    def empty(self, reason: ScoreReason, components: Mapping[str, float] | None = None) -> Score:
        """The floor: a valid score for a clip with nothing to measure in it."""
        return Score(self.spec.floor, components or {}, True, reason)

    def _unmeasured(self, prompt: Prompt, clip: Clip) -> Score | None:
        """The score of a clip that no model has to look at; None for all others."""
        try:
            reason = unusable(clip, self.spec)
            if reason is not None:
                return Score.invalid(reason)
            if (
                "audio" in self.spec.needs
                and self.spec.needs_sound
                and float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK
            ):
                return self.empty("silent_audio")
        except Exception as error:
            return self._failed(prompt, error)
        return None

    def _guarded(self, pairs: Sequence[tuple[Prompt, Clip]]) -> list[Score]:
        """Score clips that can be measured: exceptions and what is no number become invalid scores."""
        if not pairs:
            return []
        prompts, clips = [prompt for prompt, _ in pairs], [clip for _, clip in pairs]
        alone = self.spec.scope == "clip"
        try:
            scores = list(self.score_batch(prompts, clips) if alone else self.score_set(prompts, clips))
        except Exception as error:
            if not alone:
                return [self._failed(prompt, error) for prompt in prompts]
            if len(pairs) > 1:
                log.warning(
                    "reward %s failed on %d clips; each is asked for alone: %r", self.spec.name, len(pairs), error
                )
                return [score for pair in pairs for score in self._guarded([pair])]
            return [self._failed(prompts[0], error)]
        if len(scores) != len(clips):
            wrong = ValueError(f"{len(scores)} scores for {len(clips)} clips")
            return [self._failed(prompt, wrong) for prompt in prompts]
        return [self._finite(prompt, score) for prompt, score in zip(prompts, scores, strict=True)]

    def _finite(self, prompt: Prompt, score: Score) -> Score:
        try:
            score = replace(score, components={str(key): float(part) for key, part in score.components.items()})
            if not score.valid:
                return score
            if math.isfinite(score.value):
                return self._in_range(prompt, score)
        except Exception as error:
            return self._failed(prompt, error)
        log.warning("reward %s gave %r for a clip of prompt %s", self.spec.name, score.value, prompt.id)
        return Score.invalid("non_finite")

    def _in_range(self, prompt: Prompt, score: Score) -> Score:
        low, high = self.spec.range
        if low <= score.value <= high:
            return score
        log.warning(
            "reward %s gave %r, outside of %g to %g, for a clip of prompt %s",
            self.spec.name,
            score.value,
            low,
            high,
            prompt.id,
        )
        return Score.invalid("out_of_range")

    def _alone(self, prompt: Prompt, clip: Clip) -> Score:
        try:
            return self.score_clip(prompt, clip)
        except Exception as error:
            return self._failed(prompt, error)

    def _failed(self, prompt: Prompt, error: Exception) -> Score:
        """An invalid score; the clip is logged in one line, with the traceback the first time."""
        first = repr(error) not in self._told
        self._told.add(repr(error))
        log.warning(
            "reward %s could not score a clip of prompt %s: %r", self.spec.name, prompt.id, error, exc_info=first
        )
        return Score.invalid("model_error")


def contiguous(clip: Clip, needs: Sequence[Modality]) -> Clip:
    """The clip with the arrays that are needed in C order, the very same ones where they are; others are left alone."""
    video, audio = clip.video_FHWC, clip.audio_CS
    return replace(
        clip,
        video_FHWC=np.ascontiguousarray(video) if "video" in needs else video,
        audio_CS=np.ascontiguousarray(audio) if "audio" in needs else audio,
    )


_NOT_OVERRIDDEN = (RewardModel.score_clip, RewardModel.score_batch, RewardModel.score_set)


def unusable(clip: Clip, spec: RewardSpec) -> ScoreReason | None:
    """Say why a clip cannot be measured by a reward, or None. Only the modalities that it needs are looked at."""
    reason: ScoreReason | None = None
    if "video" in spec.needs:
        reason = _unusable_video(clip.video_FHWC, clip.fps, spec)
    if reason is None and "audio" in spec.needs:
        reason = _unusable_audio(clip.audio_CS, clip.sample_rate, spec)
    return reason


def _unusable_video(video: object, fps: float, spec: RewardSpec) -> ScoreReason | None:
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        return "bad_media"
    if not _positive(fps):
        return "bad_media"
    if not spec.frame_rates[0] <= fps <= spec.frame_rates[1]:
        return "wrong_rate"
    if len(video) < spec.min_frames:
        return "too_short"
    if len(video) > spec.max_frames:
        return "too_long"
    if min(video.shape[1:3]) < spec.min_side:
        return "too_small"
    return "too_large" if max(video.shape[1:3]) > spec.max_side else None


def _unusable_audio(audio: object, sample_rate: int, spec: RewardSpec) -> ScoreReason | None:
    if not isinstance(audio, np.ndarray) or audio.dtype != np.float32 or audio.ndim != 2 or audio.shape[0] < 1:
        return "bad_media"
    if not _positive(sample_rate):
        return "bad_media"
    if not spec.sample_rates[0] <= sample_rate <= spec.sample_rates[1]:
        return "wrong_rate"
    if audio.shape[1] < spec.min_audio_s * sample_rate:
        return "too_short"
    if audio.shape[1] > spec.max_audio_s * sample_rate:
        return "too_long"
    return None if np.isfinite(audio).all() else "non_finite"


def _positive(rate: object) -> bool:
    return isinstance(rate, int | float) and math.isfinite(rate) and rate > 0


def build(spec: RewardSpec) -> RewardModel:
    """Construct the model of a spec. Raises what its constructor raises, e.g. ModelError for a missing checkpoint."""
    model: RewardModel = load_impl(spec)(spec)
    return model


def score_groups(model: RewardModel, prompts: Sequence[Prompt], groups: Sequence[Sequence[Clip]]) -> list[RewardScores]:
    """Score groups and pack them: the one way from a model to RewardScores, in every shell."""
    started = time.monotonic()
    scored = model.score(prompts, groups)
    seconds = time.monotonic() - started
    return [pack(model.spec.name, model.spec.version, scores, seconds) for scores in scored]


def pack(name: str, version: str, scores: Sequence[Score], seconds: float) -> RewardScores:
    """One group's scores as the noun that travels. Components absent from a sample are NaN."""
    keys = sorted({key for score in scores for key in score.components})
    return RewardScores(
        reward=name,
        version=version,
        values=tuple(float(score.value) if score.valid else math.nan for score in scores),
        reasons=tuple(score.reason for score in scores),
        seconds=seconds,
        components={key: tuple(float(score.components.get(key, math.nan)) for score in scores) for key in keys},
    )
