"""Families of clips drawn by code, as a judge of the rewards without weights would try them.

Each is a scene with its sound at true event times. `TUNED` were looked at when constants of the rewards were chosen;
`HELD_OUT` were not. A family's clips differ by seed: grounds, times, colours, pitches, levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from accord.types import Clip
from accord.world.scene import ALL_PROMPTS, make_clip
from tests.unit.reward_servers import stage
from tests.unit.reward_servers.stage import blob, oval, stroke

Float = np.ndarray
SKIN = np.array([205.0, 160.0, 130.0])


@dataclass(frozen=True)
class Staged:
    """A clip, and when something is seen to happen and sounds; none where there is nothing to judge."""

    name: str
    clip: Clip
    events_s: tuple[float, ...]


@dataclass(frozen=True)
class Kind:
    """What the clips of a family have in common."""

    make: Callable[[np.random.Generator, Kind], tuple[np.ndarray, Float, Sequence[float]]]
    ground: str = "leaves"
    size: tuple[int, int] = (96, 144)
    fps: float = 24.0
    rate: int = 24_000
    channels: int = 1
    seconds: float = 3.5
    bed: str = "room"
    bed_db: float = -40.0
    """Level of what sounds beside the events, under the loudest 50 ms of these."""
    sway: float = 0.0
    light: float = 1.0
    grain: float = 1.5

    @property
    def times_s(self) -> Float:
        return np.arange(round(self.seconds * self.fps)) / self.fps

    @property
    def count(self) -> int:
        return round(len(self.times_s) / self.fps * self.rate)


def spread(rng: np.random.Generator, number: int, seconds: float, least: float = 0.22) -> list[float]:
    """Irregular times within a clip, `least` apart."""
    room = seconds - 0.9 - least * (number - 1)
    return (0.45 + np.sort(rng.uniform(0, room, number)) + least * np.arange(number)).tolist()


def _ground(rng: np.random.Generator, kind: Kind) -> Float:
    return stage.GROUNDS[kind.ground](rng, 3 * kind.size[0], 5 * kind.size[1])


def _film(rng: np.random.Generator, kind: Kind, draw: stage.Draw, camera=None, light=None) -> np.ndarray:
    sway = stage.handheld(rng, kind.sway)
    lit = light or (lambda t: 1.0)
    return stage.filmed(
        _ground(rng, kind),
        kind.size,
        kind.times_s,
        draw,
        camera or sway,
        lambda t: kind.light * lit(t),
        (rng, kind.grain),
    )


def _mixed(rng: np.random.Generator, kind: Kind, events: Float) -> Float:
    """The events over the bed, at the level that the family has."""
    beds = {
        "room": lambda: stage.room(rng, kind.count, kind.rate),
        "music": lambda: stage.music(rng, kind.count, kind.rate, rng.uniform(80, 130)),
        "beat": lambda: stage.music(rng, kind.count, kind.rate, rng.uniform(80, 130), 0.6),
        "rain": lambda: (
            0.7 * stage.band(rng, kind.count, kind.rate, 900, 8000) + stage.room(rng, kind.count, kind.rate)
        ),
        "hiss": lambda: rng.standard_normal(kind.count),
    }
    power = np.convolve(events**2, np.ones(kind.rate // 20) / (kind.rate // 20), "same")
    loudest = float(np.sqrt(power.max()))
    made = events + loudest * 10 ** (kind.bed_db / 20) * beds[kind.bed]()
    made += 3e-5 * loudest * rng.standard_normal(kind.count)
    return made / np.abs(made).max() * rng.uniform(0.3, 0.8)


def steps(rng, kind):
    """Somebody walks across: two legs that swing, a foot that lands at each event."""
    gap = rng.uniform(0.42, 0.6)
    events = [t + rng.normal(0, 0.03) for t in np.arange(0.4, kind.seconds - 0.25, gap)]
    height, width = (2 * side for side in kind.size)
    coat, legs = rng.uniform(30, 230, 3), rng.uniform(10, 90, 3)
    pan = rng.uniform(-0.05, 0.05)

    def draw(frame: Float, t: float) -> None:
        index = int(np.searchsorted(events, t))
        before = events[index - 1] if index else events[0] - gap
        after = events[index] if index < len(events) else events[-1] + gap
        part = float(np.clip((t - before) / (after - before), 0, 1))
        hip = np.array([(0.3 + 0.12 * t) * width, 0.55 * height - 0.012 * height * np.sin(np.pi * part)])
        swing = 0.16 * height
        lift = 0.05 * height * np.sin(np.pi * part) ** 0.8
        moving = np.add(hip, (swing * (2 * part - 1), 0.3 * height - lift))
        standing = np.add(hip, (swing * (1 - 2 * part), 0.3 * height))
        for foot, dark in ((moving, 1.0), (standing, 0.7)):
            stroke(frame, hip, foot, max(2, height // 22), legs * dark)
            oval(frame, np.add(foot, (0.015 * height, 0)), (0.035 * height, 0.014 * height), np.array([40.0, 25, 20]))
        oval(frame, hip - (0, 0.16 * height), (0.08 * height, 0.17 * height), coat)
        blob(frame, hip - (0, 0.38 * height), 0.06 * height, SKIN)

    video = _film(rng, kind, draw, lambda t: (pan * t, 0.0, 1.0))
    low = rng.uniform(150, 500)
    heights = rng.uniform(0.6, 1.0, len(events))
    sound = stage.burst(rng, kind.rate, low, rng.uniform(1500, 6000), 0.035)
    return video, stage.placed(sound, events, kind.count, kind.rate, heights), events


def _stick_angle(t: float, events: Sequence[float], raise_s: float) -> float:
    """0 on the skin, 1 raised: falls in 70 ms, bounces back slowly."""
    wait = min((event - t for event in events if event >= t), default=9.0)
    since = min((t - event for event in events if event <= t), default=9.0)
    down = min(1.0, wait / 0.07)
    up = min(1.0, since / raise_s)
    return min(down**0.7, up)


def strikes(number: int, pitch: tuple[float, float], decay: float, noise: float = 0.4):
    """A stick or hammer strikes a drum or board."""

    def make(rng, kind):
        events = spread(rng, number, kind.seconds)
        height, width = (2 * side for side in kind.size)
        skin, side = rng.uniform(120, 240, 3), rng.uniform(30, 160, 3)
        wood = np.array([190.0, 140, 80]) * rng.uniform(0.7, 1.2)
        at = np.array([rng.uniform(0.35, 0.65) * width, 0.72 * height])

        def draw(frame: Float, t: float) -> None:
            up = _stick_angle(t, events, 0.3)
            frame[int(at[1]) :, int(at[0] - 0.2 * height) : int(at[0] + 0.2 * height)] = side
            oval(frame, at, (0.2 * height, 0.06 * height), skin)
            hand = np.add(at, (0.42 * height, -0.2 * height - 0.05 * height * up))
            angle = np.pi * (0.86 + 0.24 * up)
            tip = hand + 0.45 * height * np.array([np.cos(angle), -np.sin(angle)])
            stroke(frame, np.add(hand, (0.2 * height, 0.1 * height)), hand, max(3, height // 12), SKIN)
            stroke(frame, hand, tip, max(2, height // 40), wood)
            blob(frame, tip, 0.03 * height, wood * 0.8)

        video = _film(rng, kind, draw)
        sound = stage.struck(rng, kind.rate, rng.uniform(*pitch), decay, noise)
        return video, stage.placed(sound, events, kind.count, kind.rate, rng.uniform(0.5, 1.0, number)), events

    return make


def bounces(balls: int, restitution: float):
    """Balls that fall and bounce until they lie."""

    def make(rng, kind):
        height, width = (2 * side for side in kind.size)
        floor, courses, events, heights = 0.85 * height, [], [], []
        for _ in range(balls):
            start, flight = rng.uniform(0.1, 0.5), rng.uniform(0.34, 0.5)
            hits, t = [start], start
            while flight > 0.12 and t + 2 * flight * restitution < kind.seconds:
                flight *= restitution
                t += 2 * flight
                hits.append(t)
            courses.append((hits, rng.uniform(0.15, 0.85), rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.1)))
            events += hits
            heights += (restitution ** np.arange(len(hits))).tolist()
        colours = rng.uniform(30, 240, (balls, 3))

        def draw(frame: Float, t: float) -> None:
            for (hits, x, drift, radius), colour in zip(courses, colours, strict=True):
                index = int(np.searchsorted(hits, t))
                if index == 0:
                    left = min(0.3, hits[0] - t)
                    up = 3.2 * left * (0.6 - left)
                elif index < len(hits):
                    before, after = hits[index - 1], hits[index]
                    up = 3.2 * (t - before) * (after - t)
                else:
                    up = 0.0
                place = (width * (x + drift * t), floor - height * (up + radius))
                blob(frame, place, radius * height, colour)
                blob(
                    frame,
                    (place[0] - 0.3 * radius * height, place[1] - 0.3 * radius * height),
                    0.3 * radius * height,
                    np.minimum(255, colour * 1.5),
                )

        video = _film(rng, kind, draw)
        sound = stage.struck(rng, kind.rate, rng.uniform(120, 900), rng.uniform(0.03, 0.12), 0.5)
        return video, stage.placed(sound, events, kind.count, kind.rate, np.array(heights)), sorted(events)

    return make


def speech(zoom: float):
    """A face whose mouth opens with each syllable."""

    def make(rng, kind):
        syllables, t = [], 0.35
        while t < kind.seconds - 0.45:
            long = rng.uniform(0.13, 0.28)
            syllables.append((t, long))
            t += long + (rng.uniform(0.02, 0.12) if rng.uniform() < 0.65 else rng.uniform(0.25, 0.5))
        height, width = (2 * side for side in kind.size)
        skin, hair = SKIN * rng.uniform(0.6, 1.1), rng.uniform(20, 120, 3)
        wide = {start: rng.uniform(0.5, 1.0) for start, _ in syllables}

        def draw(frame: Float, t: float) -> None:
            nod = 0.01 * height * np.sin(2 * np.pi * 0.6 * t)
            grow = 1.0 + zoom * t
            at = np.array([0.5 * width, 0.52 * height + nod])
            oval(frame, at - (0, 0.1 * height), (0.26 * height * grow, 0.32 * height * grow), hair)
            oval(frame, at, (0.22 * height * grow, 0.3 * height * grow), skin)
            for sign in (-1, 1):
                blob(
                    frame,
                    np.add(at, (sign * 0.09 * height * grow, -0.07 * height * grow)),
                    0.022 * height,
                    np.array([30.0, 25, 25]),
                )
            open_ = max(wide[a] * stage.opening(np.array([t]), [(a, d)])[0] for a, d in syllables)
            mouth = np.add(at, (0, 0.15 * height * grow))
            oval(
                frame,
                mouth,
                (0.075 * height * grow, (0.012 + 0.055 * open_) * height * grow),
                np.array([150.0, 60, 60]),
            )
            oval(
                frame, mouth, (0.06 * height * grow, (0.003 + 0.045 * open_) * height * grow), np.array([50.0, 15, 20])
            )

        video = _film(rng, kind, draw)
        return video, stage.talk(rng, kind.count, kind.rate, syllables), [start for start, _ in syllables]

    return make


def flashes(rng, kind):
    """Somebody takes pictures: local flashes of one to two frames, and shutters."""
    events = spread(rng, int(rng.integers(3, 6)), kind.seconds, 0.4)
    height, width = (2 * side for side in kind.size)
    at = np.array([rng.uniform(0.3, 0.7) * width, rng.uniform(0.3, 0.6) * height])

    def draw(frame: Float, t: float) -> None:
        oval(frame, np.add(at, (0, 0.3 * height)), (0.12 * height, 0.25 * height), np.array([40.0, 45, 70]))
        blob(frame, at, 0.07 * height, SKIN)
        since = min((t - event for event in events if t >= event), default=9.0)
        if since < 0.07:
            rows, columns = np.indices(frame.shape[:2])
            glow = np.exp(-((rows - at[1]) ** 2 + (columns - at[0]) ** 2) / (2 * (0.12 * height) ** 2))
            frame += (255 * np.exp(-since / 0.04) * glow)[..., None]

    video = _film(rng, kind, draw, lambda t: (0.03 * t, 0.0, 1.0))
    sound = stage.burst(rng, kind.rate, 1500, 9000, 0.02)
    return video, stage.placed(sound, events, kind.count, kind.rate, np.ones(len(events))), events


def switches(rng, kind):
    """Lamps that are switched on and off with a click."""
    events = spread(rng, int(rng.integers(4, 7)), kind.seconds, 0.35)
    height, width = (2 * side for side in kind.size)
    lamps = rng.uniform((0.15, 0.2), (0.85, 0.7), (3, 2)) * (width, height)
    which = rng.integers(0, 3, len(events))

    def draw(frame: Float, t: float) -> None:
        rows, columns = np.indices(frame.shape[:2])
        for lamp, place in enumerate(lamps):
            lit = sum(1 for event, one in zip(events, which, strict=True) if one == lamp and event <= t) % 2
            blob(frame, place, 0.045 * height, np.array([255.0, 240, 190]) if lit else np.array([60.0, 60, 55]))
            if lit:
                glow = np.exp(-np.hypot(rows - place[1], columns - place[0]) / (0.13 * height))
                frame += (90 * glow)[..., None]

    video = _film(rng, kind, draw)
    sound = stage.burst(rng, kind.rate, 800, 7000, 0.012)
    return video, stage.placed(sound, events, kind.count, kind.rate, np.ones(len(events))), events


def claps(rng, kind):
    """Two hands that meet."""
    events = spread(rng, int(rng.integers(4, 8)), kind.seconds)
    height, width = (2 * side for side in kind.size)
    at = np.array([0.5 * width, 0.55 * height])

    def draw(frame: Float, t: float) -> None:
        oval(frame, at, (0.2 * height, 0.35 * height), np.array([70.0, 90, 140]))
        apart = _stick_angle(t, events, 0.18)
        for sign in (-1, 1):
            hand = np.add(at, (sign * (0.03 + 0.16 * apart) * height, 0.03 * height * apart))
            stroke(
                frame,
                np.add(at, (sign * 0.28 * height, 0.25 * height)),
                hand,
                max(3, height // 14),
                np.array([60.0, 80, 130]),
            )
            oval(frame, hand, (0.035 * height, 0.07 * height), SKIN)

    video = _film(rng, kind, draw)
    sound = stage.burst(rng, kind.rate, 700, 5000, 0.02)
    return video, stage.placed(sound, events, kind.count, kind.rate, rng.uniform(0.6, 1, len(events))), events


def keys(rng, kind):
    """Fingers press keys; each has its tone."""
    events = spread(rng, int(rng.integers(6, 10)), kind.seconds, 0.18)
    which = rng.integers(0, 6, len(events))
    height, width = (2 * side for side in kind.size)
    sounds = [stage.struck(rng, kind.rate, 262 * 2 ** (step / 12), 0.25, 0.1) for step in (0, 2, 4, 7, 9, 12)]

    def draw(frame: Float, t: float) -> None:
        for key in range(6):
            mine = [event for event, one in zip(events, which, strict=True) if one == key]
            up = _stick_angle(t, mine, 0.22)
            x = (0.2 + 0.1 * key) * width
            down = 0.0 if up > 0.1 else 0.03 * height
            frame[int(0.6 * height + down) : int(0.9 * height), int(x) : int(x + 0.09 * width)] = 235 - 40 * (down > 0)
            tip = np.array([x + 0.045 * width, (0.6 - 0.1 * up) * height])
            stroke(frame, tip - (0, 0.3 * height), tip, max(3, height // 18), SKIN * (0.9 + 0.02 * key))

    video = _film(rng, kind, draw)
    made = np.zeros(kind.count)
    for event, key in zip(events, which, strict=True):
        made += stage.placed(sounds[key], [event], kind.count, kind.rate, rng.uniform(0.6, 1.0, 1))
    return video, made, events


def falls(rng, kind):
    """A box falls once, and dust rises."""
    (event,) = spread(rng, 1, kind.seconds)
    height, width = (2 * side for side in kind.size)
    colour, x = rng.uniform(40, 220, 3), rng.uniform(0.3, 0.7) * width

    def draw(frame: Float, t: float) -> None:
        up = 1.2 * (event - t) * (1.0 + 2.5 * (event - t)) if t < event else 0.0
        top, side = 0.62 * height - up * height, 0.2 * height
        if top > -side:
            frame[max(0, int(top)) : int(top + side), int(x - side / 2) : int(x + side / 2)] = colour
        if t > event:
            wide = 0.35 * height * (1 - np.exp(-(t - event) / 0.25))
            for sign in (-1, 1):
                oval(
                    frame,
                    (x + sign * wide, 0.8 * height),
                    (0.12 * height * np.exp(-(t - event)), 0.05 * height),
                    np.array([170.0, 160, 140]),
                )

    video = _film(rng, kind, draw)
    sound = stage.struck(rng, kind.rate, rng.uniform(60, 160), 0.12, 1.2)
    return video, stage.placed(sound, [event], kind.count, kind.rate, np.ones(1)), [event]


def rain(rng, kind):
    """Streaks that fall all over, and a steady rush."""
    height, width = (2 * side for side in kind.size)
    drops = rng.uniform((0, 0, 1.2), (1, 1, 2.2), (170, 3))

    def draw(frame: Float, t: float) -> None:
        for x, y, speed in drops:
            place = np.array([x * width, (y + speed * t) % 1.0 * height])
            stroke(frame, place, np.add(place, (0.01 * height, 0.06 * height)), 1, np.array([215.0, 220, 225]))

    made = 0.6 * stage.band(rng, kind.count, kind.rate, 700, 9000) + stage.room(rng, kind.count, kind.rate)
    return _film(rng, kind, draw), made, ()


def waves(rng, kind):
    """Swell on water, and surf that comes and goes slowly."""
    height, width = (2 * side for side in kind.size)
    rows, columns = np.indices((height, width)) / height

    def draw(frame: Float, t: float) -> None:
        swell = sum(
            np.sin(2 * np.pi * (k * 1.7 * rows + 1.1 * k * columns - 0.35 * k**0.5 * t) + k) / k
            for k in (1, 2, 3, 5, 8)
        )
        lower = rows > 0.4
        frame[lower] = (np.array([60.0, 110, 130]) + 28 * swell[..., None])[lower] + 0.12 * frame[lower]

    clock = np.arange(kind.count) / kind.rate
    slow = 0.55 + 0.45 * np.sin(2 * np.pi * clock / rng.uniform(2.5, 4.0) + rng.uniform(0, 6))
    made = slow * stage.band(rng, kind.count, kind.rate, 300, 5000) + 0.8 * stage.room(rng, kind.count, kind.rate)
    return _film(rng, kind, draw), made, ()


def drive(rng, kind):
    """A camera that travels past things, and an engine."""
    speed, zoom = rng.uniform(0.15, 0.4), rng.uniform(0.0, 0.06)
    clock = np.arange(kind.count) / kind.rate
    phase = 2 * np.pi * np.cumsum(70 + 6 * np.sin(2 * np.pi * 0.2 * clock)) / kind.rate
    engine = sum(np.sin(k * phase + k * k) / k for k in range(1, 30)) + 0.5 * stage.band(
        rng, kind.count, kind.rate, 100, 3000
    )
    video = _film(
        rng, kind, lambda frame, t: None, lambda t: (speed * (t - kind.seconds / 2), 0.02 * np.sin(t), 1 + zoom * t)
    )
    return video, engine, ()


def crowd(rng, kind):
    """Discs that drift past one another, and a murmur."""
    height, width = (2 * side for side in kind.size)
    starts, speeds = rng.uniform(0, 1, (14, 2)) * (width, height), rng.normal(0, 0.09, (14, 2)) * height
    radii, colours = rng.uniform(0.04, 0.12, 14) * height, rng.uniform(20, 240, (14, 3))

    def draw(frame: Float, t: float) -> None:
        for start, speed, radius, colour in zip(starts, speeds, radii, colours, strict=True):
            place = start + speed * t + 0.02 * height * np.sin(2 * t + radius)
            blob(frame, place, radius, colour)
            blob(frame, place - 0.3 * radius, 0.35 * radius, np.minimum(255, 1.4 * colour))

    made = np.zeros(kind.count)
    for _ in range(5):
        syllables = [
            (t, rng.uniform(0.12, 0.3))
            for t in np.arange(rng.uniform(0, 0.3), kind.seconds - 0.3, rng.uniform(0.2, 0.33))
        ]
        made += stage.talk(rng, kind.count, kind.rate, syllables)
    return _film(rng, kind, draw, lambda t: (0, 0, 1 + 0.04 * t)), made, ()


TUNED: dict[str, Kind] = {
    "steps": Kind(steps, "grass", channels=2, bed_db=-32),
    "hit": Kind(strikes(1, (120, 300), 0.15), "bricks", fps=25, rate=48_000),
    "drum_music": Kind(strikes(6, (90, 220), 0.15), "leaves", (128, 192), bed="music", bed_db=-18),
    "bounce_music": Kind(bounces(1, 0.8), "photo", bed="music", bed_db=-18, sway=0.01),
    "speech": Kind(speech(0.0), "sky", (144, 192), rate=16_000, bed_db=-38),
    "flash": Kind(flashes, "leaves", rate=44_100, bed_db=-28, light=0.6),
    "claps": Kind(claps, "page", fps=30, rate=44_100, channels=2),
    "drop": Kind(falls, "gravel", bed_db=-36),
    "rain": Kind(rain, "night", rate=48_000, bed_db=-60, grain=2.5),
    "drive": Kind(drive, "checker", (96, 160), bed_db=-60),
}
HELD_OUT: dict[str, Kind] = {
    "night_steps": Kind(steps, "night", fps=25, rate=16_000, bed="rain", bed_db=-26, grain=3.0),
    "gavel": Kind(strikes(1, (400, 900), 0.05, 1.0), "sky", rate=16_000, bed="hiss", bed_db=-34),
    "hammer": Kind(strikes(7, (700, 1600), 0.05, 0.8), "gravel", fps=30, rate=44_100, sway=0.015, bed_db=-34),
    "keys_music": Kind(keys, "checker", (112, 160), rate=48_000, channels=2, bed="music", bed_db=-18),
    "bounce_beat": Kind(bounces(2, 0.82), "grass", (96, 160), bed="beat", bed_db=-20, sway=0.01),
    "speech_zoom": Kind(speech(0.04), "leaves", (128, 128), fps=25, rate=24_000, bed="music", bed_db=-24),
    "switches": Kind(switches, "bricks", rate=24_000, bed_db=-30, light=0.7),
    "big": Kind(bounces(1, 0.75), "leaves", (256, 384), rate=48_000, channels=2, bed="rain", bed_db=-30),
    "waves": Kind(waves, "sky", fps=25, rate=44_100, bed_db=-60, channels=2),
    "crowd": Kind(crowd, "toys", rate=24_000, bed_db=-60),
}
SMALL = ("hit", "bounce_music", "hammer", "waves")
"""Shown at 32 x 32, too."""


@cache
def staged(family: str, seed: int = 0) -> Staged:
    """A clip of a family, `world` among them: read-only."""
    if family.startswith("world"):
        return _of_the_world(family, seed)
    kind = (TUNED | HELD_OUT)[family]
    rng = np.random.default_rng([seed, *family.encode()])
    video, events, times = kind.make(rng, kind)
    sound = _mixed(rng, kind, events)
    audio = np.stack([sound] * kind.channels) if kind.channels == 1 else np.stack([sound, 0.8 * np.roll(sound, 9)])
    clip = Clip(video, kind.fps, audio.astype(np.float32), kind.rate)
    video.setflags(write=False)
    return Staged(f"{family}.{seed}", clip, tuple(times))


def small(of: Staged) -> Staged:
    """As a small model would make it: 32 x 32 at half the frame rate, 16 kHz or less."""
    clip = of.clip
    video = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in clip.video_FHWC[::2]])
    return Staged(f"small_{of.name}", Clip(video, clip.fps / 2, clip.audio_CS[:1], clip.sample_rate), of.events_s)


def _of_the_world(family: str, seed: int) -> Staged:
    prompt = ALL_PROMPTS[(2 * 7 * seed + (family == "world_b")) % len(ALL_PROMPTS)]
    made = make_clip(prompt, 5, seed)
    clip = Clip(made.video, 12.0, np.asarray(made.audio, np.float32)[None], 16_000)
    return Staged(f"{family}.{seed}", clip, tuple(float(t) for t in made.contacts))
