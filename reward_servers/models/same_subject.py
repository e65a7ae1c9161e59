"""Whether what is shown stays what it is: VBench's subject and background consistency.

Measures: over evenly spaced frames with unit features f, the mean for every frame t but the first of
(max(0, f_t f_{t-1}) + max(0, f_t f_1)) / 2 (Huang et al. 2024, "VBench", arXiv 2311.17982, dimensions 1 and 2).
* `subject_consistency`: f of DINO ViT-B/16, the class token behind the last norm; the short side becomes 224 pixels and
  nothing is cut off.
* `background_consistency`: f of CLIP ViT-B/32's images.
Range 0 to 1, higher is better; 0.85 to 0.99 on videos. VBench looks at all frames, `frames = 4096`; at fewer the one
before lies further back and the value is a little lower, so compare like with like.
Limits: blind to prompt and sound. Lighting and camera count as well as the subject. VBench's CLIP shrinks without
smoothing and DINO's own code resizes its positions a little otherwise: values differ in the third digit from theirs.
Known hack, and a plain one: BOTH ARE HIGHEST FOR A FROZEN FRAME. Never train on them without `dynamic_degree`, `motion`
or another floor under motion.

Files: DINO by timm's names (`vit_base_patch16_224.dino`: `model.safetensors`) or its authors' own
(`dino_vitbase16_pretrain.pth`, the same names), 0.35 GB; a transformers directory of clip-vit-base-patch32, 0.35 GB.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import ViTConfig, ViTModel
from transformers.initialization import no_init_weights
from typing_extensions import override

from accord.config.clip_dir import CONFIG, inspect_clip_image
from accord.config.rewards.picture import BackgroundConsistencyReward, SubjectConsistencyReward
from accord.config.vit_file import inspect_vit
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.clip import ImageTower, State, read_clip
from reward_servers.models.frames import IMAGENET_MEAN, IMAGENET_STD, Picture, evenly, pixels, shortest
from reward_servers.weight_files import digest, fill, load_tensors

_HEAD = 64
"""Width of a head in DINO's transformers; no weight tells."""
_AT_ONCE = 16
_NAMES = (
    ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("norm.", "layernorm."),
)  # fmt: skip
_IN_BLOCK = {".norm1.": ".layernorm_before.", ".norm2.": ".layernorm_after.", ".attn.proj.": ".attention.o_proj."}


class _Consistency(RewardModel):
    """The formula over unit features."""

    def __init__(self, spec: SubjectConsistencyReward | BackgroundConsistencyReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._frames = spec.frames
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")

    @abstractmethod
    def features(self, frames: Sequence[Picture]) -> torch.Tensor:
        """Unit features [F, D]."""

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The mean over frames; what it is the mean of are its components."""
        chosen = [clip.video_FHWC[place] for place in evenly(len(clip.video_FHWC), self._frames)]
        found_FD = self.features(chosen).double().cpu().numpy()
        first = np.clip(found_FD[1:] @ found_FD[0], 0.0, 1.0)
        before = np.clip((found_FD[1:] * found_FD[:-1]).sum(axis=1), 0.0, 1.0)
        parts = {"to_first": first.mean(), "to_previous": before.mean(), "lowest": first.min()}
        value = float((first + before).mean() / 2)
        return Score(value, {"frames": float(len(chosen))} | {name: float(part) for name, part in parts.items()})


class SubjectConsistencyModel(_Consistency):
    """With DINO. Raises ModelError at construction, when the file is missing, torn, or holds another model."""

    def __init__(self, spec: SubjectConsistencyReward) -> None:
        super().__init__(spec)
        file = inspect_vit(str(spec.weights))
        self._model, self._side = read_vit(file)
        self._model.to(self._device)
        self.weights_digest = digest([file])

    @override
    @torch.no_grad()
    def features(self, frames: Sequence[Picture]) -> torch.Tensor:
        """The class token behind the last norm, at length 1."""
        found = []
        for at in range(0, len(frames), _AT_ONCE):
            seen = pixels(frames[at : at + _AT_ONCE], shortest, self._side, IMAGENET_MEAN, IMAGENET_STD)
            states = self._model(pixel_values=seen.to(self._device), interpolate_pos_encoding=True).last_hidden_state
            found.append(states[:, 0])
        return functional.normalize(torch.cat(found), dim=-1)


class BackgroundConsistencyModel(_Consistency):
    """With CLIP's image features. Raises ModelError at construction, when files are missing, torn, or unlike."""

    def __init__(self, spec: BackgroundConsistencyReward) -> None:
        super().__init__(spec)
        weights = read_clip(inspect_clip_image(spec.weights))
        self._images = ImageTower(weights, self._device)
        self.weights_digest = digest([weights.file, spec.weights / CONFIG])

    @override
    def features(self, frames: Sequence[Picture]) -> torch.Tensor:
        """Image embeddings."""
        return self._images.embed(frames)


def read_vit(file: Path) -> tuple[Any, int]:
    """A vision transformer by timm's names, and the side of its pictures. Raises ModelError when it is none."""
    state = dict(renamed(load_file(file) if file.suffix == ".safetensors" else load_tensors(file)))
    try:
        config = vit_config(state)
        with no_init_weights():
            model = ViTModel(config, add_pooling_layer=False)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{file}: does not hold a vision transformer as DINO's ({error!r}); take ViT-B/16") from error
    fill(file, model, {name: tensor.float() for name, tensor in state.items()})
    return model, int(config.image_size)


def vit_config(state: State) -> Any:
    """Sizes, read off weights by transformers' names. Raises KeyError, IndexError, ValueError."""
    inner, wide = state["layers.0.mlp.fc1.weight"].shape
    patch = state["embeddings.patch_embeddings.projection.weight"].shape[-1]
    if wide % _HEAD:
        raise ValueError(f"{wide} wide with heads of {_HEAD}")
    return ViTConfig(
        hidden_size=wide, intermediate_size=inner, num_attention_heads=wide // _HEAD, patch_size=patch,
        num_hidden_layers=sum(name.endswith(".mlp.fc1.weight") for name in state), layer_norm_eps=1e-6,
        image_size=round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5) * patch,
    )  # fmt: skip


def renamed(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by transformers' names; what is not known keeps its own."""
    for old, tensor in state.items():
        name = next((new + old.removeprefix(start) for start, new in _NAMES if old.startswith(start)), old)
        name = re.sub(r"^blocks\.", "layers.", name)
        for inner, new in _IN_BLOCK.items():
            name = name.replace(inner, new)
        if fused := re.fullmatch(r"(layers\.\d+)\.attn\.qkv\.(weight|bias)", name):
            for part, third in zip("qkv", tensor.chunk(3), strict=False):
                yield f"{fused[1]}.attention.{part}_proj.{fused[2]}", third
        else:
            yield name, tensor
