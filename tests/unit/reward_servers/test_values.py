"""Every reward on the true world: its direction for each imperfection, and what it must not notice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from accord.plugins import names, spec_class
from accord.types import Clip
from reward_servers.base import build, score_groups
from tests.tiny_checkpoints import WRITERS


@pytest.fixture(scope="module")
def values(world):
    """Values [16] per (reward, kind of clip), computed once."""
    models = {name: build(spec_class("rewards", name)()) for name in names("rewards") if name not in WRITERS}
    kept: dict[tuple[str, str], np.ndarray] = {}

    def of(name: str, kind: str) -> np.ndarray:
        if (name, kind) not in kept:
            prompts, clips = zip(*world[kind], strict=True)
            scores = score_groups(models[name], prompts, [[clip] for clip in clips])
            assert all(score.valid[0] for score in scores), (name, kind)
            kept[name, kind] = np.array([score.values[0] for score in scores])
        return kept[name, kind]

    return of


@pytest.mark.parametrize(
    ("name", "kind", "drop"),
    [
        ("sync", "offset", 0.4),
        ("sync", "shuffled", 0.4),
        ("clap", "wrong_sound", 0.5),
        ("clap", "hiss", 0.05),
        ("sound", "hiss", 0.4),
        ("motion", "flicker", 0.15),
        ("text_video", "wrong_colour", 0.5),
        ("temporal_flicker", "flicker", 0.02),
        ("motion_smoothness", "flicker", 0.015),
    ],
)
def test_an_imperfection_costs_the_reward_that_looks_at_it(values, name, kind, drop):
    difference = values(name, "clean") - values(name, kind)
    assert difference.mean() > drop
    assert (difference > 0).mean() > 0.8


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sync", "wrong_sound"),
        ("sync", "wrong_colour"),
        ("clap", "wrong_colour"),
        ("sound", "wrong_sound"),
        ("picture", "wrong_colour"),
        ("picture", "flicker"),
        ("motion", "wrong_colour"),
        ("text_video", "flicker"),
        ("dynamic_degree", "flicker"),
    ],
)
def test_an_imperfection_elsewhere_costs_next_to_nothing(values, name, kind):
    assert abs((values(name, "clean") - values(name, kind)).mean()) < 0.03


@pytest.mark.parametrize(
    ("name", "low"),
    [
        ("sync", 0.5),
        ("clap", 0.7),
        ("sound", 0.5),
        ("picture", 0.3),
        ("motion", 0.3),
        ("consistency", 0.5),
        ("text_video", 0.85),
        ("temporal_flicker", 0.95),
        ("motion_smoothness", 0.95),
        ("dynamic_degree", 0.6),
    ],
)
def test_the_clean_world_scores_high(values, name, low):
    assert values(name, "clean").mean() > low


def test_video_quality_orders_what_a_weak_model_makes(world):
    """A faint, blurred or noisy thing scores below a clear one, so a group has something to choose from."""
    model = build(spec_class("rewards", "picture")())
    prompt, clip = world["clean"][0]
    room = np.median(clip.video_FHWC.astype(np.float64), axis=(0, 1, 2))
    frames = clip.video_FHWC.astype(np.float64)
    blurred = frames.copy()
    for _ in range(4):
        for axis in (1, 2):
            blurred = (np.roll(blurred, 1, axis) + blurred * 2 + np.roll(blurred, -1, axis)) / 4
    rng = np.random.default_rng(0)
    made = {
        "clear": frames,
        "faint": room + (frames - room) * 0.4,
        "blurred": blurred,
        "noisy": frames + rng.normal(0, 12, frames.shape),
        "missing": np.broadcast_to(frames.min(axis=0), frames.shape),
    }
    clips = [
        Clip(np.clip(video, 0, 255).round().astype(np.uint8), 12.0, clip.audio_CS, 16_000) for video in made.values()
    ]
    (scores,) = score_groups(model, [prompt], [clips])
    value = dict(zip(made, scores.values, strict=True))
    assert value["clear"] > max(value["faint"], value["blurred"], value["noisy"]) + 0.03
    assert min(value["faint"], value["blurred"], value["noisy"]) > 0.0


def test_text_video_tells_motions_apart(world):
    model = build(spec_class("rewards", "text_video")())
    prompt, clip = next(pair for pair in world["clean"] if "bouncing" in pair[0].prompt_v)
    swapped = dataclasses.replace(prompt, prompt_v=prompt.prompt_v.replace("bouncing", "sliding"))
    right, wrong = (score_groups(model, [text], [[clip]])[0] for text in (prompt, swapped))
    assert right.components["motion"][0] > 0.9 > 0.2 > wrong.components["motion"][0]


def test_text_video_without_a_known_word_is_invalid_and_not_zero(world):
    model = build(spec_class("rewards", "text_video")())
    prompt, clip = world["clean"][0]
    (scores,) = score_groups(model, [dataclasses.replace(prompt, prompt_v="a quiet harbour")], [[clip]])
    assert scores.valid == (False,) and scores.reasons == ("unverifiable",)


def test_text_video_gives_nothing_for_an_empty_room(world):
    model = build(spec_class("rewards", "text_video")())
    prompt, clip = world["clean"][0]
    empty = np.full_like(clip.video_FHWC, 107)
    (scores,) = score_groups(model, [prompt], [[dataclasses.replace(clip, video_FHWC=empty)]])
    assert scores.valid == (True,) and scores.values[0] < 0.01


def test_a_still_picture_pleases_smoothness_and_only_dynamic_degree_sees_it(world):
    prompt, clip = world["clean"][0]
    still = dataclasses.replace(clip, video_FHWC=np.repeat(clip.video_FHWC[:1], 25, axis=0))
    found = {}
    for name in ("temporal_flicker", "motion_smoothness", "dynamic_degree"):
        (scores,) = score_groups(build(spec_class("rewards", name)()), [prompt], [[still]])
        found[name] = scores.values[0]
    assert found == {"temporal_flicker": 1.0, "motion_smoothness": 1.0, "dynamic_degree": 0.0}
