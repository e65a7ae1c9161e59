"""Text-video agreement by a closed vocabulary: the named colour is there and moves the named way.

Measures, against the words of `prompt_v` that it knows:

* colour (red, orange, yellow, green, cyan, blue, purple, pink): share of the coloured mass of the clip whose hue is the
  named one, against a small constant mass that stands for "nothing coloured there";
* motion: whether the coloured thing travels up and down (bouncing, falling, jumping, dropping, rising), sideways
  (sliding, rolling, gliding, crossing) or not at all (still, resting).

Range [0, 1], higher is better: 0.7 colour + 0.3 motion, or the one of the two that the prompt names. A prompt with no
known word cannot be verified: its samples are invalid (`unverifiable`). A clip without anything coloured scores 0.
Limits: one coloured thing on a dull ground and a camera at rest; no shapes, no counts.
Known hacks: flooding the frame with the named colour earns the colour part but not the motion part.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from accord.world.measure import object_track, saturation
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, Pixels, shrunk

SHORT_SIDE = 32
HUES: dict[str, float] = {
    "red": 0.0, "orange": 30.0, "yellow": 55.0, "green": 125.0, "cyan": 180.0, "blue": 235.0, "purple": 280.0,
    "pink": 330.0,
}  # fmt: skip
_HUE_EDGES = np.array([(low + high) / 2.0 for low, high in pairwise([*HUES.values(), 360.0])])
"""Where one hue ends and the next begins; what lies beyond the last edge is red again."""
MOTIONS: dict[str, str] = {
    **dict.fromkeys(("bouncing", "falling", "jumping", "dropping", "rising"), "vertical"),
    **dict.fromkeys(("sliding", "rolling", "gliding", "crossing"), "horizontal"),
    **dict.fromkeys(("still", "resting"), "none"),
}
COLOUR_SHARE = 0.7
DULL = 0.25
"""Chroma (max - min of RGB) below which a pixel has no colour."""
ABSENT = 0.004
"""Coloured mass, as a share of the frame, that an absent object is given credit for."""
TRAVEL = 0.06
"""Spread of position, as a share of the frame, at which motion counts half."""


class TextVideoModel(RewardModel):
    """Closed-vocabulary verifier of colour and motion words."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `colour` and `motion`, each only when the prompt names one."""
        words = re.findall(r"[a-z]+", prompt.prompt_v.lower())
        colours = [word for word in words if word in HUES]
        motions = [MOTIONS[word] for word in words if word in MOTIONS]
        if not colours and not motions:
            return Score.invalid("unverifiable")
        frames = shrunk(clip.video_FHWC, SHORT_SIDE)
        parts = {}
        if colours:
            shares = {name: _named_share(frames, name) for name in set(colours)}
            parts["colour"] = float(np.mean([shares[name] for name in colours]))
        if motions:
            parts["motion"] = _motion(frames, motions[0])
        if len(parts) == 1:
            return Score(next(iter(parts.values())), parts)
        return Score(COLOUR_SHARE * parts["colour"] + (1.0 - COLOUR_SHARE) * parts["motion"], parts)


def _hue(video_FHWC: Pixels) -> Float:
    """Hue angle in degrees, [F, H, W]."""
    red, green, blue = (video_FHWC[..., channel].astype(np.float64) for channel in range(3))
    return np.degrees(np.arctan2(np.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) % 360.0


def _named_share(video_FHWC: Pixels, name: str) -> float:
    """Coloured mass nearest to the named hue over all coloured mass plus the constant for an absent object."""
    colour = saturation(video_FHWC)
    mass = np.where(colour > DULL, colour, 0.0)
    named = np.searchsorted(_HUE_EDGES, _hue(video_FHWC)) % len(HUES) == list(HUES).index(name)
    return float(((mass * named).mean(axis=(1, 2)) / (mass.mean(axis=(1, 2)) + ABSENT)).mean())


def _motion(video_FHWC: Pixels, motion: str) -> float:
    """How far the coloured centre travels along the named axis rather than across it, times how often it is seen."""
    track = object_track(video_FHWC)
    seen = ~np.isnan(track[:, 0])
    if seen.sum() < 2:
        return 0.0
    across, down = track[seen].var(axis=0) / min(video_FHWC.shape[1:3]) ** 2
    presence = float(seen.mean())
    if motion == "none":
        return presence * float(np.exp(-(down + across) / TRAVEL**2))
    along, aside = (down, across) if motion == "vertical" else (across, down)
    return presence * float(along / (along + aside + TRAVEL**2 / 4.0))
