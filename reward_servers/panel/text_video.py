"""Text-video agreement by a closed vocabulary: what stands out has the colour and the motion that the text names.

Reads `prompt_v`. Each known word is a predicate with graded evidence in 0..1; the value is the mean over the kinds of
predicate that the text names (components), colour counting twice:

* `colour` (red, orange, yellow, green, cyan, blue, purple, pink): share of the clip's coloured mass whose hue is the
  named one, against a small constant mass that stands for "nothing coloured there". Only what stands out counts: a
  pixel's chroma as far as it differs from its frame's median colour, more where it changes over time, and less as the
  named colour covers a large part of the frame. So flooding the frame with the colour earns nothing.
* `motion`: whether the coloured thing travels up and down (bouncing, falling, ...), sideways (sliding, crossing, ...)
  or not at all (still, resting). Where the coloured mass is scattered, dense flow beside the camera's tells the same.
* `camera` (pan, handheld, static camera, zoom in, zoom out): median flow in frame heights a second, and its divergence.
* `direction` (to the left, rightwards): sign of the fastest flow beside the camera's. `speed` (fast, slow): its size.
* `light` (dark, dusk, bright, sunny): mean brightness. `flash` (flashes, "three times"): sudden rises of it.

Range [0, 1], higher is better. A prompt without a known word is invalid (`unverifiable`). Limits: no shapes, no things,
no people; colours of a small thing among many others count by their share.
Known hacks: a plain blob of the colour that moves the named way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from accord.world.measure import saturation
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.panel.prompt_rules import counted, lexicon, logistic, share, wanted_count, words
from reward_servers.signals import Float, Pixels, luma

SHORT_SIDE, FLOW_SIDE, FLOW_PAIRS = 32, 80, 16
HUES: dict[str, float] = {
    "red": 0.0, "orange": 30.0, "yellow": 55.0, "green": 125.0, "cyan": 180.0, "blue": 235.0, "purple": 280.0,
    "pink": 330.0,
}  # fmt: skip
_HUE_EDGES = np.array([(low + high) / 2.0 for low, high in pairwise([*HUES.values(), 360.0])])
"""Where one hue ends and the next begins; what lies beyond the last edge is red again."""
MOTIONS: dict[str, str] = lexicon(
    {
        "vertical": """
        bouncing bounce bounces falling fall falls jumping jump jumps dropping drop drops rising rise rises climbing
        climbs""",
        "horizontal": """
        sliding slide slides rolling roll rolls gliding glide glides crossing cross crosses""",
        "none": "still resting motionless",
    }
)
TRAVELS = {*MOTIONS, *lexicon({"": "moves moving runs running flies flying drives walks walking travels"})}
CAMERA_WORDS = lexicon(
    {
        "moving": "pan pans panning tracking handheld shaky dolly moves moving",
        "fixed": "static fixed locked steady still",
    }
)
ZOOM = frozenset(("zoom", "zooms", "zooming"))
ALWAYS_CAMERA = frozenset(("pan", "pans", "panning", "handheld", "dolly"))
"""Words that tell of the camera even where it is not named."""
LIGHT: dict[str, str] = lexicon({"dark": "dark dim night dusk gloomy", "bright": "bright sunny daylight brightly"})
FLASH = frozenset(("flash", "flashes", "flashing", "lightning", "strobe"))
SPEEDS: dict[str, float] = lexicon({1.0: "fast quickly rapidly quick rapid", -1.0: "slow slowly"})
SIDES: dict[str, float] = lexicon({-1.0: "left leftwards", 1.0: "right rightwards"})

WEIGHTS = {"colour": 2.0}
DULL = 0.25
"""Chroma (max - min of RGB), and its distance from the frame's median colour, below which nothing stands out."""
ABSENT = 0.004
"""Coloured mass, as a share of the frame, that an absent object is given credit for."""
TRAVEL = 0.06
"""Spread of position, as a share of the frame, at which motion counts half."""
STILL_WEIGHT = 0.5
"""What a coloured pixel that never changes counts, against one that does."""
FLOODED = 0.35
"""Share of the frame in the named colour from which it counts as ground rather than as a thing."""
CAMERA = 0.03
"""Speed of the camera, in frame heights a second, at which it counts half as moving."""
ZOOMING = 0.01
"""Growth a second, of which as much again doubles the odds of a zoom."""


class TextVideoModel(RewardModel):
    """Closed-vocabulary verifier of colour, motion, camera and light words."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: the kinds of predicate that the prompt names."""
        checks = predicates(words(prompt.prompt_v))
        if not checks:
            return Score.invalid("unverifiable")
        seen = Seen(clip)
        parts = {name: check(seen) for name, check in checks.items()}
        return Score(share(parts, WEIGHTS), parts)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> list[Curve]:
        """Brightness, where the coloured mass is, and its share of the frame."""
        seen = Seen(clip)
        times = np.asarray(np.arange(len(seen.frames)) / clip.fps, dtype=np.float64)
        track = seen.track
        return [
            Curve("brightness", times, seen.light_F),
            Curve("coloured mass", times, np.asarray(seen.mass_FHW.mean(axis=(1, 2)))),
            Curve("across", times, track[:, 0], "of the width"),
            Curve("down", times, track[:, 1], "of the height"),
        ]


def _small(video_FHWC: Pixels) -> Pixels:
    """Area means, so that the short side is 32; a video that is small enough already is returned as it is."""
    height, width = video_FHWC.shape[1:3]
    scale = SHORT_SIDE / min(height, width)
    if scale > 0.5:
        return video_FHWC
    size = (round(width * scale), round(height * scale))
    cv2.setNumThreads(1)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in video_FHWC])


class Seen:
    """Measurements of one clip's picture that words can be held against; each is made when it is asked for."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.frames: Pixels = _small(clip.video_FHWC)

    @cached_property
    def chroma_FHW(self) -> Float:
        """Maximum minus minimum of RGB, 0..1."""
        return np.asarray(saturation(self.frames))

    @cached_property
    def light_F(self) -> Float:
        """Mean brightness of each frame, 0..1."""
        return np.asarray(luma(self.frames).mean(axis=(1, 2)))

    @cached_property
    def mass_FHW(self) -> Float:
        """Chroma of what stands out from its frame's median colour, less where nothing ever changes."""
        pixels = self.frames.astype(np.float64) / 255.0
        chroma = pixels - pixels.mean(axis=3, keepdims=True)
        apart = np.ptp(chroma - np.median(chroma, axis=(1, 2), keepdims=True), axis=3)
        colour = np.minimum(self.chroma_FHW, apart)
        change = np.ptp(pixels.mean(axis=3), axis=0) + np.ptp(chroma, axis=0).max(axis=2)
        lively = STILL_WEIGHT + (1.0 - STILL_WEIGHT) * np.minimum(change / 0.3, 1.0)
        return np.asarray(np.where(colour > DULL, colour, 0.0) * lively)

    @cached_property
    def hue_FHW(self) -> np.ndarray:
        """Place of each pixel's hue in `HUES`."""
        red, green, blue = (self.frames[..., channel].astype(np.float64) for channel in range(3))
        hue = np.degrees(np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) % 360.0
        return np.asarray(np.searchsorted(_HUE_EDGES, hue) % len(HUES))

    def named_share(self, name: str) -> float:
        """Mass of the named hue over all mass plus that of an absent object, mean over the frames."""
        named = self.hue_FHW == list(HUES).index(name)
        covered = float((named & (self.chroma_FHW > DULL)).mean())
        ratio = (self.mass_FHW * named).mean(axis=(1, 2)) / (self.mass_FHW.mean(axis=(1, 2)) + ABSENT)
        return float(ratio.mean()) / (1.0 + (covered / FLOODED) ** 6)

    @cached_property
    def track(self) -> Float:
        """Centre of the coloured mass as shares of width and height [F, 2]; NaN where there is next to none."""
        weights = self.mass_FHW
        total = weights.sum(axis=(1, 2))
        height, width = weights.shape[1:]
        across = (weights.sum(axis=1) @ (np.arange(width) + 0.5)) / np.maximum(total, 1e-9) / width
        down = (weights.sum(axis=2) @ (np.arange(height) + 0.5)) / np.maximum(total, 1e-9) / height
        track = np.stack([across, down], axis=1)
        track[total / (height * width) < ABSENT / 2.0] = np.nan
        return np.asarray(track)

    @cached_property
    def gathered(self) -> float:
        """Whether the coloured mass is one thing: 1 at a point, 0.5 where it spreads over a sixth of the frame."""
        weights = self.mass_FHW
        total = weights.sum(axis=(1, 2))
        if not total.any():
            return 1.0
        height, width = weights.shape[1:]
        spread = 0.0
        for axis, size in ((1, width), (2, height)):
            line = weights.sum(axis=axis) / np.maximum(total, 1e-9)[:, None]
            place = (np.arange(size) + 0.5) / size
            spread = spread + (line @ place**2 - (line @ place) ** 2)
        return float(1.0 / (1.0 + (np.sqrt(np.average(spread, weights=total)) / 0.17) ** 4))

    def motion(self, kind: str) -> float:
        """How far the coloured thing travels the named way, or dense flow where there is no one thing."""
        alone = self.gathered
        followed = self._travel(kind)
        return followed if alone > 0.9 else alone * followed + (1.0 - alone) * self._streaming(kind)

    def _travel(self, kind: str) -> float:
        seen = ~np.isnan(self.track[:, 0])
        if seen.sum() < 2:
            return 0.0
        across, down = self.track[seen].var(axis=0)
        presence = float(seen.mean())
        if kind == "none":
            return presence * float(np.exp(-(down + across) / TRAVEL**2))
        along, aside = (down, across) if kind == "vertical" else (across, down)
        return presence * float(along / (along + aside + TRAVEL**2 / 4.0))

    def _streaming(self, kind: str) -> float:
        across, down = np.abs(self.fastest).mean(axis=0) ** 2
        floor = 0.05**2
        if kind == "none":
            return float(floor / (floor + across + down))
        along, aside = (down, across) if kind == "vertical" else (across, down)
        return float(along / (along + aside + floor))

    @cached_property
    def flow(self) -> tuple[Float, Float, Float]:
        """(camera [P, 2], growth [P], fastest [P, 2]) of pairs of frames spread over the clip, in heights a second."""
        cv2.setNumThreads(1)
        video = self.clip.video_FHWC
        height, width = video.shape[1:3]
        scale = FLOW_SIDE / min(height, width)
        size = (max(8, round(width * scale)), max(8, round(height * scale)))
        rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
        offset = np.stack([columns - size[0] / 2.0, rows - size[1] / 2.0], axis=-1)
        per_second = float(self.clip.fps) / min(size)
        found = []
        for start in np.unique(np.linspace(0, len(video) - 2, FLOW_PAIRS).round().astype(int)):
            grey = [
                cv2.cvtColor(cv2.resize(video[place], size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
                for place in (start, start + 1)
            ]
            still = np.zeros((*grey[0].shape, 2), np.float32)
            flow = np.asarray(
                cv2.calcOpticalFlowFarneback(grey[0], grey[1], still, 0.5, 3, 13, 2, 5, 1.1, 0), dtype=np.float64
            )
            camera = np.median(flow, axis=(0, 1))
            outwards = ((flow - camera) * offset).sum(axis=-1)
            growth = float(np.median(outwards) / np.median(np.square(offset).sum(axis=-1)))
            rest = (flow - camera - growth * offset).reshape(-1, 2)
            speed = np.hypot(rest[:, 0], rest[:, 1])
            fastest = rest[speed >= np.quantile(speed, 0.97)].mean(axis=0)
            found.append((camera * per_second, growth * float(self.clip.fps), fastest * per_second))
        camera_P2, growth_P, fastest_P2 = (np.asarray(part) for part in zip(*found, strict=True))
        return camera_P2, growth_P, fastest_P2

    @property
    def fastest(self) -> Float:
        """Mean flow of the fastest 3 % of the frame beside the camera's [P, 2]."""
        return self.flow[2]

    @cached_property
    def camera_moves(self) -> float:
        """Evidence of a moving camera."""
        speed = float(np.hypot(*self.flow[0].T).mean())
        return speed / (speed + CAMERA)

    @cached_property
    def flashes(self) -> int:
        """Sudden rises of the brightness by 0.03 or more within two frames."""
        rise = np.maximum(self.light_F[2:] - self.light_F[:-2], 0.0)
        high = rise > max(0.03, 3.0 * float(np.quantile(rise, 0.75)))
        return int((high[1:] & ~high[:-1]).sum() + high[0]) if len(high) else 0


def predicates(found: list[str]) -> dict[str, Callable[[Seen], float]]:
    """What can be checked of a text's words, by name."""
    checks: dict[str, Callable[[Seen], float]] = {}
    colours = list(dict.fromkeys(word for word in found if word in HUES))
    if colours:
        checks["colour"] = lambda seen: float(np.mean([seen.named_share(name) for name in colours]))
    motions = [MOTIONS[word] for word in found if word in MOTIONS and not _of_camera(found, word)]
    if motions:
        checks["motion"] = lambda seen: seen.motion(motions[0])
    camera = _camera(found)
    if camera is not None:
        checks["camera"] = camera
    checks.update(_course(found))
    light = [LIGHT[word] for word in found if word in LIGHT]
    if light:
        sign = 1.0 if light[0] == "bright" else -1.0
        checks["light"] = lambda seen: logistic(sign * (float(seen.light_F.mean()) - 0.42) / 0.08)
    wanted = wanted_count(found)
    if wanted is not None:
        checks["flash"] = lambda seen: counted(wanted, seen.flashes)
    elif FLASH & set(found):
        checks["flash"] = lambda seen: seen.flashes / (seen.flashes + 1.0)
    return checks


def _of_camera(found: list[str], word: str) -> bool:
    return found[found.index(word) + 1 :][:1] == ["camera"]


def _camera(found: list[str]) -> Callable[[Seen], float] | None:
    """What the text says of the camera, as a check."""
    told = set(found)
    if told & ZOOM:
        sign = -1.0 if "out" in told else 1.0
        return lambda seen: logistic(sign * float(seen.flow[1].mean()) / ZOOMING - 1.0)
    near = {word for place, word in enumerate(found) if "camera" in found[max(0, place - 2) : place + 2]}
    named = {CAMERA_WORDS[word] for word in near | (told & ALWAYS_CAMERA) if word in CAMERA_WORDS}
    if named == {"moving"}:
        return lambda seen: seen.camera_moves
    return (lambda seen: 1.0 - seen.camera_moves) if named == {"fixed"} else None


def _course(found: list[str]) -> Mapping[str, Callable[[Seen], float]]:
    """Direction and speed of what moves. Speed words beside a zoom are the camera's and are left out."""
    checks: dict[str, Callable[[Seen], float]] = {}
    told = set(found)
    aims = [
        SIDES[word]
        for place, word in enumerate(found)
        if word in SIDES and (word.endswith("wards") or "to" in found[max(0, place - 2) : place])
    ]
    if aims and told & TRAVELS:
        checks["direction"] = lambda seen: logistic(8.0 * aims[-1] * _mean_course(seen))
    speeds = [SPEEDS[word] for word in found if word in SPEEDS]
    if speeds and not told & ZOOM:
        checks["speed"] = lambda seen: logistic(speeds[0] * 2.0 * (np.log2(_speed(seen) + 1e-3) + 1.0))
    return checks


def _speed(seen: Seen) -> float:
    return float(np.hypot(*seen.fastest.T).mean())


def _mean_course(seen: Seen) -> float:
    """Mean sideways speed of the fastest parts over their speed, -1..1 (right)."""
    return float(seen.fastest[:, 0].mean() / (np.abs(seen.fastest).mean() + 0.02))
