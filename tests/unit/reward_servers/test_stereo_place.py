"""Stereo place: a ball swings before a panning camera; its sound is in place, narrow, beside, late or reversed."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from scipy.stats import spearmanr

from accord.config.rewards.panel import StereoPlaceReward
from accord.types import Clip, Prompt
from reward_servers.base import build
from reward_servers.panel.stereo_place import moving

FRAMES, FPS, RATE = 73, 24.0, 24_000
SECONDS = FRAMES / FPS
PROMPT = Prompt("ball", "a ball swings", "a ball swings", "a hum")
TIMES = np.arange(FRAMES) / FPS


def swinging(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a red ball over a textured ground that pans, with sensor noise; its place from -1 to 1."""
    rng = np.random.default_rng(seed)
    place = 0.7 * np.sin(np.pi * TIMES + seed)
    ground = cv2.resize(rng.uniform(60, 160, (16, 32, 3)).astype(np.float32), (192, 96), interpolation=cv2.INTER_CUBIC)
    rows, columns = np.mgrid[:96, :144]
    frames = []
    for index, x in enumerate(place):
        frame = ground[:, int(0.3 * index) :][:, :144] + rng.normal(0, 3, (96, 144, 3))
        frame[np.hypot(columns - (x + 1) / 2 * 144, rows - 48) < 9] = (230, 60, 40)
        frames.append(frame)
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8), place


def placed(place: np.ndarray, way: str, late_s: float = 0.0) -> np.ndarray:
    """Noise that is heard at a place: by constant-power levels, or by the time between two microphones."""
    samples = round(SECONDS * RATE)
    sound = 0.1 * np.random.default_rng(5).standard_normal(samples)
    clock = np.arange(samples)
    at = np.clip(np.interp(clock / RATE, TIMES + late_s, place), -1, 1)
    if way == "level":
        angle = (at + 1) * np.pi / 4
        return np.stack([sound * np.cos(angle), sound * np.sin(angle)]).astype(np.float32)
    delay = at * 0.00025 * RATE
    return np.stack([np.interp(clock - delay, clock, sound), np.interp(clock + delay, clock, sound)]).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return build(StereoPlaceReward())


@pytest.fixture(scope="module", params=[0, 1])
def scene(request):
    video, place = swinging(request.param)
    clip = Clip(video, FPS, np.zeros((2, 1), np.float32), RATE)
    return clip, moving(clip), place


@pytest.mark.parametrize("way", ["level", "time"])
def test_the_score_falls_as_the_sound_leaves_its_place(model, scene, way):
    clip, motion, place = scene

    def value(audio: np.ndarray) -> float:
        return model.compared(motion, dataclasses.replace(clip, audio_CS=audio)).value

    narrow = [1.0, 0.75, 0.5, 0.25, 0.0, -0.25, -0.5, -1.0]
    assert spearmanr([value(placed(share * place, way)) for share in narrow], narrow).statistic >= 0.95
    beside = [0.0, 0.2, 0.4, 0.8, 1.2]
    assert spearmanr([value(placed(place + shift, way)) for shift in beside], beside).statistic <= -0.95
    late = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]
    assert spearmanr([value(placed(place, way, delay)) for delay in late], late).statistic <= -0.95


@pytest.mark.parametrize("way", ["level", "time"])
def test_swapped_channels_get_the_negative(model, scene, way):
    clip, motion, place = scene
    audio = placed(place, way)
    right, wrong = (
        model.compared(motion, dataclasses.replace(clip, audio_CS=sound)).value for sound in (audio, audio[::-1])
    )
    assert right > 0.85
    assert wrong == pytest.approx(-right, abs=0.01)


def test_agreement_is_the_coefficient_of_identity_about_the_middle(model, scene):
    """A sound in the left channel alone lies at -1 in every window, wherever the ball is."""
    clip, motion, _ = scene
    sound = placed(np.zeros(FRAMES), "level")[:1]
    found = model.compared(motion, dataclasses.replace(clip, audio_CS=np.concatenate([sound, 0 * sound])))
    x = found.components["seen_spread"]
    assert found.components["heard_spread"] == pytest.approx(1.0)
    assert abs(found.value) <= 2 * x / (x**2 + 1.01) + 1e-9  # Cauchy-Schwarz


def test_what_has_no_place_is_at_the_floor_with_its_reason(model, scene):
    clip, _, place = scene
    audio = placed(place, "level")
    still = np.repeat(clip.video_FHWC[:1], 12, axis=0)
    for case, reason in (
        (dataclasses.replace(clip, audio_CS=np.repeat(audio[:1], 2, axis=0)), "no_events"),
        (dataclasses.replace(clip, audio_CS=0 * audio), "silent_audio"),
        (dataclasses.replace(clip, video_FHWC=still, audio_CS=audio), "no_events"),
    ):
        ((score,),) = model.score([PROMPT], [[case]])
        assert (score.valid, score.value, score.reason) == (True, 0.0, reason)


def test_one_channel_cannot_be_judged(model, scene):
    clip, _, place = scene
    ((score,),) = model.score([PROMPT], [[dataclasses.replace(clip, audio_CS=placed(place, "level")[:1])]])
    assert (score.valid, score.reason) == (False, "unverifiable")
