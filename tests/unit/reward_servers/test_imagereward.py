"""ImageReward from its published files, against the model written out in plain torch by its published names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from accord.config.contract import ModelFacts
from accord.config.rewards.picture import ImageRewardReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from tests.tiny_checkpoints import spec_with_weights
from tests.unit.reward_servers import tiny_imagereward as tiny
from tests.unit.reward_servers.test_clip_family import CLIP_NORM, by_hand, clip
from tests.unit.reward_servers.test_clip_family import dino as timm_forward

TEXT = "a red ball bounces on the green ground"


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> ImageRewardReward:
    made = spec_with_weights("imagereward", tmp_path_factory.mktemp("tiny"))
    assert isinstance(made, ImageRewardReward)
    return made


@pytest.fixture(scope="module")
def model(spec):
    return build(spec)


def scored(model, text: str, *clips: Clip):
    return score_groups(model, [Prompt("x", "nothing", text, "")], [list(clips)])[0]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def added(x, more, w, name):
    return functional.layer_norm(x + more, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def attended(x, seen, w, at):
    """A BERT attention block: queries of `x` [T, D] on keys and values of `seen`, added and normed."""
    q, k, v = (
        linear(of, w, f"{at}.self.{name}").reshape(len(of), tiny.HEADS, -1).transpose(0, 1)
        for of, name in ((x, "query"), (seen, "key"), (seen, "value"))
    )
    mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return added(
        x, linear(mixed.transpose(0, 1).reshape(len(x), -1), w, f"{at}.output.dense"), w, f"{at}.output.LayerNorm"
    )


def by_published_names(frame: np.ndarray, text: str) -> float:
    state = {name: tensor.double() for name, tensor in tiny.state_dict().items()}
    w = {name.removeprefix("blip.text_encoder."): tensor for name, tensor in state.items()}
    eyes = {name.removeprefix("blip.visual_encoder."): tensor for name, tensor in state.items()}
    image = Image.fromarray(frame).resize((52, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32))  # of 66 x 40
    patches = timm_forward(eyes, by_hand(np.asarray(image), *CLIP_NORM), whole=True)
    ids = [2, *(tiny.WORDS.index(word) for word in text.split()), 3]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = added(x, 0.0, w, "embeddings.LayerNorm")
    for index in range(tiny.LAYERS):
        at = f"encoder.layer.{index}"
        x = attended(attended(x, x, w, f"{at}.attention"), patches, w, f"{at}.crossattention")
        inner = linear(functional.gelu(linear(x, w, f"{at}.intermediate.dense")), w, f"{at}.output.dense")
        x = added(x, inner, w, f"{at}.output.LayerNorm")
    read = x[0]
    for place in (0, 2, 4, 6, 7):
        read = linear(read, w, f"mlp.layers.{place}")
    return (float(read[0]) - 0.16717362830052426) / 1.0333394966054072


def test_it_is_the_published_model_in_plain_torch(model):
    seen = clip(1)
    wanted = [by_published_names(frame, TEXT) for frame in seen.video_FHWC]
    scores = scored(model, TEXT, seen)
    assert scores.values[0] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert scores.components["highest"][0] == pytest.approx(max(wanted), abs=1e-5)
    assert np.ptp(wanted) > 1e-3


def test_the_text_counts_up_to_35_tokens(model):
    long = "a red ball " * 11
    assert scored(model, "a green ground", clip(1)).values != scored(model, "a red ball", clip(1)).values
    assert scored(model, f"{long} bell", clip(1)).values == scored(model, f"{long} camera", clip(1)).values
    assert scored(model, f"{long[:-5]} bell", clip(1)).values != scored(model, f"{long[:-5]} camera", clip(1)).values


def test_company_changes_no_bit_and_files_are_pinned(model, spec):
    eight = [clip(seed, frames=1 + seed) for seed in range(8)]
    alone = tuple(scored(model, TEXT, one).values[0] for one in eight)
    assert scored(model, TEXT, *eight).values == alone
    assert {Path(named.path).name for named in spec.files()} == {"ImageReward.pt", "med_config.json", "tokenizer.json"}
    assert list(spec.problems(None, ModelFacts())) == []


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("mlp.layers.4.weight", torch.zeros(3, 3)), ("blip.visual_encoder.blocks.1.attn.qkv.bias", None),
        ("blip.text_encoder.encoder.layer.1.crossattention.self.key.weight", torch.zeros(64, 64)),
        ("blip.stranger", torch.zeros(2)), ("blip.visual_encoder.cls_token", torch.zeros(1, 1, 7)),
    ],
)  # fmt: skip
def test_other_weights_are_refused_by_file(tmp_path: Path, spec, name: str, tensor):
    state = tiny.state_dict() | {name: tensor}
    tiny.write_checkpoint(tmp_path, {key: value for key, value in state.items() if value is not None})
    with pytest.raises(ModelError, match=r"ImageReward\.pt"):
        build(ImageRewardReward(path=str(tmp_path), tokenizer=spec.tokenizer))


def test_what_is_missing_or_torn_is_told_before_loading(tmp_path: Path, spec):
    def told() -> str:
        found = ImageRewardReward(path=str(tmp_path), tokenizer=spec.tokenizer)
        return " ".join(why for _, why in found.problems(None, ModelFacts()))  # type: ignore[arg-type]

    tiny.write_checkpoint(tmp_path)
    (tmp_path / "med_config.json").write_text("{}")
    assert "med_config.json: says no hidden_size" in told()
    file = tmp_path / "ImageReward.pt"
    file.write_bytes(file.read_bytes()[:-400])
    assert "torn" in told()
    file.unlink()
    assert "ImageReward.pt" in told()
