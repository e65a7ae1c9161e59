"""Stereo place: what moves on the left is heard on the left.

In windows of 250 ms, two numbers between -1 (left) and 1 (right):

* seen, x: the column of the motion's centre, weighted by the square of the flow that is not the camera's (`events.py`);
* heard, p: the constant-power pan of the level difference, 4 / pi * atan(rms right / rms left) - 1, plus the time
  difference over 0.5 ms by GCC-PHAT (Knapp and Carter 1976; |tau| <= 1 ms, interpolated eight times), as far as its
  peak stands out. Amplitude-panned sound has the first only, spaced microphones mostly the second.

With weights w of the windows (how loud, how much moves), value = 2 sum(w x p) / (sum(w x^2) + sum(w p^2) + e sum(w)):
Zegers and ten Berge's (1985) coefficient of identity about the middle, which falls when the pan is too small, too
large, beside, late or reversed; e = 0.01 keeps what is all in the middle near 0.

Range [-1, 1], higher is better; channels the wrong way round have the negative of the value. 0 is what sound in the
middle gets. The same sound in both channels has no place: valid at the floor, 0, with `no_events`, as are a picture
without motion and silence (`silent_audio`); so mono never beats sound that is placed at all. A clip with one channel
cannot be judged (`unverifiable`). Of more than two channels the first two count, which are left and right.

Components: `level_place`, `time_place` (the value that either cue alone would have), `seen_spread`, `heard_spread`
(root mean square of x and p), `windows` (how many counted).

Limits: one dominant source; two that move at once are heard and seen at their middle. A tone's time difference is
ambiguous, and reverberant or wide sound has hardly any. What makes the sound must move, in the picture. The mapping
of the frame's width to the full pan is a convention of mixing, not of optics: a recording with a narrower image gets
less. Known hacks: hard pans of any sound after any motion; it is blind to the prompt and to what sounds: train it
beside anchored rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.panel.events import grey, local_flow

Float = NDArray[np.float64]

WINDOW_S = 0.25
HOP_S = 0.125
FULL_TIME_S = 0.0005
LONGEST_TIME_S = 0.001
FINER = 8
QUIET_DB = -35.0
LEAST_MOTION = 0.3
"""Pixels per frame, at 96 on the short side, that the fastest 3 % move where motion begins to count; it counts in full
at twice that."""
MIDDLE = 0.01
SAME = 1e-4
"""Energy of the channels' difference over their sum below which both are one."""


@dataclass(frozen=True, slots=True)
class Places:
    """Windows [N]: their middles in seconds, weights, and where things are from -1 (left) to 1 (right)."""

    times_s: Float
    weight: Float
    seen: Float
    by_level: Float
    by_time: Float

    @property
    def heard(self) -> Float:
        """Both cues together."""
        return np.clip(self.by_level + self.by_time, -1.0, 1.0)


def identity(weight_N: Float, first_N: Float, second_N: Float) -> float:
    """Agreement of two places about the middle, in [-1, 1]. See the module."""
    both = float((weight_N * (first_N**2 + second_N**2 + MIDDLE)).sum())
    return 2.0 * float((weight_N * first_N * second_N).sum()) / both if both > 0 else 0.0


def moving(clip: Clip) -> tuple[Float, Float]:
    """Column of the motion's centre (-1 to 1) and its weight (0 to 1) for each pair of frames: [F - 1] each."""
    flow = local_flow(grey(clip.video_FHWC))
    size = np.hypot(flow[..., 0], flow[..., 1])
    flat = size.reshape(len(size), -1)
    count = max(8, int(0.03 * flat.shape[1]))
    fastest = np.partition(flat, -count, axis=1)[:, -count:].mean(axis=1)
    power = np.where(size > 0.5 * fastest[:, None, None], size, 0.0) ** 2
    columns = np.linspace(-1.0, 1.0, size.shape[2])
    place = np.einsum("fhw,w->f", power, columns) / np.maximum(power.sum(axis=(1, 2)), 1e-12)
    return place, np.clip(fastest / LEAST_MOTION - 1.0, 0.0, 1.0)


def places(clip: Clip, motion: tuple[Float, Float]) -> Places:
    """Where things are seen and heard, window by window; `motion` is what `moving` finds."""
    rate = int(clip.sample_rate)
    left, right = np.asarray(clip.audio_CS[:2], dtype=np.float64)
    size, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    usable = min(len(left), round(len(clip.video_FHWC) / clip.fps * rate))
    starts = np.arange(0, max(1, usable - size + 1), hop)
    loud = np.array([np.sqrt(np.mean(left[at : at + size] ** 2 + right[at : at + size] ** 2)) for at in starts])
    rows = [_window(left[at : at + size], right[at : at + size], rate) for at in starts]
    level, time = np.array(rows).T
    moved, weight = motion
    middles = (np.arange(len(moved)) + 0.5) / clip.fps
    seen, sure = [], []
    for at in starts / rate:
        inside = (middles >= at) & (middles < at + WINDOW_S)
        total = float(weight[inside].sum())
        seen.append(float((weight[inside] * moved[inside]).sum()) / total if total > 0 else 0.0)
        sure.append(total / max(1, int(inside.sum())))
    audible = loud > max(1e-4, float(loud.max()) * 10 ** (QUIET_DB / 20))
    return Places(starts / rate + WINDOW_S / 2, np.where(audible, sure, 0.0), np.array(seen), level, time)


def _window(left_S: Float, right_S: Float, rate: int) -> tuple[float, float]:
    """Place by level and place by time of one window."""
    energy = np.sqrt(np.array([np.mean(left_S**2), np.mean(right_S**2)]))
    level = float(np.arctan2(energy[1], energy[0]) * 4.0 / np.pi - 1.0) if energy.max() > 0 else 0.0
    if energy.min() <= 1e-3 * energy.max():
        return level, 0.0
    size = 2 * len(left_S)
    cross = np.fft.rfft(left_S, size) * np.conj(np.fft.rfft(right_S, size))
    loud = np.abs(cross)
    used = loud > 1e-6 * loud.max()
    phase = np.where(used, cross / np.maximum(loud, 1e-300), 0.0)
    curve = np.fft.irfft(phase, size * FINER) * FINER * len(phase) / max(1, int(used.sum()))
    reach = int(LONGEST_TIME_S * rate * FINER)
    near = np.concatenate([curve[-reach:], curve[: reach + 1]])
    best = int(np.argmax(near))
    sure = float(np.clip((near[best] - 0.1) / 0.2, 0.0, 1.0))
    # The left channel is late when the source is on the right: the peak then lies at a positive lag.
    return level, sure * float(np.clip((best - reach) / (rate * FINER) / FULL_TIME_S, -1.0, 1.0))


class StereoPlaceModel(RewardModel):
    """Agreement of where motion is seen and where sound is heard."""

    def __init__(self, spec: RewardSpec) -> None:
        super().__init__(spec)
        cv2.setNumThreads(1)

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """See the module for value and components."""
        return self.compared(moving(clip), clip)

    def compared(self, motion: tuple[Float, Float], clip: Clip) -> Score:
        """The score, given what `moving` finds in the picture."""
        if len(clip.audio_CS) < 2:
            return Score.invalid("unverifiable")
        left, right = np.asarray(clip.audio_CS[:2], dtype=np.float64)
        apart, together = float(((left - right) ** 2).sum()), float(((left + right) ** 2).sum())
        if apart <= SAME * together:
            return self.empty("no_events", {"heard_spread": 0.0})
        found = places(clip, motion)
        counted = int((found.weight > 0).sum())
        if not counted:
            return self.empty("no_events", {"windows": 0.0})
        total = float(found.weight.sum())
        parts = {
            "level_place": identity(found.weight, found.seen, found.by_level),
            "time_place": identity(found.weight, found.seen, found.by_time),
            "seen_spread": float(np.sqrt((found.weight * found.seen**2).sum() / total)),
            "heard_spread": float(np.sqrt((found.weight * found.heard**2).sum() / total)),
            "windows": float(counted),
        }
        return Score(identity(found.weight, found.seen, found.heard), parts)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """Where motion is seen and where sound is heard; NaN where neither counts."""
        if len(clip.audio_CS) < 2:
            return ()
        found = places(clip, moving(clip))
        counts = found.weight > 0
        drawn = {
            "seen": found.seen,
            "heard": found.heard,
            "heard by level": found.by_level,
            "heard by time": found.by_time,
        }
        return [
            Curve(f"{name}, left to right", found.times_s, np.where(counts, place, np.nan))
            for name, place in drawn.items()
        ]
