"""A tiny AudioBox-Aesthetics checkpoint: key names and layout of the published one, random weights.

The convolutions have the published kernels; 16 channels in place of 512, 24 wide in place of 768, 2 layers in place
of 12.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CHANNELS, WIDE, INNER, HEADS, LAYERS, BUCKETS = 16, 24, 32, 4, 2, 16
POSITIONS, GROUPS = 8, 4
KERNELS = (10, 3, 3, 3, 3, 2, 2)
AXES = ("CE", "CU", "PC", "PQ")
TRANSFORM = {
    "CE": {"mean": 5.6, "std": 1.5}, "CU": {"mean": 6.0, "std": 1.3},
    "PC": {"mean": 3.2, "std": 1.1}, "PQ": {"mean": 6.4, "std": 1.2},
}  # fmt: skip
SETTINGS = {
    "proj_num_layer": 5, "proj_ln": True, "proj_act_fn": "gelu", "proj_dropout": 0, "nth_layer": LAYERS + 1,
    "use_weighted_layer_sum": True, "precision": "32", "normalize_embed": True, "output_dim": 1,
}  # fmt: skip


def wavlm_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of WavLM by the names that its authors gave."""
    shapes: dict[str, tuple[int, ...]] = {
        "mask_emb": (WIDE,), "layer_norm.weight": (CHANNELS,), "layer_norm.bias": (CHANNELS,),
        "post_extract_proj.weight": (WIDE, CHANNELS), "post_extract_proj.bias": (WIDE,),
        "feature_extractor.conv_layers.0.2.weight": (CHANNELS,), "feature_extractor.conv_layers.0.2.bias": (CHANNELS,),
        "encoder.pos_conv.0.bias": (WIDE,), "encoder.pos_conv.0.weight_g": (1, 1, POSITIONS),
        "encoder.pos_conv.0.weight_v": (WIDE, WIDE // GROUPS, POSITIONS),
        "encoder.layer_norm.weight": (WIDE,), "encoder.layer_norm.bias": (WIDE,),
        "encoder.layers.0.self_attn.relative_attention_bias.weight": (BUCKETS, HEADS),
    }  # fmt: skip
    for place, kernel in enumerate(KERNELS):
        shapes[f"feature_extractor.conv_layers.{place}.0.weight"] = (CHANNELS, CHANNELS if place else 1, kernel)
    for layer in range(LAYERS):
        at = f"encoder.layers.{layer}"
        shapes[f"{at}.self_attn.grep_a"] = (1, HEADS, 1, 1)
        linears = {f"self_attn.{part}_proj": (WIDE, WIDE) for part in ("q", "k", "v", "out")}
        linears |= {"self_attn.grep_linear": (8, WIDE // HEADS), "fc1": (INNER, WIDE), "fc2": (WIDE, INNER)}
        for name, shape in linears.items():
            shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{at}.{name}.weight": (WIDE,), f"{at}.{name}.bias": (WIDE,)}
    return shapes


def all_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the whole model by published name."""
    shapes = {f"wavlm_model.{name}": shape for name, shape in wavlm_shapes().items()}
    for axis in AXES:
        shapes[f"layer_weights.{axis}"] = (LAYERS + 1,)
        for place in range(0, 12, 3):
            shapes |= {f"proj_layer.{axis}.{place}.weight": (WIDE, WIDE), f"proj_layer.{axis}.{place}.bias": (WIDE,)}
            shapes |= {f"proj_layer.{axis}.{place + 1}.{part}": (WIDE,) for part in ("weight", "bias")}
        shapes |= {f"proj_layer.{axis}.12.weight": (1, WIDE), f"proj_layer.{axis}.12.bias": (1,)}
    return shapes


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; those of norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in all_shapes().items():
        drawn = torch.randn(shape, generator=generator)
        fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 4
        one = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        state[name] = one + drawn * fan**-0.5 * (0.3 if one else 1.0)
    return state


def write_checkpoint(file: Path, state: dict[str, torch.Tensor] | None = None, **settings: Any) -> None:
    """`checkpoint.pt` as it is published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tree = {f"model.{name}": tensor for name, tensor in (state or state_dict()).items()}
    torch.save({"state_dict": tree, "model_cfg": {**SETTINGS, **settings}, "target_transform": TRANSFORM}, file)


def write_directory(folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`model.safetensors` and `config.json` as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"encoder.{name}": tensor for name, tensor in (state or state_dict()).items()},
              folder / "model.safetensors")  # fmt: skip
    config = {**SETTINGS, "sample_rate": 16_000, "target_transform": TRANSFORM}
    (folder / "config.json").write_text(json.dumps(config))
