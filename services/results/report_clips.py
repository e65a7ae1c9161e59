"""A clip as a page shows it: the file itself as a data URI, and a strip picture in which one sees sync.

The strip has four rows over one time axis: every frame, how much the picture changes, the sound's wave, and its
spectrogram (log frequency, 60 dB). A sound that falls on what is seen stands straight below it.
Shapes: F frames, H height, W width, S audio samples, X columns of the strip.
"""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from accord.types import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]
    Floats = NDArray[np.float32]

STRIP_WIDTH = 800
MOST_FRAMES = 25
"""Thumbnails in a strip; a longer clip shows evenly spaced frames."""
LOWEST_HZ, HIGHEST_HZ = 80.0, 8000.0
DECIBELS = 60.0

_GROUND = np.array([17, 21, 28], np.uint8)
_CHANGE = np.array([122, 174, 255], np.uint8)
_WAVE = np.array([255, 168, 104], np.uint8)
_GAP = 3


def data_uri(content: bytes, media_type: str) -> str:
    """Return the content as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def strip_image(clip: Clip) -> bytes:
    """Draw the strip of a clip, as WebP."""
    from PIL import Image

    sound = clip.audio_CS.mean(axis=0) if clip.audio_CS.shape[1] else np.zeros(0, np.float32)
    duration = max(clip.video_FHWC.shape[0] / clip.fps, len(sound) / clip.sample_rate)
    rows = [_film(clip, duration), _change(clip, duration, 26)]
    if len(sound):
        rows += [_wave(sound, clip.sample_rate, duration, 44), _spectrogram(sound, clip.sample_rate, duration, 72)]
    gap = np.broadcast_to(_GROUND, (_GAP, STRIP_WIDTH, 3))
    picture = np.concatenate([part for row in rows for part in (row, gap)][:-1])
    out = BytesIO()
    Image.fromarray(picture).save(out, format="webp", quality=82, method=4)
    return out.getvalue()


def _ground(height: int) -> Picture:
    return np.broadcast_to(_GROUND, (height, STRIP_WIDTH, 3)).copy()


def _column(seconds: float, duration: float) -> int:
    return min(STRIP_WIDTH, round(seconds / duration * STRIP_WIDTH))


def _film(clip: Clip, duration: float) -> Picture:
    """Frames as thumbnails, each beginning at its own time."""
    from PIL import Image

    frames, height, width, _ = clip.video_FHWC.shape
    shown = np.unique(np.linspace(0, frames - 1, min(frames, MOST_FRAMES)).round().astype(int))
    edges = [_column(index / clip.fps, duration) for index in shown] + [_column(frames / clip.fps, duration)]
    tall = min(64, max(18, round((edges[1] - edges[0]) * height / width)))
    film = _ground(tall)
    for index, left, right in zip(shown, edges[:-1], edges[1:], strict=True):
        if right - left > 1:
            small = Image.fromarray(clip.video_FHWC[index]).resize((right - left - 1, tall), Image.Resampling.BOX)
            film[:, left : right - 1] = np.asarray(small)
    return film


def _change(clip: Clip, duration: float, height: int) -> Picture:
    """One bar per frame: mean absolute difference from the frame before, relative to the largest."""
    video = clip.video_FHWC[:, ::4, ::4].astype(np.float32) if clip.video_FHWC.shape[1] >= 128 else clip.video_FHWC
    change = np.abs(np.diff(video.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    row = _ground(height)
    for index, value in enumerate(change / max(float(change.max(initial=0.0)), 1e-6), start=1):
        left, right = _column(index / clip.fps, duration), _column((index + 1) / clip.fps, duration)
        row[height - max(1, round(float(value) * height)) :, left : max(right - 1, left + 1)] = _CHANGE
    return row


def _wave(sound: Floats, rate: int, duration: float, height: int) -> Picture:
    """Lowest and highest sample under each column, relative to the loudest."""
    row = _ground(height)
    columns = _column(len(sound) / rate, duration)
    scale = max(float(np.abs(sound).max()), 1e-3)
    middle = (height - 1) / 2
    for x, part in enumerate(np.array_split(sound / scale, columns)):
        if part.size:
            top, bottom = round(middle * (1 - float(part.max()))), round(middle * (1 - float(part.min())))
            row[top : bottom + 1, x] = _WAVE
    return row


def _spectrogram(sound: Floats, rate: int, duration: float, height: int) -> Picture:
    """Short-time spectrum with its window centred on each column, [X, bins] sampled at log-spaced frequencies."""
    import matplotlib as mpl

    window = 1 << max(6, round(np.log2(rate * 0.032)))
    columns = _column(len(sound) / rate, duration)
    centres = ((np.arange(columns) + 0.5) * duration / STRIP_WIDTH * rate).astype(int)
    padded = np.pad(sound, window)
    parts = padded[centres[:, None] + window // 2 + np.arange(window)]
    power = np.abs(np.fft.rfft(parts * np.hanning(window), axis=1)) ** 2
    top = min(HIGHEST_HZ, rate / 2)
    wanted = np.geomspace(LOWEST_HZ, top, height) * window / rate
    low = np.clip(wanted.astype(int), 0, power.shape[1] - 2)
    part = wanted - low
    level = 10 * np.log10(power[:, low] * (1 - part) + power[:, low + 1] * part + 1e-12)
    shade = np.clip((level - level.max()) / DECIBELS + 1, 0, 1) if level.max() > -60 else np.zeros_like(level)
    row = _ground(height)
    row[:, :columns] = (mpl.colormaps["magma"](shade.T[::-1])[..., :3] * 255).astype(np.uint8)
    return row


def embed(path: Path) -> tuple[str, str]:
    """Return (video, strip) of an MP4 as data URIs. Raises MediaError when it cannot be read."""
    from accord.media import read_mp4

    clip = read_mp4(path)
    return data_uri(path.read_bytes(), "video/mp4"), data_uri(strip_image(clip), "image/webp")
