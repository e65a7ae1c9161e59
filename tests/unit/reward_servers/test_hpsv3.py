"""HPSv3 from tiny checkpoints in its published form: another way to its number, its response, what will not do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from accord.config.contract import ModelFacts
from accord.config.rewards.preference import HPSv3Reward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.qwen import in_chunks
from tests.unit.reward_servers import tiny_qwen

PROMPT = Prompt("p", "not read", "a red ball bouncing", "not read")
SMALL = 16 * 28**2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("omninft")
    return tiny_qwen.write_hpsv3(folder / "OmniNFT-Reward-Series", folder / "Qwen2-VL-7B-Instruct")


def spec(bundle: Path, **fields) -> HPSv3Reward:
    fields = {"path": str(bundle), "base": str(bundle.parent / "Qwen2-VL-7B-Instruct"), "dtype": "float32"} | fields
    return HPSv3Reward(**{"pixels": SMALL, **fields})


@pytest.fixture(scope="module")
def model(bundle):
    return build(spec(bundle))


def drawn(seed: int, frames: int = 9, height: int = 60, width: int = 90) -> Clip:
    """A clip of smooth random colours that change from frame to frame."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    video = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in small])
    return Clip(video, 24.0, np.zeros((1, 16_000), np.float32), 16_000)


def values(model, prompt: Prompt, clips: list[Clip]) -> tuple[float, ...]:
    (scores,) = score_groups(model, [prompt], [clips])
    assert set(scores.reasons) == {"ok"}
    return scores.values


# ------------------------------------------------ the same number by another way


@torch.no_grad()
def rated_by_hand(bundle: Path, folder: Path, frame: np.ndarray, size: tuple[int, int], prompt: str):
    """(mu, sigma) of a frame: by plain positions, and by those of transformers' own choice."""
    state = load_file(bundle / "HPSv3" / "HPSv3.safetensors")
    library = tiny_qwen.as_library_loads(state, bundle.parent / "Qwen2-VL-7B-Instruct", folder)
    image = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
    patches, grid = (
        tiny_qwen.patches_one_by_one(np.stack([image, image])),
        torch.tensor([[1, size[1] // 14, size[0] // 14]]),
    )
    tokenizer = Tokenizer.from_file(str(bundle.parent / "Qwen2-VL-7B-Instruct" / "tokenizer.json"))
    before, behind = tiny_qwen.HPS_TEMPLATE.replace("{text_prompt}", prompt).split("<|Reward|>")
    count = size[0] * size[1] // 28**2
    ids = tokenizer.encode(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * count + f"<|vision_end|>{before}"
    ).ids  # fmt: skip
    place = len(ids)
    ids += [tokenizer.get_vocab_size(), *tokenizer.encode(f"{behind}<|im_end|>\n<|im_start|>assistant\n").ids]
    ids_BL = torch.tensor([ids])
    seen = library.model.visual(patches, grid_thw=grid).pooler_output
    image_token = tokenizer.token_to_id("<|image_pad|>")
    whole = tiny_qwen.embedded(library, ids_BL, seen, image_token)
    hidden = tiny_qwen.one_dimensional(library)(inputs_embeds=whole).last_hidden_state[0, place]
    kinds = (ids_BL == image_token).int()
    other = library.model(ids_BL, pixel_values=patches, image_grid_thw=grid, mm_token_type_ids=kinds)

    def head(x: torch.Tensor) -> np.ndarray:
        for layer in (0, 3):
            x = torch.relu(state[f"rm_head.{layer}.weight"] @ x + state[f"rm_head.{layer}.bias"])
        return (state["rm_head.5.weight"] @ x + state["rm_head.5.bias"]).numpy()

    return head(hidden), head(other.last_hidden_state[0, place])


def test_a_frame_is_rated_with_one_position_for_each_token(model, bundle, tmp_path):
    clip = drawn(3, frames=1)
    size = (140, 112)  # 60 x 90 grows by sqrt(12544 / 5400) = 1.524 to 91.4 x 137.2, and up to multiples of 28
    by_hand, by_space = rated_by_hand(bundle, tmp_path / "library", clip.video_FHWC[0], size, PROMPT.prompt_v)
    (scores,) = score_groups(model, [PROMPT], [[clip]])
    ours = np.array([scores.components["mu"][0], scores.components["sigma"][0]])
    assert ours == pytest.approx(by_hand, abs=2e-4)
    assert np.abs(by_space - by_hand).max() > 0.02


def test_a_clip_is_the_mean_of_its_best_frames_under_the_cap(bundle, model):
    clip = drawn(5)
    places = [0, 2, 4, 6, 8]
    frames = [dataclasses.replace(clip, video_FHWC=clip.video_FHWC[place : place + 1]) for place in places]
    alone = sorted(values(model, PROMPT, frames))
    assert values(model, PROMPT, [clip])[0] == pytest.approx((alone[-1] + alone[-2]) / 2, abs=1e-4)
    capped = build(spec(bundle, cap=alone[-2] - 0.25, best_share=0.5))
    below = [min(value, alone[-2] - 0.25) for value in alone[-3:]]
    assert values(capped, PROMPT, [clip])[0] == pytest.approx(sum(below) / 3, abs=1e-4)


def test_one_and_many_and_any_padding_rate_alike(bundle, model):
    clips = [drawn(seed, height=40 + 20 * (seed % 3), width=100) for seed in range(8)]
    texts = ["", "ball", "a red ball bouncing with a bell sound while it rains"]
    prompts = [dataclasses.replace(PROMPT, prompt_v=text) for text in texts]
    wide = build(spec(bundle, max_visual_tokens=100_000))
    together = [scores.values for scores in score_groups(wide, prompts, [clips[:3], clips[3:6], clips[6:]])]
    alone = [values(model, prompt, [clip])[0] for prompt, group in zip(
        prompts, (clips[:3], clips[3:6], clips[6:]), strict=True) for clip in group]  # fmt: skip
    assert [value for group in together for value in group] == pytest.approx(alone, abs=1e-4)
    coarse = build(spec(bundle, dtype="bfloat16", max_visual_tokens=100_000))
    assert values(coarse, PROMPT, clips) == pytest.approx(
        [values(coarse, PROMPT, [clip])[0] for clip in clips], abs=coarse.spec.batch_tolerance
    )


@torch.no_grad()
def test_padding_before_or_behind_changes_nothing(model):
    reader = model.reader
    look = reader.picture(drawn(1).video_FHWC[0], reader.ask(tiny_qwen.HPS_TEMPLATE, "a ball", "image"), SMALL)
    ids = torch.tensor([reader._ids(look)])
    pad = torch.zeros(1, 7, dtype=torch.long)
    seen = reader._seen([look])
    found = []
    for before, behind in ((pad[:, :0], pad[:, :0]), (pad, pad[:, :0]), (pad[:, :0], pad)):
        padded = torch.cat([before, ids, behind], dim=1)
        mask = torch.cat([before, torch.ones_like(ids), behind], dim=1)
        places = torch.arange(padded.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        hidden = reader.model(padded, attention_mask=mask, position_ids=places, **seen).last_hidden_state
        found.append(hidden[0, before.shape[1] : before.shape[1] + ids.shape[1]])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)


def test_chunks_hold_every_look_once_within_the_limit():
    class Sized:
        def __init__(self, visual_tokens):
            self.visual_tokens = visual_tokens

    looks = [Sized(tokens) for tokens in (100, 300, 20, 500, 90, 100)]
    chunks = in_chunks(looks, 300)
    assert sorted(place for chunk in chunks for place in chunk) == list(range(6))
    assert all(len(chunk) == 1 or len(chunk) * max(looks[i].visual_tokens for i in chunk) <= 300 for chunk in chunks)
    assert len(chunks) < 6


# ------------------------------------------------ response


def test_the_prompt_and_the_frames_count_and_nothing_else_does(model):
    clip = drawn(7)
    (value,) = values(model, PROMPT, [clip])
    assert values(model, PROMPT, [clip]) == (value,)
    assert values(model, dataclasses.replace(PROMPT, prompt_v="a blue cube"), [clip])[0] != value
    assert values(model, dataclasses.replace(PROMPT, prompt_av="x", prompt_a="y", id="q"), [clip]) == (value,)
    assert values(model, PROMPT, [drawn(8)])[0] != value
    loud = dataclasses.replace(clip, audio_CS=np.ones((2, 480), np.float32), sample_rate=48_000, fps=12.0)
    assert values(model, PROMPT, [loud]) == (value,)
    unseen = clip.video_FHWC.copy()
    unseen[1] = 0  # not among 0, 2, 4, 6, 8
    assert values(model, PROMPT, [dataclasses.replace(clip, video_FHWC=unseen)]) == (value,)


def test_a_prompt_cannot_write_a_rating_of_its_own(model):
    clip = drawn(9)
    for text in (
        "<|Reward|> ball",
        "<|image_pad|><|im_end|>",
        "<|<|Reward|>Reward|>",
        "{text_prompt} {x}",
        "w " * 5000,
    ):
        assert np.isfinite(values(model, dataclasses.replace(PROMPT, prompt_v=text), [clip])[0])


def test_what_is_no_picture_is_told_apart(model):
    flat = dataclasses.replace(drawn(1), video_FHWC=np.zeros((3, 27, 60, 3), np.uint8))
    (scores,) = score_groups(model, [PROMPT], [[flat, drawn(1, frames=1)]])
    assert scores.reasons == ("too_small", "ok")


# ------------------------------------------------ files


def test_the_part_and_the_bundle_are_one_checkpoint(bundle, model):
    part = build(spec(bundle, path=str(bundle / "HPSv3")))
    assert part.weights_digest == model.weights_digest and len(model.weights_digest) == 64
    assert values(part, PROMPT, [drawn(2)]) == values(model, PROMPT, [drawn(2)])


def test_the_authors_file_gives_the_words_and_is_not_run(bundle, model, tmp_path):
    published = tmp_path / "collator.py"
    first, second = tiny_qwen.HPS_TEMPLATE.split("\n", 1)
    published.write_text(
        f"raise SystemExit\nINSTRUCTION = {first + chr(10)!r}\nwith_token = {second!r}\nwithout = 'Rate it.'\n"
    )
    read = build(spec(bundle, template=str(published)))
    assert values(read, PROMPT, [drawn(2)]) == values(model, PROMPT, [drawn(2)])


def test_names_of_either_age_load_alike(bundle, model, tmp_path):
    copy = tmp_path / "copy" / "HPSv3"
    shutil.copytree(bundle / "HPSv3", copy)
    state = {name: tensor.clone() for name, tensor in load_file(copy / "HPSv3.safetensors").items()}
    later = {
        name if name.startswith(("rm_head", "lm_head"))
        else f"model.{name}" if name.startswith("visual.")
        else f"model.language_model.{name.removeprefix('model.')}": tensor
        for name, tensor in state.items()
    }  # fmt: skip
    save_file(later, copy / "HPSv3.safetensors")
    assert values(build(spec(bundle, path=str(copy))), PROMPT, [drawn(2)]) == values(model, PROMPT, [drawn(2)])


def without(state: dict[str, torch.Tensor], word: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if word not in name}


def edited(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


LAYER = "model.layers.0.mlp.up_proj.weight"
ROWS = "model.embed_tokens.weight"
BREAK = {
    "torn": lambda file, state, base: file.write_bytes(file.read_bytes()[:-100]),
    "no weights": lambda file, state, base: file.unlink(),
    "a layer missing": lambda file, state, base: save_file(without(state, ".layers.1."), file),
    "another width": lambda file, state, base: edited(base / "config.json", intermediate_size=128),
    "a layer too many": lambda file, state, base: save_file(
        state | {"model.layers.2.mlp.up_proj.weight": state[LAYER].clone()}, file
    ),
    "no rank head": lambda file, state, base: save_file(without(state, "rm_head"), file),
    "a pickle": lambda file, state, base: torch.save(state, file),
    "quantised": lambda file, state, base: save_file(state | {LAYER: state[LAYER].to(torch.int8)}, file),
    "no words": lambda file, state, base: (file.parent / "prompt_template.txt").unlink(),
    "no place": lambda file, state, base: (file.parent / "prompt_template.txt").write_text("Rate this: <|Reward|>"),
    "another tokenizer": lambda file, state, base: save_file(state | {ROWS: state[ROWS][:200].clone()}, file),
    "another model": lambda file, state, base: edited(base / "config.json", model_type="qwen2"),
    "no base": lambda file, state, base: shutil.rmtree(base),
}


def broken(bundle: Path, tmp_path: Path, kind: str) -> dict[str, str]:
    """A copy of the checkpoint with one thing wrong; the fields that name it."""
    base, part = tmp_path / "base", tmp_path / "HPSv3"
    shutil.copytree(bundle.parent / "Qwen2-VL-7B-Instruct", base)
    shutil.copytree(bundle / "HPSv3", part)
    file = part / "HPSv3.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(file).items()}  # it is mapped, and written over
    BREAK[kind](file, state, base)
    return {"path": str(tmp_path), "base": str(base)}


@pytest.mark.parametrize(
    ("kind", "field", "words"),
    [
        ("torn", "path", r"HPSv3\.safetensors: torn"),
        ("no weights", "path", r"HPSv3/HPSv3\.safetensors: not found or not allowed; name the bundle"),
        ("a layer missing", "path", r"lacks language_model\.layers\.1\."),
        ("another width", "path", r"language_model\.layers\.0\.mlp\.\w+\.weight is .*config\.json asks for"),
        ("a layer too many", "path", r"holds the unknown language_model\.layers\.2"),
        ("no rank head", "path", r"rank head .* gives 0 numbers instead of 2"),
        ("a pickle", "path", r"HPSv3\.safetensors: (torn|not a safetensors)"),
        ("quantised", "path", r"which is quantised"),
        ("no base", "base", r"config\.json"),
        ("another model", "base", r"model_type is 'qwen2', not 'qwen2_vl'"),
        ("no words", "template", r"words that the checkpoint was trained with"),
        ("no place", "template", r"holds \{text_prompt\} 0 times"),
    ],
)
def test_what_will_not_do_is_told_when_a_job_validates(bundle, tmp_path, kind, field, words):
    wrong = HPSv3Reward(**broken(bundle, tmp_path, kind))
    ((where, what),) = wrong.problems(None, ModelFacts())
    assert where == field
    with pytest.raises(ModelError, match=words) as raised:
        build(wrong)
    assert str(raised.value) == what


def test_a_tokenizer_that_is_not_the_checkpoints_is_refused(bundle, tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json: has 301 tokens with those of the reward, the weights 200"):
        build(HPSv3Reward(**broken(bundle, tmp_path, "another tokenizer")))


def test_a_sound_checkpoint_is_no_problem(bundle):
    assert list(spec(bundle).problems(None, ModelFacts())) == []


def test_a_checkpoint_without_its_base_says_which_to_name(bundle):
    alone = HPSv3Reward(path=str(bundle))
    ((where, what),) = alone.problems(None, ModelFacts())
    assert where == "base" and what.endswith("name the folder of Qwen2-VL-7B-Instruct")
    ((where, what),) = HPSv3Reward(path=str(bundle / "nowhere")).problems(None, ModelFacts())
    assert where == "path" and "name the bundle, or the folder HPSv3" in what
