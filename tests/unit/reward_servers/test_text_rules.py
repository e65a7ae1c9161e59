"""The verifiers of prompts: a clip agrees with its own words more than with others', and no flood of colour passes."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from accord.media import read_mp4
from accord.plugins import spec_class
from accord.types import Clip, Prompt
from accord.world.scene import COLOURS, MOTIONS, SOUNDS, WorldPrompt, make_clip
from reward_servers.base import RewardModel, Score, build
from reward_servers.panel.prompt_rules import wanted_count, words

REAL = Path(__file__).parents[4] / "shared/realclips"
MODELS: dict[str, RewardModel] = {name: build(spec_class("rewards", name)()) for name in ("text_video", "text_audio")}
RATE = 16_000


def judged(name: str, text: str, clip: Clip) -> Score:
    ((score,),) = MODELS[name].score([Prompt("p", text, text, text)], [[clip]])
    return score


def world(colour: str = "red", motion: str = "bouncing", sound: str = "bell", index: int = 1) -> Clip:
    return make_clip(WorldPrompt(colour, motion, sound), 3, index).clip


def heard(sound: np.ndarray, rate: int = RATE) -> Clip:
    return Clip(np.zeros((3, 8, 8, 3), np.uint8), 24.0, np.atleast_2d(sound).astype(np.float32), rate)


@functools.cache
def real() -> dict[str, tuple[dict[str, str], Clip]]:
    if not REAL.exists():
        pytest.skip(f"{REAL} is not there")
    told = json.loads((REAL / "relations.json").read_text())["clips"]
    return {name: (facts, read_mp4(REAL / facts["file"])) for name, facts in told.items()}


# ---------------------------------------------------------------- the built-in world


def test_each_sound_of_the_world_is_known_from_the_others():
    found = np.array([[judged("text_audio", f"a {told} sound", world(sound=made)).value for made in SOUNDS]
                      for told in SOUNDS])  # fmt: skip
    assert np.diag(found).min() > 0.8
    assert (found - np.diag(np.diag(found))).max() < 0.1


def test_each_colour_and_motion_of_the_world_is_known_from_the_others():
    things = [(colour, motion) for colour in COLOURS for motion in MOTIONS]
    found = np.array([[judged("text_video", f"a {colour} ball {motion}", world(*made)).value for made in things]
                      for colour, motion in things])  # fmt: skip
    assert np.diag(found).min() > 0.8
    assert (found - np.diag(np.diag(found))).max() < 0.7


def test_hiss_lowers_the_kind_by_degrees():
    rng = np.random.default_rng(4)
    clip = world(sound="bell")
    noise = rng.standard_normal(clip.audio_CS.shape)
    values = [
        judged("text_audio", "a bell sound", replace(clip, audio_CS=(clip.audio_CS + level * noise).astype(np.float32)))
        for level in (0.0, 0.01, 0.03, 0.1)
    ]
    assert all(np.diff([score.value for score in values]) < -0.02)


def test_the_colour_must_be_a_thing_and_not_the_ground():
    clip = world("red")
    own = judged("text_video", "a red ball bouncing", clip)
    red = np.array([230, 30, 30], np.uint8)
    flooded = np.broadcast_to(red, clip.video_FHWC.shape)
    half = np.where(np.arange(32)[:, None] < 16, red, clip.video_FHWC)
    tinted = np.clip(clip.video_FHWC.astype(int) + np.array([120, 0, 0]), 0, 255)
    for video in (flooded, half, tinted):
        other = judged("text_video", "a red ball bouncing", replace(clip, video_FHWC=video.astype(np.uint8)))
        assert other.components["colour"] < 0.3 < own.components["colour"]
        assert other.value < own.value - 0.2


# ---------------------------------------------------------------- single words, on sounds and pictures made for them


@pytest.mark.parametrize(
    ("more", "less", "frequency"), [("a high tone", "a low tone", 3000), ("a low tone", "a high tone", 120)]
)
def test_pitch_words(more, less, frequency):
    tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(2 * RATE) / RATE)
    assert judged("text_audio", more, heard(tone)).value > judged("text_audio", less, heard(tone)).value + 0.3


def test_loud_and_quiet_fast_and_slow_and_counts():
    time = np.arange(3 * RATE) / RATE
    ticks = sum(np.exp(-np.maximum(time - at, 0) / 0.02) * (time >= at) for at in (0.4, 1.4, 2.4))
    sound = 0.5 * ticks * np.sin(2 * np.pi * 700 * time)
    assert judged("text_audio", "loud knocks", heard(sound)).components["manner"] > 0.5
    assert judged("text_audio", "quiet knocks", heard(0.02 * sound)).components["manner"] > 0.5
    assert judged("text_audio", "slow knocks", heard(sound)).components["manner"] > 0.6
    assert judged("text_audio", "fast knocks", heard(sound)).components["manner"] < 0.4
    counts = [judged("text_audio", f"knocks {told} times", heard(sound)).components["manner"] for told in (1, 2, 3, 6)]
    assert counts[2] == 1.0 and max(counts[:2] + counts[3:]) < 0.6


def test_noise_tone_and_speech_words():
    rng = np.random.default_rng(6)
    rain = 0.1 * rng.standard_normal(3 * RATE)
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    assert judged("text_audio", "steady rain", heard(rain)).value > 0.8
    assert judged("text_audio", "steady rain", heard(tone)).value < 0.6
    assert (
        judged("text_audio", "a flute melody", heard(tone)).value
        > 0.3 + judged("text_audio", "a flute melody", heard(rain)).value
    )


def textured(shift: float, zoom: float = 0.0, frames: int = 24) -> Clip:
    """A grey texture that the camera crosses by `shift` pixels a frame, or enlarges by `zoom` a frame."""
    rows, columns = np.mgrid[:96, :144].astype(float)
    made = []
    for frame in range(frames):
        scale = (1.0 + zoom) ** frame
        y, x = (rows - 48) / scale, (columns - 72) / scale + shift * frame
        made.append(128 + 50 * np.sin(x / 5) * np.cos(y / 7) + 40 * np.sin((x + y) / 11))
    video = np.repeat(np.clip(made, 0, 255).astype(np.uint8)[..., None], 3, axis=3)
    return Clip(video, 24.0, np.zeros((1, RATE), np.float32), RATE)


def test_camera_words():
    still, panned, closer, farther = textured(0), textured(1.5), textured(0, 0.004), textured(0, -0.004)
    told = lambda text, clip: judged("text_video", text, clip).value  # noqa: E731
    assert told("the camera pans", panned) > 0.8 > 0.2 > told("the camera pans", still)
    assert told("static camera", still) > 0.8 > 0.2 > told("static camera", panned)
    assert told("zoom in", closer) > 0.8 > 0.3 > told("zoom in", farther)
    assert told("zoom out", farther) > 0.8 > 0.3 > told("zoom out", still)


def test_light_and_flashes():
    dark, light = (replace(textured(0), video_FHWC=np.full((24, 32, 48, 3), level, np.uint8)) for level in (30, 200))
    assert judged("text_video", "at night", dark).value > 0.9 > 0.1 > judged("text_video", "at night", light).value
    flashing = dark.video_FHWC.copy()
    flashing[[6, 12, 18]] = 220
    clip = replace(dark, video_FHWC=flashing)
    assert judged("text_video", "flash pictures", clip).value == pytest.approx(0.75)
    counts = [judged("text_video", f"it flashes {told} times", clip).components["flash"] for told in (1, 3, 6)]
    assert counts[1] == 1.0 > max(counts[0], counts[2])


# ---------------------------------------------------------------- real clips


@pytest.mark.parametrize(("name", "text", "gap"), [("text_audio", "prompt_a", 0.2), ("text_video", "prompt_v", 0.15)])
def test_real_clips_agree_with_their_own_captions_more_than_others_do(name, text, gap):
    clips = list(real().values())
    own, others = [], []
    for place, (facts, clip) in enumerate(clips):
        score = judged(name, facts[text], clip)
        if score.reason != "unverifiable":
            own.append(score.value)
            shifted = [clips[(place + shift) % len(clips)][1] for shift in (1, 3, 5)]
            others.append(np.mean([judged(name, facts[text], other).value for other in shifted]))
    assert len(own) >= 5
    assert np.mean(own) > np.mean(others) + gap
    assert np.mean(np.array(own) > others) > 0.7


# ---------------------------------------------------------------- what cannot be judged, and what is empty


def test_no_known_word_is_unverifiable():
    for name in MODELS:
        score = judged(name, "a harbour, as one knows it", world())
        assert (score.valid, score.reason) == (False, "unverifiable")


def test_silence_is_at_the_floor_unless_it_was_asked_for():
    quiet = heard(np.zeros(RATE))
    assert (judged("text_audio", "a bell", quiet).value, judged("text_audio", "a bell", quiet).reason) == (
        0.0, "silent_audio",
    )  # fmt: skip
    asked = judged("text_audio", "silence", quiet)
    assert (asked.value, asked.reason) == (1.0, "ok")


def test_what_is_said_is_no_description_and_a_quiet_room_no_level():
    assert words('She says "three loud drums".') == ["she", "says"]
    score = judged("text_audio", "a bell in a quiet room", world())
    assert set(score.components) == {"kind"}
    assert [wanted_count(words(text)) for text in ("it rings twice", "4 times", "three times", "two dogs")] == [
        2, 4, 3, None,
    ]  # fmt: skip


def test_curves_are_drawn_for_both():
    clip = world()
    for name, model in MODELS.items():
        for curve in model.curves(Prompt("p", "", "", ""), clip):
            assert curve.times_s.shape == curve.values.shape and np.all(np.diff(curve.times_s) > 0), name
