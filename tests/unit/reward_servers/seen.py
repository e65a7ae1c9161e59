"""What the tests of the picture's rewards look at: moving scenes drawn by code, real clips, and ways to spoil either.

Videos are uint8 [F, H, W, 3]; an amount of 0 spoils nothing, and a larger one spoils more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from accord.plugins import spec_class
from accord.types import Clip, Prompt
from reward_servers.base import Score, build

REAL = Path(__file__).parents[4] / "shared/realclips/dev"
REAL_NAMES = ("drum", "speech_music", "balls", "rain", "b133", "b345", "flash")
SOUND = np.zeros((1, 8_000), np.float32)
PROMPT = Prompt("p", "", "", "")

Spoil = Callable[[np.ndarray, float], np.ndarray]


@cache
def _model(name: str):
    return build(spec_class("rewards", name)())


def judged(name: str, video: np.ndarray, fps: float = 24.0) -> Score:
    """The score of a video by a reward."""
    ((score,),) = _model(name).score([PROMPT], [[Clip(video, fps, SOUND, 16_000)]])
    assert score.valid, score.reason
    return score


def values(name: str, video: np.ndarray, spoil: Spoil, amounts: Sequence[float]) -> list[float]:
    """Values by amount, beginning with the clean one."""
    return [judged(name, spoil(video, amount)).value for amount in (0, *amounts)]


def falls(numbers: Sequence[float]) -> bool:
    """Whether each is below the one before: a rank correlation of 1 with the amount."""
    return all(later < earlier for earlier, later in pairwise(numbers))


@cache
def real(name: str) -> np.ndarray:
    """A real clip, read-only; skips where there is none."""
    path = REAL / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"no real clips at {REAL}")
    with av.open(str(path)) as file:
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    video.setflags(write=False)
    return video


def pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@cache
def texture(height: int = 128, width: int = 256, slope: float = 1.5, seed: int = 2) -> np.ndarray:
    """Noise whose amplitude falls with the frequency to the power of `slope`, as in photographs, wrapping around."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    frequency[0, 0] = 1.0
    planes = [np.fft.ifft2(np.fft.fft2(rng.standard_normal((height, width))) / frequency**slope).real for _ in range(4)]
    grey, *tints = (plane / plane.std() for plane in planes)
    return pixels(np.stack([115.0 + 40.0 * grey + 14.0 * tint for tint in tints], axis=-1))


def panned(frames: int, speed: int = 2) -> np.ndarray:
    """The texture moving `speed` pixels a frame to the right."""
    return np.stack([np.roll(texture(), speed * frame, axis=1) for frame in range(frames)])


def shapes(frames: int, seed: int = 1) -> np.ndarray:
    """Discs that cross a shaded wall, 128 x 192."""
    rng = np.random.default_rng(seed)
    wall = np.linspace(50, 190, 192)[None, :, None] * np.ones((128, 1, 3)) * np.array([1.0, 0.9, 0.8])
    discs = [
        (rng.uniform(0, (192, 128)), rng.uniform(-2, 2, 2), rng.uniform(6, 24), rng.uniform(30, 225, 3))
        for _ in range(9)
    ]
    video = []
    for frame in range(frames):
        drawn = wall.copy()
        for start, velocity, radius, colour in discs:
            x, y = (16 * (start + velocity * frame)).astype(int).tolist()
            cv2.circle(drawn, (x, y), int(16 * radius), colour.tolist(), -1, cv2.LINE_AA, 4)
        video.append(pixels(drawn))
    return np.stack(video)


def blurred(video: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video]) if sigma else video


def grainy(video: np.ndarray, sigma: float) -> np.ndarray:
    return pixels(video + np.random.default_rng(3).standard_normal(video.shape, np.float32) * sigma)


def faint(video: np.ndarray, share: float) -> np.ndarray:
    """Contrast less by a share, about the mean."""
    return pixels(video.mean() + (video - video.mean()) * (1.0 - share))


def garish(video: np.ndarray, more: float) -> np.ndarray:
    """Colour stronger by a factor of 1 + `more`."""
    grey = video @ np.array([0.299, 0.587, 0.114])
    return pixels(grey[..., None] + (video - grey[..., None]) * (1.0 + more))


def blocky(video: np.ndarray, loss: float) -> np.ndarray:
    """Through JPEG at quality 100 - `loss`."""
    if not loss:
        return video
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(100 - loss)]
    made = np.stack(
        [cv2.imdecode(cv2.imencode(".jpg", frame[..., ::-1], quality)[1], cv2.IMREAD_COLOR) for frame in video]
    )
    return made[..., ::-1]


def frozen(video: np.ndarray, share: float) -> np.ndarray:
    """The last share of the frames stands still."""
    last = max(0, round(len(video) * (1.0 - share)) - 1)
    return video[np.minimum(np.arange(len(video)), last)]


def halting(video: np.ndarray, rate: float) -> np.ndarray:
    """A share `rate` of the frames (1/8: every eighth) repeats the one before."""
    places = np.arange(len(video))
    if rate:
        places[round(1 / rate) - 1 :: round(1 / rate)] -= 1
    return video[places]


def flickering(video: np.ndarray, depth: float) -> np.ndarray:
    """Brightness up and down by a share, frame by frame."""
    gain = 1.0 + depth * np.where(np.arange(len(video)) % 2, 1.0, -1.0)
    return pixels(video * gain[:, None, None, None])


def shaken(video: np.ndarray, reach: float) -> np.ndarray:
    """Each frame displaced by up to `reach` pixels."""
    shifts = np.random.default_rng(4).integers(-int(reach), int(reach) + 1, (len(video), 2))
    return np.stack(
        [
            cv2.warpAffine(
                frame, np.array([[1, 0, x], [0, 1, y]], float), frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT
            )
            for frame, (x, y) in zip(video, shifts, strict=True)
        ]
    )


def flashed(video: np.ndarray) -> np.ndarray:
    """Two flashes over the whole frame."""
    made = video.copy()
    for start in (len(video) // 3, 2 * len(video) // 3):
        made[start : start + 2] = pixels(0.4 * made[start : start + 2] + 0.6 * 255.0)
    return made


def morphing(video: np.ndarray, share: float) -> np.ndarray:
    """Blends into its own picture upside down and with other colours, as far as `share`."""
    other = video[:, ::-1, :, ::-1].astype(float)
    weight = np.linspace(0.0, share, len(video))[:, None, None, None]
    return pixels((1.0 - weight) * video + weight * other)


def recoloured(video: np.ndarray, degrees: float) -> np.ndarray:
    """Hues turned on every other run of eight frames."""
    made = []
    for place, frame in enumerate(video):
        hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
        turned = (hsv[..., 0].astype(int) + round(degrees / 2) * (place // 8 % 2)) % 180
        hsv[..., 0] = turned.astype(np.uint8)
        made.append(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    return np.stack(made)


def cut(video: np.ndarray, count: float) -> np.ndarray:
    """That many cuts to the clip turned upside down, with other colours, and back."""
    scene = np.arange(len(video)) * (int(count) + 1) // len(video) % 2
    return np.where(scene[:, None, None, None] == 1, video[:, ::-1, :, ::-1], video)
