"""Which frames of a clip a model of pictures looks at, and how they are brought to its size.

Sizes are rounded as the published pipelines round them; pictures are resized by Pillow, which smooths what it shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from reward_servers.base import Score

Picture = NDArray[np.uint8]
"""[H, W, 3]."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LONGEST = 4
"""How many times longer than the short side a picture may be; a longer one is squeezed to that."""


def evenly(total: int, count: int) -> list[int]:
    """Indices of at most `count` different frames from the first to the last; a lone one is in the middle."""
    if count == 1:
        return [total // 2]
    return sorted({int(place) for place in np.linspace(0, total - 1, min(count, total)).round()})


def cropped(frame: Picture, side: int) -> Picture:
    """CLIP's way: the short side becomes `side`, bicubic, and of the long one the middle stays."""
    image = Image.fromarray(frame)
    short = min(image.size)
    wide, tall = (int(side * edge / short) for edge in image.size)
    left, top = round((wide - side) / 2), round((tall - side) / 2)
    image = image.resize((wide, tall), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def padded(frame: Picture, side: int) -> Picture:
    """HPSv2's way: the long side becomes `side`, bicubic, and black fills up the short one on both sides."""
    image = Image.fromarray(frame)
    scale = side / max(image.size)
    wide, tall = (max(1, round(edge * scale)) for edge in image.size)
    whole = Image.new("RGB", (side, side))
    whole.paste(image.resize((wide, tall), Image.Resampling.BICUBIC), ((side - wide) // 2, (side - tall) // 2))
    return np.asarray(whole)


def shortest(frame: Picture, side: int) -> Picture:
    """DINO's way in VBench: the short side becomes `side`, bilinear, and nothing is cut off."""
    image = Image.fromarray(frame)
    short = min(image.size)
    wide, tall = (min(int(side * edge / short), _LONGEST * side) for edge in image.size)
    return np.asarray(image.resize((wide, tall), Image.Resampling.BILINEAR))


def pixels(
    frames: Sequence[Picture], fit: Callable[[Picture, int], Picture], side: int,
    mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD,
) -> torch.Tensor:  # fmt: skip
    """Frames of one size, fitted to `side` and normalised [F, 3, H, W]."""
    values = torch.from_numpy(np.stack([fit(frame, side) for frame in frames])).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def mean_of(values_F: NDArray[np.float64]) -> Score:
    """The score of a clip by its frames' values."""
    parts = {"lowest": float(values_F.min()), "highest": float(values_F.max()), "frames": float(len(values_F))}
    return Score(float(values_F.mean()), parts)
