"""A stage for clips drawn by code: grounds, a camera before them, and sounds; everything follows from a seed.

Grounds are float32 [H, W, 3] in 0..255, wrap around nowhere and are larger than the frame; sounds are float64 [S].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from scipy.signal import butter, sosfilt

Float = np.ndarray
Rng = np.random.Generator
Draw = Callable[[Float, float], None]
SUB = 4
"""Bits of sub-pixel places in cv2's drawing."""


# ---------------------------------------------------------------- grounds


def leaves(rng: Rng, height: int, width: int, vivid: float = 0.5) -> Float:
    """Discs of all sizes over one another: edges and textures as natural pictures have them (dead leaves)."""
    made = np.full((height, width, 3), 120.0, np.float32)
    size = min(height, width)
    for radius in np.sort(size * 0.02 / np.sqrt(rng.uniform(0.004, 1.0, 700)))[::-1]:
        grey = rng.uniform(30, 220)
        colour = np.clip(grey + vivid * rng.normal(0, 60, 3), 5, 250)
        blob(made, (rng.uniform(0, width), rng.uniform(0, height)), radius, colour)
    return made


def gravel(rng: Rng, height: int, width: int) -> Float:
    """Small stones with light and shade: nearly as fine as noise."""
    plane = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 1.2)
    plane = (
        plane / plane.std()
        + 0.5 * cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 12) * 25
    )
    return np.clip(125 + 34 * plane[..., None] * np.array([1.0, 0.97, 0.9]), 0, 255).astype(np.float32)


def grass(rng: Rng, height: int, width: int) -> Float:
    """Thin upright strokes of many greens."""
    made = np.full((height, width, 3), (40.0, 70.0, 30.0), np.float32)
    for _ in range(height * width // 60):
        x, y, long = rng.uniform(0, width), rng.uniform(0, height * 1.1), rng.uniform(0.03, 0.12) * height
        light = rng.uniform(0.4, 1.3)
        stroke(made, (x, y), (x + rng.normal(0, 0.2) * long, y - long), 1, np.array([90, 150, 50]) * light)
    return made


def bricks(rng: Rng, height: int, width: int) -> Float:
    made = np.full((height, width, 3), (150.0, 145.0, 138.0), np.float32)
    tall, wide = max(4, height // 12), max(8, height // 5)
    for row in range(height // tall + 1):
        for column in range(-1, width // wide + 1):
            x = column * wide + (row % 2) * wide // 2
            colour = np.array([150, 80, 62]) * rng.uniform(0.7, 1.2)
            made[row * tall + 1 : (row + 1) * tall, max(0, x + 1) : max(0, x + wide)] = colour
    grain = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 0.8)
    return np.clip(made + 18 * grain[..., None], 0, 255)


def page(rng: Rng, height: int, width: int) -> Float:
    """Rows of dark marks on paper, like text."""
    made = np.full((height, width, 3), (235.0, 232.0, 224.0), np.float32)
    tall = max(6, height // 14)
    for top in range(tall, height - tall, round(1.6 * tall)):
        x = tall
        while x < width - tall:
            if rng.uniform() > 0.18:
                for _ in range(2):
                    ends = rng.uniform(0, 1, (2, 2)) * (0.6 * tall, tall) + (x, top)
                    stroke(made, tuple(ends[0]), tuple(ends[1]), max(1, tall // 8), np.array([30.0, 30.0, 36.0]))
            x += round(0.8 * tall)
    return made


def checker(rng: Rng, height: int, width: int) -> Float:
    side = max(5, height // 10)
    rows, columns = np.indices((height, width)) // side
    board = np.where((rows + columns) % 2, 200.0, 60.0)
    tint = np.array([1.0, 0.92, 0.8]) * (1.0 - 0.3 * np.linspace(0, 1, width))[:, None]
    return (board[..., None] * tint).astype(np.float32)


def sky(rng: Rng, height: int, width: int) -> Float:
    """A gradient with soft clouds above a skyline."""
    soft = cv2.resize(rng.standard_normal((5, 9)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    down = np.linspace(0, 1, height)[:, None]
    made = np.stack([110 + 90 * down + 16 * soft, 150 + 60 * down + 14 * soft, 215 + 10 * down + 8 * soft], axis=-1)
    x = 0
    while x < width:
        wide, top = rng.integers(width // 30 + 2, width // 10 + 4), rng.integers(6 * height // 10, 9 * height // 10)
        made[top:, x : x + wide] = rng.uniform(30, 110) * np.array([1.0, 0.95, 0.9])
        made[top + 3 :: 7, x + 2 : x + wide - 1 : 5] = (220, 200, 120)
        x += wide
    return np.clip(made, 0, 255).astype(np.float32)


def photo(rng: Rng, height: int, width: int, slope: float = 1.3) -> Float:
    """Noise with the spectrum of photographs, and their skew."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    frequency[0, 0] = 1.0
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency**slope).real for _ in range(4)]
    grey, *tints = (plane / plane.std() for plane in planes)
    return np.clip(np.stack([112 + 40 * grey + 16 * tint for tint in tints], axis=-1), 0, 255).astype(np.float32)


def night(rng: Rng, height: int, width: int) -> Float:
    """A dark street with lamps and their glow."""
    made = 0.18 * leaves(rng, height, width, 0.3) + 6
    for _ in range(9):
        centre, warm = (rng.uniform(0, width), rng.uniform(0, 0.7 * height)), np.array([1.0, 0.85, 0.55])
        rows, columns = np.indices((height, width))
        glow = np.exp(-np.hypot(rows - centre[1], columns - centre[0]) / (0.06 * height))
        made += (120 * glow)[..., None] * warm
        blob(made, centre, 0.015 * height, 245 * warm)
    return np.clip(made, 0, 255).astype(np.float32)


GROUNDS = {
    "leaves": leaves,
    "gravel": gravel,
    "grass": grass,
    "bricks": bricks,
    "page": page,
    "checker": checker,
    "sky": sky,
    "photo": photo,
    "night": night,
    "toys": lambda rng, height, width: leaves(rng, height, width, 1.4),
}


# ---------------------------------------------------------------- drawing


def _fixed(point: Sequence[float]) -> tuple[int, int]:
    return round(float(point[0]) * 2**SUB), round(float(point[1]) * 2**SUB)


def blob(frame: Float, centre: Sequence[float], radius: float, colour: Float) -> None:
    cv2.circle(frame, _fixed(centre), round(radius * 2**SUB), [float(c) for c in colour], -1, cv2.LINE_8, SUB)


def stroke(frame: Float, start: Sequence[float], end: Sequence[float], wide: int, colour: Float) -> None:
    cv2.line(frame, _fixed(start), _fixed(end), [float(c) for c in colour], max(1, wide), cv2.LINE_8, SUB)


def oval(frame: Float, centre: Sequence[float], axes: Sequence[float], colour: Float) -> None:
    colour_list = [float(c) for c in colour]
    cv2.ellipse(frame, _fixed(centre), _fixed(axes), 0.0, 0.0, 360.0, colour_list, -1, cv2.LINE_8, SUB)


def filmed(
    ground: Float,
    size: tuple[int, int],
    times_s: Float,
    draw: Draw,
    camera: Callable[[float], tuple[float, float, float]] = lambda t: (0.0, 0.0, 1.0),
    light: Callable[[float], float] = lambda t: 1.0,
    grain: tuple[Rng, float] | None = None,
) -> np.ndarray:
    """Frames uint8 [F, H, W, 3], drawn at twice the size, smoothed as by a lens and halved.

    `camera` gives the place of the ground's point at the frame's corner (in frame heights) and the zoom; `draw` draws
    on a frame of twice the size, where lengths are its own pixels.
    """
    height, width = size
    frames = []
    for t in times_s:
        x, y, zoom = camera(float(t))
        rows, columns = ground.shape[:2]
        middle_x, middle_y = columns / 2 + 2 * height * x, rows / 2 + 2 * height * y
        move = np.array([[1 / zoom, 0, middle_x - width / zoom], [0, 1 / zoom, middle_y - height / zoom]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        large = cv2.warpAffine(ground, move, (2 * width, 2 * height), flags=flags, borderMode=cv2.BORDER_REFLECT)
        draw(large, float(t))
        frame = cv2.resize(cv2.GaussianBlur(large, (0, 0), 1.0), (width, height), interpolation=cv2.INTER_AREA)
        frame = frame * light(float(t))
        if grain is not None:
            frame = frame + grain[0].standard_normal((*frame.shape[:2], 1), np.float32) * grain[1]
        frames.append(np.clip(np.rint(frame), 0, 255).astype(np.uint8))
    return np.stack(frames)


def handheld(rng: Rng, reach: float) -> Callable[[float], tuple[float, float, float]]:
    """A camera that sways: slow, smooth, `reach` frame heights."""
    rates, phases = rng.uniform(0.3, 1.4, 4), rng.uniform(0, 6.28, 4)

    def at(t: float) -> tuple[float, float, float]:
        sway = np.sin(2 * np.pi * rates * t + phases)
        return reach * float(sway[0] + 0.5 * sway[1]), reach * float(sway[2] + 0.5 * sway[3]), 1.0

    return at


# ---------------------------------------------------------------- sounds


def band(rng: Rng, count: int, rate: int, low: float, high: float) -> Float:
    """Noise of one band, of deviation 1."""
    high = min(high, 0.45 * rate)
    made = sosfilt(butter(2, [low, high], "bandpass", fs=rate, output="sos"), rng.standard_normal(count))
    return np.asarray(made / made.std())


def room(rng: Rng, count: int, rate: int) -> Float:
    """Tone of a quiet room: falling spectrum, of deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / rate)
    made = np.fft.irfft(spectrum / (30.0 + frequency), count)
    return np.asarray(made / made.std())


def placed(single: Callable[[int], Float], times_s: Sequence[float], count: int, rate: int, heights: Float) -> Float:
    """`single` laid down at each time, with its height."""
    made = np.zeros(count)
    for index, (at, height) in enumerate(zip(times_s, heights, strict=True)):
        start = round(at * rate)
        if 0 <= start < count:
            sound = single(index)[: count - start]
            made[start : start + len(sound)] += height * sound
    return made


def struck(rng: Rng, rate: int, pitch: float, decay_s: float, noise: float) -> Callable[[int], Float]:
    """A struck thing: partials that die away, and the noise of the stroke."""
    clock = np.arange(round(min(1.5, 7 * decay_s) * rate)) / rate

    def one(index: int) -> Float:
        partials = [(1.0, 1.0), (1.59, 0.6), (2.14, 0.4), (2.65, 0.3), (4.2, 0.15)]
        tone = sum(
            size * np.sin(2 * np.pi * pitch * ratio * clock) * np.exp(-clock * (0.7 + 0.3 * ratio) / decay_s)
            for ratio, size in partials
            if pitch * ratio < 0.45 * rate
        )
        hit = band(rng, len(clock), rate, 200, 9000) * np.exp(-clock / 0.012)
        return np.asarray((tone + noise * hit) * np.minimum(1.0, clock / 0.0015))

    return one


def burst(rng: Rng, rate: int, low: float, high: float, decay_s: float) -> Callable[[int], Float]:
    """A step, a clap, a snap: noise of a band that dies away."""
    clock = np.arange(round(min(1.0, 7 * decay_s) * rate)) / rate
    return lambda index: (
        band(rng, len(clock), rate, low, high) * np.exp(-clock / decay_s) * np.minimum(1, clock / 0.002)
    )


def music(rng: Rng, count: int, rate: int, tempo: float = 110.0, beat: float = 0.0) -> Float:
    """A bed: chords that swell, a melody of plucked notes, and with `beat` a hi-hat; of deviation 1."""
    clock = np.arange(count) / rate
    made = np.zeros(count)
    root = 110 * 2 ** (rng.integers(0, 8) / 12)
    bar = 240.0 / tempo
    for place in range(int(clock[-1] / bar) + 1):
        steps = rng.permutation([0, 3, 5, 7, 10])[:3]
        swell = np.clip(np.sin(np.pi * (clock - place * bar) / (1.15 * bar)), 0, None) * (clock >= place * bar)
        swell *= clock < (place + 1.15) * bar
        for step in steps:
            pitch = root * 2 ** (step / 12)
            made += swell * sum(np.sin(2 * np.pi * pitch * k * clock + k) / k**1.3 for k in range(1, 6))
    notes = np.arange(0.13, clock[-1], 30.0 / tempo)
    notes = notes[rng.uniform(size=len(notes)) > 0.35]
    for at in notes:
        pitch = root * 4 * 2 ** (rng.choice([0, 3, 5, 7, 10, 12]) / 12)
        made += placed(struck(rng, rate, pitch, 0.16, 0.0), [at], count, rate, np.array([0.9]))
    if beat:
        hats = np.arange(0.05, clock[-1], 30.0 / tempo)
        made += beat * placed(burst(rng, rate, 5000, 14000, 0.02), hats, count, rate, np.ones(len(hats)))
    return np.asarray(made / made.std())


def talk(rng: Rng, count: int, rate: int, syllables_s: Sequence[tuple[float, float]]) -> Float:
    """Voiced syllables (start, length) with gliding formants and a hiss before some; loudest at their middle."""
    clock = np.arange(count) / rate
    pitch = rng.uniform(95, 210) * (1 + 0.12 * np.sin(2 * np.pi * 0.7 * clock + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    made = np.zeros(count)
    for start, long in syllables_s:
        shape = opening(clock, [(start, long)])
        first, second = rng.uniform(300, 800), rng.uniform(1000, 2400)
        for k in range(1, 40):
            at = k * float(pitch.mean())
            if at > 0.45 * rate:
                break
            gain = np.exp(-(((at - first) / 220.0) ** 2)) + 0.6 * np.exp(-(((at - second) / 300.0) ** 2)) + 0.03
            made += gain * shape * np.sin(k * phase)
        if rng.uniform() < 0.5:
            hiss = opening(clock, [(start - 0.09, 0.12)])
            made += 0.25 * hiss * band(rng, count, rate, 3500, 9000)
    return np.asarray(made / max(float(np.abs(made).max()), 1e-9))


def opening(clock_s: Float, syllables_s: Sequence[tuple[float, float]]) -> Float:
    """How far a mouth is open, 0 to 1."""
    parts = [np.sin(np.pi * np.clip((clock_s - start) / long, 0, 1)).clip(0) ** 0.7 for start, long in syllables_s]
    return np.asarray(np.max(np.stack(parts), axis=0))
