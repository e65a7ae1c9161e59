"""Perception Encoder's sight as a module: one frame to one vector. Bolya et al. 2025 (arXiv 2504.13181), PE-Core.

A vision transformer that normalises before its layers and within them, with learned places and rotary ones (columns
turn the first half of a head, rows the second, both counted from 1), read out by attention of one learned query. Parts
are named as in timm's `vit_pe_core_*`, by which PE-AV's checkpoints go. Sizes are read off the weights: heads are 64
wide, the read-out has 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

_HEAD, _POOL_HEADS = 64, 8
_BASE = 10_000.0


class PeCore(nn.Module):
    """Frames [B, 3, side, side] to `logits` [B, D]. Raises KeyError, ValueError for weights of another model."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        width, _, _, patch = state["patch_embed.proj.weight"].shape
        if width % _HEAD:
            raise ValueError(f"{width} wide with heads of {_HEAD}")
        places = state["pos_embed"].shape[1]
        self.grid = math.isqrt(places - 1)
        self.side = self.grid * patch
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        inner = len(state["blocks.0.mlp.fc1.bias"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, places, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch, bias=False)})
        self.norm_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.attn_pool = _Pool(width, len(state["attn_pool.mlp.fc1.bias"]))
        self.head = nn.Linear(width, len(state["head.weight"]))

    @override
    def forward(self, frames_BCHW: torch.Tensor) -> SimpleNamespace:
        patches = self.patch_embed["proj"](frames_BCHW).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(len(patches), -1, -1)
        tokens = self.norm_pre(torch.cat([first, patches], dim=1) + self.pos_embed)
        turns = rotations(self.grid, tokens.device)
        for block in self.blocks:
            tokens = block(tokens, turns)
        return SimpleNamespace(logits=self.head(self.attn_pool(self.norm(tokens))))


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _mlp(width, inner)

    @override
    def forward(self, tokens_BTD: torch.Tensor, turns_PH: torch.Tensor) -> torch.Tensor:
        q, k, v = _heads(self.attn["qkv"](self.norm1(tokens_BTD)), 3, tokens_BTD.shape[-1] // _HEAD)
        mixed = functional.scaled_dot_product_attention(turned(q, turns_PH), turned(k, turns_PH), v)
        tokens_BTD = tokens_BTD + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return tokens_BTD + _through(self.mlp, self.norm2(tokens_BTD))


class _Pool(nn.Module):
    """Attention of one learned query over all tokens, then an MLP: [B, T, D] to [B, D]."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = _mlp(width, inner)

    @override
    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        (q,) = _heads(self.q(self.latent.expand(len(tokens_BTD), -1, -1)), 1, _POOL_HEADS)
        k, v = _heads(self.kv(tokens_BTD), 2, _POOL_HEADS)
        pooled = self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        summed: torch.Tensor = (pooled + _through(self.mlp, self.norm(pooled)))[:, 0]
        return summed


def _mlp(width: int, inner: int) -> nn.ModuleDict:
    return nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})


def _through(mlp: nn.ModuleDict, tokens: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = mlp["fc2"](functional.gelu(mlp["fc1"](tokens)))
    return out


def _heads(projected_BTD: torch.Tensor, parts: int, heads: int) -> tuple[torch.Tensor, ...]:
    """Parts of a projection, by heads: each [B, heads, T, D / heads]."""
    batch, tokens, _ = projected_BTD.shape
    return projected_BTD.reshape(batch, tokens, parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def rotations(grid: int, device: torch.device) -> torch.Tensor:
    """By how much each pair of a head turns at each place [P, 32]: columns in the first half, rows in the second."""
    speeds = _BASE ** -(torch.arange(_HEAD // 4, device=device) / (_HEAD // 4))
    row, column = torch.meshgrid(*[torch.arange(1, grid + 1, device=device)] * 2, indexing="ij")
    return torch.cat([place.reshape(-1, 1) * speeds for place in (column, row)], dim=1)


def turned(heads_BHTd: torch.Tensor, turns_PH: torch.Tensor) -> torch.Tensor:
    """Neighbouring numbers of each head as points that turn; the first token stays."""
    first, rest = heads_BHTd[:, :, :1], heads_BHTd[:, :, 1:]
    one, other = rest[..., ::2], rest[..., 1::2]
    sine, cosine = turns_PH.sin(), turns_PH.cos()
    moved = torch.stack([one * cosine - other * sine, other * cosine + one * sine], dim=-1).flatten(-2)
    return torch.cat([first, moved], dim=2)
