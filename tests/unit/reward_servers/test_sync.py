"""Synchrony: graded either way, paid for being in step and for nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from accord.config.rewards.panel import SyncReward
from accord.media import read_mp4
from accord.types import Clip
from accord.world.scene import render_audio
from reward_servers.base import build, score_groups
from reward_servers.panel.events import flashes, seen
from tests.unit.reward_servers.graded import PROMPT, clicked
from tests.unit.reward_servers.staged_clips import staged


@pytest.fixture(scope="module")
def model():
    return build(SyncReward())


def delayed(clip: Clip, seconds: float) -> Clip:
    return dataclasses.replace(clip, audio_CS=np.roll(clip.audio_CS, round(seconds * clip.sample_rate), axis=1))


@pytest.fixture(scope="module")
def watched(world):
    """The clean clips with what is seen in them."""
    return [(seen(clip), clip) for _, clip in world["clean"]]


@pytest.mark.parametrize("way", [1, -1])
def test_the_score_of_the_built_in_world_falls_with_the_delay_either_way(model, watched, way):
    means = [
        np.mean([model.compared(courses, delayed(clip, way * delay)).value for courses, clip in watched])
        for delay in (0.0, 0.06, 0.12, 0.2, 0.35)
    ]
    assert all(early > late for early, late in itertools.pairwise(means))
    assert means[0] > 0.5 and means[-1] < 0.15


def test_more_sounds_alone_earn_nothing(model, watched):
    """Sound that comes often matches by chance, at many lags."""
    gains = {}
    for count in (2, 6, 12):
        values = []
        for index, (courses, clip) in enumerate(watched):
            times = np.sort(np.random.default_rng([count, index]).uniform(0, 2.0, count)).astype(np.float32)
            audio = render_audio(times, "ping")[None]
            values.append(model.compared(courses, dataclasses.replace(clip, audio_CS=audio)).value)
        gains[count] = np.mean(values)
    assert max(gains.values()) < 0.15
    assert gains[12] < gains[2] + 0.05


def test_unrelated_sound_and_pictures_earn_next_to_nothing(model, watched):
    """Clips of the world share two periods and few phases, so some pairs do match."""
    crossed = [
        model.compared(courses, dataclasses.replace(clip, audio_CS=watched[(index + step) % len(watched)][1].audio_CS))
        for step in (1, 3, 5, 7)
        for index, (courses, clip) in enumerate(watched)
    ]
    assert np.mean([score.value for score in crossed]) < 0.12


def test_neither_silence_nor_stillness_beats_misplaced_sound(model, world):
    prompt, clip = world["offset"][0]
    still = dataclasses.replace(clip, video_FHWC=np.repeat(clip.video_FHWC[:1], 25, axis=0))
    silent = dataclasses.replace(clip, audio_CS=np.zeros_like(clip.audio_CS))
    steady = dataclasses.replace(clip, audio_CS=np.full_like(clip.audio_CS, 0.2))
    (empty,) = score_groups(model, [prompt], [[still, silent, steady]])
    (wrong,) = score_groups(model, [prompt], [[pair[1] for pair in world["offset"]]])
    assert empty.valid == (True, True, True)
    assert empty.reasons == ("no_events", "silent_audio", "no_events")
    assert max(empty.values) == model.spec.floor <= min(wrong.values)
    assert np.mean(wrong.values) > model.spec.floor + 0.05


CLIPS = Path(__file__).parents[4] / "shared" / "realclips"
DELAYS = (0.0, 0.04, 0.08, 0.12, 0.2, 0.3, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module")
def real():
    """The seven clips with what is seen in them."""
    if not CLIPS.is_dir():
        pytest.skip("the real clips are not beside the repository")
    clips = {path.stem: read_mp4(path) for path in sorted((CLIPS / "dev").glob("*.mp4"))}
    return {name: (seen(clip), clip) for name, clip in clips.items()}


def shifted(clip: Clip, seconds: float) -> Clip:
    """The sound moved, with silence where there is none."""
    samples = round(seconds * clip.sample_rate)
    moved = np.zeros_like(clip.audio_CS)
    moved[:, max(0, samples) : moved.shape[1] + min(0, samples)] = clip.audio_CS[
        :, max(0, -samples) : moved.shape[1] - max(0, samples)
    ]
    return dataclasses.replace(clip, audio_CS=moved)


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize(("move", "less"), [(shifted, 0.0), (delayed, 0.1)])
def test_the_score_of_real_clips_falls_with_the_delay(model, real, move, less, way):
    """A sound that wraps around brings its own end to the beginning, where it may fit by chance."""
    for axis in json.loads((CLIPS / "relations.json").read_text())["relations"]:
        if axis["axis"] != "sync" or "degrade" not in axis:
            continue
        for name, least in axis["clips"].items():
            courses, clip = real[name]
            values = [model.compared(courses, move(clip, way * delay)).value for delay in DELAYS]
            assert spearmanr(values, -np.array(DELAYS)).statistic >= least - less - 1e-9, name


def test_the_own_sound_of_a_real_clip_beats_five_others(model, real):
    for name in sorted(set(real) - {"rain"}):
        courses, clip = real[name]
        own = model.compared(courses, clip).value
        others = [
            model.compared(courses, dataclasses.replace(clip, audio_CS=real[other][1].audio_CS)).value
            for other in sorted(set(real) - {name})[:5]
        ]
        assert own - max(others) > max(0.2, float(np.std(others))), name


def test_rain_has_no_events(model, real):
    score = model.compared(*real["rain"])
    assert (score.valid, score.value, score.reason) == (True, model.spec.floor, "no_events")


@pytest.mark.parametrize("frames", [1, 3])
def test_flashes_with_clicks_do_not_pay_on_real_clips(model, real, frames):
    """Rain has nothing else to see: what they earn there is a fraction of what events earn."""
    for name in ("drum", "flash", "rain"):
        courses, clip = real[name]
        own, cheated = model.compared(courses, clip).value, model.score_clip(PROMPT, clicked(clip, frames)).value
        assert cheated < (own / 4 if own else 0.15), (name, own, cheated)


def test_flashes_with_clicks_do_not_pay_on_staged_clips(model):
    for family in ("steps", "drive", "world_b"):
        clip = staged(family, 0).clip
        assert model.score_clip(PROMPT, clicked(clip)).value < model.score_clip(PROMPT, clip).value + 0.05, family


def test_a_pasted_patch_is_a_flash_and_a_thing_that_moves_or_comes_to_stay_is_none():
    """By levels: a patch 90 above its ground for one frame, a block that crosses in eight, one that stays."""
    ground = np.full((12, 20, 30), 100.0)
    pasted, moving, staying = ground.copy(), ground.copy(), ground.copy()
    pasted[5, 6:10, 10:15] = 190.0
    for frame in range(12):
        moving[frame, 8:11, 2 * frame : 2 * frame + 3] = 190.0
    staying[5:, 6:10, 10:15] = 190.0
    rest, passing = np.zeros_like(ground), np.full_like(ground, 2.0)
    assert np.allclose(flashes(pasted, rest), [0, 0, 0, 0, 0, 90, 0, 0, 0, 0, 0, 0])
    assert flashes(moving, rest).max() <= 0 and flashes(staying, rest).max() <= 0
    assert flashes(pasted, passing).max() < 1, "what moves there may light up"


def test_a_thing_that_lights_up_when_it_lands_is_no_pasted_flash(model, world):
    """The built-in world shown larger: there is flow in it, and its contacts are bright for one frame."""
    for _, clip in world["clean"][:3]:
        large = dataclasses.replace(clip, video_FHWC=clip.video_FHWC.repeat(8, axis=1).repeat(8, axis=2))
        assert model.score_clip(PROMPT, large).value > model.score_clip(PROMPT, delayed(large, 0.5)).value + 0.2
