"""Clips that rewards stumble over, made from an ordinary one: some can be measured, some cannot.

Both kinds stay within, or go just beyond, the limits that a reward declares. Clips that are too large are views of one
value, so that they cost no memory. Shapes: F frames, H height, W width, C channels, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accord.config.contract import RewardSpec
from accord.types import Clip, Modality, ScoreReason

LARGE_FRAMES = 6
"""Frames of the clip of a large size: enough to see a size, few enough to be quick."""


@dataclass(frozen=True, slots=True)
class HardClip:
    """One such clip."""

    name: str
    about: Modality
    """Which half of it is unusual; the other is the ordinary clip's."""
    clip: Clip
    reason: ScoreReason = "ok"
    """Why it cannot be measured; `ok` = it can."""


def measurable(clip: Clip, spec: RewardSpec) -> Iterator[HardClip]:
    """What a reward must answer: unusual in size, length, rate, channels or content, and within its limits."""
    yield from (HardClip(name, "video", replace(clip, video_FHWC=video)) for name, video in _pictures(clip, spec))
    for name, fps in (("fast", 60.0), ("slow", 1.0)):
        yield HardClip(f"{name} ({fps:g} fps)", "video", replace(clip, fps=_within(fps, spec.frame_rates)))
    yield from (HardClip(name, "audio", replace(clip, audio_CS=audio)) for name, audio in _sounds(clip, spec))
    for rate in (8_000, 16_000, 44_100, 48_000):
        if spec.sample_rates[0] <= rate <= spec.sample_rates[1]:
            heard = replace(clip, audio_CS=_at_rate(clip, rate), sample_rate=rate)
            yield HardClip(f"{rate / 1000:g} kHz", "audio", heard)


def unmeasurable(clip: Clip, spec: RewardSpec) -> Iterator[HardClip]:
    """What must be refused, and for which reason, by a reward that looks at that half of the clip."""
    for name, changes, reason in (*_no_pictures(clip, spec), *_wrong_frame_rates(spec)):
        yield HardClip(name, "video", _changed(clip, changes), reason)
    for name, changes, reason in (*_no_sounds(clip, spec), *_wrong_sample_rates(spec)):
        yield HardClip(name, "audio", _changed(clip, changes), reason)


def _pictures(clip: Clip, spec: RewardSpec) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    video, draw = clip.video_FHWC, np.random.RandomState(0)
    yield f"{spec.min_frames} frames", video[: spec.min_frames].copy()
    yield "black frames", np.zeros_like(video)
    yield "one colour", np.full_like(video, 200)
    yield "noise", draw.randint(0, 256, video.shape).astype(np.uint8)
    tall, wide = (max(side - 1 + side % 2, spec.min_side | 1) for side in video.shape[1:3])
    yield f"odd size ({tall}x{wide})", _resized(video, tall, min(wide, spec.max_side))
    yield f"smallest size ({spec.min_side}x{spec.min_side})", _resized(video, spec.min_side, spec.min_side)
    few = video[: max(spec.min_frames, LARGE_FRAMES)]
    yield "wide", _resized(few, video.shape[1], min(5 * video.shape[2], spec.max_side))
    yield "large", _resized(few, *(min(6 * side, spec.max_side) for side in video.shape[1:3]))


def _sounds(clip: Clip, spec: RewardSpec) -> Iterator[tuple[str, NDArray[np.float32]]]:
    audio, rate, draw = clip.audio_CS, clip.sample_rate, np.random.RandomState(1)
    least = math.ceil(spec.min_audio_s * rate)
    most = min(4 * audio.shape[1], int(spec.max_audio_s * rate))
    yield "silence", np.zeros_like(audio)
    yield "barely any sound", audio * np.float32(0.01)
    yield "full scale", np.sign(audio)
    yield "direct current", np.full_like(audio, 0.5)
    yield "noise sound", (draw.randint(-9_000, 9_001, audio.shape) / 32_768).astype(np.float32)
    yield f"shortest sound ({least} samples)", _cut(audio, least, from_=rate // 4)
    yield f"long sound ({most / rate:g} s)", np.tile(audio, (1, 4))[:, :most]
    yield "mono", audio[:1].copy()
    yield "six channels", np.concatenate([audio] * 3)[:6]
    yield "channels that cancel", np.concatenate([audio[:1], -audio[:1]])


def _no_pictures(clip: Clip, spec: RewardSpec) -> Iterator[tuple[str, dict[str, Any], ScoreReason]]:
    video = clip.video_FHWC
    counts: dict[int, str] = {0: "no frame", 1: "one frame", 2: "two frames", spec.min_frames - 1: ""}
    for count in sorted(count for count in counts if count < spec.min_frames):
        yield counts[count] or f"{count} frames", {"video_FHWC": video[:count]}, "too_short"
    most, side = spec.max_frames + 1, spec.max_side + 1
    yield f"{most} frames", {"video_FHWC": np.broadcast_to(video[:1], (most, *video.shape[1:]))}, "too_long"
    flat = np.broadcast_to(video[:, :, :1], (len(video), video.shape[1], side, 3))
    yield f"{side} pixels wide", {"video_FHWC": flat}, "too_large"
    yield f"{spec.min_side - 1} pixels high", {"video_FHWC": video[:, : spec.min_side - 1]}, "too_small"
    wrong: dict[str, Any] = {
        "frames in float32": video.astype(np.float32) / 255,
        "frames in int64": video.astype(np.int64),
        "grey frames": video[..., 0],
        "four colours": np.concatenate([video, video[..., :1]], axis=-1),
        "no picture at all": None,
        "a list of frames": list(video[:3]),
    }
    yield from ((name, {"video_FHWC": media}, "bad_media") for name, media in wrong.items())


def _no_sounds(clip: Clip, spec: RewardSpec) -> Iterator[tuple[str, dict[str, Any], ScoreReason]]:
    audio, rate = clip.audio_CS, clip.sample_rate
    least, most = math.ceil(spec.min_audio_s * rate), int(spec.max_audio_s * rate) + 1
    counts: dict[int, str] = {0: "no sample", 1: "one sample", least - 1: ""}
    for count in sorted(count for count in counts if 0 <= count < least):
        yield counts[count] or f"{count} samples", {"audio_CS": audio[:, :count]}, "too_short"
    yield f"{most} samples", {"audio_CS": np.broadcast_to(np.float32(0.1), (1, most))}, "too_long"
    for value in (np.nan, np.inf, -np.inf):
        torn = audio.copy()
        torn[0, 7] = value
        yield f"a sample that is {value}", {"audio_CS": torn}, "non_finite"
    wrong: dict[str, Any] = {
        "sound in float64": audio.astype(np.float64),
        "sound in int16": (audio * 32_767).astype(np.int16),
        "sound of the other byte order": audio.astype(audio.dtype.newbyteorder(">")),
        "sound without channels": audio[0],
        "no channel": audio[:0],
        "no sound at all": None,
    }
    yield from ((name, {"audio_CS": media}, "bad_media") for name, media in wrong.items())


def _wrong_frame_rates(spec: RewardSpec) -> Iterator[tuple[str, dict[str, Any], ScoreReason]]:
    for fps in (0.0, -1.0, math.nan, math.inf):
        yield f"{fps:g} fps", {"fps": fps}, "bad_media"
    for fps in (spec.frame_rates[0] / 2, spec.frame_rates[1] * 2):
        yield f"{fps:g} fps", {"fps": fps}, "wrong_rate"


def _wrong_sample_rates(spec: RewardSpec) -> Iterator[tuple[str, dict[str, Any], ScoreReason]]:
    for rate in (0, -1, math.nan):
        yield f"{rate} Hz", {"sample_rate": rate}, "bad_media"
    for rate in (spec.sample_rates[0] // 2, spec.sample_rates[1] * 2):
        yield f"{rate} Hz", {"sample_rate": rate}, "wrong_rate"


def _changed(clip: Clip, changes: dict[str, Any]) -> Clip:
    return replace(clip, **changes)


def _within(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _resized(video: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Nearest pixels: [F, H, W, 3] to [F, height, width, 3]."""
    rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), video.shape[1:3], strict=True))
    return np.ascontiguousarray(video[:, rows][:, :, columns])


def _cut(audio: NDArray[np.float32], count: int, from_: int) -> NDArray[np.float32]:
    start = max(0, min(from_, audio.shape[1] - count))
    return np.ascontiguousarray(audio[:, start : start + count])


def _at_rate(clip: Clip, rate: int) -> NDArray[np.float32]:
    """The same sound, sampled anew between its samples: [C, S]."""
    old = np.arange(clip.audio_CS.shape[1]) / clip.sample_rate
    new = np.arange(round(len(old) * rate / clip.sample_rate)) / rate
    return np.stack([np.interp(new, old, channel) for channel in clip.audio_CS]).astype(np.float32)
