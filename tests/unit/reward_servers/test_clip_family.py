"""Rewards of the CLIP family and DINO from published layouts, against the models written out in plain torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import CLIPModel, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from accord.config.contract import ModelFacts, RewardSpec
from accord.errors import ModelError
from accord.plugins import spec_class
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, build, score_groups
from reward_servers.models.clip import read_open_clip
from reward_servers.models.frames import cropped, padded, shortest
from reward_servers.models.same_subject import renamed, vit_config
from tests.tiny_checkpoints import spec_with_weights
from tests.unit.reward_servers import tiny_clip as tiny

TEXT = "a Red ball bounces on the ground"
PROMPT = Prompt("x", "nothing of it", TEXT, "a bell")
NAMES = ("clip_score", "pickscore", "hpsv2", "laion_aesthetic", "aesthetic_quality", "subject_consistency",
         "background_consistency")  # fmt: skip
SOUND = np.zeros((1, 4800), np.float32)


def clip(seed: int, frames: int = 5, tall: int = 40, wide: int = 66) -> Clip:
    """Moving stripes with noise."""
    rng = np.random.default_rng(seed)
    grid = np.arange(tall)[None, :, None] + 2 * np.arange(wide)[None, None] + 3.0 * np.arange(frames)[:, None, None]
    video = 128 + 90 * np.sin(grid[..., None] / (4 + rng.uniform(0, 9, 3))) + rng.normal(0, 12, (frames, tall, wide, 3))
    return Clip(video.clip(0, 255).astype(np.uint8), 24.0, SOUND, 48_000)


def scored(model: RewardModel, *clips: Clip):
    return score_groups(model, [PROMPT], [list(clips)])[0]


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def models(homes: Path) -> dict[str, RewardModel]:
    return {name: build(spec_with_weights(name, homes / name)) for name in NAMES}


# ---------------------------------------------------------------- the same in plain torch


def normed(x, w, name):
    return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def attended(x, qkv, out, heads, mask=None):
    """Attention of [T, D] from a fused projection (weight, bias) and an output one."""
    q, k, v = (x @ qkv[0].T + qkv[1]).reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    mixed = (logits if mask is None else logits + mask).softmax(-1) @ v
    return mixed.transpose(0, 1).reshape(len(x), -1) @ out[0].T + out[1]


def block(x, w, at, heads, mask=None):
    pair = [(w[f"{at}.attn.in_proj_weight"], w[f"{at}.attn.in_proj_bias"]),
            (w[f"{at}.attn.out_proj.weight"], w[f"{at}.attn.out_proj.bias"])]  # fmt: skip
    x = x + attended(normed(x, w, f"{at}.ln_1"), *pair, heads, mask)
    inner = functional.gelu(normed(x, w, f"{at}.ln_2") @ w[f"{at}.mlp.c_fc.weight"].T + w[f"{at}.mlp.c_fc.bias"])
    return x + inner @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]


def open_clip_image(w, picture_3SS):
    x = functional.conv2d(picture_3SS[None], w["visual.conv1.weight"], stride=tiny.PATCH)[0].flatten(1).T
    x = torch.cat([w["visual.class_embedding"][None], x]) + w["visual.positional_embedding"]
    x = normed(x, w, "visual.ln_pre")
    for index in range(tiny.LAYERS):
        x = block(x, w, f"visual.transformer.resblocks.{index}", tiny.HEADS)
    return functional.normalize(normed(x[0], w, "visual.ln_post") @ w["visual.proj"], dim=0)


def open_clip_text(w, ids):
    x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=x.dtype).triu(1)
    for index in range(tiny.LAYERS):
        x = block(x, w, f"transformer.resblocks.{index}", tiny.HEADS, mask)
    return functional.normalize(normed(x, w, "ln_final")[ids.index(max(ids))] @ w["text_projection"], dim=0)


def by_hand(picture, mean, std):
    values = (picture.astype(np.float64) / 255 - mean) / std
    return torch.from_numpy(values.transpose(2, 0, 1))


CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DINO_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_hpsv2_is_the_cosine_of_open_clips_model_on_whole_frames(models, homes):
    w = {name: tensor.half().double() for name, tensor in tiny.open_clip_state().items()}
    seen, cosines = clip(1), []
    ids = Tokenizer.from_file(str(homes / "hpsv2" / "clip" / "tokenizer.json")).encode(TEXT).ids
    for frame in seen.video_FHWC:
        small = np.asarray(Image.fromarray(frame).resize((28, 17), Image.Resampling.BICUBIC))  # 40 * 28 / 66 = 16.97
        whole = np.zeros((28, 28, 3), np.uint8)
        whole[5:22] = small
        cosines.append(float(open_clip_image(w, by_hand(whole, *CLIP_NORM)) @ open_clip_text(w, ids)))
    scores = scored(models["hpsv2"], seen)
    assert scores.values[0] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert scores.components["lowest"][0] == pytest.approx(min(cosines), abs=1e-5)
    assert np.ptp(cosines) > 1e-3


def library_cosines(folder: Path, seen: Clip, text: str = TEXT) -> np.ndarray:
    """By the whole CLIPModel and the library's own preparation of pictures."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pictures = processor([Image.fromarray(frame) for frame in seen.video_FHWC], return_tensors="pt")["pixel_values"]
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    ids = torch.tensor([ids if len(ids) <= 77 else [*ids[:76], ids[-1]]])
    with torch.no_grad():
        images = functional.normalize(model.get_image_features(pictures).pooler_output, dim=-1)
        words = functional.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    return (images @ words[0]).double().numpy()


def test_clip_score_and_pickscore_are_the_librarys_cosine_with_and_without_scale(models, homes):
    seen = clip(2)
    cosines = library_cosines(homes / "clip_score" / "clip-vit-base-patch32", seen)
    assert scored(models["clip_score"], seen).values[0] == pytest.approx(cosines.mean(), abs=1e-5)
    cosines = library_cosines(homes / "pickscore" / "PickScore_v1", seen)
    wanted = 100.0 * cosines.mean()
    assert scored(models["pickscore"], seen).values[0] == pytest.approx(wanted, abs=1e-3)
    assert np.ptp(cosines) > 1e-3


def test_a_long_text_is_cut_at_77_tokens_with_its_end(models, homes):
    long = Prompt("x", "", f"{tiny.SENTENCE} " * 40, "")
    cosines = library_cosines(homes / "clip_score" / "clip-vit-base-patch32", clip(3), long.prompt_v)
    (scores,) = score_groups(models["clip_score"], [long], [[clip(3)]])
    assert scores.values[0] == pytest.approx(cosines.mean(), abs=1e-5)


def features_of(folder: Path, seen: Clip) -> np.ndarray:
    model = CLIPModel.from_pretrained(folder).eval()
    pictures = torch.stack([by_hand(cropped(frame, 32), *CLIP_NORM) for frame in seen.video_FHWC]).float()
    with torch.no_grad():
        found = model.get_image_features(pictures).pooler_output.double().numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["laion_aesthetic", "aesthetic_quality"])
def test_aesthetics_are_linear_layers_on_the_unit_image_feature(models, name: str):
    seen, spec = clip(4), models[name].spec
    head = {key: tensor.double().numpy() for key, tensor in torch.load(spec.weights, weights_only=True).items()}
    x = features_of(spec.base_root, seen)
    for place in (0, 2, 4, 6, 7) if name == "laion_aesthetic" else (None,):
        at = "" if place is None else f"layers.{place}."
        x = x @ head[f"{at}weight"].T + head[f"{at}bias"]
    assert scored(models[name], seen).values[0] == pytest.approx(x.mean() / 10, abs=1e-6)
    assert np.ptp(x) > 1e-3


def dino(w, picture_3HW, *, whole: bool = False):
    """timm's forward behind the last norm; positions are interpolated to the grid. The unit class token, or all."""
    x = functional.conv2d(picture_3HW[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], tiny.DINO_PATCH)
    rows, columns = x.shape[2:]
    first, grid = w["pos_embed"][:, :1], w["pos_embed"][:, 1:].reshape(1, tiny.DINO_GRID, tiny.DINO_GRID, -1)
    grid = functional.interpolate(grid.permute(0, 3, 1, 2), (rows, columns), mode="bicubic", align_corners=False)
    x = torch.cat([w["cls_token"][0] + first[0], x[0].flatten(1).T + grid[0].flatten(1).T])

    def plain(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    for index in range(tiny.LAYERS):
        at = f"blocks.{index}"
        pair = [(w[f"{at}.attn.{name}.weight"], w[f"{at}.attn.{name}.bias"]) for name in ("qkv", "proj")]
        x = x + attended(plain(x, f"{at}.norm1"), *pair, tiny.DINO_WIDE // 64)
        inner = functional.gelu(plain(x, f"{at}.norm2") @ w[f"{at}.mlp.fc1.weight"].T + w[f"{at}.mlp.fc1.bias"])
        x = x + inner @ w[f"{at}.mlp.fc2.weight"].T + w[f"{at}.mlp.fc2.bias"]
    return plain(x, "norm") if whole else functional.normalize(plain(x[0], "norm"), dim=0).numpy()


def consistency(f: np.ndarray) -> float:
    pairs = [(max(0.0, f[t] @ f[t - 1]) + max(0.0, f[t] @ f[0])) / 2 for t in range(1, len(f))]
    return sum(pairs) / len(pairs)


def test_subject_consistency_is_vbenchs_formula_on_timms_forward(models):
    w = {name: tensor.double() for name, tensor in tiny.dino_state().items()}
    seen, found = clip(5), []
    for frame in seen.video_FHWC:
        small = Image.fromarray(frame).resize((52, 32), Image.Resampling.BILINEAR)  # 32 * 66 / 40 = 52.8
        found.append(dino(w, by_hand(np.asarray(small), *DINO_NORM)))
    scores = scored(models["subject_consistency"], seen)
    assert scores.values[0] == pytest.approx(consistency(np.stack(found)), abs=1e-5)
    assert scores.values[0] < 0.999


def test_background_consistency_is_vbenchs_formula_on_clips_features(models):
    found = features_of(models["background_consistency"].spec.weights, clip(6))
    assert scored(models["background_consistency"], clip(6)).values[0] == pytest.approx(consistency(found), abs=1e-6)


@pytest.mark.parametrize("name", ["subject_consistency", "background_consistency"])
def test_a_frozen_clip_is_highest_and_a_cut_lowers(models, name: str):
    moving = clip(7, frames=8)
    frozen = Clip(np.repeat(moving.video_FHWC[:1], 8, axis=0), 24.0, SOUND, 48_000)
    other = np.concatenate([moving.video_FHWC[:4], 255 - clip(8, frames=4).video_FHWC[:, ::-1]])
    values = scored(models[name], frozen, moving, Clip(other, 24.0, SOUND, 48_000)).values
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert values[0] > values[1] > values[2]


def test_in_their_published_sizes_they_have_the_published_numbers_of_parameters(monkeypatch):
    full = {"OPEN_VISION": 1280, "OPEN_TEXT": 1024, "OUT": 1024, "GRID": 16, "ROWS": 49_408, "OPEN_LAYERS": (32, 24)}
    for name, size in (full | {"DINO_WIDE": 768, "DINO_GRID": 14, "LAYERS": 12}).items():
        monkeypatch.setattr(tiny, name, size)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in tiny.open_clip_shapes().items()}
        weights = read_open_clip(Path("HPS_v2.1_compressed.pt"), state)
        model = CLIPModel(weights.config)
        vit = dict(renamed({name: torch.empty(shape) for name, shape in tiny.dino_shapes().items()}))
        seen = ViTModel(vit_config(vit), add_pooling_layer=False)
    for given, made in ((weights.state, model), (vit, seen)):
        assert {name: part.shape for name, part in given.items()} == {
            name: part.shape for name, part in made.state_dict().items()
        }
    assert round(model.num_parameters() / 1e6, 1) == 986.1
    assert round(seen.num_parameters() / 1e6, 1) == 85.8
    config = weights.config
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (16, 16)


# ---------------------------------------------------------------- what holds for all of them


@pytest.mark.parametrize("name", NAMES)
def test_company_changes_no_bit(models, name: str):
    eight = [clip(seed, frames=2 + seed, wide=50 + 3 * seed) for seed in range(8)]
    alone = tuple(scored(models[name], one).values[0] for one in eight)
    assert scored(models[name], *eight).values == alone
    assert len(set(alone)) == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_holds_it_and_only_its_files_are_pinned(models, homes: Path, name: str):
    spec = models[name].spec
    files = [Path(named.path) for named in spec.files()]
    assert all(file.is_file() for file in files)
    assert len(models[name].weights_digest) == 64
    again = build(type(spec)(**spec.model_dump() | {"path": str(spec.weights)}))
    assert again.weights_digest == models[name].weights_digest
    assert list(spec.problems(None, ModelFacts())) == []  # type: ignore[arg-type]


def test_frames_are_fitted_as_published():
    frame = clip(9, 1, 40, 67).video_FHWC[0]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    made = processor(Image.fromarray(frame), return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
    assert np.array_equal(cropped(frame, 32), made[0].transpose(1, 2, 0))
    tall = padded(frame.transpose(1, 0, 2), 28)
    assert (tall[:, :5] == 0).all() and (tall[:, 22:] == 0).all() and (tall[:, 6:21].sum(axis=2) > 0).all()
    assert shortest(frame, 32).shape == (32, 53, 3)
    assert shortest(np.zeros((8, 640, 3), np.uint8), 32).shape == (32, 128, 3)


@pytest.mark.parametrize("name", ["clip_score", "background_consistency"])
def test_weights_in_the_older_file_are_the_same_model(tmp_path: Path, models, name: str):
    tiny.write_clip(tmp_path, old=True)
    assert (
        scored(build(spec_class("rewards", name)(path=str(tmp_path))), clip(1)).values
        == scored(models[name], clip(1)).values
    )


def test_dino_by_its_authors_file_is_the_same_model(tmp_path: Path, models):
    tiny.write_dino(tmp_path / "DINO" / "dino_vitbase16_pretrain.pth")
    model = build(spec_class("rewards", "subject_consistency")(path=str(tmp_path)))
    assert scored(model, clip(1)).values == scored(models["subject_consistency"], clip(1)).values


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never"),))


def told(spec: RewardSpec) -> str:
    return " ".join(why for _, why in spec.problems(None, ModelFacts()))  # type: ignore[arg-type]


def broken(file: Path, way: str) -> None:
    """Break a file of weights of either kind."""
    if way == "missing":
        file.unlink()
    elif way == "torn":
        file.write_bytes(file.read_bytes()[:-300])
    elif way == "code":
        torch.save({"state_dict": _Code(), "weight": _Code()}, file)
    else:
        safe = file.suffix == ".safetensors"
        tree = load_file(file) if safe else torch.load(file, weights_only=True)
        state = tree.get("state_dict", tree)
        name = max((name for name in state if state[name].ndim == 2), key=lambda name: state[name].numel())
        if way == "lacks":
            del state[name]
        elif way == "shape":
            state[name] = torch.zeros(5, 5)
        else:
            state["blocks.9.stranger" if "cls_token" in state else "visual.stranger"] = torch.zeros(2)
            state["vision_model.stranger"] = torch.zeros(2)
        save_file(state, file) if safe else torch.save(tree, file)


@pytest.mark.parametrize("way", ["missing", "torn", "code", "lacks", "shape", "unknown"])
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_checkpoint_is_refused_by_file(homes: Path, models, tmp_path: Path, name: str, way: str):
    shutil.copytree(homes / name, tmp_path / name)
    fields = json.loads(models[name].spec.model_dump_json().replace(str(homes), str(tmp_path)))
    spec = type(models[name].spec)(**fields)
    file = spec.weights if spec.weight_files else spec.weights / "model.safetensors"
    if way == "code" and file.suffix == ".safetensors":
        pytest.skip("safetensors holds no code")
    broken(file, way)
    with pytest.raises(ModelError, match=file.name.replace("+", r"\+")):
        build(spec)
    if way in {"missing", "torn", "code"} or file.suffix == ".safetensors":
        assert file.name in told(spec)
    assert not Path("/tmp/never").exists()


def test_a_tokenizer_that_is_missing_or_of_another_model_is_refused(homes: Path, tmp_path: Path, models):
    spec = models["hpsv2"].spec
    alone = type(spec)(path=spec.path)
    assert "tokenizer.json" in told(alone)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        build(alone)
    tree = json.loads((homes / "hpsv2" / "clip" / "tokenizer.json").read_text())
    tree["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"made from"):
        build(type(spec)(path=spec.path, tokenizer=str(tmp_path)))


def test_another_config_than_that_of_the_weights_is_found_before_loading(tmp_path: Path):
    tiny.write_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = spec_class("rewards", "background_consistency")(path=str(tmp_path))
    assert "asks for" in told(spec)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(ModelError, match="siglip"):
        build(spec)
