"""How pleasant, useful, complex and well produced a sound is, by AudioBox-Aesthetics.

Measures: content enjoyment (CE), content usefulness (CU), production complexity (PC) and production quality (PQ), which
people gave on scales of 1 to 10 (Tjandra et al. 2025, "Meta Audiobox Aesthetics", arXiv 2502.05139). A WavLM of 12
layers hears windows of 10 s at 16 kHz; for each axis the 13 states of it are mixed by softmaxed weights, averaged over
frames that hold sound, normalised to length 1 and read by an MLP; x * std + mean is the axis. Windows count by how much
sound is in them. The value is (CE + CU + PQ - PC) / 40 as in OmniNFT and PrismAudio, or with `value = "mean"` the mean
of the four axes over 10, where complexity counts the other way.
Range: about -0.17 to 0.73 (mean: 0.1 to 1); the heads are linear, so there is no hard bound. Silence gets -0.175.
Limits: knows nothing of the prompt and of the picture; above 8 kHz it is deaf. The authors compute in bfloat16, here it
is float32: values differ in the third digit from theirs.
Known hacks: a pleasant bed of music under anything raises CE and CU. Keep CLAP and a guard on loudness beside it.

Files: `checkpoint.pt`, or `model.safetensors` with `config.json`; about 0.4 GB. Licence CC-BY-4.0: name the authors.
Each window is one forward of one shape on one thread, so a score has the same bits in any company.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import WavLMConfig, WavLMModel
from typing_extensions import override

from accord.config.audiobox_files import AXES, CONFIG, WHOLE, inspect_audiobox, scales
from accord.config.rewards.sound import AudioboxReward
from accord.config.weights import read_json
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.signals import Float, mono, resampled
from reward_servers.weight_files import digest, fill, load_tree, tensors_of

RATE = 16_000
WINDOW = 10 * RATE
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_MAX_DISTANCE = 800
"""Steps of the convolutions and reach of the relative positions: fixed in the published code, and no weight tells."""
_PREFIXES = ("model.", "encoder.")
_RENAMED = (
    ("layer_norm.", "feature_projection.layer_norm."), ("post_extract_proj.", "feature_projection.projection."),
    ("mask_emb", "masked_spec_embed"),
    ("encoder.pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    ("encoder.pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    ("encoder.pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"),
)  # fmt: skip
"""Beginnings of names, in the published file and in transformers."""
_IN_LAYER = (
    (".self_attn.grep_linear.", ".attention.gru_rel_pos_linear."),
    (".self_attn.grep_a", ".attention.gru_rel_pos_const"),
    (".self_attn.relative_attention_bias.", ".attention.rel_attn_embed."), (".self_attn.", ".attention."),
    (".self_attn_layer_norm.", ".layer_norm."), (".fc1.", ".feed_forward.intermediate_dense."),
    (".fc2.", ".feed_forward.output_dense."),
)  # fmt: skip


class AudioboxModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when a file is missing, torn, or does not hold this model.
    """

    def __init__(self, spec: AudioboxReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._mean = spec.value == "mean"
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        file = inspect_audiobox(str(spec.weights))
        state, settings, self._scales = read(file)
        self.judge = Judge(file, state, settings)
        fill(file, self.judge, {renamed(name): tensor.float() for name, tensor in state.items()})
        self.judge.to(self._device)
        self.weights_digest = digest([file, file.with_name(CONFIG)] if file.suffix == WHOLE else [file])

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The axes, averaged over windows by how much sound is in each, and what the value makes of them."""
        sound_S = resampled(mono(clip.audio_CS), clip.sample_rate, RATE)
        starts = range(0, len(sound_S), WINDOW)
        lengths = np.array([min(WINDOW, len(sound_S) - start) for start in starts], dtype=np.float64)
        rated_W4 = np.stack([self._rate(sound_S[start : start + WINDOW]) for start in starts])
        ce, cu, pc, pq = (float(axis) for axis in lengths @ rated_W4 / lengths.sum())
        value = (ce + cu + pc + pq) / 40 if self._mean else (ce + cu + pq - pc) / 40
        return Score(value, {"ce": ce, "cu": cu, "pc": pc, "pq": pq})

    @torch.no_grad()
    def _rate(self, window_S: Float) -> np.ndarray:
        """The four axes of one window [4]; it is filled up with zeros, which are not heard."""
        sound = torch.zeros(1, WINDOW, device=self._device)
        sound[0, : len(window_S)] = torch.from_numpy(window_S)
        heads_4 = self.judge(sound, len(window_S)).double().cpu().numpy()
        means, stds = np.array([self._scales[axis] for axis in AXES]).T
        rated: np.ndarray = heads_4 * stds + means
        return rated


class _WavLM(WavLMModel):
    """WavLM that masks as the published one does: a frame counts as padding when all samples of its share are."""

    @override
    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: torch.LongTensor, add_adapter: Any = None
    ) -> torch.Tensor:
        return frames_heard(attention_mask, feature_vector_length)


def frames_heard(heard_BS: torch.Tensor, frames: int) -> torch.Tensor:
    """Which frames hold sound [B, F]: samples are dealt out evenly, and those that are left over at the end ignored."""
    share = heard_BS.shape[1] // frames
    return heard_BS[:, : frames * share].reshape(len(heard_BS), frames, share).bool().any(dim=-1)


class Judge(nn.Module):
    """WavLM, its mixture of layers and a head for each axis, in the sizes of weights by their published names.

    Raises:
        ModelError: at construction, when the weights are not of such a model.
    """

    def __init__(self, file: Path, state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> None:
        super().__init__()
        try:
            self.hearing = _WavLM(wavlm_config(state))
            wide = self.hearing.config.hidden_size
            self.heads = nn.ModuleDict({axis: head(wide, settings) for axis in AXES})
            self.mixtures = nn.ParameterDict(
                {axis: nn.Parameter(torch.empty(self.hearing.config.num_hidden_layers + 1)) for axis in AXES}
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelError(f"{file}: does not hold AudioBox-Aesthetics ({error!r}); copy it again") from error
        self._normalise = bool(settings.get("normalize_embed", True))

    @override
    def forward(self, sound_BS: torch.Tensor, length: int) -> torch.Tensor:
        """The heads' outputs [4] for one window [1, S] of which the first `length` samples are sound."""
        heard = (torch.arange(sound_BS.shape[1], device=sound_BS.device) < length).long()[None]
        states = torch.stack(self.hearing(sound_BS, attention_mask=heard, output_hidden_states=True).hidden_states)
        mask = frames_heard(heard, states.shape[2])[0].to(states.dtype)
        read = []
        for axis in AXES:
            mixed_FD = torch.einsum("lfd,l->fd", states[:, 0], functional.softmax(self.mixtures[axis], dim=0))
            mean_D = mask @ mixed_FD / mask.sum().clamp(min=1)
            read.append(self.heads[axis](functional.normalize(mean_D, dim=0) if self._normalise else mean_D))
        return torch.cat(read)


def head(wide: int, settings: Mapping[str, Any]) -> nn.Sequential:
    """The MLP of one axis as `model_cfg` describes it; places count the dropout that only training had."""
    layers: list[nn.Module] = []
    for _ in range(int(settings["proj_num_layer"]) - 1):
        layers.append(nn.Linear(wide, wide))
        layers += [nn.LayerNorm(wide)] if settings["proj_ln"] else []
        layers.append(nn.GELU())
        layers += [nn.Identity()] if settings.get("proj_dropout") else []
    return nn.Sequential(*layers, nn.Linear(wide, int(settings.get("output_dim", 1))))


def renamed(name: str) -> str:
    """A published name as this module's."""
    if name.startswith("proj_layer."):
        return f"heads.{name.removeprefix('proj_layer.')}"
    if name.startswith("layer_weights."):
        return f"mixtures.{name.removeprefix('layer_weights.')}"
    inner = name.removeprefix("wavlm_model.")
    inner = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv.", inner)
    inner = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.2\.", r"\1.layer_norm.", inner)
    for old, new in _RENAMED:
        inner = f"{new}{inner.removeprefix(old)}" if inner.startswith(old) else inner
    for old, new in _IN_LAYER if inner.startswith("encoder.layers.") else ():
        inner = inner.replace(old, new)
    return f"hearing.{inner}"


def wavlm_config(state: Mapping[str, torch.Tensor]) -> WavLMConfig:
    """Sizes of WavLM, read off its weights."""
    inside = {name.removeprefix("wavlm_model."): tuple(tensor.shape) for name, tensor in state.items()}
    convolutions = [inside[f"feature_extractor.conv_layers.{place}.0.weight"] for place in range(len(_STRIDES))]
    wide, _ = inside["post_extract_proj.weight"]
    first = "encoder.layers.0."
    layers = sum(name.startswith("encoder.layers.") and name.endswith(".fc1.weight") for name in inside)
    return WavLMConfig(
        hidden_size=wide, num_hidden_layers=layers, num_attention_heads=inside[f"{first}self_attn.grep_a"][1],
        intermediate_size=inside[f"{first}fc1.weight"][0], feat_extract_norm="group", do_stable_layer_norm=False,
        num_buckets=inside[f"{first}self_attn.relative_attention_bias.weight"][0],
        max_bucket_distance=_MAX_DISTANCE, conv_bias=False, conv_dim=[shape[0] for shape in convolutions],
        conv_kernel=[shape[2] for shape in convolutions], conv_stride=list(_STRIDES),
        num_conv_pos_embeddings=inside["encoder.pos_conv.0.weight_v"][2],
        num_conv_pos_embedding_groups=wide // inside["encoder.pos_conv.0.weight_v"][1], layerdrop=0.0,
        hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
    )  # fmt: skip


def read(file: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, Any], dict[str, tuple[float, float]]]:
    """Weights by published name, settings of the heads, and mean and std of each axis. Raises ModelError."""
    if file.suffix == WHOLE:
        settings = read_json(file.with_name(CONFIG))
        state, transform = load_file(file), settings.get("target_transform")
    else:
        tree = load_tree(file)
        if not isinstance(tree.get("model_cfg"), Mapping):
            raise ModelError(f"{file}: holds no state_dict, model_cfg and target_transform; take the published file")
        settings, transform = tree["model_cfg"], tree.get("target_transform")
        state = tensors_of(file, tree.get("state_dict"))
    if not settings.get("use_weighted_layer_sum", True):
        raise ModelError(f"{file}: reads one layer only; AudioBox-Aesthetics mixes all, take the published file")
    whole = all(name.startswith(_PREFIXES) for name in state)
    return {name.split(".", 1)[1] if whole else name: state[name] for name in state}, settings, scales(file, transform)
