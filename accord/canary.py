"""The canary set: eight small clips, made by code, whose scores tell whether a reward is what it was.

They are scored when a reward is tried (`accord rewards check`), held to the contract and watched for drift (drift.py).
Each shows one thing that rewards disagree about: events in step, late events, a camera's pan, a still, silence, noise,
the cheat of flashing and clicking in unison, a voice. Same reward spec, same bits, on any machine: random numbers come
from `RandomState`, whose stream NumPy keeps, and everything is rounded to whole levels of the picture and 16 bits of
sound.

Shapes: F frames, H height, W width, C = 2 channels, S samples, N events.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt

Pixels = NDArray[np.uint8]
Float = NDArray[np.float64]

SIDE, FPS, SECONDS, SAMPLE_RATE = 64, 24.0, 2.0, 48_000
"""Of the set, where the reward takes them."""
EVENTS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Canary:
    """One clip of the set."""

    name: str
    prompt: Prompt
    clip: Clip


@dataclass(frozen=True, slots=True)
class Size:
    """How large the clips of a set are."""

    frames: int
    height: int
    width: int
    fps: float
    samples: int
    sample_rate: int

    @classmethod
    def of(cls, spec: RewardSpec) -> Size:
        """The usual one, moved as little as it takes for the reward to look at it."""
        fps = min(max(FPS, spec.frame_rates[0]), spec.frame_rates[1])
        rate = min(max(SAMPLE_RATE, spec.sample_rates[0]), spec.sample_rates[1])
        seconds = min(max(SECONDS, spec.min_audio_s + 0.25, spec.min_frames / fps), spec.max_audio_s)
        frames = min(max(round(seconds * fps), spec.min_frames), spec.max_frames)
        height = min(max(SIDE, spec.min_side), spec.max_side)
        return cls(frames, height, min(height * 3 // 2, spec.max_side), fps, round(seconds * rate), rate)

    @property
    def times_F(self) -> Float:
        """When each frame is shown, in seconds."""
        return np.arange(self.frames) / self.fps

    @property
    def times_S(self) -> Float:
        """When each sample is heard, in seconds."""
        return np.arange(self.samples) / self.sample_rate

    @property
    def events_N(self) -> Float:
        """When something happens, in seconds: a quarter after the start, then evenly."""
        return np.arange(EVENTS_EVERY_S / 2, self.frames / self.fps, EVENTS_EVERY_S)


def canaries(spec: RewardSpec) -> tuple[Canary, ...]:
    """The set for a reward: small, and within the limits that it declares."""
    size = Size.of(spec)
    return tuple(_canary(name, size) for name in _SCENES)


def is_canary(prompt: Prompt) -> bool:
    """Whether a prompt is one of a canary set: its clip is judged anew whenever it comes. An id alone says nothing:
    prompts of jobs are called as they like."""
    return prompt in _PROMPTS.values()


def digest(clips: Iterable[Clip]) -> str:
    """SHA-256 over the media of clips, hexadecimal."""
    seen = hashlib.sha256()
    for clip in clips:
        for part in (clip.video_FHWC, clip.audio_CS):
            seen.update(repr((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        seen.update(repr((clip.fps, clip.sample_rate)).encode())
    return seen.hexdigest()


def _canary(name: str, size: Size) -> Canary:
    _, _, picture, sound = _SCENES[name]
    video = np.clip(np.rint(picture(size)), 0, 255).astype(np.uint8)
    levels = np.clip(np.rint(sound(size) * 32_767), -32_768, 32_767)
    clip = Clip(video, size.fps, (levels / 32_768).astype(np.float32), size.sample_rate)
    return Canary(name, _PROMPTS[name], clip)


def _ground(size: Size, seed: int, width: int | None = None) -> Float:
    """A still landscape of blotches and grain [H, W, 3]."""
    draw, wide = np.random.RandomState(seed), width or size.width
    coarse = draw.randint(70, 170, (6, 9, 1)) + draw.randint(-18, 19, (6, 9, 3)) + np.array([0.0, 10, -6])
    rows, columns = np.linspace(0, 4.999, size.height), np.linspace(0, 7.999, wide)
    top, left = rows.astype(int), columns.astype(int)
    down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
    upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
    lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
    return np.asarray(upper * (1 - down) + lower * down + draw.randint(-12, 13, (size.height, wide, 1)))


def _painted(size: Size, ground: Float, x_F: Float, y_F: Float, radius: tuple[Float, Float], colour: Float) -> Float:
    """A filled ellipse per frame over the ground; places and radii [F] as shares of the height: [F, H, W, 3]."""
    rows, columns = np.arange(size.height)[None, :, None], np.arange(size.width)[None, None, :]
    across = (columns - x_F[:, None, None] * size.height) / (radius[0][:, None, None] * size.height)
    along = (rows - y_F[:, None, None] * size.height) / (radius[1][:, None, None] * size.height)
    cover = np.clip((1.0 - np.sqrt(across**2 + along**2)) * 8, 0, 1)[..., None]
    return np.asarray(ground[None] * (1 - cover) + colour * cover)


def _bouncing(size: Size) -> Float:
    phase = (size.times_F - EVENTS_EVERY_S / 2) / EVENTS_EVERY_S % 1.0
    height = 4 * phase * (1 - phase)  # a parabola between contacts
    x_F = 0.3 + 0.9 * size.times_F / size.times_F[-1]
    radius = np.full(size.frames, 0.16)
    return _painted(size, _ground(size, 1), x_F, 0.8 - 0.55 * height, (radius, radius), np.array([220.0, 40, 30]))


def _sliding(size: Size) -> Float:
    x_F, y_F = 0.2 + 1.1 * size.times_F / size.times_F[-1], np.full(size.frames, 0.6)
    radius = np.full(size.frames, 0.18)
    return _painted(size, _ground(size, 2), x_F, y_F, (radius, radius), np.array([40.0, 60, 220]))


def _panned(size: Size) -> Float:
    wide = _ground(size, 3, 2 * size.width)
    starts = np.linspace(0, size.width // 2, size.frames).astype(int)
    return np.stack([wide[:, start : start + size.width] for start in starts])


def _still(size: Size) -> Float:
    return np.repeat(_ground(size, 4)[None], size.frames, axis=0)


def _flashing(size: Size) -> Float:
    since = size.times_F[:, None] - size.events_N[None]
    lit = np.any((since > -1e-9) & (since < 1.5 / size.fps), axis=1)
    return np.asarray(_ground(size, 5)[None] * 0.3 + lit[:, None, None, None] * 170.0)


def _static(size: Size) -> Float:
    return np.random.RandomState(6).randint(0, 256, (size.frames, size.height, size.width, 3)).astype(np.float64)


def _speaking(size: Size) -> Float:
    ground = _ground(size, 7) * 0.3 + np.array([150.0, 115, 95])
    still = np.full(size.frames, 1.0)
    opened = 0.03 + 0.13 * _syllables(size.times_F)
    return _painted(size, ground, 0.75 * still, 0.6 * still, (0.22 * still, opened), np.array([70.0, 15, 20]))


def _syllables(times: Float) -> Float:
    """How far the mouth is open: four times a second."""
    return np.asarray(np.sin(2 * np.pi * 2 * times) ** 2)


def _struck(size: Size, late_s: float = 0.0) -> Float:
    """A bell at each event, moving with the ball from the left to the right: [2, S]."""
    since = size.times_S[None] - size.events_N[:, None] - late_s
    rings = np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.08) * np.sin(2 * np.pi * 880 * since), 0.0)
    rings += np.where(since >= 0, 0.5 * np.exp(-np.maximum(since, 0) / 0.05) * np.sin(2 * np.pi * 2210 * since), 0.0)
    right = size.times_S / size.times_S[-1]
    return _stereo(0.4 * rings.sum(axis=0), right) + 0.002 * _hiss(size, 11)


def _stereo(sound_S: Float, right_S: Float) -> Float:
    """At equal power, `right_S` from 0 (left) to 1."""
    return np.stack([np.sqrt(1 - right_S), np.sqrt(right_S)]) * sound_S


def _hiss(size: Size, seed: int) -> Float:
    """Two channels of independent noise between -1 and 1."""
    return np.random.RandomState(seed).randint(-32_767, 32_768, (2, size.samples)) / 32_767


def _wind(size: Size) -> Float:
    """Noise through a moving average, swelling slowly."""
    span = max(2, size.sample_rate // 800)
    summed = np.cumsum(_hiss(size, 12), axis=1)
    smooth = np.diff(summed, n=1, axis=1, prepend=0.0)
    smooth[:, span:] = (summed[:, span:] - summed[:, :-span]) / math.sqrt(span)
    return 0.12 * smooth * (1 + 0.5 * np.sin(2 * np.pi * 0.4 * size.times_S))


def _clicks(size: Size) -> Float:
    since = size.times_S[None] - size.events_N[:, None]
    clicks = ((since >= 0) & (since < 0.004)).any(axis=0)
    return 0.6 * clicks * _hiss(size, 13)


def _tone(size: Size) -> Float:
    return _stereo(0.3 * np.sin(2 * np.pi * 330 * size.times_S), np.full(size.samples, 0.5))


def _voice(size: Size) -> Float:
    """A buzz of 30 harmonics of 130 Hz under two formants, syllable by syllable."""
    buzz = np.zeros(size.samples)
    for order in range(1, 31):
        pitch = 130.0 * order
        if 2 * pitch < size.sample_rate:
            shape = math.exp(-(((pitch - 700) / 300) ** 2)) + 0.5 * math.exp(-(((pitch - 1800) / 400) ** 2)) + 0.02
            buzz += shape * np.sin(2 * np.pi * pitch * size.times_S)
    return _stereo(0.15 * buzz * _syllables(size.times_S), np.full(size.samples, 0.5)) + 0.001 * _hiss(size, 14)


def _silence(size: Size) -> Float:
    return np.zeros((2, size.samples))


_Media = Callable[[Size], Float]
_SCENES: dict[str, tuple[str, str, _Media, _Media]] = {
    "in_step": ("A red ball bounces on stones.", "A bell rings at each bounce.", _bouncing, _struck),
    "late": ("A red ball bounces on stones.", "A bell rings at each bounce.", _bouncing, lambda of: _struck(of, 0.2)),
    "pan": ("The camera pans slowly to the right over a green field.", "Wind blows.", _panned, _wind),
    "still": ("A still painting of a field.", "One steady tone.", _still, _tone),
    "silent": ("A blue ball slides from left to right.", "Silence.", _sliding, _silence),
    "static": ("The static of a television.", "Loud hiss.", _static, lambda of: 0.3 * _hiss(of, 15)),
    "flashes": ("White flashes light a dark room.", "A click at each flash.", _flashing, _clicks),
    "voice": ("A mouth speaks to the camera.", 'A person says "good morning".', _speaking, _voice),
}
_PROMPTS = {
    name: Prompt(f"canary-{name}", f"{seen} {heard}", seen, heard) for name, (seen, heard, _, _) in _SCENES.items()
}
