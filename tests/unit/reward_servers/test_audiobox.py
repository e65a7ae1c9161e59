"""AudioBox-Aesthetics from both published forms, against the model recomputed in numpy by its published names."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import erf, expit, softmax

from accord.config.contract import ModelFacts
from accord.config.rewards.sound import AudioboxReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.audiobox import Judge, frames_heard, renamed
from tests.unit.reward_servers import tiny_audiobox as tiny

PROMPT = Prompt("rain", "rain", "rain", "rain")
VIDEO = np.zeros((3, 8, 8, 3), np.uint8)


def clip(seconds: float, rate: int = 16_000, channels: int = 1) -> Clip:
    rng = np.random.default_rng(int(seconds * 100))
    return Clip(VIDEO, 24.0, (0.1 * rng.standard_normal((channels, int(seconds * rate)))).astype(np.float32), rate)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    tiny.write_checkpoint(folder / "audiobox-aesthetics" / "checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path):
    return build(AudioboxReward(path=str(bundle)))


# ---------------------------------------------------------------- the same in numpy


def gelu(x):
    return x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))


def norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def buckets(frames: int) -> np.ndarray:
    """Place in the table for each pair: half the table by sign, exact near by, logarithmic to 800 frames."""
    apart = np.arange(frames)[None, :] - np.arange(frames)[:, None]
    half = tiny.BUCKETS // 2
    exact = half // 2
    far = exact + (np.log(np.maximum(np.abs(apart), 1) / exact) / math.log(800 / exact) * (half - exact)).astype(int)
    return np.where(np.abs(apart) < exact, np.abs(apart), np.minimum(far, half - 1)) + half * (apart > 0)


def numpy_axes(state: dict[str, torch.Tensor], sound_S: np.ndarray) -> dict[str, float]:
    """The four heads for one window, from the weights by published name, in float64."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    x = np.pad(sound_S.astype(np.float64), (0, 160_000 - len(sound_S)))[None]
    for place, step in enumerate((5, 2, 2, 2, 2, 2, 2)):
        kernel = w[f"wavlm_model.feature_extractor.conv_layers.{place}.0.weight"]
        windows = sliding_window_view(x, kernel.shape[2], axis=1)[:, ::step]
        x = np.einsum("ctk,ock->ot", windows, kernel, optimize=True)
        if place == 0:
            at = "wavlm_model.feature_extractor.conv_layers.0.2."
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            x = x * w[f"{at}weight"][:, None] + w[f"{at}bias"][:, None]
        x = gelu(x)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(x, name):
        return norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = linear(normed(x.T, "wavlm_model.layer_norm"), "wavlm_model.post_extract_proj")
    heard = np.array([320 * frame < len(sound_S) for frame in range(len(x))])
    x[~heard] = 0.0
    g, v = w["wavlm_model.encoder.pos_conv.0.weight_g"], w["wavlm_model.encoder.pos_conv.0.weight_v"]
    kernel = g * v / np.sqrt((v**2).sum(axis=(0, 1), keepdims=True))
    around = np.pad(x.T, ((0, 0), (tiny.POSITIONS // 2,) * 2)).reshape(tiny.GROUPS, -1, len(x) + tiny.POSITIONS)
    windows = sliding_window_view(around, tiny.POSITIONS, axis=2)
    grouped = kernel.reshape(tiny.GROUPS, -1, *kernel.shape[1:])
    placed = np.einsum("gctk,gock->got", windows, grouped, optimize=True).reshape(tiny.WIDE, -1)
    placed = placed + w["wavlm_model.encoder.pos_conv.0.bias"][:, None]
    x = normed(x + gelu(placed[:, : len(x)].T), "wavlm_model.encoder.layer_norm")
    states, deep = [x], tiny.WIDE // tiny.HEADS
    table = w["wavlm_model.encoder.layers.0.self_attn.relative_attention_bias.weight"]
    bias_HQK = table[buckets(len(x))].transpose(2, 0, 1)
    for layer in range(tiny.LAYERS):
        at = f"wavlm_model.encoder.layers.{layer}"
        q, k, v = (
            linear(x, f"{at}.self_attn.{part}_proj").reshape(len(x), tiny.HEADS, deep).transpose(1, 0, 2)
            for part in ("q", "k", "v")
        )
        parts = linear(x.reshape(len(x), tiny.HEADS, deep).transpose(1, 0, 2), f"{at}.self_attn.grep_linear")
        gates = expit(parts.reshape(*parts.shape[:2], 2, 4).sum(-1))
        gate = gates[..., :1] * (gates[..., 1:] * w[f"{at}.self_attn.grep_a"][0] - 1.0) + 2.0
        logits = q @ k.transpose(0, 2, 1) / math.sqrt(deep) + gate * bias_HQK
        logits[:, :, ~heard] = -np.inf
        out = (softmax(logits, axis=-1) @ v).transpose(1, 0, 2).reshape(len(x), -1)
        x = normed(x + linear(out, f"{at}.self_attn.out_proj"), f"{at}.self_attn_layer_norm")
        x = normed(x + linear(gelu(linear(x, f"{at}.fc1")), f"{at}.fc2"), f"{at}.final_layer_norm")
        states.append(x)
    found = {}
    for axis in tiny.AXES:
        mixed = np.tensordot(softmax(w[f"layer_weights.{axis}"]), np.stack(states), axes=1)
        y = mixed[heard].mean(axis=0)
        y = y / np.linalg.norm(y)
        for place in range(0, 12, 3):
            y = gelu(normed(linear(y, f"proj_layer.{axis}.{place}"), f"proj_layer.{axis}.{place + 1}"))
        scale = tiny.TRANSFORM[axis]
        found[axis] = float(linear(y, f"proj_layer.{axis}.12")[0] * scale["std"] + scale["mean"])
    return found


@pytest.mark.parametrize("seconds", [2.003, 10.0])
def test_the_axes_are_those_of_the_model_in_numpy(model, seconds: float):
    heard = clip(seconds)
    wanted = numpy_axes(tiny.state_dict(), heard.audio_CS[0].astype(np.float64))
    (scores,) = score_groups(model, [PROMPT], [[heard]])
    for axis in tiny.AXES:
        assert scores.components[axis.lower()][0] == pytest.approx(wanted[axis], abs=1e-4)
    value = (wanted["CE"] + wanted["CU"] + wanted["PQ"] - wanted["PC"]) / 40
    assert scores.values[0] == pytest.approx(value, abs=1e-5)


def test_in_its_published_size_it_has_the_published_number_of_parameters(monkeypatch):
    full = {"CHANNELS": 512, "WIDE": 768, "INNER": 3072, "HEADS": 12, "LAYERS": 12, "BUCKETS": 320}
    for name, size in (full | {"POSITIONS": 128, "GROUPS": 16}).items():
        monkeypatch.setattr(tiny, name, size)
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in tiny.all_shapes().items()}
        judge = Judge(Path("checkpoint.pt"), state, tiny.SETTINGS)
    assert {renamed(name): tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in judge.state_dict().items()
    }
    assert round(sum(part.numel() for part in judge.parameters()) / 1e6, 2) == 103.86
    assert round(sum(part.numel() for part in judge.hearing.parameters()) / 1e6, 1) == 94.4


def test_windows_count_by_how_much_sound_is_in_them(model):
    long = clip(13.0)
    sound = long.audio_CS[0].astype(np.float64)
    first, rest = (numpy_axes(tiny.state_dict(), part) for part in (sound[:160_000], sound[160_000:]))
    (scores,) = score_groups(model, [PROMPT], [[long]])
    assert scores.components["pq"][0] == pytest.approx((10 * first["PQ"] + 3 * rest["PQ"]) / 13, abs=1e-4)


def test_a_frame_is_padding_when_all_its_samples_are():
    heard = torch.arange(160_000)[None] < 641
    assert frames_heard(heard, 499)[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert frames_heard(heard[:, :160_000] | True, 499).all()


def test_both_forms_and_three_ways_to_name_them_are_one_model(model, bundle: Path, tmp_path: Path):
    tiny.write_directory(tmp_path / "hub")
    (plain,) = score_groups(model, [PROMPT], [[clip(2.0)]])
    part = bundle / "audiobox-aesthetics"
    for path in (part, part / "checkpoint.pt", tmp_path / "hub"):
        (same,) = score_groups(build(AudioboxReward(path=str(path))), [PROMPT], [[clip(2.0)]])
        assert same.values == plain.values
    names = {Path(named.path).name for named in AudioboxReward(path=str(tmp_path / "hub")).files()}
    assert names == {"model.safetensors", "config.json"}
    assert len(model.weights_digest) == 64


def test_the_mean_of_the_axes_may_be_the_value(bundle: Path):
    (scores,) = score_groups(build(AudioboxReward(path=str(bundle), value="mean")), [PROMPT], [[clip(2.0)]])
    assert scores.values[0] == pytest.approx(sum(scores.components[axis.lower()][0] for axis in tiny.AXES) / 40)


def test_company_rate_and_channels_do_not_matter(model):
    eight = [clip(1.0 + place / 10) for place in range(8)]
    alone = tuple(score_groups(model, [PROMPT], [[one]])[0].values[0] for one in eight)
    assert score_groups(model, [PROMPT], [eight])[0].values == alone
    sound = eight[0].audio_CS
    doubled = Clip(VIDEO, 24.0, np.repeat(sound, 2, axis=0), 16_000)
    assert score_groups(model, [PROMPT], [[doubled]])[0].values[0] == pytest.approx(alone[0], abs=1e-6)


def test_silence_gets_the_floor(model):
    silent = Clip(VIDEO, 24.0, np.zeros((1, 32_000), np.float32), 16_000)
    (scores,) = score_groups(model, [PROMPT], [[silent]])
    assert (scores.values, scores.reasons) == ((-0.175,), ("silent_audio",))


class _Code:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never"),))


def _broken(way: str, file: Path) -> None:
    state = tiny.state_dict()
    if way == "torn":
        tiny.write_checkpoint(file)
        file.write_bytes(file.read_bytes()[:-500])
    elif way == "code":
        file.parent.mkdir(parents=True)
        torch.save({"state_dict": _Code()}, file)
    elif way == "pickle":
        file.parent.mkdir(parents=True)
        file.write_bytes(pickle.dumps({"state_dict": 1}))
    elif way == "lacks":
        del state["proj_layer.PQ.3.bias"]
        tiny.write_checkpoint(file, state)
    elif way == "shape":
        state["wavlm_model.encoder.layers.1.fc1.weight"] = torch.zeros(5, 5)
        tiny.write_checkpoint(file, state)
    elif way == "unknown":
        tiny.write_checkpoint(file, state | {"classifier.weight": torch.zeros(2)})
    elif way == "other":
        file.parent.mkdir(parents=True)
        torch.save({"weight": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("way", "why", "early"),
    [
        ("missing", "No such file", True), ("torn", "torn", True), ("code", "names the code", True),
        ("pickle", "torn, or not written by torch.save", True), ("lacks", r"lacks heads\.PQ\.3\.bias", False),
        ("shape", "has the shape", False), ("unknown", "holds the unknown", False),
        ("other", "holds no state_dict, model_cfg", False),
    ],
)  # fmt: skip
def test_files_that_will_not_do_are_named(tmp_path: Path, way: str, why: str, early: bool):
    file = tmp_path / "audiobox-aesthetics" / "checkpoint.pt"
    (tmp_path / "audiobox-aesthetics").mkdir() if way == "missing" else _broken(way, file)
    spec = AudioboxReward(path=str(tmp_path))
    with pytest.raises(ModelError, match=rf"checkpoint\.pt.*{why}"):
        build(spec)
    found = list(spec.problems(None, ModelFacts()))
    assert [field for field, _ in found] == (["path"] if early else [])


def test_a_config_without_scales_is_named(tmp_path: Path):
    tiny.write_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json: target_transform says no mean and std of CE"):
        build(AudioboxReward(path=str(tmp_path)))
