"""The procedural world: determinism, captions and the prompt split."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from accord.world.scene import (
    ALL_PROMPTS,
    AUDIO_SAMPLES,
    CLEAN,
    COLOURS,
    HELD_OUT_PROMPTS,
    IMPERFECT,
    MOTIONS,
    SOUNDS,
    TRAIN_PROMPTS,
    Imperfections,
    make_clip,
    make_clips,
    write_prompt_file,
)

ROOT = Path(__file__).parents[3]


def test_the_same_seed_and_index_give_the_same_bytes() -> None:
    for imperfections in (CLEAN, IMPERFECT):
        first = make_clip(ALL_PROMPTS[5], 3, 17, imperfections)
        again = make_clip(ALL_PROMPTS[5], 3, 17, imperfections)
        assert np.array_equal(first.video, again.video)
        assert np.array_equal(first.audio, again.audio)
    other = make_clip(ALL_PROMPTS[5], 4, 17)
    assert not np.array_equal(make_clip(ALL_PROMPTS[5], 3, 17).video, other.video)


def test_a_clip_does_not_depend_on_the_clips_before_it() -> None:
    series = list(make_clips(40, 9))
    alone = make_clip(ALL_PROMPTS[37 % 32], 9, 37)
    assert np.array_equal(series[37].video, alone.video)


def test_shapes_and_types() -> None:
    clip = make_clip(ALL_PROMPTS[0], 0, 0)
    assert clip.video.shape == (25, 32, 32, 3) and clip.video.dtype == np.uint8
    assert clip.audio.shape == (AUDIO_SAMPLES,) and clip.audio.dtype == np.float32
    assert np.abs(clip.audio).max() <= 1.0
    assert 2 <= len(clip.contacts) <= 3


def test_clean_clips_are_synchronous_and_honest() -> None:
    for clip in make_clips(64, 1):
        assert clip.shown == clip.prompt
        assert np.allclose(clip.contacts[: len(clip.onsets)], clip.onsets)


def test_an_imperfect_twin_shares_the_motion_with_its_clean_twin() -> None:
    clean = make_clip(ALL_PROMPTS[3], 5, 8)
    twin = make_clip(ALL_PROMPTS[3], 5, 8, Imperfections(offset=1.0, hiss=1.0))
    assert np.array_equal(clean.video, twin.video)
    assert not np.array_equal(clean.audio, twin.audio)


def test_imperfections_come_about_as_often_as_asked() -> None:
    clips = list(make_clips(600, 2, IMPERFECT))
    wrong_colour = np.mean([clip.shown.colour != clip.prompt.colour for clip in clips])
    wrong_sound = np.mean([clip.shown.sound != clip.prompt.sound for clip in clips])
    assert wrong_colour == pytest.approx(IMPERFECT.wrong_colour, abs=0.05)
    assert wrong_sound == pytest.approx(IMPERFECT.wrong_sound, abs=0.05)


def test_captions_name_what_is_asked_for() -> None:
    for prompt in ALL_PROMPTS:
        words = prompt.prompt_av.lower().split()
        named = [[word for word in words if word in choices] for choices in (COLOURS, MOTIONS, SOUNDS)]
        assert named == [[prompt.colour], [prompt.motion], [prompt.sound]]


def test_the_split_is_balanced_and_complete() -> None:
    assert len(TRAIN_PROMPTS) == 24 and len(HELD_OUT_PROMPTS) == 8
    assert set(TRAIN_PROMPTS) | set(HELD_OUT_PROMPTS) == set(ALL_PROMPTS)
    assert Counter(prompt.colour for prompt in HELD_OUT_PROMPTS) == dict.fromkeys(COLOURS, 2)
    assert Counter(prompt.motion for prompt in HELD_OUT_PROMPTS) == dict.fromkeys(MOTIONS, 4)
    assert Counter(prompt.sound for prompt in HELD_OUT_PROMPTS) == dict.fromkeys(SOUNDS, 2)


@pytest.mark.parametrize(("name", "prompts"), [("world_train", TRAIN_PROMPTS), ("world_heldout", HELD_OUT_PROMPTS)])
def test_shipped_prompt_files_match_the_split(name: str, prompts: tuple, tmp_path: Path) -> None:
    write_prompt_file(prompts, tmp_path / "made.jsonl")
    shipped = (ROOT / "examples" / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8")
    assert shipped == (tmp_path / "made.jsonl").read_text(encoding="utf-8")
    assert all(set(json.loads(line)) == {"id", "prompt_av", "prompt_v", "prompt_a"} for line in shipped.splitlines())
