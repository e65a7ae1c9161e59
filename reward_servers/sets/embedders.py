"""From clips to the rows that measures of sets work on. Two need no weights, and know little.

* `log_mel`, of the sound: mean and standard deviation over time of 64 log-mel bands [128].
* `colours`, of the picture: histogram of hue, saturation and value, 12 x 4 x 4, and of brightness changes from frame to
  frame, 16 bins [208]. It sees a change of material or of colours, and no change of content at equal colours.
* `clap`, `clip` and `ast` have weights and stand in `learned.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np
from scipy.signal import stft

from accord.config.rewards.sets import SetReward
from accord.errors import UserError
from accord.types import Clip
from reward_servers.sets.measures import Floats
from reward_servers.signals import luma, mono, resampled, shrunk

RATE = 16_000
BANDS = 64
SHORT_SIDE = 64
MOST_FRAMES = 32
_WINDOW = 512


class Embedder(Protocol):
    """Makes one row of a clip."""

    @property
    def digest(self) -> str:
        """SHA-256 of its weights, hexadecimal; "" = it has none."""

    def __call__(self, clip: Clip) -> Floats:
        """[D], the same for the same clip wherever it is computed."""


def embedder_of(spec: SetReward) -> Embedder:
    """The embedder that a spec names. Raises UserError for one without its `path`, ModelError for what is there."""
    if spec.misplaced_path:
        raise UserError(f"{spec.name}: path: {spec.misplaced_path}")
    if spec.weights is None:
        return _Free(heard if spec.embedder == "log_mel" else seen)
    from reward_servers.sets.learned import load  # torch is needed from here on, and by none of the others

    return load(spec.embedder, spec.weights, "cuda" if spec.num_gpus > 0 else "cpu")


class _Free:
    """One without weights."""

    digest = ""

    def __init__(self, embed: Callable[[Clip], Floats]) -> None:
        self._embed = embed

    def __call__(self, clip: Clip) -> Floats:
        return self._embed(clip)


def heard(clip: Clip) -> Floats:
    """Mean and standard deviation of the log-mel bands [128]."""
    sound = resampled(mono(clip.audio_CS), clip.sample_rate, RATE)
    sound = np.pad(sound, (0, max(0, _WINDOW - len(sound))))
    power = np.square(np.abs(stft(sound, RATE, nperseg=_WINDOW, noverlap=_WINDOW // 2)[2]))
    bands = np.log(_mel() @ power + 1e-8)
    return np.concatenate([bands.mean(1), bands.std(1)])


def _mel() -> Floats:
    """Triangles on the mel scale of O'Shaughnessy [BANDS, bins]."""
    top = 2595.0 * np.log10(1.0 + RATE / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, BANDS + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0.0, None))


def seen(clip: Clip) -> Floats:
    """Histograms of colour and of change [208]; either sums to 1."""
    count = len(clip.video_FHWC)
    frames = shrunk(clip.video_FHWC[np.linspace(0, count - 1, min(count, MOST_FRAMES)).astype(int)], SHORT_SIDE)
    colours = [cv2.cvtColor(frame, cv2.COLOR_RGB2HSV).reshape(-1, 3) for frame in np.ascontiguousarray(frames)]
    limits = [(0, 180), (0, 256), (0, 256)]
    colour, _ = np.histogramdd(np.concatenate(colours).astype(np.float64), bins=(12, 4, 4), range=limits)
    change, _ = np.histogram(np.abs(np.diff(luma(frames), axis=0)), bins=16, range=(0.0, 0.5))
    return np.concatenate([colour.ravel() / colour.sum(), change / max(change.sum(), 1)])
