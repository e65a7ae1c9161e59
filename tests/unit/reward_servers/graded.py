"""Grades of spoiling for staged clips, and how well a reward's values follow them: run it for the table.

An axis is a way to spoil a clip by an amount; what counts is Spearman's rank correlation of the values with -amount.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from scipy.signal import butter, sosfiltfilt
from scipy.stats import spearmanr

from accord.plugins import spec_class
from accord.types import Clip, Prompt
from reward_servers.base import Score, build
from reward_servers.panel.events import seen
from tests.unit.reward_servers import seen as spoils
from tests.unit.reward_servers.staged_clips import HELD_OUT, SMALL, TUNED, Staged, small, staged

PROMPT = Prompt("p", "", "", "")
DELAYS = (0.0, 0.04, 0.08, 0.16, 0.32, 0.64)
Spoil = Callable[[Clip, float], Clip]


@dataclass(frozen=True)
class Axis:
    """A reward, a way to spoil, and amounts from none upwards."""

    reward: str
    spoil: Spoil
    amounts: Sequence[float]
    events: bool = False
    """Whether only clips with events say anything."""


@cache
def model(name: str):
    return build(spec_class("rewards", name)())


def judged(name: str, clip: Clip) -> Score:
    ((score,),) = model(name).score([PROMPT], [[clip]])
    assert score.valid, score.reason
    return score


def of_video(change: Callable[[np.ndarray, float], np.ndarray]) -> Spoil:
    return lambda clip, amount: dataclasses.replace(clip, video_FHWC=change(clip.video_FHWC, amount))


def of_sound(change: Callable[[np.ndarray, int, float], np.ndarray]) -> Spoil:
    def spoil(clip: Clip, amount: float) -> Clip:
        made = change(clip.audio_CS.astype(np.float64), clip.sample_rate, amount)
        return dataclasses.replace(clip, audio_CS=np.asarray(made, np.float32))

    return spoil


def delayed(clip: Clip, seconds: float) -> Clip:
    """The sound moved, with the bed's level of nothing where there is none."""
    samples = round(seconds * clip.sample_rate)
    moved = np.zeros_like(clip.audio_CS)
    moved[:, max(0, samples) : moved.shape[1] + min(0, samples)] = clip.audio_CS[
        :, max(0, -samples) : moved.shape[1] - max(0, samples)
    ]
    return dataclasses.replace(clip, audio_CS=moved)


def rolled(clip: Clip, seconds: float) -> Clip:
    return dataclasses.replace(clip, audio_CS=np.roll(clip.audio_CS, round(seconds * clip.sample_rate), axis=1))


# ---------------------------------------------------------------- sound


def hissing(audio: np.ndarray, rate: int, amount: float) -> np.ndarray:
    """White noise; 1 is 40 dB below the sound, each further step 10 dB more."""
    if not amount:
        return audio
    noise = np.random.default_rng(1).standard_normal(audio.shape)
    return audio + noise * np.sqrt(np.square(audio).mean()) * 10 ** ((amount - 5) / 2)


def clipped(audio: np.ndarray, rate: int, share: float) -> np.ndarray:
    limit = (1.0 - share) * np.abs(audio).max()
    return np.clip(audio, -limit, limit)


def dull(audio: np.ndarray, rate: int, octaves: float) -> np.ndarray:
    """Low-pass that many octaves below half the rate."""
    if not octaves:
        return audio
    return np.asarray(sosfiltfilt(butter(8, 2.0**-octaves, output="sos"), audio, axis=1))


def gaps(audio: np.ndarray, rate: int, share: float) -> np.ndarray:
    return audio * (np.arange(audio.shape[1]) / rate / 0.25 % 1.0 >= share)


def humming(audio: np.ndarray, rate: int, amount: float) -> np.ndarray:
    clock = np.arange(audio.shape[1]) / rate
    return audio + amount * np.sqrt(2 * np.square(audio).mean()) * np.sin(2 * np.pi * 100 * clock)


def quiet(audio: np.ndarray, rate: int, decibels: float) -> np.ndarray:
    return audio * 10 ** (-decibels / 20)


# ---------------------------------------------------------------- pictures


def dimmed(video: np.ndarray, share: float) -> np.ndarray:
    return spoils.pixels(video * (1.0 - share))


def drifting(video: np.ndarray, share: float) -> np.ndarray:
    """The light's colour drifts over the clip."""
    way = np.linspace(0, share, len(video))[:, None, None, None]
    return spoils.pixels(video * (1.0 + way * np.array([0.9, -0.3, -0.7])))


def shuffled(video: np.ndarray, reach: float) -> np.ndarray:
    """Frames change places with others up to `reach` away."""
    places = np.arange(len(video)) + np.random.default_rng(6).uniform(-reach, reach, len(video))
    return video[np.argsort(places, kind="stable")]


def swaying_light(video: np.ndarray, depth: float) -> np.ndarray:
    """Flicker of random height."""
    gain = 1.0 + depth * np.random.default_rng(8).uniform(-1, 1, len(video))
    return spoils.pixels(video * gain[:, None, None, None])


def shaken(video: np.ndarray, reach: float) -> np.ndarray:
    """Frames displaced by up to `reach` hundredths of the height, with parts of pixels."""
    shifts = np.random.default_rng(4).uniform(-1, 1, (len(video), 2)) * reach * video.shape[1] / 100
    flags = {"flags": cv2.INTER_LINEAR, "borderMode": cv2.BORDER_REFLECT}
    made = [
        cv2.warpAffine(frame, np.array([[1, 0, x], [0, 1, y]], float), frame.shape[1::-1], **flags)
        for frame, (x, y) in zip(video, shifts, strict=True)
    ]
    return np.stack(made)


AXES: dict[str, Axis] = {
    "sync late": Axis("sync", delayed, DELAYS, True),
    "sync early": Axis("sync", lambda clip, amount: delayed(clip, -amount), DELAYS, True),
    "sync rolled": Axis("sync", rolled, DELAYS, True),
    "hiss": Axis("sound", of_sound(hissing), (0, 1, 2, 3, 4, 5)),
    "clipping": Axis("sound", of_sound(clipped), (0, 0.5, 0.75, 0.9)),
    "low-pass": Axis("sound", of_sound(dull), (0, 1, 2, 3)),
    "gaps": Axis("sound", of_sound(gaps), (0, 0.25, 0.5, 0.75)),
    "hum": Axis("sound", of_sound(humming), (0, 0.3, 1, 3)),
    "quiet": Axis("sound", of_sound(quiet), (12, 24, 36, 48)),
    "blur": Axis("picture", of_video(spoils.blurred), (0, 0.7, 1, 2, 4, 8)),
    "grain": Axis("picture", of_video(spoils.grainy), (0, 4, 8, 16, 32)),
    "blocks": Axis("picture", of_video(spoils.blocky), (0, 50, 70, 85, 95)),
    "faint": Axis("picture", of_video(spoils.faint), (0, 0.3, 0.6, 0.8)),
    "garish": Axis("picture", of_video(spoils.garish), (0, 1, 3)),
    "dim": Axis("picture", of_video(dimmed), (0, 0.3, 0.6, 0.8)),
    "freeze": Axis("motion", of_video(spoils.frozen), (0, 0.25, 0.5, 0.75, 1)),
    "stutter": Axis("motion", of_video(spoils.halting), (0, 1 / 8, 1 / 4, 1 / 2)),
    "flicker": Axis("motion", of_video(spoils.flickering), (0, 0.02, 0.04, 0.08)),
    "random flicker": Axis("motion", of_video(swaying_light), (0, 0.03, 0.06, 0.12)),
    "shake": Axis("motion", of_video(shaken), (0, 0.5, 1, 2, 4)),
    "shuffle": Axis("motion", of_video(shuffled), (0, 1, 2, 4)),
    "colour drift": Axis("consistency", of_video(drifting), (0, 0.15, 0.3, 0.6)),
    "swap": Axis("consistency", of_video(spoils.morphing), (0, 0.25, 0.5, 1)),
    "cuts": Axis("consistency", of_video(spoils.cut), (0, 1, 3, 7)),
    "frozen part": Axis("consistency", of_video(spoils.frozen), (0, 0.25, 0.5, 0.75, 1)),
}


# ---------------------------------------------------------------- cheats


def clicked(clip: Clip, frames: int = 1) -> Clip:
    """A flash in a part of the picture and a click, at once, every 0.4 s."""
    video, audio = clip.video_FHWC.copy(), clip.audio_CS.copy()
    height, width = video.shape[1:3]
    click = np.random.default_rng(2).uniform(-0.8, 0.8, clip.sample_rate // 50)
    for at in np.arange(0.3, len(video) / clip.fps - 0.2, 0.41):
        frame, start = round(at * clip.fps), round(at * clip.sample_rate)
        video[frame : frame + frames, height // 3 : height // 2, width // 3 : width // 2] = 250
        audio[:, start : start + len(click)] += click[: audio.shape[1] - start]
    return dataclasses.replace(clip, video_FHWC=video, audio_CS=np.clip(audio, -1, 1))


def _sounding(make: Callable[[np.random.Generator, int, int], np.ndarray]) -> Callable[[Clip], Clip]:
    def cheat(clip: Clip) -> Clip:
        channels, count = clip.audio_CS.shape
        sound = make(np.random.default_rng(3), count, clip.sample_rate)
        return dataclasses.replace(clip, audio_CS=np.stack([sound] * channels).astype(np.float32))

    return cheat


def _looking(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Clip], Clip]:
    return lambda clip: dataclasses.replace(clip, video_FHWC=change(clip.video_FHWC))


CHEATS: dict[str, tuple[str, Callable[[Clip], Clip]]] = {
    "frozen": ("motion", _looking(lambda video: spoils.frozen(video, 1.0))),
    "frozen, grain": ("motion", _looking(lambda video: spoils.grainy(spoils.frozen(video, 1.0), 6))),
    "frozen, shaken": ("motion", _looking(lambda video: shaken(spoils.frozen(video, 1.0), 1))),
    "static": ("motion", _looking(lambda video: np.random.default_rng(0).integers(0, 256, video.shape, np.uint8))),
    "static, picture": (
        "picture",
        _looking(lambda video: np.random.default_rng(0).integers(0, 256, video.shape, np.uint8)),
    ),
    "frozen garish": ("picture", _looking(lambda video: spoils.garish(spoils.frozen(video, 1.0), 1))),
    "frozen, grain: consistency": ("consistency", _looking(lambda video: spoils.grainy(spoils.frozen(video, 1.0), 6))),
    "tone": ("sound", _sounding(lambda rng, count, rate: 0.3 * np.sin(2 * np.pi * 1500 * np.arange(count) / rate))),
    "noise": ("sound", _sounding(lambda rng, count, rate: np.clip(0.2 * rng.standard_normal(count), -1, 1))),
    "silence": ("sound", _sounding(lambda rng, count, rate: np.zeros(count))),
    "one click": (
        "sound",
        _sounding(lambda rng, count, rate: 0.8 * rng.uniform(-1, 1, count) * (np.arange(count) // (rate // 20) == 10)),
    ),
    "flashes and clicks": ("sync", clicked),
}


# ---------------------------------------------------------------- measured


def clips(families: Sequence[str], seeds: Sequence[int]) -> Iterator[Staged]:
    for family in families:
        for seed in seeds:
            made = staged(family, seed)
            yield made
            if family in SMALL:
                yield small(made)


def graded(axis: Axis, of: Staged) -> list[float]:
    """Values by amount."""
    if axis.reward == "sync":  # the picture is the same at every delay
        courses, judge = seen(of.clip), model("sync")
        return [judge.compared(courses, axis.spoil(of.clip, amount)).value for amount in axis.amounts]
    return [judged(axis.reward, axis.spoil(of.clip, amount)).value for amount in axis.amounts]


def rank(values: Sequence[float], amounts: Sequence[float]) -> float:
    """Spearman's correlation with -amount; 0 where all values are one."""
    return float(spearmanr(values, [-amount for amount in amounts]).statistic) if max(values) > min(values) else 0.0


def table(families: Sequence[str], seeds: Sequence[int], wanted: Sequence[str]) -> None:
    """Print for each axis how many clips rank at 0.95 or more, and those that do not; for each cheat who gains."""
    made = list(clips(families, seeds))
    for name, axis in AXES.items():
        if wanted and axis.reward not in wanted:
            continue
        rows = [(of.name, graded(axis, of)) for of in made if of.events_s or not axis.events]
        ranks = [rank(values, axis.amounts) for _, values in rows]
        held = sum(value >= 0.95 for value in ranks)
        top = max(values[0] for _, values in rows)
        print(f"{axis.reward:12} {name:15} {held:3}/{len(rows):<3} mean {np.mean(ranks):.2f} highest {top:.2f}")
        for (clip_name, values), value in zip(rows, ranks, strict=True):
            if value < 0.95 and "-v" in sys.argv:
                print(f"    {clip_name:18} {value:5.2f} ", " ".join(f"{number:.3f}" for number in values))
    for name, (reward, cheat) in CHEATS.items():
        if wanted and reward not in wanted:
            continue
        rows = [(of.name, judged(reward, of.clip).value, judged(reward, cheat(of.clip)).value) for of in made]
        gain = [(n, own, cheated) for n, own, cheated in rows if cheated > own + 0.001]
        print(f"{reward:12} {name:26} gains on {len(gain)}/{len(rows)} highest {max(r[2] for r in rows):.2f}")
        if "-v" in sys.argv:
            for row in gain:
                print(f"    {row[0]:18} {row[1]:.3f} -> {row[2]:.3f}")


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    halves = {"tuned": [*TUNED, "world_a"], "held": [*HELD_OUT, "world_b"]}
    flags = [argument for argument in sys.argv[2:] if not argument.startswith("-")]
    table(halves[sys.argv[1]], (0,) if "-1" in sys.argv else (0, 1), flags)
