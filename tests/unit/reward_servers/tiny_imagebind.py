"""A tiny ImageBind: key names and layout of `imagebind_huge.pth`, random weights; heads and senses as published.

`shapes(PUBLISHED)` are those of the published file: 1311 tensors, 1 200.78 million numbers beside the mask of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from tests.unit.reward_servers.tiny_clip import ROWS

Shape = tuple[int, ...]
TINY = {"vision": (32, 2, 4), "text": (32, 2, ROWS), "audio": (24, 2, 16), "depth": (16, 1, 14), "thermal": (24, 1, 14),
        "imu": (16, 1, 250), "out": (32, 0, 0)}  # fmt: skip
"""Width, layers, and what else has a size: rows of patches, words, side of a patch."""
PUBLISHED = {"vision": (1280, 32, 16), "text": (1024, 24, 49_408), "audio": (768, 12, 16), "depth": (384, 12, 14),
             "thermal": (768, 12, 14), "imu": (512, 6, 250), "out": (1024, 0, 0)}  # fmt: skip
SIDE = 4 * 14
"""Pixels of the tiny one's pictures."""


def shapes(sizes: Mapping[str, tuple[int, int, int]]) -> dict[str, Shape]:
    """Shapes by published name."""
    found: dict[str, Shape] = {}
    out = sizes["out"][0]
    for sense in ("vision", "text", "audio", "depth", "thermal", "imu"):
        width, layers, rest = sizes[sense]
        pre, trunk, head = (f"modality_{part}.{sense}" for part in ("preprocessors", "trunks", "heads"))
        found |= _stem(sense, pre, width, rest)
        if sense == "vision":
            found |= {f"{trunk}.pre_transformer_layer.0.{part}": (width,) for part in ("weight", "bias")}
        for layer in range(layers):
            found |= _block(f"{trunk}.blocks.{layer}", width, sense not in {"vision", "text"})
        norm, linear = {"text": ("proj.0", "proj.1"), "imu": ("0", "3")}.get(sense, ("0", "2"))
        found |= {f"{head}.{norm}.{part}": (width,) for part in ("weight", "bias")}
        found[f"{head}.{linear}.weight"] = (out, width)
        if sense != "vision":
            found[f"modality_postprocessors.{sense}.1.log_logit_scale"] = ()
    return found


def _stem(sense: str, pre: str, width: int, rest: int) -> dict[str, Shape]:
    if sense == "text":
        return {
            f"{pre}.pos_embed": (1, 77, width),
            f"{pre}.mask": (77, 77),
            f"{pre}.token_embedding.weight": (rest, width),
        }
    if sense == "vision":
        return {f"{pre}.cls_token": (1, 1, width), f"{pre}.rgbt_stem.proj.1.weight": (width, 3, 2, 14, 14),
                f"{pre}.pos_embedding_helper.pos_embed": (1, rest**2 + 1, width)}  # fmt: skip
    stem = {"depth": "depth_stem", "imu": "imu_stem"}.get(sense, "rgbt_stem")
    tokens = {"audio": 12 * 19, "imu": rest}.get(sense, rest**2)
    kernel: Shape = (width, 48) if sense == "imu" else (width, 1, 16, 16)
    places = f"{pre}.pos_embed" if sense == "imu" else f"{pre}.pos_embedding_helper.pos_embed"
    return {f"{pre}.cls_token": (1, 1, width), f"{pre}.{stem}.proj.weight": kernel, places: (1, tokens + 1, width),
            f"{pre}.{stem}.norm_layer.weight": (width,), f"{pre}.{stem}.norm_layer.bias": (width,)}  # fmt: skip


def _block(at: str, width: int, more: bool) -> dict[str, Shape]:
    found: dict[str, Shape] = {f"{at}.attn.in_proj_weight": (3 * width, width), f"{at}.attn.in_proj_bias": (3 * width,)}
    for name, (high, wide) in {"attn.out_proj": (width, width), "mlp.fc1": (4 * width, width),
                               "mlp.fc2": (width, 4 * width)}.items():  # fmt: skip
        found |= {f"{at}.{name}.weight": (high, wide), f"{at}.{name}.bias": (high,)}
    found |= {f"{at}.norm_{place}.{part}": (width,) for place in (1, 2) for part in ("weight", "bias")}
    return found | ({f"{at}.attn.bias_{name}": (1, 1, width) for name in "kv"} if more else {})


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; those of norms lie around 1, and nothing vanishes on the way through."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes(TINY).items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) <= 1:
            state[name] = 0.2 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif name.endswith(("_token", "pos_embed", "bias_k", "bias_v", "token_embedding.weight")):
            state[name] = 0.5 * drawn
        else:
            state[name] = drawn * int(torch.tensor(shape[1:]).prod()) ** -0.5
    return state


def write_checkpoint(file: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`imagebind_huge.pth` as it is published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state or state_dict(), file)
