"""The measurements, checked against the truth that the world knows."""

import numpy as np
import pytest

from accord.world import measure
from accord.world.scene import (
    ALL_PROMPTS,
    COLOURS,
    FPS,
    FRAMES,
    MOTIONS,
    SOUNDS,
    Imperfections,
    WorldClip,
    make_clip,
    make_clips,
)


@pytest.fixture(scope="module")
def clips() -> list[WorldClip]:
    return list(make_clips(64, 21))


def _errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    assert len(found) == len(truth)
    return np.abs(np.asarray(found) - np.asarray(truth))


def test_contacts_are_found_within_ten_milliseconds(clips: list[WorldClip]) -> None:
    worst = max(_errors(measure.visual_contacts(clip.video), clip.contacts).max() for clip in clips)
    assert worst < 0.010


def test_onsets_are_found_within_five_milliseconds(clips: list[WorldClip]) -> None:
    worst = max(_errors(measure.audio_onsets(clip.audio), clip.onsets).max() for clip in clips)
    assert worst < 0.005


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_onsets_at_other_rates(rate: int) -> None:
    time = np.arange(int(2.0 * rate)) / rate
    audio = sum(
        np.where(time >= start, np.exp(-(time - start) / 0.05) * np.sin(2 * np.pi * 900 * (time - start)), 0.0)
        for start in (0.4, 1.1)
    )
    assert measure.audio_onsets(audio, rate) == pytest.approx([0.4, 1.1], abs=0.010)


def test_noise_and_silence_have_no_onsets() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(32_000)
    assert len(measure.audio_onsets(np.zeros(32_000))) == 0
    assert len(measure.audio_onsets(noise)) <= 1
    assert np.isnan(measure.audio_snr_db(np.zeros(32_000)))
    assert measure.audio_snr_db(noise) < 6.0


def test_sync_of_pairs_is_far_above_shuffled_pairs_and_chance(clips: list[WorldClip]) -> None:
    contacts = [measure.visual_contacts(clip.video) for clip in clips]
    onsets = [measure.audio_onsets(clip.audio) for clip in clips]
    paired = np.mean([measure.soft_f1(a, b) for a, b in zip(contacts, onsets, strict=True)])
    shuffled = np.mean([measure.soft_f1(contacts[i], onsets[(i + 32) % 64]) for i in range(64)])
    chance = np.mean([measure.chance_f1(a, b, FRAMES / FPS) for a, b in zip(contacts, onsets, strict=True)])
    assert paired > 0.95
    assert shuffled < 0.35 and chance < 0.35


def test_an_offset_is_measured() -> None:
    late = Imperfections(offset=1.0, offset_range_s=(0.15, 0.15))
    clips = [make_clip(ALL_PROMPTS[index], 4, index, late) for index in range(12)]
    whole = [clip for clip in clips if len(clip.onsets) == len(clip.contacts)]
    assert len(whole) >= 6
    for clip in whole:
        found = measure.median_offset_s(measure.visual_contacts(clip.video), measure.audio_onsets(clip.audio))
        assert found == pytest.approx(0.15, abs=0.02)


def test_soft_f1_edges() -> None:
    times = np.asarray([0.3, 1.1])
    assert measure.soft_f1(times, times) == pytest.approx(1.0)
    assert measure.soft_f1(times, np.zeros(0)) == 0.0
    assert measure.soft_f1(times, times + 0.08) == pytest.approx(np.exp(-1.0))
    assert measure.soft_f1(times, np.asarray([0.3])) == pytest.approx(2 / 3)
    assert np.isnan(measure.median_offset_s(times, np.zeros(0)))


def test_colour_motion_and_sound_are_always_read_right(clips: list[WorldClip]) -> None:
    for clip in clips:
        assert list(COLOURS)[measure.colour_probabilities(clip.video).argmax()] == clip.shown.colour
        assert MOTIONS[measure.motion_probabilities(clip.video).argmax()] == clip.shown.motion
        assert list(SOUNDS)[measure.sound_shares(clip.audio).argmax()] == clip.shown.sound


def test_an_empty_room_is_undecided() -> None:
    grey = np.full((25, 32, 32, 3), 100, dtype=np.uint8)
    assert measure.object_presence(grey) == 0.0
    assert measure.colour_probabilities(grey) == pytest.approx([0.25] * 4)
    assert measure.motion_probabilities(grey) == pytest.approx([0.5] * 2)
    assert len(measure.visual_contacts(grey)) == 0


def test_hiss_and_flicker_show_in_their_measures() -> None:
    clean = make_clip(ALL_PROMPTS[0], 2, 2)
    bad = make_clip(ALL_PROMPTS[0], 2, 2, Imperfections(hiss=1.0, flicker=1.0))
    assert measure.audio_snr_db(clean.audio) > 50.0 > 30.0 > measure.audio_snr_db(bad.audio)
    assert measure.flicker(clean.video) < 0.002 < 0.01 < measure.flicker(bad.video)
