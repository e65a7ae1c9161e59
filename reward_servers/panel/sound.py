"""Technical quality of the sound: free of noise, full band, unclipped, without gaps, audible.

Measures six things on the powers of 21 ms Hann frames (mean over channels) and multiplies what each leaves over, so
that a fault is not bought off by another's absence:

* Noise. White noise of density W puts W into every cell of the spectrogram, so its emptiest twentieth (of cells of four
  frames by a 32nd of the band, silent frames left out) bounds W from above, whatever sounds beside it: the minimum
  statistics of Martin (2001), taken over frequency as well as time. White noise is also level, so with q the emptiest
  quarter the bound is taken times min(1, W / q)^2: rain is noise of its own colour, and its spectrum slopes there. The
  factor is logistic in the ratio of sound to noise, half at 12 dB.
* Bandwidth. Share of the third-octaves between 60 Hz and half the sample rate up to the highest that lies no more than
  about 60 dB below the strongest, to the power of 3/4. W is subtracted first; each band leaves its loudest tenth of the
  frames out, where clicks are, and the edges of gaps.
* Clipping. Share of samples that repeat their neighbour at the channel's peak: seen after attenuation, too.
* Activity. Share of time in which something other than W and steady tones is heard, down to 70 dB below the loudest
  frame: neither hiss nor hum fills a pause.
* Loudness. Mean amplitude without the loudest tenth of the frames, logistic shoulders at -70 and -8 dBFS: a few hits in
  a quiet room are not too quiet.
* Steady tones (hum, whine) and DC: share of the power in lines that never pause while there is anything.

Range [0, 1], higher is better; every factor is smooth and none reaches 1. Silence is valid and at the floor, 0.
Limits: technical only, it knows nothing of content, realism or taste. Noise that is not white counts by its weakest
band. A sound that is naturally dark or full of pauses scores below a bright, dense one: compare within a prompt. White
noise that was asked for looks like a fault, and so does a drone of one tone; gaps in either make it less of one. A
low-pass that takes away nothing but hiss (a hit over the noise of its recorder, surf) gains up to a tenth at its
first step, and falls from there. Clipping that was filtered or coded afterwards leaves no flat tops.
Known hacks: dense, bright, unrelated sound; train a text-audio or sync reward beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, Curve, RewardModel, Score
from reward_servers.signals import Float

FRAME_S, LINE_FRAME_S = 0.0213, 0.17
FRAMES_AT_ONCE = 1024
LOWEST_BIN = 2
BANDS, CELL_FRAMES, EMPTIEST = 32, 4, 0.05
"""Cells of the noise floor: bands of equal width in Hz, frames that they last, and the share that counts as empty."""
EMPTIEST_NORMAL = -1.645
"""The same share as a quantile of the normal distribution."""
LEVEL_SHARE, LEVEL_POWER = 0.25, 2.0
"""The share of cells that shows whether the floor is level, and how much its slope takes off the noise."""
ABOVE = 1.25
"""Times the floor, from which a band counts as sound."""
NOISE_HALF_DB, NOISE_SLOPE_DB, CLEANEST_DB = 12.0, 9.0, 80.0
BAND_DEPTH_DB, BAND_SLOPE_DB, LOWEST_HZ = 60.0, 6.0, 60.0
BAND_POWER = 0.75
CLIPPED_HALF = 0.01
DEAD, FAINT = 1e-8, 1e-7
"""Power relative to the loudest frame, below which a frame is silent, and at which it counts half as active."""
QUIET_DB, LOUD_DB = -70.0, -8.0
LINES_HALF = 0.25
PAUSES, UNHEARD = 0.03, 1e-4
"""Share of frames in which even a steady tone may pause, and its power over the sound's from which it is heard."""
DC_FREE = 0.01


@dataclass(frozen=True)
class _Frames:
    """Short-time powers of one clip."""

    power_TK: Float
    """Its mean over k is the mean square of the frame."""
    frequencies_K: Float
    hop_s: float

    @property
    def level_T(self) -> Float:
        """Mean square of each frame."""
        return np.asarray(self.power_TK.mean(axis=1))


class SoundModel(RewardModel):
    """Product of what noise, missing band, clipping, gaps, level and steady tones leave over."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """See the module for value and components."""
        sound_CS, rate = np.asarray(clip.audio_CS, dtype=np.float64), float(clip.sample_rate)
        mean_C1 = sound_CS.mean(axis=1, keepdims=True)
        if float(np.abs(sound_CS - mean_C1).max()) < SILENCE_PEAK:
            return self.empty("silent_audio")
        frames = _framed(sound_CS, rate, FRAME_S)
        level, (floor, white) = frames.level_T, _white_floor(frames)
        if not level.any():
            return self.empty("silent_audio")
        tones, steady = _tones(_framed(sound_CS, rate, LINE_FRAME_S), frames)
        noise = white / float(level[_alive(level)].mean()) + 10.0 ** (-CLEANEST_DB / 10.0)
        parts = {
            "snr_db": -_decibels(noise),
            "bandwidth": _bandwidth(frames, floor, rate),
            "clipped_share": float(np.mean([_clipped_share(channel) for channel in sound_CS])),
            "active_share": float(_activity(level, floor + tones).mean()),
            "loudness_db": 2.0 * _decibels(float(_lasting(np.sqrt(level)).mean())),
            "steady_share": steady,
            "dc_share": float(np.square(mean_C1).mean() / np.square(sound_CS).mean()),
        }
        return Score(_value(parts), parts)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> list[Curve]:
        """Level, and how much of each moment stands clear of the noise floor."""
        sound_CS, rate = np.asarray(clip.audio_CS, dtype=np.float64), float(clip.sample_rate)
        frames = _framed(sound_CS, rate, FRAME_S)
        tones, _ = _tones(_framed(sound_CS, rate, LINE_FRAME_S), frames)
        level, (floor, _) = frames.level_T, _white_floor(frames)
        times = np.asarray((np.arange(len(level)) + 1.0) * frames.hop_s, dtype=np.float64)
        return [
            Curve("level", times, 10.0 * np.log10(np.maximum(level, 1e-12)), "dBFS"),
            Curve("active", times, _activity(level, floor + tones)),
        ]


def _value(parts: dict[str, float]) -> float:
    clean = _logistic((parts["snr_db"] - NOISE_HALF_DB) / NOISE_SLOPE_DB)
    unclipped = 1.0 / (1.0 + math.sqrt(parts["clipped_share"] / CLIPPED_HALF))
    loud = _logistic((parts["loudness_db"] - QUIET_DB) / 4.0) * _logistic((LOUD_DB - parts["loudness_db"]) / 2.0)
    steady = (
        1.0 / (1.0 + (parts["steady_share"] / LINES_HALF) ** 2) / (1.0 + 4.0 * max(parts["dc_share"] - DC_FREE, 0.0))
    )
    return clean * unclipped * loud * steady * parts["bandwidth"] ** BAND_POWER * math.sqrt(parts["active_share"])


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(min(x, 60.0), -60.0)))


def _decibels(ratio: float) -> float:
    return 10.0 * math.log10(max(ratio, 1e-12))


def _framed(sound_CS: Float, rate: float, length_s: float) -> _Frames:
    """Half-overlapping Hann frames of about `length_s`, a power of two long; a shorter clip is padded to one.

    The two lowest bins are left out: all that a constant gives to a Hann window falls into them.
    """
    size = max(32, 2 ** round(math.log2(length_s * rate)))
    hop = size // 2
    sound = np.pad(sound_CS, ((0, 0), (0, max(0, size - sound_CS.shape[1]))))
    window = np.hanning(size + 1)[:-1]
    count = 1 + (sound.shape[1] - size) // hop
    power = np.zeros((count, size // 2 + 1 - LOWEST_BIN))
    for channel in sound:
        cut = np.lib.stride_tricks.sliding_window_view(channel, size)[::hop]
        for start in range(0, count, FRAMES_AT_ONCE):
            spectrum = np.fft.rfft(cut[start : start + FRAMES_AT_ONCE] * window, axis=1)[:, LOWEST_BIN:]
            power[start : start + FRAMES_AT_ONCE] += np.square(spectrum.real) + np.square(spectrum.imag)
    power /= len(sound) * float(np.square(window).sum())
    return _Frames(power, np.arange(LOWEST_BIN, size // 2 + 1) * rate / size, hop / rate)


def _lasting(values_TX: Float) -> Float:
    """Without the tenth of the frames that is highest, each column by itself: a click leaves nothing behind."""
    kept = len(values_TX) - len(values_TX) // 10
    return np.asarray(np.partition(values_TX, kept - 1, axis=0)[:kept])


def _alive(level_T: Float) -> np.ndarray:
    return np.asarray(level_T > DEAD * level_T.max())


def _white_floor(frames: _Frames) -> tuple[float, float]:
    """Upper bound on the density of white noise, and what of it is level; 0 where it cannot be heard (80 dB below).

    A quantile of a gamma distribution (its Wilson-Hilferty form) makes it unbiased where there is nothing but noise.
    """
    width = max(1, frames.power_TK.shape[1] // BANDS)
    count = frames.power_TK.shape[1] // width
    bands = frames.power_TK[:, : count * width].reshape(-1, count, width).mean(axis=2)
    last = min(CELL_FRAMES, len(bands))
    level = frames.level_T
    alive = _alive(level)
    heard = np.lib.stride_tricks.sliding_window_view(alive, last).all(axis=1)
    sums = np.cumsum(np.pad(bands, ((1, 0), (0, 0))), axis=0)
    cells = np.maximum(sums[last:] - sums[:-last], 0.0) / last
    if heard.any():
        cells = cells[heard]
    shape = max(width * last / 1.94, 1.0)  # neighbouring bins of a Hann spectrum are correlated
    bias = (1.0 - 1.0 / (9.0 * shape) + EMPTIEST_NORMAL / (3.0 * math.sqrt(shape))) ** 3
    inaudible = float(level[alive].mean()) * 10.0 ** (-CLEANEST_DB / 10.0) if alive.any() else 0.0
    emptiest, emptier = np.quantile(cells, (EMPTIEST, LEVEL_SHARE))
    bound = float(emptiest) / max(bias, 0.05)
    even = min(1.0, bound / max(float(emptier), 1e-20)) ** LEVEL_POWER
    return max(bound - inaudible, 0.0), max(bound * even - inaudible, 0.0)


def _activity(level_T: Float, steady: float) -> Float:
    """How far each frame stands clear of noise and tones that never pause, and of silence, 0..1 [T]."""
    above = np.maximum(level_T - 1.5 * steady, 0.0)
    return np.asarray(above / (above + FAINT * float(level_T.max()) + 0.5 * steady + 1e-20))


def _bandwidth(frames: _Frames, floor: float, rate: float) -> float:
    """Share of the third-octaves below the highest one that is still heard, each counted softly."""
    alive = _alive(frames.level_T)
    inside = (
        alive & np.append(alive[1:], True) & np.append(True, alive[:-1])
    )  # the edges of a gap are as wide as a click
    power = frames.power_TK[inside if inside.any() else alive]
    density = np.square(_lasting(np.sqrt(power)).mean(axis=0))
    density = np.maximum(density - ABOVE * floor, 0.0)
    count = max(3, round(3.0 * math.log2(rate / 2.0 / LOWEST_HZ)))
    edges = np.geomspace(LOWEST_HZ, rate / 2.0, count + 1)
    whole = np.concatenate([[0.0], np.cumsum(density)])
    step = frames.frequencies_K[1] - frames.frequencies_K[0]
    reached = np.interp(edges, np.append(frames.frequencies_K[0] - step, frames.frequencies_K) + step / 2.0, whole)
    levels = 10.0 * np.log10(np.maximum(np.diff(reached), 1e-20))
    if levels.max() <= -199.0:  # nothing stands above the noise
        return 1.0 / count
    below_dB = np.maximum.accumulate((levels - levels.max())[::-1])
    return float((1.0 / (1.0 + np.exp(-(below_dB + BAND_DEPTH_DB) / BAND_SLOPE_DB))).mean())


def _clipped_share(sound_S: Float) -> float:
    """Share of samples that stand at the peak and equal the one before."""
    level = np.abs(sound_S)
    peak = float(level.max())
    flat = (level[1:] >= 0.999 * peak) & (np.abs(np.diff(sound_S)) <= 1e-6 * peak)
    return float(flat.mean()) if peak > 0.0 else 0.0


def _lines(frames: _Frames) -> tuple[Float, float]:
    """Power of narrow lines that are there whenever there is anything, as mean square of each bin, and its share."""
    power = frames.power_TK[_alive(frames.level_T)] if frames.level_T.any() else frames.power_TK
    lasting = np.quantile(power, PAUSES, axis=0)
    width = 8
    padded = np.pad(lasting, width, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1), axis=1)
    lines = np.maximum(lasting - 8.0 * around, 0.0)
    share = float(lines.sum() / max(float(frames.power_TK.mean(axis=0).sum()), 1e-20))
    return lines / len(lines), min(share, 1.0)


def _tones(long: _Frames, short: _Frames) -> tuple[float, float]:
    """Mean square of steady tones as far as the short frames hold them, and their share of the long ones."""
    lines, share = _lines(long)
    step = short.frequencies_K[1] - short.frequencies_K[0]
    held = float((lines * np.clip(long.frequencies_K / step / LOWEST_BIN, 0.0, 1.0)).sum())
    return max(held - UNHEARD * float(short.level_T.mean()), 0.0), share
