"""A tiny Synchformer checkpoint: key names and layout of the published state dict, random weights.

Heads, segments, their tokens and the classes are the published ones; 24 wide in place of 768, one block in place of 12
or 3, frames of 64 x 64 in place of 224 x 224.
"""

from __future__ import annotations

from pathlib import Path

import torch

WIDE, SEEING, HEARING, JOINING = 24, 1, 1, 1
ROWS = 4
"""Of patches, of 16 pixels, in a frame; 14 in the published one."""


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDE,), f"{name}.bias": (WIDE,)}


def _summary(name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.cls_token": (1, 1, WIDE)}
    shapes |= {f"{name}.self_attn.in_proj_weight": (3 * WIDE, WIDE), f"{name}.self_attn.in_proj_bias": (3 * WIDE,)}
    shapes |= _linear(f"{name}.self_attn.out_proj", WIDE, WIDE)
    shapes |= _linear(f"{name}.linear1", 4 * WIDE, WIDE) | _linear(f"{name}.linear2", WIDE, 4 * WIDE)
    return shapes | _norm(f"{name}.norm1") | _norm(f"{name}.norm2")


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes by the names of `synchformer_state_dict.pth`."""
    see, hear, join = "vfeat_extractor", "afeat_extractor.ast", "transformer"
    found: dict[str, tuple[int, ...]] = {
        f"{see}.cls_token": (1, 1, WIDE), f"{see}.pos_embed": (1, 1 + ROWS**2, WIDE), f"{see}.temp_embed": (1, 8, WIDE),
        f"{see}.patch_embed.proj.weight": (WIDE, 3, 16, 16), f"{see}.patch_embed.proj.bias": (WIDE,),
        f"{see}.patch_embed_3d.proj.weight": (WIDE, 3, 2, 16, 16), f"{see}.patch_embed_3d.proj.bias": (WIDE,),
    }  # fmt: skip
    for block in range(SEEING):
        at = f"{see}.blocks.{block}"
        for name in ("norm1", "norm2", "norm3"):
            found |= _norm(f"{at}.{name}")
        for name in ("attn", "timeattn"):
            found |= _linear(f"{at}.{name}.qkv", 3 * WIDE, WIDE) | _linear(f"{at}.{name}.proj", WIDE, WIDE)
        found |= _linear(f"{at}.mlp.fc1", 4 * WIDE, WIDE) | _linear(f"{at}.mlp.fc2", WIDE, 4 * WIDE)
    found |= _norm(f"{see}.norm") | _summary(f"{see}.spatial_attn_agg")
    found |= {f"{hear}.embeddings.{name}_token": (1, 1, WIDE) for name in ("cls", "distillation")}
    found |= {f"{hear}.embeddings.position_embeddings": (1, 74, WIDE)}
    found |= {f"{hear}.embeddings.patch_embeddings.projection.weight": (WIDE, 1, 16, 16)}
    found |= {f"{hear}.embeddings.patch_embeddings.projection.bias": (WIDE,)}
    for block in range(HEARING):
        at = f"{hear}.encoder.layer.{block}"
        for name in ("query", "key", "value"):
            found |= _linear(f"{at}.attention.attention.{name}", WIDE, WIDE)
        found |= _linear(f"{at}.attention.output.dense", WIDE, WIDE)
        found |= _linear(f"{at}.intermediate.dense", 4 * WIDE, WIDE) | _linear(f"{at}.output.dense", WIDE, 4 * WIDE)
        found |= _norm(f"{at}.layernorm_before") | _norm(f"{at}.layernorm_after")
    found |= _norm(f"{hear}.layernorm") | _summary("afeat_extractor.freq_attn_agg")
    found |= _linear("vproj", WIDE, WIDE) | _linear("aproj", WIDE, WIDE)
    found |= {f"{join}.OFF_tok": (1, 1, WIDE), f"{join}.MOD_tok": (1, 1, WIDE)}
    found |= {f"{join}.pos_emb_cfg.pos_emb": (1, 198, WIDE)}
    found |= _norm(f"{join}.vis_in_lnorm") | _norm(f"{join}.aud_in_lnorm") | _norm(f"{join}.ln_f")
    for block in range(JOINING):
        at = f"{join}.blocks.{block}"
        found |= _norm(f"{at}.ln1") | _norm(f"{at}.ln2")
        for name in ("key", "query", "value", "proj"):
            found |= _linear(f"{at}.attn.{name}", WIDE, WIDE)
        found |= _linear(f"{at}.mlp.0", 4 * WIDE, WIDE) | _linear(f"{at}.mlp.2", WIDE, 4 * WIDE)
    return found | _linear(f"{join}.off_head", 21, WIDE)


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights; those of norms lie around 1, and nothing vanishes on the way through."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes().items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) == 1:
            state[name] = 0.2 * drawn + (1.0 if name.endswith("weight") else 0.0)
        elif "_tok" in name or "emb" in name.rsplit(".", 1)[1]:
            state[name] = 0.5 * drawn
        else:
            state[name] = drawn * int(torch.tensor(shape[1:]).prod()) ** -0.5
    state["transformer.off_head.weight"] *= 3.0
    return state


def write_checkpoint(file: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`synchformer_state_dict.pth` as it is published."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state or state_dict(), file)
