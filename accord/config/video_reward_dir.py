"""What can be known of a VideoReward checkpoint (VideoAlign) without loading it.

model_config.json             what it was trained on, how its values are normalised
checkpoint-<step>/model.pth   all weights, or
checkpoint-<step>/adapter_model.safetensors, non_lora_state_dict.pth
                              a LoRA over the base's weights, and what was trained besides
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.files import files_below, kind_of
from accord.config.preference_dir import backbone_shapes, refuse_other_backbone
from accord.config.qwen_dir import QwenBase
from accord.config.torch_files import inspect_torch_file
from accord.config.weights import Shapes, read_json, read_safetensors_header, refuse_quantised
from accord.errors import InputError, ModelError

CONFIG = "model_config.json"
AXES = ("vq", "mq", "ta")
"""Visual quality, motion quality, text alignment, in the order of the heads and of the tokens."""
MERGED, ADAPTER, BESIDES = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class VideoRewardFiles:
    """A checkpoint whose files agree as far as can be told before they are loaded."""

    base: QwenBase
    template: str
    norms: Mapping[str, tuple[float, float]]
    """Mean and standard deviation of the raw values by axis; empty where the config has none."""
    checkpoint: Path
    """The folder `checkpoint-<step>`."""
    adapted: bool
    """Whether it is a LoRA over the base's weights; a file of all weights may hold one beside them, too."""
    lora_scale: float | None
    """What the product of a LoRA's matrices is multiplied by; None where no config tells."""
    base_weights: tuple[Path, ...]
    """Weights of the base, where a LoRA needs them."""

    @property
    def weights(self) -> tuple[Path, ...]:
        """Every file of weights that is loaded."""
        names = (ADAPTER, BESIDES) if self.adapted else (MERGED,)
        return (*(self.checkpoint / name for name in names), *self.base_weights)


def inspect_video_reward(folder: Path, step: int | None, base: QwenBase, template: str) -> VideoRewardFiles:
    """Check a checkpoint. Raises ModelError that names the file and what would do."""
    config = read_json(folder / CONFIG)
    _refuse_other_kind(folder / CONFIG, config)
    checkpoint = find_checkpoint(folder, step)
    norms = _norms(folder / CONFIG, config)
    if kind_of(checkpoint / MERGED) == "file":
        inspect_torch_file(checkpoint / MERGED)
        return VideoRewardFiles(base, template, norms, checkpoint, False, _scale(checkpoint, config), ())
    if kind_of(checkpoint / ADAPTER) != "file":
        raise ModelError(f"{checkpoint}: holds neither {MERGED} nor {ADAPTER}; copy the whole folder")
    header = read_safetensors_header(checkpoint / ADAPTER)
    refuse_quantised(checkpoint / ADAPTER, header)
    inspect_torch_file(checkpoint / BESIDES)
    weights = base_weight_files(base)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weights:
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_safetensors_header(file).items()}
    refuse_other_backbone(base.root, backbone_shapes(shapes), base)
    scale = _scale(checkpoint, config)
    if scale is None:
        raise ModelError(f"{checkpoint}: nothing says the rank and alpha of its LoRA; copy {_ADAPTER_CONFIG}, too")
    return VideoRewardFiles(base, template, norms, checkpoint, True, scale, weights)


def _refuse_other_kind(where: Path, config: Mapping[str, Any]) -> None:
    """Three values at three tokens are what is read here; the authors' code can train others."""
    model, data = _part(config, "model_config"), _part(config, "data_config")
    if model.get("output_dim") != 3 or not model.get("use_special_tokens") or len(data.get("eval_dim", ())) != 3:
        raise ModelError(
            f"{where}: is no model of VQ, MQ and TA at three tokens (output_dim {model.get('output_dim')}, "
            f"use_special_tokens {model.get('use_special_tokens')}, eval_dim {data.get('eval_dim')}); "
            "take KwaiVGI/VideoReward"
        )


def _norms(where: Path, config: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    constants = _part(config, "inference_config")
    if not constants:
        return {}
    found = {axis: (constants.get(f"{axis.upper()}_mean"), constants.get(f"{axis.upper()}_std")) for axis in AXES}
    norms: dict[str, tuple[float, float]] = {}
    for axis, (mean, spread) in found.items():
        if not isinstance(mean, int | float) or not isinstance(spread, int | float) or not spread > 0:
            raise ModelError(f"{where}: inference_config lacks {axis.upper()}_mean or {axis.upper()}_std above 0")
        norms[axis] = (float(mean), float(spread))
    return norms


def own_template(folder: Path) -> str | None:
    """The words around the prompt where the config holds them itself; None where it names their kind alone."""
    found = _part(read_json(folder / CONFIG), "data_config").get("prompt_template")
    return found if isinstance(found, str) and found else None


def find_checkpoint(folder: Path, step: int | None) -> Path:
    """The folder of a step, the latest for None. Raises ModelError that tells the steps that there are."""
    try:
        parents = {file.parent for file in files_below(folder)}
    except InputError as error:
        raise ModelError(str(error)) from error
    steps = {
        int(match[1]): parent
        for parent in parents
        if parent.parent == folder and (match := re.fullmatch(r"checkpoint-(\d+)", parent.name))
    }
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, sorted(steps))) or "none"
        raise ModelError(f"{folder}: has no checkpoint-{'<step>' if step is None else step}; there is {there}")
    return steps[max(steps) if step is None else step]


def base_weight_files(base: QwenBase) -> tuple[Path, ...]:
    """Weights in the base's directory. Raises ModelError when there are none."""
    index = base.root / "model.safetensors.index.json"
    if kind_of(index) == "file":
        found = read_json(index).get("weight_map")
        names = sorted(set(found.values())) if isinstance(found, dict) else []
        if names and all(isinstance(name, str) and Path(name).name == name for name in names):
            return tuple(base.root / name for name in names)
        raise ModelError(f"{index}: has no weight_map from tensors to files beside it")
    if kind_of(base.root / "model.safetensors") == "file":
        return (base.root / "model.safetensors",)
    raise ModelError(f"{base.root}: holds no model.safetensors; a LoRA needs the weights of its base")


def _scale(checkpoint: Path, config: Mapping[str, Any]) -> float | None:
    """Alpha / rank, or alpha / sqrt(rank) for a rank-stabilised LoRA; None where no config tells. Raises ModelError."""
    if kind_of(checkpoint / _ADAPTER_CONFIG) == "file":
        where, found = checkpoint / _ADAPTER_CONFIG, read_json(checkpoint / _ADAPTER_CONFIG)
        rank, alpha = found.get("r"), found.get("lora_alpha")
        if found.get("rank_pattern") or found.get("alpha_pattern") or found.get("use_dora"):
            raise ModelError(f"{where}: a LoRA with patterns or with DoRA; merge it into {MERGED}")
    else:
        found = dict(_part(config, "peft_lora_config"))
        rank, alpha = found.get("lora_r"), found.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        return None
    return float(alpha) / (math.sqrt(rank) if found.get("use_rslora") else rank)


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def refuse_other_heads(where: Path, shapes: Shapes, wide: int) -> None:
    """Raise ModelError unless there is one head with three rows and no bias."""
    heads = {name: shape for name, shape in shapes.items() if name.startswith("rm_head.")}
    if heads != {"rm_head.weight": (3, wide)}:
        raise ModelError(f"{where}: its heads are {heads or 'missing'} instead of one rm_head.weight of 3 x {wide}")
