"""Cleanliness of the sound: events that stand clear of the noise floor.

Measures: the level distance between the loud and the quiet parts of the clip (95th against 10th percentile of the
levels of 20 ms frames, `audio_snr_db` of accord/world/measure.py) over 45 dB, times two guards: the peak must be loud
enough to hear (full from -24 dBFS, nothing at -54 dBFS) and few samples may clip.
Range [0, 1], higher is better. Clean struck sounds in silence reach 1, white noise stays near 0.
Limits: technical only; it knows nothing of content or taste. Sounds that ought to be steady (rain, engines, hum) look
like noise to it, so use it for material made of events. Less than 5 % of sounding time counts as no event.
Known hacks: silence and lone clicks (both get the floor, not a missing score); one loud event in a silent clip scores
as well as three, so train a text-audio or sync reward with it.
"""

from __future__ import annotations

import math

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from accord.world.measure import audio_snr_db
from reward_servers.base import RewardModel, Score
from reward_servers.signals import mono

FULL_SNR_DB = 45.0
QUIET_DB, LOUD_DB = -54.0, -24.0
CLIPPED_LEVEL = 0.999
CLIPPED_SHARE = 0.01


class AudioAestheticsModel(RewardModel):
    """SNR-like cleanliness with guards against silence and clipping."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: `snr_db`, `peak_db`, `clipped_share`."""
        sound = mono(clip.audio_CS)
        level = np.abs(sound)
        peak_db = 20.0 * math.log10(max(float(level.max()), 1e-6))
        clipped = float((level >= CLIPPED_LEVEL).mean())
        snr_db = audio_snr_db(sound, int(clip.sample_rate))
        components = {"snr_db": snr_db, "peak_db": peak_db, "clipped_share": clipped}
        if math.isnan(snr_db):
            return self.empty("no_events", components)
        clear = min(snr_db / FULL_SNR_DB, 1.0)
        audible = min(max((peak_db - QUIET_DB) / (LOUD_DB - QUIET_DB), 0.0), 1.0)
        return Score(clear * audible * math.exp(-clipped / CLIPPED_SHARE), components)
