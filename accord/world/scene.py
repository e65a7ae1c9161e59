"""The procedural audio-video world: short clips of a ball that knocks against a wall or a floor.

A clip is 25 frames of 32x32 pixels at 12 fps (2.083 s) with 32 800 samples of mono audio at 16 kHz (2.05 s).
One saturated ball bounces on the floor or slides between two walls. At each contact a white spark flashes at the
contact point and one struck sound is heard. Contacts fall on whole frames, every 9 or 12 frames (0.75 s or 1 s),
so a clip has two or three of them. Everything follows from `(seed, index)`; nothing is drawn from a global state.

Shapes: F frames, H height, W width, S audio samples, N contacts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from accord.types import Clip

FRAMES = 25
FPS = 12.0
SIZE = 32
SAMPLE_RATE = 16_000
AUDIO_SAMPLES = 32_800

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.14, 0.12),
    "green": (0.12, 0.80, 0.20),
    "blue": (0.14, 0.26, 0.94),
    "yellow": (0.94, 0.86, 0.10),
}
MOTIONS: tuple[str, ...] = ("bouncing", "sliding")
SOUNDS: dict[str, float] = {"drum": 150.0, "knock": 500.0, "bell": 1300.0, "ping": 3200.0}
SOUND_DECAY_S: dict[str, float] = {"drum": 0.10, "knock": 0.07, "bell": 0.11, "ping": 0.08}

PERIODS = (9, 12)
RADIUS = 4.0
WALL = 2
SPARK_RADIUS = 5.0
SPARK_LEVELS = (1.0, 0.55)
BACKGROUND = 0.42
WALL_GREY = 0.22
SPARK_GREY = 1.0
_NEAR, _FAR = WALL + RADIUS, SIZE - WALL - RADIUS

Float = NDArray[np.float32]


@dataclass(frozen=True)
class WorldPrompt:
    """One of the 32 things that can be asked for: a colour, a motion and a sound."""

    colour: str
    motion: str
    sound: str

    @property
    def id(self) -> str:
        """A stable identifier, for instance `red-bouncing-bell`."""
        return f"{self.colour}-{self.motion}-{self.sound}"

    @property
    def prompt_v(self) -> str:
        """The part of the caption that can be seen."""
        return f"a {self.colour} ball {self.motion}"

    @property
    def prompt_a(self) -> str:
        """The part of the caption that can be heard."""
        return f"a {self.sound} sound"

    @property
    def prompt_av(self) -> str:
        """The whole caption."""
        return f"{self.prompt_v} with {self.prompt_a}"

    def record(self) -> dict[str, str]:
        """The prompt as one line of a prompt file."""
        return {"id": self.id, "prompt_av": self.prompt_av, "prompt_v": self.prompt_v, "prompt_a": self.prompt_a}


ALL_PROMPTS: tuple[WorldPrompt, ...] = tuple(
    WorldPrompt(colour, motion, sound) for colour, motion, sound in product(COLOURS, MOTIONS, SOUNDS)
)


def _is_held_out(prompt: WorldPrompt) -> bool:
    """The fixed split: every colour twice, every motion four times, every sound twice among the eight."""
    colour = list(COLOURS).index(prompt.colour)
    motion = MOTIONS.index(prompt.motion)
    sound = list(SOUNDS).index(prompt.sound)
    return sound == (colour + 2 * motion) % len(SOUNDS)


HELD_OUT_PROMPTS: tuple[WorldPrompt, ...] = tuple(prompt for prompt in ALL_PROMPTS if _is_held_out(prompt))
TRAIN_PROMPTS: tuple[WorldPrompt, ...] = tuple(prompt for prompt in ALL_PROMPTS if not _is_held_out(prompt))


def write_prompt_file(prompts: Iterable[WorldPrompt], path: Path) -> None:
    """Write one JSON object a line with the keys `id`, `prompt_av`, `prompt_v` and `prompt_a`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(prompt.record()) + "\n" for prompt in prompts), encoding="utf-8")


@dataclass(frozen=True)
class Imperfections:
    """What may be wrong with a clip: how often (probabilities) and how much (amounts).

    `offset_*` shifts the whole sound track in seconds, `hiss_*` is the noise level as RMS amplitude, `flicker_*` the
    standard deviation of a per-frame brightness factor. A wrong colour or sound contradicts the caption.
    """

    offset: float = 0.0
    offset_range_s: tuple[float, float] = (0.12, 0.35)
    hiss: float = 0.0
    hiss_range: tuple[float, float] = (0.015, 0.06)
    flicker: float = 0.0
    flicker_range: tuple[float, float] = (0.04, 0.12)
    wrong_colour: float = 0.0
    wrong_sound: float = 0.0


CLEAN = Imperfections()
IMPERFECT = Imperfections(offset=0.40, hiss=0.60, flicker=0.45, wrong_colour=0.25, wrong_sound=0.25)


@dataclass(frozen=True)
class WorldClip:
    """One clip with its caption and the truth behind it.

    `video` is uint8 [F, H, W, 3]; `audio` is float32 [S] in [-1, 1]; `contacts` are the frame times (s) of the
    contacts seen; `onsets` the times (s) of the sounds heard; `shown` what the clip really shows and sounds like.
    """

    prompt: WorldPrompt
    shown: WorldPrompt
    video: NDArray[np.uint8]
    audio: Float
    contacts: Float
    onsets: Float

    @property
    def clip(self) -> Clip:
        """What can be seen and heard of it."""
        return Clip(self.video, FPS, self.audio[None], SAMPLE_RATE)


@dataclass(frozen=True)
class _Motion:
    """Ball centres [F, 2] as (x, y) in pixels, contact frames [N] and contact points [N, 2]."""

    centres: Float
    contact_frames: NDArray[np.int64]
    contact_points: Float


def _bounce(period: int, phase: int, column: float) -> _Motion:
    """A parabola above the floor that touches it at frames `phase + k * period`."""
    frames = np.arange(FRAMES, dtype=np.float32)
    swing = np.mod(frames - phase, period) / period
    height = 4.0 * swing * (1.0 - swing) * (_FAR - _NEAR) * (period / max(PERIODS)) ** 2
    centres = np.stack([np.full_like(frames, column), _FAR - height], axis=1)
    contacts = np.arange(phase % period, FRAMES, period)
    points = np.stack([np.full(len(contacts), column), np.full(len(contacts), SIZE - WALL)], axis=1)
    return _Motion(centres.astype(np.float32), contacts, points.astype(np.float32))


def _slide(period: int, phase: int, row: float, start_left: bool) -> _Motion:
    """A triangle wave between the walls that touches one of them at frames `phase + k * period`."""
    frames = np.arange(FRAMES, dtype=np.float32)
    lap = np.mod((frames - phase) / period + (0.0 if start_left else 1.0), 2.0)
    across = np.where(lap < 1.0, lap, 2.0 - lap)
    centres = np.stack([_NEAR + across * (_FAR - _NEAR), np.full_like(frames, row)], axis=1)
    contacts = np.arange(phase % period, FRAMES, period)
    at_left = ((contacts - phase) // period + (0 if start_left else 1)) % 2 == 0
    points = np.stack([np.where(at_left, WALL, SIZE - WALL), np.full(len(contacts), row)], axis=1)
    return _Motion(centres.astype(np.float32), contacts, points.astype(np.float32))


_GRID_Y, _GRID_X = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")


def _disc(centre: Float, radius: float) -> Float:
    """Coverage in [0, 1] of each pixel by a soft-edged disc, [H, W]."""
    distance = np.hypot(_GRID_X - centre[0], _GRID_Y - centre[1])
    coverage: Float = np.clip(radius + 0.5 - distance, 0.0, 1.0).astype(np.float32)
    return coverage


def _background() -> Float:
    """The empty room, [H, W, 3] in [0, 1]: a grey field inside a darker frame."""
    room = np.full((SIZE, SIZE, 3), WALL_GREY, dtype=np.float32)
    room[WALL:-WALL, WALL:-WALL] = BACKGROUND
    return room


def render_video(motion: _Motion, colour: str, gains: Float) -> NDArray[np.uint8]:
    """Draw the frames: room, spark, ball on top, then the brightness factor `gains` [F]. Returns uint8 [F, H, W, 3]."""
    paint = np.asarray(COLOURS[colour], dtype=np.float32)
    frames = np.repeat(_background()[None], FRAMES, axis=0)
    for contact, point in zip(motion.contact_frames, motion.contact_points, strict=True):
        for age, level in enumerate(SPARK_LEVELS):
            if contact + age < FRAMES:
                cover = (_disc(point, SPARK_RADIUS) * level)[..., None]
                frames[contact + age] = frames[contact + age] * (1.0 - cover) + SPARK_GREY * cover
    for index in range(FRAMES):
        cover = _disc(motion.centres[index], RADIUS)[..., None]
        frames[index] = (frames[index] * (1.0 - cover) + paint * cover) * gains[index]
    return np.round(np.clip(frames, 0.0, 1.0) * 255.0).astype(np.uint8)


def struck_sound(sound: str) -> Float:
    """One event of a sound: a sine at the pitch of the sound that decays exponentially, [S'] with peak about 0.5."""
    decay = SOUND_DECAY_S[sound]
    time = np.arange(int(SAMPLE_RATE * decay * 6.0)) / SAMPLE_RATE
    attack = np.minimum(time / 0.002, 1.0)
    tone: Float = (0.5 * attack * np.exp(-time / decay) * np.sin(2.0 * np.pi * SOUNDS[sound] * time)).astype(np.float32)
    return tone


def render_audio(onsets: Float, sound: str) -> Float:
    """Add one struck sound at each onset (s); onsets outside the clip are cut. Returns float32 [S]."""
    tone = struck_sound(sound)
    track = np.zeros(AUDIO_SAMPLES, dtype=np.float32)
    for onset in onsets:
        start = round(float(onset) * SAMPLE_RATE)
        skip = max(0, -start)
        stop = min(AUDIO_SAMPLES, start + len(tone))
        if stop > max(start, 0):
            track[max(start, 0) : stop] += tone[skip : skip + stop - max(start, 0)]
    return np.clip(track, -1.0, 1.0)


def _other(names: Iterable[str], name: str, rng: np.random.Generator) -> str:
    """A different name, drawn evenly."""
    return str(rng.choice([candidate for candidate in names if candidate != name]))


def _draw_motion(motion: str, rng: np.random.Generator) -> _Motion:
    """Draw period, phase, place and direction."""
    period = int(rng.choice(PERIODS))
    phase = int(rng.integers(period))
    place = float(rng.uniform(13.0, 19.0))
    start_left = bool(rng.integers(2))
    return _bounce(period, phase, place) if motion == "bouncing" else _slide(period, phase, place, start_left)


def make_clip(prompt: WorldPrompt, seed: int, index: int, imperfections: Imperfections = CLEAN) -> WorldClip:
    """Make the clip `(seed, index)` of a caption, with the given chances of being imperfect.

    The same arguments always give the same bytes. Draws are made in a fixed order whether or not they are used, so
    that a clean clip and its imperfect twin share motion and contact times.
    """
    rng = np.random.default_rng([seed, index])
    motion = _draw_motion(prompt.motion, rng)
    chances = rng.uniform(size=5)
    amounts = rng.uniform(size=3)
    sign = 1.0 if rng.integers(2) else -1.0
    wrong = (_other(COLOURS, prompt.colour, rng), _other(SOUNDS, prompt.sound, rng))
    flicker_noise = rng.standard_normal(FRAMES).astype(np.float32)
    hiss_noise = rng.standard_normal(AUDIO_SAMPLES).astype(np.float32)

    def amount(low_high: tuple[float, float], position: float) -> float:
        return low_high[0] + (low_high[1] - low_high[0]) * position

    shown = prompt
    if chances[3] < imperfections.wrong_colour:
        shown = replace(shown, colour=wrong[0])
    if chances[4] < imperfections.wrong_sound:
        shown = replace(shown, sound=wrong[1])
    offset = sign * amount(imperfections.offset_range_s, amounts[0]) if chances[0] < imperfections.offset else 0.0
    hiss = amount(imperfections.hiss_range, amounts[1]) if chances[1] < imperfections.hiss else 0.0
    flicker = amount(imperfections.flicker_range, amounts[2]) if chances[2] < imperfections.flicker else 0.0

    contacts = (motion.contact_frames / FPS).astype(np.float32)
    onsets = (contacts + offset).astype(np.float32)
    gains = np.clip(1.0 + flicker * flicker_noise, 0.5, 1.5).astype(np.float32)
    audio = np.clip(render_audio(onsets, shown.sound) + hiss * hiss_noise, -1.0, 1.0).astype(np.float32)
    heard = onsets[(onsets >= 0.0) & (onsets < AUDIO_SAMPLES / SAMPLE_RATE)]
    return WorldClip(prompt, shown, render_video(motion, shown.colour, gains), audio, contacts, heard)


def make_clips(
    count: int, seed: int, imperfections: Imperfections = CLEAN, prompts: tuple[WorldPrompt, ...] = ALL_PROMPTS
) -> Iterator[WorldClip]:
    """Yield `count` clips that go through `prompts` in turn; clip i is `make_clip(prompts[i % P], seed, i)`."""
    for index in range(count):
        yield make_clip(prompts[index % len(prompts)], seed, index, imperfections)
