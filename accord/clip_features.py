"""What a clip looks and sounds like, in a few numbers that cost next to nothing: where a collapse shows first.

`luma` mean brightness, `contrast` its standard deviation, `saturation` mean (max - min) of the colours, `motion` mean
change from frame to frame, all in [0, 1]; `loudness_db` root mean square in dBFS, not below -80; `silent_share` share
of 20 ms frames below -60 dBFS; `flatness` geometric over arithmetic mean of the power spectrum: 0 for a tone, 1 for
noise.

Nobody trains on them. The guard of `learner/guards.py` holds them against where they began.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accord.config.guards import FEATURES
from accord.types import Clip

_LUMA = np.array([0.299, 0.587, 0.114])
_MOST_FRAMES = 16
_MOST_PIXELS = 128
_FRAME_S = 0.02
_SILENT = 1e-3
_TINY = 1e-12


def features(clips: Sequence[Clip]) -> dict[str, tuple[float, ...]]:
    """Every feature of every clip, by name [G]. NaN where a clip has no such stream, or holds what is no number."""
    found = [_seen(clip.video_FHWC) | _heard(clip.audio_CS, clip.sample_rate) for clip in clips]
    return {name: tuple(one.get(name, float("nan")) for one in found) for name in FEATURES}


def _seen(video_FHWC: NDArray[np.uint8]) -> dict[str, float]:
    """From up to 16 pairs of neighbours, every nth pixel."""
    count, height, width, _ = video_FHWC.shape
    if not count or not height or not width:
        return {}
    stride = max(1, min(height, width) // _MOST_PIXELS)
    first = np.unique(np.linspace(0, max(0, count - 2), min(count, _MOST_FRAMES)).astype(int))
    frames = video_FHWC[first, ::stride, ::stride].astype(np.float64) / 255.0
    following = video_FHWC[np.minimum(first + 1, count - 1), ::stride, ::stride].astype(np.float64) / 255.0
    grey = frames @ _LUMA
    return {
        "luma": float(grey.mean()),
        "contrast": float(grey.std(axis=(1, 2)).mean()),
        "saturation": float((frames.max(-1) - frames.min(-1)).mean()),
        "motion": float(np.abs(following - frames).mean()),
    }


def _heard(audio_CS: NDArray[np.float32], sample_rate: int) -> dict[str, float]:
    sound = audio_CS.astype(np.float64).mean(axis=0) if audio_CS.size else np.zeros(0)
    size = max(2, int(_FRAME_S * sample_rate))
    if len(sound) < size or not np.isfinite(sound).all():
        return {}
    frames = sound[: len(sound) // size * size].reshape(-1, size)
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size), axis=1))).mean(axis=0)[1:] + _TINY
    return {
        "loudness_db": float(max(-80.0, 10.0 * np.log10(np.square(sound).mean() + _TINY))),
        "silent_share": float((np.sqrt(np.square(frames).mean(axis=1)) < _SILENT).mean()),
        "flatness": float(np.exp(np.log(power).mean()) / power.mean()),
    }
