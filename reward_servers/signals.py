"""What measurements start from: one sound track, brightness, smaller frames.

All of it is float64 and reduces in a fixed order, so a clip gives the same bits wherever it is measured.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Pixels = NDArray[np.uint8]
_LUMA = np.array([0.299, 0.587, 0.114])


def mono(audio_CS: NDArray[np.float32]) -> Float:
    """Mean over channels: [C, S] to float64 [S]."""
    return np.asarray(audio_CS, dtype=np.float64).mean(axis=0)


def resampled(sound_S: Float, sample_rate: int, wanted: int) -> Float:
    """Polyphase resampling from `sample_rate` to `wanted` Hz."""
    if sample_rate == wanted:
        return sound_S
    from scipy.signal import resample_poly  # takes longer to import than most clips to score; few need it

    common = gcd(int(sample_rate), wanted)
    return np.asarray(resample_poly(sound_S, wanted // common, int(sample_rate) // common))


def shrunk(video_FHWC: Pixels, short_side: int) -> Pixels:
    """Block means, so that the short side is at least `short_side` and below twice that: uint8 [F, h, w, 3].

    A video that is small enough already is returned as it is.
    """
    height, width = video_FHWC.shape[1:3]
    block = min(height, width) // short_side
    if block < 2:
        return video_FHWC
    cut = video_FHWC[:, : height // block * block, : width // block * block]
    split = cut.reshape(len(cut), height // block, block, width // block, block, 3)
    return split.mean(axis=(2, 4), dtype=np.float64).round().astype(np.uint8)


def luma(video_FHWC: Pixels) -> Float:
    """Brightness in 0..1: uint8 [F, H, W, 3] to float64 [F, H, W]."""
    return np.einsum("fhwc,c->fhw", video_FHWC.astype(np.float64), _LUMA / 255.0)
