"""PE-AV from its directory: cosines by the library's own class, its sight by numpy alone, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import PeAudioFeatureExtractor

from accord.config.contract import ModelFacts
from accord.config.rewards.pe_av import PeAvAVReward, PeAvTAReward, PeAvTVReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from tests.unit.reward_servers import tiny_pe_av as tiny

PROMPT = Prompt("p", "av", "a red ball on a green ground", "a bell")
KINDS = {"av": PeAvAVReward, "tv": PeAvTVReward, "ta": PeAvTAReward}
FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundle") / "pe-av-large"
    tiny.write_checkpoint(root)
    return root


def clip(seed: int = 0, frames: int = 30) -> Clip:
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (frames, 40, 64, 3), dtype=np.uint8)
    sound = (0.3 * rng.standard_normal((2, 20_001))).astype(np.float32)
    return Clip(video, 24.0, sound, 48_000)


def scored(reward, *clips, prompt=PROMPT):
    return [score_groups(reward, [prompt], [[one]])[0].values[0] for one in clips]


# ------------------------------------------------ sight, by numpy alone


def norm(x, state, name, eps=1e-5):
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def mlp(x, state, name):
    inner = linear(x, state, f"{name}.fc1")
    return linear(inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))), state, f"{name}.fc2")


def attend(q, k, v, heads):
    found = []
    for one, two, three in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
        shares = np.exp(one @ two.T / math.sqrt(one.shape[-1]))
        found.append(shares / shares.sum(-1, keepdims=True) @ three)
    return np.concatenate(found, axis=-1)


def turned(x):
    """Rotary places: pair i of the first half of a head of 64 turns by (column + 1) / 10000^(i / 16), rows likewise."""
    x = x.copy()
    for token in range(1, len(x)):
        row, column = divmod(token - 1, tiny.GRID)
        for head in range(tiny.WIDE // 64):
            for pair in range(32):
                angle = ((column if pair < 16 else row) + 1) / 10_000 ** (pair % 16 / 16)
                at = head * 64 + 2 * pair
                one, other = x[token, at], x[token, at + 1]
                x[token, at] = one * math.cos(angle) - other * math.sin(angle)
                x[token, at + 1] = other * math.cos(angle) + one * math.sin(angle)
    return x


def seen(frame, state):
    """[3, side, side] to logits."""
    kernel = state["patch_embed.proj.weight"]
    patches = [np.einsum("dcij,cij->d", kernel, frame[:, row : row + 16, at : at + 16])
               for row in range(0, tiny.SIDE, 16) for at in range(0, tiny.SIDE, 16)]  # fmt: skip
    x = norm(np.vstack([state["cls_token"][0], *patches]) + state["pos_embed"][0], state, "norm_pre")
    for layer in range(tiny.LAYERS):
        at = f"blocks.{layer}"
        q, k, v = np.split(linear(norm(x, state, f"{at}.norm1"), state, f"{at}.attn.qkv"), 3, axis=-1)
        x = x + linear(attend(turned(q), turned(k), v, tiny.WIDE // 64), state, f"{at}.attn.proj")
        x = x + mlp(norm(x, state, f"{at}.norm2"), state, f"{at}.mlp")
    x = norm(x, state, "norm")
    k, v = np.split(linear(x, state, "attn_pool.kv"), 2, axis=-1)
    pooled = linear(
        attend(linear(state["attn_pool.latent"][0], state, "attn_pool.q"), k, v, 8), state, "attn_pool.proj"
    )
    pooled = pooled + mlp(norm(pooled, state, "attn_pool.norm"), state, "attn_pool.mlp")
    return linear(pooled, state, "head")[0]


class ByNumpy(torch.nn.Module):
    """In the place of the library's sight."""

    def forward(self, frames):
        state = {name: tensor.double().numpy() for name, tensor in tiny.sight().items()}
        return SimpleNamespace(
            logits=torch.tensor(np.array([seen(one.double().numpy(), state) for one in frames])).float()
        )


@pytest.fixture(scope="module")
def wanted(folder):
    """The three cosines of a clip, by the library's forward over all senses at once."""
    model, shown = tiny.library(), clip()
    for encoder in (model.video_model.video_encoder, model.audio_video_encoder.embedder.video_encoder):
        encoder.embedder.vision_model = ByNumpy()
    frames = [np.array(Image.fromarray(shown.video_FHWC[place]).resize((48, 48), Image.Resampling.BILINEAR))
              for place in (0, 9, 19, 29)]  # fmt: skip
    pixels = torch.from_numpy((np.stack(frames).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()[None]
    sound = PeAudioFeatureExtractor()(
        shown.audio_CS.astype(np.float64).mean(0), sampling_rate=48_000, return_tensors="pt"
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def asked(text):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            return model(input_ids=ids, pixel_values_videos=pixels, input_values=sound["input_values"])

    def cosine(one, other):
        return float(torch.nn.functional.cosine_similarity(one, other)[0])

    seen_text, heard_text = asked(PROMPT.prompt_v), asked(PROMPT.prompt_a)
    return {"av": cosine(seen_text.video_embeds, seen_text.audio_embeds),
            "tv": cosine(seen_text.text_video_embeds, seen_text.video_embeds),
            "ta": cosine(heard_text.text_audio_embeds, heard_text.audio_embeds)}  # fmt: skip


def test_the_cosines_are_the_librarys(folder, wanted):
    found = {kind: scored(build(KINDS[kind](path=str(folder), frames=FRAMES)), clip())[0] for kind in KINDS}
    assert found == pytest.approx(wanted, abs=2e-5)
    assert len({round(value, 3) for value in wanted.values()}) == 3


# ------------------------------------------------ clips


def test_what_is_seen_and_heard_counts_and_company_does_not(folder):
    reward = build(PeAvAVReward(path=str(folder.parent), frames=FRAMES))
    clips = [clip(seed) for seed in range(3)]
    alone = scored(reward, *clips)
    (together,) = score_groups(reward, [PROMPT], [clips])
    assert list(together.values) == alone and len(set(alone)) == 3
    assert scored(reward, replace(clips[0], audio_CS=clips[1].audio_CS)) != alone[:1]
    assert scored(reward, replace(clips[0], video_FHWC=clips[1].video_FHWC)) != alone[:1]
    assert np.isfinite(scored(reward, clip(frames=1))[0])


def test_sound_that_would_fill_the_memory_is_too_long_where_it_is_heard(folder):
    long = replace(clip(), audio_CS=np.full((1, 61 * 4_000), 0.1, np.float32), sample_rate=4_000)
    (heard,), (seen,) = (
        score_groups(build(KINDS[kind](path=str(folder))), [PROMPT], [[long]]) for kind in ("ta", "tv")
    )
    assert (heard.reasons, seen.reasons) == (("too_long",), ("ok",))


def test_a_text_counts_where_one_is_read(folder):
    other = replace(PROMPT, prompt_v="a camera", prompt_a="a camera")
    for kind, moves in (("av", False), ("tv", True), ("ta", True)):
        reward = build(KINDS[kind](path=str(folder), frames=FRAMES))
        assert (scored(reward, clip()) != scored(reward, clip(), prompt=other)) == moves
        assert KINDS[kind].prompt_anchored == moves


# ------------------------------------------------ files


def test_weights_that_are_tied_may_stand_in_the_other_place_and_in_shards(folder, tmp_path):
    state = tiny.state_dict()
    moved = {name.replace("audio_model.audio_encoder.", "audio_video_encoder.embedder.audio_encoder."): tensor
             for name, tensor in state.items()}  # fmt: skip
    tiny.write_checkpoint(tmp_path, moved)
    (tmp_path / "model.safetensors").unlink()
    halves = [dict(list(moved.items())[half::2]) for half in (0, 1)]
    for place, half in enumerate(halves, 1):
        save_file(half, tmp_path / f"model-0000{place}-of-00002.safetensors", {"format": "pt"})
    fields = {"frames": FRAMES}
    assert scored(build(PeAvTAReward(path=str(tmp_path), **fields)), clip()) == scored(
        build(PeAvTAReward(path=str(folder), **fields)), clip()
    )


def _drop(root, name):
    tiny.write_checkpoint(root, {key: value for key, value in tiny.state_dict().items() if key != name})


def _say(root, change):
    tiny.write_checkpoint(root)
    said = json.loads((root / "config.json").read_text())
    change(said)
    (root / "config.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: said.update(model_type="clip"), "model_type is 'clip'"),
        (lambda said: said["audio_video_config"].pop("video_config"), "says no architecture"),
        (
            lambda said: said["audio_video_config"]["video_config"]["vision_config"].update(architecture="resnet50"),
            "sees by resnet50",
        ),
    ],
)
def test_another_model_is_told_before_it_is_loaded(tmp_path, change, told):
    _say(tmp_path, change)
    spec = PeAvAVReward(path=str(tmp_path))
    ((where, what),) = spec.problems(None, ModelFacts())
    assert where == "path" and told in what
    with pytest.raises(ModelError, match=told):
        build(spec)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("video_model.video_head.proj.weight", r"lacks video_model\.video_head\.proj\.weight"),
        (f"{tiny.SIGHT}timm_model.blocks.1.attn.qkv.bias", r"lacks embedder\.vision_model\.blocks\.1\.attn\.qkv\.bias"),
        (f"{tiny.SIGHT}timm_model.head.weight", "is no PE-AV that transformers can build"),
        ("audio_model.audio_encoder.norm.weight", r"lacks norm\.weight"),
    ],
)
def test_a_directory_without_a_tensor_is_refused(tmp_path, name, told):
    _drop(tmp_path, name)
    with pytest.raises(ModelError, match=told):
        build(PeAvAVReward(path=str(tmp_path)))


def test_a_text_needs_the_tokenizer_and_a_folder_its_weights(folder, tmp_path):
    tiny.write_checkpoint(tmp_path)
    assert not list(PeAvTVReward(path=str(tmp_path)).problems(None, ModelFacts()))
    (tmp_path / "tokenizer.json").unlink()
    ((where, what),) = PeAvTVReward(path=str(tmp_path)).problems(None, ModelFacts())
    assert where == "path" and "tokenizer.json" in what
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    ((where, what),) = PeAvAVReward(path=str(tmp_path)).problems(None, ModelFacts())
    assert where == "path" and "holds neither model.safetensors nor shards" in what
