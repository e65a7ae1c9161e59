"""Text-audio agreement by a closed vocabulary: the sound has the kind, pitch, level and tempo that the text names.

Reads `prompt_a`. Each known word is a predicate with graded evidence in 0..1; the value is the mean over the kinds of
predicate that the text names (components). Evidence, on power spectra of 43 ms frames:

* `kind`. What sounds like drum, thud, knock, bell, ping must have its energy in the word's band (a share of the power
  above 40 Hz) and its character: percussive = the level's steepest rises are steep; tonal = power stands in narrow
  peaks; noise = no such peaks and even level (rain, wind, applause); hum = even level, low; speech = peaks, and
  syllables (2 to 8 changes of level a second). Where several are named, their mean.
* `manner`, a mean: pitch (high, low, deep) by the centre of gravity of log frequency, level (loud, quiet) by the
  loudest 100 ms, tempo (fast, slow) and count ("three times") by onsets.
* `silence`: share of time 50 dB below the loudest.

Range [0, 1], higher is better. A prompt without a known word is invalid (`unverifiable`). Silence is at the floor, 0,
where the text does not ask for it. Limits: it hears pitch, rise, noisiness and rhythm, not sources: any low struck
thing passes for a drum, any steady noise for rain, any melody for music; mixtures satisfy each word in part; "no music"
asks for music.
Known hacks: the plainest sound of the kind, such as a sine burst at the band's middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from typing_extensions import override

from accord.types import Clip, Prompt
from reward_servers.base import SILENCE_PEAK, Curve, RewardModel, Score
from reward_servers.panel.prompt_rules import counted, lexicon, logistic, share, wanted_count, words
from reward_servers.signals import Float

FRAME_S, HOP_S, DEPTH_DB = 0.043, 0.010, 50.0

BANDS: dict[str, tuple[float, float]] = lexicon(
    {
        (40.0, 280.0): "drum drums tom thud thuds boom booms thunder",
        (280.0, 830.0): "knock knocks knocking footsteps steps hammer",
        (830.0, 2080.0): "bell bells gong flute",
        (2080.0, 6000.0): "ping pings beep beeps whistle triangle",
    }
)
"""Hz in which the sound of a word has its energy."""
KINDS: dict[str, str] = lexicon(
    {
        "percussive": """
        drum drums tom thud thuds boom booms thunder knock knocks knocking footsteps steps hammer hit hits strike
        strikes bounce bounces bouncing click clicks clap claps snap snaps snapping tap taps tapping shot shots bang
        bangs""",
        "tonal": """
        bell bells gong ping pings beep beeps whistle triangle flute violin cello piano guitar organ tone tones music
        melody song singing sings siren""",
        "noise": "rain rains raining wind windy hiss hissing applause static waves surf waterfall shower noise",
        "hum": "hum humming drone engine motor traffic rumble rumbling truck trucks",
        "speech": "says say speaks speaking speech talks talking voice voices whispers shouts",
        "even": "steady constant continuous",
    }
)
CHARACTER_WORDS = lexicon(
    {
        "high": "high shrill squeaky",
        "low": "low deep dull bass",
        "loud": "loud loudly booming noisy",
        "quiet": "quiet quietly soft softly faint gentle",
        "fast": "fast quick quickly rapid rapidly hurried",
        "slow": "slow slowly",
        "silent": "silence silent mute",
    }
)
PLACES = frozenset(lexicon({"": "room rooms street forest night background town house place"}))
"""A quiet room or a dull street says nothing of the sound."""


class TextAudioModel(RewardModel):
    """Closed-vocabulary verifier of sound words."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """Components: the kinds of predicate that the prompt names."""
        found = words(prompt.prompt_a)
        checks = predicates(found)
        if not checks:
            return Score.invalid("unverifiable")
        if float(np.abs(clip.audio_CS).max()) < SILENCE_PEAK:
            parts = {name: float(name == "silence") for name in checks}
            return Score(share(parts, {}), parts) if "silence" in parts else self.empty("silent_audio", parts)
        heard = Heard.of(clip)
        parts = {name: check(heard) for name, check in checks.items()}
        return Score(share(parts, {}), parts)

    @override
    def curves(self, prompt: Prompt, clip: Clip) -> list[Curve]:
        """Level with its onsets, and where the power has its centre."""
        heard = Heard.of(clip)
        times = np.asarray(np.arange(len(heard.level_db)) * HOP_S + FRAME_S / 2.0, dtype=np.float64)
        power = heard.power_TK
        centre = (power * heard.hz_K).sum(axis=1) / np.maximum(power.sum(axis=1), 1e-20)
        return [
            Curve("level", times, heard.level_db, "dB"),
            Curve("onsets", times, heard.onsets_T.astype(np.float64)),
            Curve("centre", times, centre, "Hz"),
        ]


@dataclass(frozen=True)
class Heard:
    """Measurements of one sound that words can be held against."""

    power_TK: Float
    hz_K: Float

    @classmethod
    def of(cls, clip: Clip) -> Heard:
        """Power [T, K] between 40 Hz and half the sample rate, mean over channels."""
        rate = float(clip.sample_rate)
        size = max(64, round(FRAME_S * rate))
        hop = max(1, round(HOP_S * rate))
        sound_CS = np.asarray(clip.audio_CS, dtype=np.float64)
        sound_CS = np.pad(sound_CS, ((0, 0), (size // 2, max(size // 2, size - sound_CS.shape[1]))))
        hz = np.fft.rfftfreq(size, 1.0 / rate)
        kept = hz >= min(40.0, rate / 8.0)
        window = np.hanning(size)
        power = np.zeros(1)
        for channel in sound_CS:
            cut = np.lib.stride_tricks.sliding_window_view(channel, size)[::hop]
            spectrum = np.fft.rfft(cut * window, axis=1)[:, kept]
            power = power + np.square(spectrum.real) + np.square(spectrum.imag)
        scale = 2.0 / (len(sound_CS) * size * float(np.square(window).sum()))
        return cls(np.asarray(power * scale), np.asarray(hz[kept], dtype=np.float64))

    @cached_property
    def level_db(self) -> Float:
        """Level of each frame, dBFS, no lower than 50 dB below the loudest [T]."""
        level = 10.0 * np.log10(self.power_TK.sum(axis=1) + 1e-14)
        return np.asarray(np.maximum(level, level.max() - DEPTH_DB))

    @cached_property
    def loudest_db(self) -> float:
        """Level of the loudest 100 ms in all, dBFS."""
        return float(np.sort(self.level_db)[-10:].mean())

    @cached_property
    def rise_db(self) -> Float:
        """How far the level climbs within 30 ms [T]."""
        before = np.concatenate([np.full(3, self.level_db.min()), self.level_db])
        return np.asarray(self.level_db - before[: len(self.level_db)])

    @cached_property
    def onsets_T(self) -> np.ndarray:
        """Frames in which something begins: the steepest within 100 ms, by 8 dB or more, and within 25 dB of the
        loudest."""
        level, rise = self.level_db, self.rise_db
        padded = np.pad(rise, 10, constant_values=-1.0)
        near = np.lib.stride_tricks.sliding_window_view(padded, 21)
        first = near.argmax(axis=1) == 10
        reached = np.lib.stride_tricks.sliding_window_view(np.pad(level, (0, 5), mode="edge"), 6).max(axis=1)
        return np.asarray(first & (rise >= 8.0) & (reached >= level.max() - 25.0))

    @cached_property
    def strong_TK(self) -> Float:
        """Spectra of the loudest tenth of the frames and of all within 20 dB of it."""
        kept = self.level_db >= np.quantile(self.level_db, 0.9) - 20.0
        return np.asarray(self.power_TK[kept])

    @cached_property
    def percussive(self) -> float:
        """Mean of the steepest rises, one in half a second, against 15 dB."""
        count = max(1, round(len(self.rise_db) * HOP_S / 0.5))
        rises = np.sort(self.rise_db[self.onsets_T])[::-1][:count]
        mean = float(rises.sum()) / max(count / 2.0, len(rises))
        return logistic((mean - 12.0) / 3.0)

    @cached_property
    def peaky(self) -> float:
        """Share of the strong frames' power that stands 10 dB above its surroundings (a third of an octave or more)."""
        power = self.strong_TK
        width = max(3, round(120.0 / (self.hz_K[1] - self.hz_K[0])))
        padded = np.pad(power, ((0, 0), (width, width)), mode="edge")
        whole = np.cumsum(np.pad(np.sqrt(padded), ((0, 0), (1, 0))), axis=1)
        around = np.square((whole[:, 2 * width + 1 :] - whole[:, : -2 * width - 1]) / (2 * width + 1))
        share_T = (power * (power > 4.0 * around)).sum(axis=1) / np.maximum(power.sum(axis=1), 1e-20)
        return float(np.average(share_T, weights=np.sqrt(power.sum(axis=1))))

    @cached_property
    def even(self) -> float:
        """How little the level of 100 ms changes: its spread against 3 dB."""
        usable = len(self.level_db) // 10 * 10
        if not usable:
            return 0.0
        blocks = self.level_db[:usable].reshape(-1, 10).mean(axis=1)
        return float(np.exp(-((float(blocks.std()) / 5.0) ** 2)))

    @cached_property
    def centre_hz(self) -> float:
        """Centre of gravity of log frequency, weighted by the amplitude of the strong frames."""
        mean = self.strong_TK.mean(axis=0)
        return float(np.exp(np.average(np.log(self.hz_K), weights=mean + 1e-20)))

    def band_share(self, low: float, high: float) -> float:
        """Share of all power between two frequencies."""
        power = self.power_TK.sum(axis=0)
        return float(power[(self.hz_K >= low) & (self.hz_K < high)].sum() / max(float(power.sum()), 1e-20))

    @cached_property
    def syllables(self) -> float:
        """Share of the changes of level between 0.5 and 20 a second that are syllables, 2 to 8 a second."""
        voice = (self.hz_K >= 250.0) & (self.hz_K <= 3500.0)
        level = np.sqrt(self.power_TK[:, voice].sum(axis=1))
        power = np.square(np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)))))
        rate = np.fft.rfftfreq(len(level), HOP_S)
        return float(power[(rate >= 2.0) & (rate <= 8.0)].sum() / max(float(power[(rate > 0.5)].sum()), 1e-20))


CHARACTERS: Mapping[str, Callable[[Heard], float]] = {
    "percussive": lambda heard: heard.percussive,
    "tonal": lambda heard: heard.peaky,
    "noise": lambda heard: (1.0 - heard.peaky) * heard.even**0.5,
    "hum": lambda heard: heard.even * logistic(np.log2(1000.0 / heard.centre_hz)),
    "speech": lambda heard: heard.syllables * heard.peaky * (1.0 - heard.even),
    "even": lambda heard: heard.even,
}


MANNERS: Mapping[str, Callable[[Heard], float]] = {
    "high": lambda heard: logistic(2.0 * np.log2(heard.centre_hz / 1000.0)),
    "low": lambda heard: logistic(2.0 * np.log2(500.0 / heard.centre_hz)),
    "loud": lambda heard: logistic((heard.loudest_db + 24.0) / 3.0),
    "quiet": lambda heard: logistic((-32.0 - heard.loudest_db) / 3.0),
    "fast": lambda heard: logistic((_rate(heard) - 2.5) / 0.6),
    "slow": lambda heard: logistic((1.5 - _rate(heard)) / 0.4),
}


def _kind(names: list[str], heard: Heard) -> float:
    evidence = []
    for name in names:
        character = CHARACTERS[KINDS[name]](heard)
        evidence.append(character * heard.band_share(*BANDS[name]) if name in BANDS else character)
    return float(np.mean(evidence))


def predicates(found: list[str]) -> dict[str, Callable[[Heard], float]]:
    """What can be checked of a text's words, by component."""
    checks: dict[str, Callable[[Heard], float]] = {}
    kinds = list(dict.fromkeys(word for word in found if word in KINDS))
    if kinds:
        checks["kind"] = lambda heard: _kind(kinds, heard)
    afterwards = [*found[1:], ""][: len(found)]
    told = {
        CHARACTER_WORDS[word]
        for word, after in zip(found, afterwards, strict=True)
        if word in CHARACTER_WORDS and after not in PLACES
    }
    manners = [MANNERS[name] for name in MANNERS if name in told]
    wanted = wanted_count(found)
    if wanted is not None:
        manners.append(lambda heard: counted(wanted, int(heard.onsets_T.sum())))
    if manners:
        checks["manner"] = lambda heard: float(np.mean([manner(heard) for manner in manners]))
    if "silent" in told:
        checks["silence"] = lambda heard: float((heard.level_db <= heard.level_db.max() - DEPTH_DB + 1e-9).mean())
    return checks


def _rate(heard: Heard) -> float:
    """Onsets a second."""
    return float(heard.onsets_T.sum()) / (len(heard.level_db) * HOP_S)
