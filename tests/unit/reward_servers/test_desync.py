"""Synchformer's offset: the network against numpy by published names, its input against scipy, and the windows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann
from scipy.special import erf, softmax

from accord.config.contract import ModelFacts
from accord.config.rewards.cross import DesyncReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import build, score_groups
from reward_servers.models.desync import log_mel, nearest, prepared, windows
from reward_servers.models.synchformer import Sizes, Synchformer, own_names
from tests.unit.reward_servers import tiny_synchformer as tiny

PROMPT = Prompt("door", "a door", "a door", "a door")
FILE = Path("synchformer") / "synchformer_state_dict.pth"


def clip(frames: int = 121, seconds: float = 121 / 24, fps: float = 24.0, rate: int = 16_000, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    sound = (0.1 * rng.standard_normal((1, round(seconds * rate)))).astype(np.float32)
    return Clip(rng.integers(0, 256, (frames, 24, 32, 3), dtype=np.uint8), fps, sound, rate)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    tiny.write_checkpoint(folder / FILE)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path):
    return build(DesyncReward(path=str(bundle)))


def one(model, heard: Clip):
    return score_groups(model, [PROMPT], [[heard]])[0]


# ---------------------------------------------------------------- the network


def test_in_its_published_size_it_has_the_published_parameters_and_tensors(monkeypatch):
    with torch.device("meta"):
        network = Synchformer(Sizes())
    millions = [
        round(sum(part.numel() for part in module.parameters()) / 1e6, 2)
        for module in (network, network.vfeat_extractor, network.afeat_extractor, network.transformer)
    ]
    assert millions == [237.46, 122.44, 92.40, 21.44]
    assert len(network.state_dict()) == 513
    for name, size in {"WIDE": 768, "SEEING": 12, "HEARING": 12, "JOINING": 3, "ROWS": 14}.items():
        monkeypatch.setattr(tiny, name, size)
    published = {name: torch.empty(shape, device="meta") for name, shape in tiny.shapes().items()}
    assert Sizes.of(published) == Sizes()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in own_names(published).items()} == wanted


class Numpy:
    """Synchformer in float64 by published names, token by token as its papers have it."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.w = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}

    def linear(self, x, name: str):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x, name: str, eps: float):
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, x, first: str, second: str):
        inner = self.linear(x, first)
        return self.linear(0.5 * inner * (1 + erf(inner / math.sqrt(2))), second)

    @staticmethod
    def attend(q, k, v, heads: int):
        """[T, D] queries over [U, D] keys and values."""
        q, k, v = (x.reshape(len(x), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
        weights = softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]), axis=-1)
        return (weights @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)

    def divided(self, x, name: str, groups: list[np.ndarray]):
        q, k, v = np.split(self.linear(x, f"{name}.qkv"), 3, axis=1)
        out = np.empty_like(x)
        out[:1] = self.attend(q[:1], k, v, 12)
        for group in groups:
            seen = np.concatenate([[0], group])
            out[group] = self.attend(q[group], k[seen], v[seen], 12)
        return self.linear(out, f"{name}.proj")

    def summary(self, x, name: str):
        x = np.concatenate([self.w[f"{name}.cls_token"][0], x])
        q, k, v = np.split(
            self.norm(x, f"{name}.norm1", 1e-6) @ self.w[f"{name}.self_attn.in_proj_weight"].T
            + self.w[f"{name}.self_attn.in_proj_bias"], 3, axis=1,
        )  # fmt: skip
        x = x + self.linear(self.attend(q, k, v, 12), f"{name}.self_attn.out_proj")
        return (x + self.mlp(self.norm(x, f"{name}.norm2", 1e-6), f"{name}.linear1", f"{name}.linear2"))[0]

    def see(self, video_CFHW):
        at, kernel = "vfeat_extractor", self.w["vfeat_extractor.patch_embed_3d.proj.weight"]
        x = [self.w[f"{at}.cls_token"][0, 0] + self.w[f"{at}.pos_embed"][0, 0]]
        for step in range(8):
            for place in range(tiny.ROWS**2):
                row, column = 16 * (place // tiny.ROWS), 16 * (place % tiny.ROWS)
                tube = video_CFHW[:, 2 * step : 2 * step + 2, row : row + 16, column : column + 16]
                token = np.tensordot(kernel, tube, axes=4) + self.w[f"{at}.patch_embed_3d.proj.bias"]
                x.append(token + self.w[f"{at}.pos_embed"][0, 1 + place] + self.w[f"{at}.temp_embed"][0, step])
        x = np.stack(x)
        grid = 1 + np.arange(8 * tiny.ROWS**2).reshape(8, -1)
        for block in range(tiny.SEEING):
            name = f"{at}.blocks.{block}"
            x = x + self.divided(self.norm(x, f"{name}.norm3", 1e-6), f"{name}.timeattn", list(grid.T))
            x = x + self.divided(self.norm(x, f"{name}.norm1", 1e-6), f"{name}.attn", list(grid))
            x = x + self.mlp(self.norm(x, f"{name}.norm2", 1e-6), f"{name}.mlp.fc1", f"{name}.mlp.fc2")
        x = self.norm(x, f"{at}.norm", 1e-6)
        return np.stack([self.summary(x[step], f"{at}.spatial_attn_agg") for step in grid])

    def hear(self, mel_TM):
        at = "afeat_extractor.ast"
        kernel = self.w[f"{at}.embeddings.patch_embeddings.projection.weight"][:, 0]
        x = [self.w[f"{at}.embeddings.{name}_token"][0, 0] for name in ("cls", "distillation")]
        for band in range(12):
            for step in range(6):
                patch = mel_TM.T[10 * band : 10 * band + 16, 10 * step : 10 * step + 16]
                bias = self.w[f"{at}.embeddings.patch_embeddings.projection.bias"]
                x.append(np.tensordot(kernel, patch, axes=2) + bias)
        x = np.stack(x) + self.w[f"{at}.embeddings.position_embeddings"][0]
        for block in range(tiny.HEARING):
            name = f"{at}.encoder.layer.{block}"
            y = self.norm(x, f"{name}.layernorm_before", 1e-12)
            q, k, v = (self.linear(y, f"{name}.attention.attention.{part}") for part in ("query", "key", "value"))
            x = x + self.linear(self.attend(q, k, v, 12), f"{name}.attention.output.dense")
            y = self.norm(x, f"{name}.layernorm_after", 1e-12)
            x = x + self.mlp(y, f"{name}.intermediate.dense", f"{name}.output.dense")
        x = self.norm(x, f"{at}.layernorm", 1e-12)[2:].reshape(12, 6, -1)
        return np.stack([self.summary(x[:, step], "afeat_extractor.freq_attn_agg") for step in range(6)])

    def logits(self, video_SCFHW, mel_STM):
        at = "transformer"
        seen = self.linear(np.concatenate([self.see(part) for part in video_SCFHW]), "vproj")
        heard = self.linear(np.concatenate([self.hear(part) for part in mel_STM]), "aproj")
        x = np.concatenate([
            self.w[f"{at}.OFF_tok"][0], self.norm(seen, f"{at}.vis_in_lnorm", 1e-5),
            self.w[f"{at}.MOD_tok"][0], self.norm(heard, f"{at}.aud_in_lnorm", 1e-5),
        ])  # fmt: skip
        x = x + self.w[f"{at}.pos_emb_cfg.pos_emb"][0]
        for block in range(tiny.JOINING):
            name = f"{at}.blocks.{block}"
            y = self.norm(x, f"{name}.ln1", 1e-5)
            q, k, v = (self.linear(y, f"{name}.attn.{part}") for part in ("query", "key", "value"))
            x = x + self.linear(self.attend(q, k, v, 8), f"{name}.attn.proj")
            x = x + self.mlp(self.norm(x, f"{name}.ln2", 1e-5), f"{name}.mlp.0", f"{name}.mlp.2")
        return self.linear(self.norm(x[:1], f"{at}.ln_f", 1e-5), f"{at}.off_head")[0]


def numpy_mel(sound_S: np.ndarray) -> np.ndarray:
    """Normalised log-mel [66, 128] of one segment, from scipy's transform and triangles written out."""
    transform = ShortTimeFFT(hann(400, sym=False), 160, 16_000, mfft=1024)
    framed = np.pad(sound_S.astype(np.float64), 512, mode="reflect")
    power = np.stack([
        np.abs(np.fft.rfft(framed[160 * frame + 312 : 160 * frame + 712] * transform.win, 1024)) ** 2
        for frame in range(65)
    ])  # fmt: skip
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130) / 2595) - 1)
    hertz = np.linspace(0, 8000, 513)
    bank = np.stack([
        np.maximum(0, np.minimum((hertz - low) / (mid - low), (high - hertz) / (high - mid)))
        for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False)
    ])  # fmt: skip
    mel = np.concatenate([np.log(power @ bank.T + 1e-6), np.zeros((1, 128))])
    return (mel + 4.2677393) / (2 * 4.5689974)


def test_the_value_is_that_of_the_network_in_numpy(model):
    judged = clip()
    numpy_net = Numpy(tiny.state_dict())
    frames = prepared(judged.video_FHWC, nearest(0, 121, 24.0), 64).numpy().astype(np.float64)
    video = [frames[8 * part : 8 * part + 16].transpose(1, 0, 2, 3) for part in range(14)]
    sound = judged.audio_CS[0]
    mel = [numpy_mel(sound[5_120 * part : 5_120 * part + 10_240]) for part in range(14)]
    chances = softmax(numpy_net.logits(video, mel))
    grid = [round(-2 + 0.2 * place, 1) for place in range(21)]
    expected = sum(chance * abs(offset) for chance, offset in zip(chances, grid, strict=True))
    scores = one(model, judged)
    assert scores.values[0] == pytest.approx(1 / (1 + expected), abs=2e-4)
    assert scores.components["expected_s"][0] == pytest.approx(expected, abs=1e-3)
    early = sum(chance * offset for chance, offset in zip(chances, grid, strict=True))
    assert scores.components["offset_s"][0] == pytest.approx(-early, abs=1e-3)
    assert scores.components["desync_s"][0] == pytest.approx(abs(grid[int(np.argmax(chances))]))
    assert scores.components["entropy"][0] == pytest.approx(-(chances @ np.log(chances)) / math.log(21), abs=1e-3)
    assert 0.05 < scores.components["entropy"][0] < 0.95


# ---------------------------------------------------------------- what goes in


def test_log_mel_is_that_of_scipy():
    sound = np.random.default_rng(3).standard_normal(10_240).astype(np.float32) * 0.05
    assert log_mel(torch.from_numpy(sound)[None])[0].numpy() == pytest.approx(numpy_mel(sound), abs=1e-4)


def test_frames_are_scaled_as_another_library_scales_them_and_cut_from_the_middle():
    rows, columns = np.mgrid[:300, :420]
    picture = np.stack([rows // 2 + 40, columns // 3 + 40, (rows + columns) // 5 + 40], axis=2).astype(np.uint8)
    picture[30:90, 170:250] += 60
    (made,) = prepared(picture[None], np.array([0]), 224)
    scaled = np.asarray(Image.fromarray(picture).resize((313, 224), Image.Resampling.BICUBIC))
    left = round((313 - 224) / 2)
    wanted = scaled[:, left : left + 224].transpose(2, 0, 1) / 127.5 - 1
    assert made.shape == (3, 224, 224)
    assert np.abs(made.numpy() - wanted).max() <= 1.01 / 127.5


@pytest.mark.parametrize(
    ("video_s", "audio_s", "starts"),
    [
        (121 / 24, 121 / 24, (0,)), (4.8, 9.0, (0,)), (4.79, 9.0, ()), (9.0, 4.79, ()), (5.12, 5.12, (0, 1)),
        (8.0, 8.0, (0, 10)), (60.0, 10.0, (0, 16)),
    ],
)  # fmt: skip
def test_windows_hold_whole_segments_of_both_streams(video_s: float, audio_s: float, starts: tuple[int, ...]):
    assert windows(video_s, audio_s) == starts


def test_frames_are_the_nearest_in_time():
    assert nearest(0, 121, 24.0)[:5].tolist() == [0, 1, 2, 3, 4]
    assert nearest(0, 121, 24.0)[12:15].tolist() == [12, 12, 13]  # 0.48, 0.52, 0.56 s lie at 11.52, 12.48, 13.44
    assert nearest(8, 300, 50.0)[:3].tolist() == [16, 18, 20]
    assert nearest(0, 120, 25.0).tolist() == list(range(120))


# ---------------------------------------------------------------- the reward


def test_two_windows_are_averaged(model):
    long = clip(frames=200, seconds=8.0, fps=25.0)
    first = Clip(long.video_FHWC[:120], 25.0, long.audio_CS[:, :76_800], 16_000)
    last = Clip(long.video_FHWC[80:], 25.0, long.audio_CS[:, 51_200:], 16_000)
    parts = [one(model, part).components["expected_s"][0] for part in (first, last)]
    whole = one(model, long)
    assert whole.components["windows"] == (2.0,)
    assert whole.components["expected_s"][0] == pytest.approx(sum(parts) / 2, abs=1e-6)


def test_company_does_not_matter(model):
    eight = [clip(seed=seed) for seed in range(8)]
    alone = tuple(one(model, each).values[0] for each in eight[:3])
    assert score_groups(model, [PROMPT], [eight])[0].values[:3] == alone


def test_what_has_no_answer(model):
    whole = clip()
    short = one(model, clip(frames=114, seconds=5.0))
    assert (short.valid, short.reasons) == ((False,), ("too_short",))
    cancelled = Clip(whole.video_FHWC, 24.0, np.concatenate([whole.audio_CS, -whole.audio_CS]), 16_000)
    silent = Clip(whole.video_FHWC, 24.0, np.zeros_like(whole.audio_CS), 16_000)
    for heard in (cancelled, silent):
        assert one(model, heard).values == (pytest.approx(1 / 3),)
        assert one(model, heard).reasons == ("silent_audio",)


class _Job:
    """As much of a job as the check of its clips' length reads."""

    samples = True

    def __init__(self, frames: int, fps: float) -> None:
        self.sampling = type("Sampling", (), {"frames": frames, "fps": fps})


@pytest.mark.parametrize(("frames", "said"), [(121, False), (49, True)])
def test_a_job_with_clips_that_are_too_short_is_told(bundle: Path, frames: int, said: bool):
    found: list[Any] = list(DesyncReward(path=str(bundle)).problems(_Job(frames, 24.0), None))  # type: ignore[arg-type]
    assert [place for place, _ in found] == ([""] if said else [])
    assert all("judges no less than 4.8 s" in message and "2.04 s" in message for _, message in found)


@pytest.mark.parametrize(
    ("way", "why", "early"),
    [
        ("missing", "No such file", True), ("torn", "torn", True), ("lacks", "lacks transformer.ln_f.bias", False),
        ("shape", r"transformer\.pos_emb_cfg\.pos_emb has the shape", False), ("other", "is no state dict", False),
        ("unknown", "holds the unknown", False),
    ],
)  # fmt: skip
def test_files_that_will_not_do_are_named(tmp_path: Path, way: str, why: str, early: bool):
    state, file = tiny.state_dict(), tmp_path / FILE
    if way == "lacks":
        del state["transformer.ln_f.bias"]
    elif way == "shape":
        state["transformer.pos_emb_cfg.pos_emb"] = torch.zeros(1, 184, tiny.WIDE)
    elif way == "other":
        state = {"weight": torch.zeros(3)}
    elif way == "unknown":
        state["transformer.sync_head.weight"] = torch.zeros(2, tiny.WIDE)
    tiny.write_checkpoint(file, state)
    if way == "torn":
        file.write_bytes(file.read_bytes()[:-900])
    elif way == "missing":
        file.unlink()
    with pytest.raises(ModelError, match=rf"synchformer_state_dict\.pth.*{why}"):
        build(DesyncReward(path=str(tmp_path)))
    told = list(DesyncReward(path=str(tmp_path)).problems(_Job(121, 24.0), ModelFacts()))  # type: ignore[arg-type]
    assert [field for field, _ in told] == (["path"] if early else [])
