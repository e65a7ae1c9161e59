"""VideoAlign from tiny checkpoints in both published forms: its numbers another way, response, what will not do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from accord.config.contract import ModelFacts
from accord.config.rewards.preference import VideoAlignReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.qwen import video_patches
from reward_servers.models.videoalign import looked_at
from tests.unit.reward_servers import tiny_qwen

PROMPT = Prompt("p", "not read", "a red ball bouncing", "not read")
SMALL = 16 * 28**2
WRITERS = {"merged": tiny_qwen.write_video_reward, "lora": tiny_qwen.write_video_reward_lora}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for form, write in WRITERS.items():
        folder = tmp_path_factory.mktemp(form)
        made[form] = write(folder / "OmniNFT-Reward-Series", folder / "Qwen2-VL-2B-Instruct")
    return made


def spec(bundle: Path, **fields) -> VideoAlignReward:
    named = {"path": str(bundle), "base": str(bundle.parent / "Qwen2-VL-2B-Instruct"), "dtype": "float32"}
    return VideoAlignReward(**{"pixels": SMALL, **named, **fields})


@pytest.fixture(scope="module")
def model(bundles):
    return build(spec(bundles["merged"]))


def drawn(seed: int, frames: int = 48, height: int = 60, width: int = 90, fps: float = 24.0) -> Clip:
    """A clip of smooth random colours that change from frame to frame."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    video = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in small])
    return Clip(video, fps, np.zeros((1, 16_000), np.float32), 16_000)


def values(model, prompt: Prompt, clips: list[Clip]) -> tuple[float, ...]:
    (scores,) = score_groups(model, [prompt], [clips])
    assert set(scores.reasons) == {"ok"}
    return scores.values


# ------------------------------------------------ the same numbers by another way


def adapted(plain, checkpoint: Path):
    """The plain language model with the LoRA in it, unmerged, by peft."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = get_peft_model(plain, config).eval()
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    names = {name.replace("base_model.model.model.", "base_model.model."): value for name, value in adapter.items()}
    outcome = set_peft_model_state_dict(wrapped, names)
    assert not outcome.unexpected_keys
    return wrapped


@torch.no_grad()
@pytest.mark.parametrize("form", ["merged", "lora"])
def test_each_head_reads_its_own_token_with_one_position_for_each(bundles, tmp_path, form):
    bundle, base = bundles[form], bundles[form].parent / "Qwen2-VL-2B-Instruct"
    clip = drawn(3, frames=4, height=308, width=336, fps=2.0)  # 103 488 pixels: nothing to resize
    if form == "merged":
        state = torch.load(bundle / "VideoReward" / "checkpoint-11352" / "model.pth", weights_only=True)
    else:
        besides = torch.load(bundle / "VideoReward" / "checkpoint-90" / "non_lora_state_dict.pth", weights_only=True)
        state = load_file(base / "model.safetensors")
        state |= {name.removeprefix("base_model.model."): tensor for name, tensor in besides.items()}
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    library = tiny_qwen.as_library_loads(state, base, tmp_path / "library")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    token, rows = tokenizer.token_to_id("<|video_pad|>"), tokenizer.get_vocab_size()
    words = tiny_qwen.ALIGN_TEMPLATE.replace("{text_prompt}", PROMPT.prompt_v)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    ids = tokenizer.encode(text + "<|video_pad|>" * (2 * 11 * 12) + "<|vision_end|>").ids
    places = []
    for index, mark in enumerate(tiny_qwen.ALIGN_TOKENS):
        before, words = words.split(mark)
        ids += tokenizer.encode(before).ids
        places.append(len(ids))
        ids.append(rows + index)
    ids_BL = torch.tensor([ids + tokenizer.encode(f"{words}<|im_end|>\n<|im_start|>assistant\n").ids])
    patches, grid = tiny_qwen.patches_one_by_one(clip.video_FHWC), torch.tensor([[2, 22, 24]])
    seen = library.model.visual(patches, grid_thw=grid).pooler_output
    plain = tiny_qwen.one_dimensional(library)
    whole = tiny_qwen.embedded(library, ids_BL, seen, token)
    if form == "lora":
        plain = adapted(plain, bundle / "VideoReward" / "checkpoint-90")
    hidden = plain(inputs_embeds=whole).last_hidden_state[0]
    heads = state["rm_head.weight"].float()
    raw = [float(heads[axis] @ hidden[place]) for axis, place in enumerate(places)]
    vq, mq, ta = ((value - mean) / spread for value, (mean, spread) in zip(raw, tiny_qwen.NORMS.values(), strict=True))

    full = build(spec(bundle, pixels=256 * 28**2))
    (scores,) = score_groups(full, [PROMPT], [[clip]])
    close = 2e-4 if form == "merged" else 2e-2  # a merged LoRA is rounded to bfloat16 once more
    assert [scores.components[axis][0] for axis in ("vq", "mq", "ta")] == pytest.approx([vq, mq, ta], abs=close)
    assert scores.values[0] == pytest.approx((vq + ta) / 2, abs=close)
    assert scores.components["frames"] == (4.0,)
    kinds = 2 * (ids_BL == token).int()
    by_space = library.model(ids_BL, pixel_values_videos=patches, video_grid_thw=grid, mm_token_type_ids=kinds)
    other = [float(heads[axis] @ by_space.last_hidden_state[0, place]) for axis, place in enumerate(places)]
    assert np.abs(np.subtract(other, raw)).max() > 0.05


def test_patches_are_those_of_the_library_and_of_a_loop(model):
    frames = drawn(1, frames=4, height=56, width=84).video_FHWC
    mean, std = (np.array(part) for part in (model.reader.pixels.image_mean, model.reader.pixels.image_std))
    normal = torch.tensor((frames / 255.0 - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    torch.testing.assert_close(video_patches(normal), tiny_qwen.patches_one_by_one(frames))
    still = normal[:1].expand(2, -1, -1, -1)
    made = model.reader.pixels(images=[frames[0]], do_resize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(video_patches(still), made)


def test_frames_are_resized_as_pil_does_it(model):
    frames = drawn(2, frames=2, height=120, width=200).video_FHWC
    look = model.reader.video(frames, "", (SMALL, SMALL))
    height, width = look.grid[1] * 14, look.grid[2] * 14
    size, way = (width, height), Image.Resampling.BICUBIC
    by_pil = np.stack([np.asarray(Image.fromarray(frame).resize(size, way)) for frame in frames])
    difference = look.patches - tiny_qwen.patches_one_by_one(by_pil)
    assert look.grid == (1, 4 * 2 - 2, 5 * 2)  # sqrt(24000 / 12544) = 1.383: 86.8 x 144.6, down to 84 x 140
    assert difference.abs().max() < 1.6 / 255 / 0.26


@pytest.mark.parametrize(
    ("total", "clip_fps", "places"),
    [
        (121, 24.0, [0, 13, 27, 40, 53, 67, 80, 93, 107, 120]),  # 121 / 24 * 2 = 10.08
        (48, 24.0, [0, 16, 31, 47]),
        (24, 24.0, [0, 8, 15, 23]),  # 2 by rate, 4 at least
        (3, 24.0, [0, 2]),
        (2, 0.5, [0, 1]),
        (400, 2.0, [0, 80, 160, 239, 319, 399]),  # 400 by rate, 6 at most
    ],
)
def test_frames_are_even_in_number_and_spread(total, clip_fps, places):
    assert looked_at(total, clip_fps, 2.0, 6 if total == 400 else 64) == places


def test_the_value_is_what_is_asked_for(bundles, model):
    clip = drawn(5)
    parts = score_groups(model, [PROMPT], [[clip]])[0].components
    vq, mq, ta = (parts[axis][0] for axis in ("vq", "mq", "ta"))
    for aggregate, value in {"vq_ta": (vq + ta) / 2, "overall": vq + mq + ta, "mq": mq}.items():
        asked = build(spec(bundles["merged"], aggregate=aggregate))
        assert values(asked, PROMPT, [clip])[0] == pytest.approx(value, abs=1e-6)
    raw = build(spec(bundles["merged"], aggregate="ta", normalise=False))
    assert values(raw, PROMPT, [clip])[0] == pytest.approx(ta * 2.5121 + 2.8105, abs=1e-5)


def test_one_and_many_rate_alike(bundles):
    clips = [drawn(seed, frames=24 + 24 * (seed % 2), height=40 + 20 * (seed % 3)) for seed in range(8)]
    for dtype, close in (("float32", 1e-4), ("bfloat16", VideoAlignReward.batch_tolerance)):
        wide = build(spec(bundles["merged"], dtype=dtype, max_visual_tokens=100_000))
        alone = [values(wide, PROMPT, [clip])[0] for clip in clips]
        assert values(wide, PROMPT, clips) == pytest.approx(alone, abs=close)


# ------------------------------------------------ response


def test_the_prompt_and_the_frames_count_and_nothing_else_does(model):
    clip = drawn(7)
    (value,) = values(model, PROMPT, [clip])
    assert values(model, PROMPT, [clip]) == (value,)
    assert values(model, dataclasses.replace(PROMPT, prompt_v="a blue cube"), [clip])[0] != value
    assert values(model, dataclasses.replace(PROMPT, prompt_av="x", prompt_a="y", id="q"), [clip]) == (value,)
    backwards = dataclasses.replace(clip, video_FHWC=np.ascontiguousarray(clip.video_FHWC[::-1]))
    assert values(model, PROMPT, [backwards])[0] != value
    loud = dataclasses.replace(clip, audio_CS=np.ones((2, 480), np.float32), sample_rate=48_000)
    assert values(model, PROMPT, [loud]) == (value,)


def test_one_frame_is_no_clip(model):
    (scores,) = score_groups(model, [PROMPT], [[drawn(1, frames=1)]])
    assert scores.reasons == ("too_short",)


# ------------------------------------------------ files


def test_a_file_that_peft_wrapped_is_the_lora_it_holds(bundles, tmp_path):
    source, base = bundles["lora"], bundles["lora"].parent / "Qwen2-VL-2B-Instruct"
    checkpoint = source / "VideoReward" / "checkpoint-90"
    besides = torch.load(checkpoint / "non_lora_state_dict.pth", weights_only=True)
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    layers = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in adapter}
    wrapped = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        layer, _, kind = name.rpartition(".")
        place = f"{layer}.base_layer.{kind}" if layer in layers else name
        wrapped[f"base_model.model.{place}"] = tensor
    wrapped |= besides
    wrapped |= {name.replace(".weight", ".default.weight"): tensor for name, tensor in adapter.items()}
    part = tmp_path / "VideoReward" / "checkpoint-1"
    part.mkdir(parents=True)
    torch.save(wrapped, part / "model.pth")
    for file in ("model_config.json", "prompt_template.txt"):
        shutil.copy(source / "VideoReward" / file, part.parent / file)
    clip = drawn(4)
    whole = build(spec(bundles["lora"], path=str(part.parent), base=str(base)))
    assert values(whole, PROMPT, [clip]) == values(build(spec(source)), PROMPT, [clip])


def test_the_words_of_the_config_come_before_those_beside_it(bundles, model, tmp_path):
    shutil.copytree(bundles["merged"] / "VideoReward", tmp_path / "VideoReward")
    config = tmp_path / "VideoReward" / "model_config.json"
    tree = json.loads(config.read_text())
    tree["data_config"]["prompt_template"] = "Other words. " + tiny_qwen.ALIGN_TEMPLATE
    config.write_text(json.dumps(tree))
    base = str(bundles["merged"].parent / "Qwen2-VL-2B-Instruct")
    clip = drawn(4)
    own = values(build(spec(tmp_path, base=base)), PROMPT, [clip])
    beside = str(tmp_path / "VideoReward" / "prompt_template.txt")
    assert own != values(model, PROMPT, [clip])
    assert values(build(spec(tmp_path, base=base, template=beside)), PROMPT, [clip]) == values(model, PROMPT, [clip])


def edited(file: Path, part: str, **fields) -> None:
    tree = json.loads(file.read_text())
    tree[part] = (tree[part] | fields) if fields else {}
    file.write_text(json.dumps(tree))


class Harmful:
    """What a pickle may hold besides numbers."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def reshaped(file: Path, name: str, tensor: torch.Tensor) -> None:
    state = torch.load(file, weights_only=True)
    torch.save(state | {name: tensor}, file)


def merged(part: Path) -> Path:
    return part / "checkpoint-11352" / "model.pth"


BREAK = {
    "no config": ("merged", lambda part, base: (part / "model_config.json").unlink()),
    "no checkpoint": ("merged", lambda part, base: shutil.rmtree(part / "checkpoint-11352")),
    "nothing in it": ("merged", lambda part, base: merged(part).rename(part / "checkpoint-11352" / "weights.pth")),
    "torn": ("merged", lambda part, base: merged(part).write_bytes(merged(part).read_bytes()[:-200])),
    "code": ("merged", lambda part, base: torch.save({"x": Harmful()}, merged(part))),
    "one head": ("merged", lambda part, base: edited(part / "model_config.json", "model_config", output_dim=1)),
    "no norms": ("merged", lambda part, base: edited(part / "model_config.json", "inference_config")),
    "zero spread": ("merged", lambda part, base: edited(part / "model_config.json", "inference_config", MQ_std=0)),
    "no besides": ("lora", lambda part, base: (part / "checkpoint-90" / "non_lora_state_dict.pth").unlink()),
    "no base weights": ("lora", lambda part, base: (base / "model.safetensors").unlink()),
    "no rank": ("lora", lambda part, base: (
        (part / "checkpoint-90" / "adapter_config.json").unlink(),
        edited(part / "model_config.json", "peft_lora_config"),
    )),
    "other heads": ("merged", lambda part, base: reshaped(merged(part), "rm_head.weight", torch.zeros(2, 64))),
    "other width": ("merged", lambda part, base: reshaped(merged(part), "model.norm.weight", torch.zeros(32))),
    "not tensors": ("merged", lambda part, base: torch.save({"epoch": 3}, merged(part))),
    "other lora": ("lora", lambda part, base: save_file(
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32),
         "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(64, 4)},
        part / "checkpoint-90" / "adapter_model.safetensors",
    )),
}  # fmt: skip


def broken(bundles: dict[str, Path], tmp_path: Path, kind: str) -> VideoAlignReward:
    form, harm = BREAK[kind]
    shutil.copytree(bundles[form] / "VideoReward", tmp_path / "VideoReward")
    shutil.copytree(bundles[form].parent / "Qwen2-VL-2B-Instruct", tmp_path / "base")
    harm(tmp_path / "VideoReward", tmp_path / "base")
    return VideoAlignReward(path=str(tmp_path), base=str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no config", r"model_config\.json: No such file"),
        ("no checkpoint", r"has no checkpoint-<step>; there is none"),
        ("nothing in it", r"holds neither model\.pth nor adapter_model\.safetensors"),
        ("torn", r"model\.pth: torn, or not written by torch\.save"),
        ("code", r"model\.pth: names the code posix\.mkdir, and weights need none"),
        ("one head", r"is no model of VQ, MQ and TA at three tokens \(output_dim 1"),
        ("no norms", r"has no inference_config to normalise by"),
        ("zero spread", r"lacks MQ_mean or MQ_std above 0"),
        ("no besides", r"non_lora_state_dict\.pth: No such file"),
        ("no base weights", r"a LoRA needs the weights of its base"),
        ("no rank", r"nothing says the rank and alpha of its LoRA"),
    ],
)
def test_what_will_not_do_is_told_when_a_job_validates(bundles, tmp_path, monkeypatch, kind, words):
    monkeypatch.chdir(tmp_path)
    wrong = broken(bundles, tmp_path, kind)
    ((where, what),) = wrong.problems(None, ModelFacts())
    assert where in {"path", "template"}
    with pytest.raises(ModelError, match=words) as raised:
        build(wrong)
    assert str(raised.value) == what and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("other heads", r"instead of one rm_head\.weight of 3 x 64"),
        ("other width", r"language_model\.norm\.weight is 32, and .*config\.json asks for 64"),
        ("not tensors", r"model\.pth: holds more than tensors by name"),
        ("other lora", r"LoRA of language_model\.layers\.0\.self_attn\.q_proj does not fit"),
    ],
)
def test_what_only_the_weights_tell_is_told_when_they_load(bundles, tmp_path, kind, words):
    with pytest.raises(ModelError, match=words):
        build(broken(bundles, tmp_path, kind))


def test_a_step_can_be_named_and_the_latest_is_by_number(bundles):
    assert build(spec(bundles["lora"])).weights_digest == build(spec(bundles["lora"], step=90)).weights_digest
    with pytest.raises(ModelError, match=r"has no checkpoint-7; there is 8, 90"):
        build(spec(bundles["lora"], step=7))


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_a_sound_checkpoint_is_no_problem_and_its_files_are_known(bundles, form):
    sound = spec(bundles[form])
    assert list(sound.problems(None, ModelFacts())) == []
    named = {Path(file.path).name for file in sound.files()}
    assert {"VideoReward", "tokenizer.json", "config.json"} <= named
    assert ("model.safetensors" in named) == (form == "lora")
