"""The sound reward: each degradation lowers it step by step, no cheat raises it, and its parts are what they say."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt
from scipy.stats import spearmanr

from accord.config.rewards.panel import SoundReward
from accord.media import read_mp4
from accord.types import Clip, Prompt
from accord.world.scene import ALL_PROMPTS, IMPERFECT, make_clip
from reward_servers.base import Score
from reward_servers.panel.sound import SoundModel, _value

PROMPT = Prompt("sound", "", "", "")
MODEL = SoundModel(SoundReward())
FRAMES = np.zeros((3, 8, 8, 3), np.uint8)
REAL = Path(__file__).parents[4] / "shared/realclips"
NAMES = ("drum", "speech_music", "balls", "rain", "b133", "b345", "flash")

Change = Callable[[np.ndarray, int, float], np.ndarray]


def judged(audio: np.ndarray, rate: int) -> Score:
    ((score,),) = MODEL.score([PROMPT], [[Clip(FRAMES, 24.0, np.asarray(audio, np.float32), rate)]])
    assert score.valid
    return score


def hissing(audio: np.ndarray, rate: int, snr_db: float) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(audio.shape)
    return audio + noise * np.sqrt(np.square(audio).mean() / 10 ** (snr_db / 10))


def clipped(audio: np.ndarray, rate: int, share: float) -> np.ndarray:
    limit = share * np.abs(audio).max()
    return np.clip(audio, -limit, limit)


def dull(audio: np.ndarray, rate: int, cutoff: float) -> np.ndarray:
    if cutoff >= rate / 2:
        return audio
    return np.asarray(sosfiltfilt(butter(8, 2 * cutoff / rate, output="sos"), audio, axis=1))


def cut_off(audio: np.ndarray, rate: int, share: float) -> np.ndarray:
    return audio * (np.arange(audio.shape[1]) < (1 - share) * audio.shape[1])


def chopped(audio: np.ndarray, rate: int, share: float) -> np.ndarray:
    return audio * (np.arange(audio.shape[1]) / rate / 0.2 % 1.0 >= share)


AXES: dict[str, tuple[Change, tuple[float, ...]]] = {
    "noise": (hissing, (200, 40, 30, 20, 10, 0)),
    "clipping": (clipped, (1, 0.5, 0.25, 0.1)),
    "low-pass": (dull, (16_000, 8_000, 4_000, 2_000)),
    "cut off": (cut_off, (0, 0.25, 0.5, 0.75)),
    "chopped": (chopped, (0, 0.25, 0.5, 0.75)),
}


@functools.cache
def real(name: str) -> tuple[np.ndarray, int]:
    if not REAL.exists():
        pytest.skip(f"{REAL} is not there")
    files = json.loads((REAL / "relations.json").read_text())["clips"]
    clip = read_mp4(REAL / files[name]["file"])
    return clip.audio_CS, clip.sample_rate


@functools.cache
def talking(rate: int, seconds: float = 3.0) -> np.ndarray:
    """Harmonics of a gliding pitch in syllables, with hissing consonants between, stereo."""
    rng = np.random.default_rng(5)
    time = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * np.cumsum(130 + 30 * np.sin(3 * time)) / rate
    count = int(0.4 * rate / 160)
    voice = np.sum([np.sin(k * phase) / k for k in range(1, count)], axis=0) * np.clip(np.sin(9 * time), 0, 1) ** 2
    hiss = rng.standard_normal(len(time)) * np.clip(np.sin(9 * time + 3.5), 0, 1) ** 8 * 0.1
    sound = 0.2 * (voice + hiss) + 1e-4 * np.cumsum(rng.standard_normal(len(time))) / 300
    return np.stack([sound, 0.8 * sound])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", NAMES)
def test_each_degradation_lowers_each_real_clip_step_by_step(name, axis):
    audio, rate = real(name)
    change, levels = AXES[axis]
    values = [judged(change(audio.astype(np.float64), rate, level), rate).value for level in levels]
    assert spearmanr(values, range(len(values))).statistic <= -0.95, values
    assert values[0] < 0.99 and values[1] < 0.98


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("rate", [24_000, 44_100])
def test_each_degradation_lowers_a_full_band_voice_at_other_rates(rate, axis):
    change, levels = AXES[axis]
    levels = tuple(level for level in levels if axis != "low-pass" or level < rate / 2)
    values = [judged(change(talking(rate), rate, level), rate).value for level in levels]
    assert all(np.diff(values) < 0), values


@pytest.mark.parametrize("name", NAMES)
def test_no_cheat_rises_above_a_real_clip(name):
    audio, rate = real(name)
    own = judged(audio, rate).value
    time = np.arange(audio.shape[1]) / rate
    event = np.zeros_like(audio)
    loudest = int(np.abs(audio).max(axis=0).argmax())
    around = slice(max(0, loudest - rate // 20), loudest + rate // 4)
    event[:, around] = audio[:, around]
    click = np.zeros_like(audio)
    click[:, rate // 2 : rate // 2 + rate // 20] = np.random.default_rng(2).uniform(-0.8, 0.8, (len(audio), rate // 20))
    cheats = {
        "constant tone": np.broadcast_to(0.3 * np.sin(2 * np.pi * 3000 * time), audio.shape),
        "one loud event in silence": event,
        "a click alone": click,
        "a click added": np.clip(audio + click, -1, 1),
        "loud noise": np.clip(np.random.default_rng(3).normal(0, 0.3, audio.shape), -1, 1),
    }
    assert {cheat for cheat, sound in cheats.items() if judged(sound, rate).value > own + 0.001} == set()


def test_rain_is_not_punished_for_being_noise():
    rain, rate = real("rain")
    own = judged(rain, rate).value
    noisy = [judged(hissing(real(name)[0], rate, 20), rate).value for name in NAMES if name != "rain"]
    assert own > max(noisy)


def test_silence_is_valid_and_at_the_floor():
    for quiet in (np.zeros((2, 48_000)), np.full((1, 48_000), 0.5)):
        score = judged(quiet, 48_000)
        assert (score.value, score.reason) == (0.0, "silent_audio")


def test_a_group_of_the_world_has_something_to_choose_from():
    spreads, clean = [], []
    for place in range(0, len(ALL_PROMPTS), 4):
        group = [make_clip(ALL_PROMPTS[place], 1, index, IMPERFECT) for index in range(8)]
        spreads.append(np.std([judged(clip.audio[None], 16_000).value for clip in group]))
        clean += [judged(make_clip(ALL_PROMPTS[place], 1, index).audio[None], 16_000).value for index in range(4)]
    assert np.mean(spreads) > 0.1
    assert np.mean(clean) > 0.4 and max(clean) < 0.9


# ---------------------------------------------------------------- parts, against arithmetic


def bursts(rate: int) -> np.ndarray:
    """A quarter of a second of a 1 kHz tone of amplitude 0.4, then as much silence, for 3 s."""
    time = np.arange(3 * rate) / rate
    return (0.4 * np.sin(2 * np.pi * 1000 * time) * (time % 0.5 < 0.25))[None]


FAULTLESS = {
    "snr_db": 80.0, "bandwidth": 1.0, "clipped_share": 0.0, "active_share": 1.0, "loudness_db": -30.0,
    "steady_share": 0.0, "dc_share": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "amount", "left"),
    [
        ("snr_db", 12.0, 0.5),
        ("snr_db", 12.0 + 9.0 * np.log(3), 0.75),
        ("bandwidth", 0.5 ** (4 / 3), 0.5),
        ("clipped_share", 0.01, 0.5),
        ("clipped_share", 0.09, 0.25),
        ("active_share", 0.25, 0.5),
        ("loudness_db", -70.0, 0.5),
        ("loudness_db", -8.0, 0.5),
        ("steady_share", 0.25, 0.5),
        ("dc_share", 0.01, 1.0),
        ("dc_share", 0.26, 0.5),
    ],
)
def test_each_factor_of_the_value_is_the_one_that_is_documented(part, amount, left):
    """By hand, against a sound with no fault."""
    assert _value(FAULTLESS) > 0.99
    assert _value({**FAULTLESS, part: amount}) == pytest.approx(left, rel=0.01)


@pytest.mark.parametrize("snr_db", [30.0, 20.0, 10.0])
def test_the_noise_ratio_is_the_one_that_was_mixed(snr_db):
    for rate in (16_000, 48_000):
        found = judged(hissing(bursts(rate), rate, snr_db), rate).components["snr_db"]
        mixed = 10 * np.log10(1 + 10 ** (snr_db / 10))  # sound and noise over noise
        assert found == pytest.approx(mixed, abs=1.0)


def test_silence_without_noise_counts_as_inactive_and_with_noise_still_does():
    assert judged(bursts(48_000), 48_000).components["active_share"] == pytest.approx(0.5, abs=0.06)
    assert judged(hissing(bursts(48_000), 48_000, 30), 48_000).components["active_share"] == pytest.approx(
        0.5, abs=0.06
    )


def test_flat_tops_are_counted_wherever_the_volume_stands():
    time = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 100 * time)[None]
    whole, half = (0.5 * np.clip(tone, -limit, limit) for limit in (1.0, 0.5))
    assert judged(whole, 48_000).components["clipped_share"] < 1e-3
    # |sin| stays above a half for two thirds of the time
    assert judged(half, 48_000).components["clipped_share"] == pytest.approx(2 / 3, abs=0.01)


def test_hum_and_offset_are_told_apart_from_content():
    time = np.arange(3 * 48_000) / 48_000
    voice = talking(48_000)
    hum = np.sqrt(2 * np.square(voice).mean()) * np.sin(2 * np.pi * 50 * time)
    clean, humming = judged(voice, 48_000), judged(voice + hum, 48_000)
    assert clean.components["steady_share"] < 0.01
    assert humming.components["steady_share"] == pytest.approx(0.5, abs=0.1)
    assert humming.value < clean.value
    shifted = judged(voice + np.sqrt(np.square(voice).mean()), 48_000)
    assert shifted.components["dc_share"] == pytest.approx(0.5, abs=0.02) and shifted.value < clean.value


def test_curves_rise_and_fall_with_the_sound():
    clip = Clip(FRAMES, 24.0, bursts(48_000).astype(np.float32), 48_000)
    level, active = MODEL.curves(PROMPT, clip)
    sounding = level.times_s % 0.5 < 0.2
    paused = (level.times_s % 0.5 > 0.3) & (level.times_s % 0.5 < 0.47)
    assert level.values[sounding].mean() == pytest.approx(20 * np.log10(0.4 / np.sqrt(2)), abs=1.0)
    assert active.values[sounding].min() > 0.9 and active.values[paused].max() < 0.1


def tones(highest: float, rate: int = 48_000, seconds: float = 3.0) -> np.ndarray:
    """A tone in each third-octave from 60 Hz up to `highest`, all of one strength."""
    time = np.arange(round(rate * seconds)) / rate
    centres = 60.0 * 2.0 ** ((np.arange(26) + 0.5) / 3.0)
    heard = centres[centres < highest]
    return 0.03 * np.sin(2 * np.pi * heard[:, None] * time + np.arange(len(heard))[:, None] ** 2).sum(axis=0)[None]


def bandwidth(audio: np.ndarray) -> float:
    return judged(audio, 48_000).components["bandwidth"]


def test_the_band_reaches_to_the_highest_part_that_is_heard():
    """By hand: 4 kHz is 6.06 of the 8.64 octaves from 60 Hz to 24 kHz, and 16 kHz 8.06, what is between included."""
    dull, time = tones(4_000.0), np.arange(3 * 48_000) / 48_000
    assert bandwidth(dull) == pytest.approx(6.06 / 8.64, abs=0.04)
    for below_db, octaves in ((40.0, 8.06), (85.0, 6.06)):
        high = 0.03 * 10 ** (-below_db / 20) * np.sin(2 * np.pi * 15_500 * time)
        assert bandwidth(dull + high) == pytest.approx(octaves / 8.64, abs=0.05), below_db


def test_neither_clicks_nor_gaps_nor_hiss_widen_the_band():
    dull = tones(2_000.0)
    own = bandwidth(dull)
    clicking = dull.copy()
    clicking[:, 24_000::48_000] += 0.8
    assert bandwidth(clicking) == pytest.approx(own, abs=0.03)
    paused = dull * (np.arange(dull.shape[1]) / 48_000 % 0.3 < 0.2)  # six edges a second
    assert bandwidth(paused) == pytest.approx(own, abs=0.03)
    assert bandwidth(hissing(dull, 48_000, 30.0)) < own + 0.03


def test_a_click_does_not_make_it_louder_nor_does_an_offset():
    own = judged(tones(2_000.0), 48_000).components["loudness_db"]
    clicking = tones(2_000.0)
    clicking[:, 24_000:24_500] = 0.9
    assert judged(clicking, 48_000).components["loudness_db"] == pytest.approx(own, abs=0.3)
    assert judged(tones(2_000.0) + 0.3, 48_000).components["loudness_db"] == pytest.approx(own, abs=0.3)


def test_noise_that_pauses_with_the_sound_is_noise():
    """By hand: hiss of a hundredth of the tone's power, both silent for half of the time."""
    on = bursts(48_000) != 0.0
    hiss = np.random.default_rng(4).standard_normal(on.shape) * on * 0.4 / np.sqrt(2) / 10
    assert judged(bursts(48_000) + hiss, 48_000).components["snr_db"] == pytest.approx(20.0, abs=1.5)


def test_what_is_fifty_decibels_below_the_loudest_is_no_pause_and_loudness_is_the_mean_amplitude():
    """By hand: half of the time next to nothing, and a tenth is left out of the other half, leaves 4 ninths."""
    sound = tones(8_000.0)
    own = judged(sound, 48_000).components["loudness_db"]
    sound[:, sound.shape[1] // 2 :] *= 10 ** (-50 / 20)
    parts = judged(sound, 48_000).components
    assert parts["active_share"] > 0.95
    assert parts["loudness_db"] == pytest.approx(own + 20 * np.log10(4 / 9), abs=0.5)


def test_the_share_of_flat_tops_is_the_mean_of_the_channels():
    tone = 0.5 * np.sin(2 * np.pi * 100 * np.arange(48_000) / 48_000)
    pair = np.stack([tone, np.clip(tone, -0.25, 0.25)])
    assert judged(pair, 48_000).components["clipped_share"] == pytest.approx(1 / 3, abs=0.01)
