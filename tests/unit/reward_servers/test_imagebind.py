"""ImageBind from its published file: its size, the three cosines by numpy alone, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from accord.config.contract import ModelFacts
from accord.config.rewards.imagebind import ImageBindAVReward, ImageBindTAReward, ImageBindTVReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.imagebind import PUBLISHED, Tower
from reward_servers.models.imagebind_cosine import pictures, stretches
from tests.unit.reward_servers import tiny_clip
from tests.unit.reward_servers import tiny_imagebind as tiny

PROMPT = Prompt("p", "a red ball bounces with a bell sound", "a red ball bounces", "a bell sound")
KINDS = {"av": ImageBindAVReward, "tv": ImageBindTVReward, "ta": ImageBindTAReward}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("OmniNFT-Reward-Series")
    tiny.write_checkpoint(root / "ImageBind" / "imagebind_huge.pth")
    tiny_clip.write_tokenizer(root / "clip")
    return root


def spec(bundle, kind: str, **fields):
    more = {} if kind == "av" else {"tokenizer": str(bundle / "clip")}
    return KINDS[kind](path=str(bundle), **more, **fields)


def clip(seed: int = 0, frames: int = 72, seconds: float = 3.0, rate: int = 16_000) -> Clip:
    rng = np.random.default_rng(seed)
    video = rng.integers(0, 256, (frames, 56, 84, 3), dtype=np.uint8)
    time = np.arange(int(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * (300 + 200 * seed) * time * (1 + 0.2 * time)) + 0.05 * rng.standard_normal(
        len(time)
    )
    return Clip(video, 24.0, np.stack([sound, -sound]).astype(np.float32), rate)


def scored(reward, *clips, prompt=PROMPT):
    return [score_groups(reward, [prompt], [[one]])[0].values[0] for one in clips]


# ------------------------------------------------ size


@pytest.mark.parametrize(("sense", "millions"), [("vision", 632.8), ("text", 354.0), ("audio", 86.2)])
def test_a_tower_is_as_large_as_published(sense, millions):
    with torch.device("meta"):
        tower = Tower(sense, PUBLISHED[sense])
    assert sum(part.numel() for part in tower.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_file_of_the_tests_has_the_published_number_of_tensors_and_weights():
    shapes = tiny.shapes(tiny.PUBLISHED)
    assert len(shapes) == 1311 and tiny.shapes(tiny.TINY).keys() <= shapes.keys()
    weights = {name: shape for name, shape in shapes.items() if not name.endswith((".mask", "log_logit_scale"))}
    assert sum(math.prod(shape) for shape in weights.values()) / 1e6 == pytest.approx(1200.78, abs=0.005)


# ------------------------------------------------ by numpy alone


def norm(x, weight, bias, eps=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


class ByNumpy:
    """The three towers, written apart from the model, in float64."""

    def __init__(self) -> None:
        self.w = {name: tensor.double().numpy() for name, tensor in tiny.state_dict().items()}

    def blocks(self, sense, x, heads, causal=False):
        for layer in range(2):
            at = f"modality_trunks.{sense}.blocks.{layer}."
            get = lambda name: self.w[at + name]  # noqa: B023, E731
            x = x + self.attention(get, norm(x, get("norm_1.weight"), get("norm_1.bias")), heads, causal, at)
            inner = gelu(
                norm(x, get("norm_2.weight"), get("norm_2.bias")) @ get("mlp.fc1.weight").T + get("mlp.fc1.bias")
            )
            x = x + inner @ get("mlp.fc2.weight").T + get("mlp.fc2.bias")
        return x

    def attention(self, get, x, heads, causal, at):
        q, k, v = np.split(x @ get("attn.in_proj_weight").T + get("attn.in_proj_bias"), 3, axis=-1)
        if at + "attn.bias_k" in self.w:
            k, v = np.vstack([k, get("attn.bias_k")[0]]), np.vstack([v, get("attn.bias_v")[0]])
        found = []
        for one, two, three in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
            logits = one @ two.T / math.sqrt(one.shape[-1])
            if causal:
                logits = np.where(np.tril(np.ones_like(logits)) > 0, logits, -np.inf)
            shares = np.exp(logits - logits.max(-1, keepdims=True))
            found.append(shares / shares.sum(-1, keepdims=True) @ three)
        return np.concatenate(found, axis=-1) @ get("attn.out_proj.weight").T + get("attn.out_proj.bias")

    def out(self, sense, row, norm_name, linear):
        at = f"modality_heads.{sense}."
        made = (
            norm(row, self.w[f"{at}{norm_name}.weight"], self.w[f"{at}{norm_name}.bias"])
            @ self.w[f"{at}{linear}.weight"].T
        )
        return made / np.linalg.norm(made)

    def text(self, ids):
        pre = "modality_preprocessors.text."
        x = self.w[f"{pre}token_embedding.weight"][ids] + self.w[f"{pre}pos_embed"][0, : len(ids)]
        return self.out("text", self.blocks("text", x, 16, causal=True)[-1], "proj.0", "proj.1")

    def patched(self, sense, patches):
        pre = f"modality_preprocessors.{sense}."
        whole = np.vstack([self.w[f"{pre}cls_token"][0], patches])
        return whole + self.w[f"{pre}pos_embedding_helper.pos_embed"][0]

    def sound(self, mel):
        kernel = self.w["modality_preprocessors.audio.rgbt_stem.proj.weight"][:, 0]
        patches = np.array([[np.einsum("dij,ij->d", kernel, mel[row : row + 16, at : at + 16])
                             for at in range(0, 204 - 15, 10)] for row in range(0, 128 - 15, 10)])  # fmt: skip
        stem = "modality_preprocessors.audio.rgbt_stem.norm_layer."
        patches = norm(patches.reshape(-1, 24), self.w[f"{stem}weight"], self.w[f"{stem}bias"], 1e-5)
        return self.out("audio", self.blocks("audio", self.patched("audio", patches), 12)[0], "0", "2")

    def picture(self, pair):
        """[3, 2, side, side]."""
        kernel = self.w["modality_preprocessors.vision.rgbt_stem.proj.1.weight"]
        patches = [np.einsum("dcfij,cfij->d", kernel, pair[:, :, row : row + 14, at : at + 14])
                   for row in range(0, tiny.SIDE, 14) for at in range(0, tiny.SIDE, 14)]  # fmt: skip
        before = "modality_trunks.vision.pre_transformer_layer.0."
        x = norm(self.patched("vision", np.array(patches)), self.w[f"{before}weight"], self.w[f"{before}bias"])
        return self.out("vision", self.blocks("vision", x, 16)[0], "0", "2")


def fbank(sound):
    """Kaldi's, of a stretch at 16 kHz [128, 204]."""
    sound = sound - sound.mean()
    frames = np.stack([sound[at : at + 400] for at in range(0, len(sound) - 399, 160)])
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.square(np.abs(np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)), 512)))
    mel = lambda hz: 1127 * np.log(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(20.0), mel(8000.0), 130)
    bins = mel(np.arange(257) * 16_000 / 512)[:, None]
    rising, falling = (bins - edges[:-2]) / (edges[1] - edges[0]), (edges[2:] - bins) / (edges[1] - edges[0])
    found = np.log(np.maximum(power @ np.maximum(0, np.minimum(rising, falling)), 1.1920929e-07)).T
    return (np.pad(found, ((0, 0), (0, 204 - found.shape[1]))) + 4.268) / 9.138


def cosine(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.fixture(scope="module")
def known(bundle):
    """A clip's three embeddings by numpy."""
    model, shown = ByNumpy(), clip()
    sound = shown.audio_CS[0].astype(np.float64)
    heard = np.mean([model.sound(fbank(sound[at : at + 32_000])) for at in (0, 8_000, 16_000)], axis=0)
    frames = shown.video_FHWC.astype(np.float64) / 255  # 56 high already: nothing is resized
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    rows = []
    for first, last in ((0, 47), (6, 53), (12, 59), (18, 65), (24, 71)):
        pair = ((frames[[first, last]] - mean) / std).transpose(3, 0, 1, 2)
        rows += [model.picture(pair[..., left : left + 56]) for left in (0, 14, 28)]
    tokenizer = Tokenizer.from_file(str(bundle / "clip" / "tokenizer.json"))
    texts = {
        text: model.text(tokenizer.encode(text).ids) for text in (PROMPT.prompt_v, PROMPT.prompt_a, PROMPT.prompt_av)
    }
    return {"a": heard, "v": np.mean(rows, axis=0), **texts}


def test_the_cosines_are_those_of_numpy(bundle, known):
    wanted = {"av": cosine(known["v"], known["a"]), "tv": cosine(known[PROMPT.prompt_v], known["v"]),
              "ta": cosine(known[PROMPT.prompt_a], known["a"])}  # fmt: skip
    found = {kind: scored(build(spec(bundle, kind)), clip())[0] for kind in KINDS}
    assert found == pytest.approx(wanted, abs=2e-5)
    whole = build(spec(bundle, "tv", text="whole"))
    assert scored(whole, clip())[0] == pytest.approx(cosine(known[PROMPT.prompt_av], known["v"]), abs=2e-5)
    assert len({round(value, 4) for value in wanted.values()}) == 3


# ------------------------------------------------ clips


def test_stretches_lie_evenly_and_short_clips_have_one():
    assert stretches(5.0, 3) == [0.0, 1.5, 3.0] and stretches(1.0, 5) == [0.0] * 5
    seen = pictures(clip(frames=20), 56)
    assert len(seen) == 5 and all(torch.equal(one, seen[0]) for one in seen)
    tall = replace(clip(), video_FHWC=np.ascontiguousarray(clip().video_FHWC.transpose(0, 2, 1, 3)))
    assert all(one.shape == (3, 3, 2, 56, 56) for one in pictures(tall, 56))
    np.testing.assert_array_equal(pictures(tall, 56)[0][2].transpose(2, 3), pictures(clip(), 56)[0][2])


def test_what_is_seen_and_heard_counts_and_company_does_not(bundle):
    reward = build(spec(bundle, "av"))
    clips = [clip(seed) for seed in range(3)]
    alone = scored(reward, *clips)
    (together,) = score_groups(reward, [PROMPT], [clips])
    assert list(together.values) == alone and len(set(alone)) == 3
    other = replace(clips[0], audio_CS=clips[1].audio_CS)
    assert scored(reward, other) != alone[:1]
    second = replace(clips[0], audio_CS=np.stack([clips[0].audio_CS[0], clips[1].audio_CS[1]]))
    assert scored(reward, second) == alone[:1]  # the first channel alone


def test_a_text_longer_than_77_tokens_is_cut(bundle):
    reward = build(spec(bundle, "ta"))
    long, longer = (replace(PROMPT, prompt_a="a bell sound " * times) for times in (40, 400))
    assert scored(reward, clip(), prompt=long) == scored(reward, clip(), prompt=longer)


# ------------------------------------------------ terms and files


def test_it_is_measured_alone_and_where_its_licence_is_kept(bundle):
    job = SimpleNamespace(trains=True)
    told = {where for where, _ in spec(bundle, "av").problems(job, ModelFacts())}
    assert told == {"weight", "allow_noncommercial"}
    kept = spec(bundle, "tv", weight=0.0, allow_noncommercial=True)
    assert not list(kept.problems(None, ModelFacts()))
    places = {(named.place, named.path.rsplit("/", 1)[1]) for named in kept.files()}
    assert places == {(("path",), "imagebind_huge.pth"), (("tokenizer",), "tokenizer.json")}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("modality_trunks.vision.blocks.1.mlp.fc1.bias", "lacks blocks.1.mlp.fc1.bias"),
        ("modality_preprocessors.vision.pos_embedding_helper.pos_embed", "holds no vision tower"),
        ("modality_heads.vision.2.weight", "holds no vision tower"),
    ],
)
def test_a_file_without_a_tensor_is_refused(bundle, tmp_path, name, told):
    state = tiny.state_dict()
    del state[name]
    tiny.write_checkpoint(tmp_path / "imagebind_huge.pth", state)
    with pytest.raises(ModelError, match=told):
        build(ImageBindAVReward(path=str(tmp_path)))


def test_unknown_tensors_pickles_and_missing_files_are_refused(bundle, tmp_path):
    tiny.write_checkpoint(
        tmp_path / "a" / "imagebind_huge.pth", tiny.state_dict() | {"modality_heads.audio.9.x": torch.ones(1)}
    )
    with pytest.raises(ModelError, match=r"holds the unknown modality_heads\.audio\.9\.x"):
        build(ImageBindAVReward(path=str(tmp_path / "a")))
    (tmp_path / "b").mkdir()
    torch.save({"x": pytest.raises}, tmp_path / "b" / "imagebind_huge.pth")
    for folder, words in (("b", "names the code"), ("c", "No such file")):
        told = list(
            ImageBindTVReward(path=str(tmp_path / folder), weight=0.0, allow_noncommercial=True).problems(
                None, ModelFacts()
            )
        )
        assert any(where == "path" and words in what for where, what in told)
    with pytest.raises(ModelError, match="tokenizer"):
        build(ImageBindTVReward(path=str(bundle)))
