"""CLAP from a directory: the built-in checkpoint, its grading, and directories that will not do."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from accord.config.clap_dir import SHIPPED
from accord.config.rewards.sound import ClapReward
from accord.errors import ModelError
from reward_servers.base import build, score_groups

CHECKPOINT = SHIPPED["builtin:tiny-clap"]


@pytest.fixture(scope="module")
def model():
    return build(ClapReward())


def value(model, prompt, clip) -> float:
    (scores,) = score_groups(model, [prompt], [[clip]])
    assert scores.valid == (True,)
    return scores.values[0]


def test_the_score_is_graded_by_hiss(model, world):
    noise = np.random.default_rng(0).standard_normal(world["clean"][0][1].audio_CS.shape).astype(np.float32)
    means = []
    for level in (0.0, 0.01, 0.03, 0.1):
        pairs = [(prompt, dataclasses.replace(c, audio_CS=c.audio_CS + level * noise)) for prompt, c in world["clean"]]
        means.append(np.mean([value(model, prompt, clip) for prompt, clip in pairs]))
    assert all(cleaner > noisier for cleaner, noisier in itertools.pairwise(means))


def test_the_named_sound_wins_for_every_clip(model, world):
    for prompt, clip in world["clean"]:
        texts = [f"a {name} sound" for name in ("drum", "knock", "bell", "ping")]
        scores = [value(model, dataclasses.replace(prompt, prompt_a=text), clip) for text in texts]
        assert texts[int(np.argmax(scores))] == prompt.prompt_a


def test_noise_and_a_strange_pitch_are_not_the_named_sound(model, world):
    prompt, clip = world["clean"][0]
    rng = np.random.default_rng(1)
    noise = (0.1 * rng.standard_normal(clip.audio_CS.shape)).astype(np.float32)
    tone = (0.3 * np.sin(2 * np.pi * 820 * np.arange(clip.audio_CS.shape[1]) / 16_000)).astype(np.float32)[None]
    for sound in (noise, tone):
        for name in ("drum", "knock", "bell", "ping"):
            asked = dataclasses.replace(prompt, prompt_a=f"a {name} sound")
            assert value(model, asked, dataclasses.replace(clip, audio_CS=sound)) < 0.45


def test_rate_and_channels_do_not_matter(model, world):
    prompt, clip = world["clean"][0]
    stereo = np.repeat(clip.audio_CS, 2, axis=0)
    faster = resample_poly(clip.audio_CS, 3, 1, axis=1).astype(np.float32)
    plain = value(model, prompt, clip)
    assert value(model, prompt, dataclasses.replace(clip, audio_CS=stereo)) == pytest.approx(plain, abs=1e-6)
    assert value(model, prompt, dataclasses.replace(clip, audio_CS=faster, sample_rate=48_000)) == pytest.approx(
        plain, abs=0.05
    )


def test_long_sound_is_cut_into_windows_and_not_at_random(model, world):
    prompt, clip = world["clean"][0]
    long = dataclasses.replace(clip, audio_CS=np.tile(clip.audio_CS, (1, 3)))
    (first,), (second,) = (score_groups(model, [prompt], [[long]]) for _ in range(2))
    assert first.values == second.values
    assert first.components["windows"] == (3.0,)
    assert first.values[0] == pytest.approx(value(model, prompt, clip), abs=1e-5)


@pytest.mark.parametrize("text", ["", "word " * 600, "ein völlig anderer Satz"])
def test_any_text_gets_a_score(model, world, text):
    prompt, clip = world["clean"][0]
    assert -1.0 <= value(model, dataclasses.replace(prompt, prompt_a=text), clip) <= 1.0


def test_directories_that_will_not_do(tmp_path: Path):
    with pytest.raises(ModelError, match="No such file"):
        build(ClapReward(path=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match="no built-in"):
        build(ClapReward(path="builtin:huge-clap"))
    shutil.copytree(CHECKPOINT, tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        build(ClapReward(path=str(tmp_path / "torn")))
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ModelError, match="holds nothing of audio_model"):
        build(ClapReward(path=str(tmp_path / "torn")))


@pytest.mark.parametrize("rest", [{}, {"added_tokens": [], "version": "1.0"}, {"added_tokens": 3}])
def test_a_tokenizer_that_only_its_library_understands_is_the_checkpoints_fault(tmp_path: Path, rest: dict):
    shutil.copytree(CHECKPOINT, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": 3}} | rest))
    with pytest.raises(ModelError, match="is not a CLAP checkpoint that transformers can load"):
        build(ClapReward(path=str(tmp_path / "copy")))


def test_the_shipped_checkpoint_is_small_and_has_a_card():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 3_000_000
    assert (CHECKPOINT / "README.md").is_file()


# ---------------------------------------------------------------- published layouts


def _reshape(folder: Path, layout: str) -> Path:
    """A copy of the checkpoint as one of the published layouts has it; returns what a job would name."""
    home = folder / "OmniNFT-Reward-Series" / "CLAP" if layout == "bundle" else folder / "copy"
    shutil.copytree(CHECKPOINT, home)
    settings = json.loads((home / "preprocessor_config.json").read_text())
    if layout == "processor":
        nested = {"feature_extractor": settings, "processor_class": "ClapProcessor"}
        (home / "processor_config.json").write_text(json.dumps(nested))
        (home / "preprocessor_config.json").unlink()
    elif layout == "both":
        (home / "processor_config.json").write_text(json.dumps({"processor_class": "ClapProcessor"}))
    return home.parent if layout == "bundle" else home


@pytest.mark.parametrize("layout", ["bundle", "processor", "both"])
def test_published_layouts_are_one_model(model, world, tmp_path: Path, layout: str):
    prompt, clip = world["clean"][0]
    spec = ClapReward(path=str(_reshape(tmp_path, layout)))
    same = build(spec)
    assert value(same, prompt, clip) == value(model, prompt, clip)
    (named,) = spec.files()
    assert Path(named.path).name in {"CLAP", "copy"} and named.mark.kind == "directory"
    assert len(same.weights_digest) == 64
    assert (same.weights_digest == model.weights_digest) == (layout == "bundle")


@pytest.mark.parametrize("seconds", [0.7, 2.05])
def test_the_value_is_the_cosine_of_the_library_with_repeated_sound(model, world, tmp_path: Path, seconds: float):
    """Whatever padding the settings name: sound is repeated by hand here, and the two towers are called as one."""
    home = _reshape(tmp_path, "plain")
    settings = json.loads((home / "preprocessor_config.json").read_text())
    (home / "preprocessor_config.json").write_text(json.dumps(settings | {"padding": "pad"}))
    prompt, clip = world["clean"][0]
    heard = dataclasses.replace(clip, audio_CS=clip.audio_CS[:, 2_000 : 2_000 + int(seconds * 16_000)])
    sound = heard.audio_CS[0]
    filled = np.zeros(32_800, np.float32)
    whole = np.tile(sound, 32_800 // len(sound))
    filled[: len(whole)] = whole
    features = ClapFeatureExtractor.from_pretrained(CHECKPOINT)(filled, sampling_rate=16_000, return_tensors="pt")
    texts = AutoTokenizer.from_pretrained(CHECKPOINT)([prompt.prompt_a], return_tensors="pt")
    whole_model = ClapModel.from_pretrained(CHECKPOINT).eval()
    with torch.no_grad():
        out = whole_model(
            input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], is_longer=torch.zeros(1, 1).bool(),
            input_features=features["input_features"].float(),
        )  # fmt: skip
    wanted = float(out.logits_per_audio[0, 0] / whole_model.logit_scale_a.exp())
    assert value(build(ClapReward(path=str(home))), prompt, heard) == pytest.approx(wanted, abs=1e-5)


def test_an_extractor_of_the_other_kind_of_model_is_named(tmp_path: Path):
    home = _reshape(tmp_path, "plain")
    settings = json.loads((home / "preprocessor_config.json").read_text())
    (home / "preprocessor_config.json").write_text(json.dumps(settings | {"truncation": "fusion"}))
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: prepares sound for a fused model"):
        build(ClapReward(path=str(home)))


def test_text_beyond_the_checkpoints_length_is_cut(model, world):
    prompt, clip = world["clean"][0]
    long = dataclasses.replace(prompt, prompt_a="a bell sound " * 200)
    longer = dataclasses.replace(prompt, prompt_a="a bell sound " * 200 + "drum " * 50)
    assert value(model, long, clip) == value(model, longer, clip)
