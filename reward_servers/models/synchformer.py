"""Synchformer as a module: how far apart in time are 4.8 s of picture and sound.

Iashin et al. 2024, "Synchformer: Efficient Synchronization from Sparse Cues" (arXiv 2401.16423). Fourteen segments of
0.64 s, one every 0.32 s, are seen by a MotionFormer with divided attention (8 tokens a segment) and heard by an Audio
Spectrogram Transformer (6 tokens a segment); a small transformer over all of them tells 21 offsets apart.

Parts are named as in the published state dict, but for the AST, which is that of transformers; `own_names` renames it.
Widths, depths and the side of a frame are read off the weights; heads, segments and their tokens are fixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import ASTConfig, ASTModel
from typing_extensions import override

SEGMENTS = 14
FRAMES = 16
"""Of a segment, at 25 Hz."""
MEL_FRAMES = 66
MEL_BANDS = 128
CLASSES = 21
_PATCH = 16
_TUBE = 2
_STEPS = FRAMES // _TUBE
"""Tokens of a segment in time."""
_AUDIO_STEPS, _AUDIO_BANDS = 6, 12
_HEADS = 12
_SYNC_HEADS = 8
_AST = "afeat_extractor.ast."
_AST_NAMES = (
    (".encoder.layer.", ".layers."), (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."), (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."), (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)  # fmt: skip
"""Parts of names in the published file, and in transformers; the order matters."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the weights of one Synchformer are like."""

    width: int = 768
    seeing: int = 12
    """Blocks of the MotionFormer."""
    hearing: int = 12
    """Blocks of the AST."""
    joining: int = 3
    """Blocks over both."""
    side: int = 224
    """Pixels."""

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> Sizes:
        """Sizes of a published state dict. Raises KeyError or IndexError for another one."""

        def depth(stack: str) -> int:
            return 1 + max(
                int(found[1]) for name in state if (found := re.match(rf"{re.escape(stack)}\.(\d+)\.", name))
            )

        width = state["vfeat_extractor.cls_token"].shape[-1]
        patches = state["vfeat_extractor.pos_embed"].shape[1] - 1
        return cls(
            width, depth("vfeat_extractor.blocks"), depth(f"{_AST}encoder.layer"), depth("transformer.blocks"),
            _PATCH * math.isqrt(patches),
        )  # fmt: skip


def own_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A published state dict by the names of `Synchformer`, in float32."""
    renamed = {}
    for published, tensor in state.items():
        name = published
        for old, new in _AST_NAMES if name.startswith(_AST) else ():
            name = name.replace(old, new)
        renamed[name] = tensor.float()
    return renamed


class Synchformer(nn.Module):
    """Offsets of picture and sound; see the module for its parts."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.vfeat_extractor = Sight(width, sizes.seeing, (sizes.side // _PATCH) ** 2)
        self.afeat_extractor = Hearing(width, sizes.hearing)
        self.vproj = nn.Linear(width, width)
        self.aproj = nn.Linear(width, width)
        self.transformer = Joint(width, sizes.joining)

    @override
    def forward(self, video_BSCFHW: torch.Tensor, mel_BSTM: torch.Tensor) -> torch.Tensor:
        """Logits of the offsets [B, 21].

        `video_BSCFHW` [B, 14, 3, 16, side, side] in [-1, 1], `mel_BSTM` [B, 14, 66, 128] normalised.
        """
        batch = len(video_BSCFHW)
        seen = self.vproj(self.vfeat_extractor(video_BSCFHW.flatten(0, 1)))
        heard = self.aproj(self.afeat_extractor(mel_BSTM.flatten(0, 1)))
        logits: torch.Tensor = self.transformer(seen.reshape(batch, -1, seen.shape[-1]),
                                                heard.reshape(batch, -1, heard.shape[-1]))  # fmt: skip
        return logits


class Sight(nn.Module):
    """MotionFormer with divided attention, then one token for each step in time: [N, 3, 16, H, H] to [N, 8, D]."""

    def __init__(self, width: int, depth: int, patches: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, _STEPS, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, _PATCH, _PATCH)})
        """Never used; the published weights have it."""
        self.patch_embed_3d = nn.ModuleDict(
            {"proj": nn.Conv3d(3, width, (_TUBE, _PATCH, _PATCH), (_TUBE, _PATCH, _PATCH))}
        )
        self.blocks = nn.ModuleList(DividedBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.spatial_attn_agg = Summary(width)

    @override
    def forward(self, video_NCFHW: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed_3d["proj"](video_NCFHW).flatten(2).transpose(1, 2)
        count, _, width = tokens.shape
        place = self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]
        tokens = tokens + place.reshape(1, -1, width)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        frames = self.norm(tokens[:, 1:]).reshape(count * _STEPS, -1, width)
        summed: torch.Tensor = self.spatial_attn_agg(frames)
        return summed.reshape(count, _STEPS, width)


class DividedBlock(nn.Module):
    """Attention along time, then within each step, then an MLP (Bertasius et al. 2021, arXiv 2102.05095)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.norm3 = nn.LayerNorm(width, eps=1e-6)
        self.attn = DividedAttention(width, along_time=False)
        self.timeattn = DividedAttention(width, along_time=True)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    @override
    def forward(self, tokens_NTD: torch.Tensor) -> torch.Tensor:
        tokens_NTD = tokens_NTD + self.timeattn(self.norm3(tokens_NTD))
        tokens_NTD = tokens_NTD + self.attn(self.norm1(tokens_NTD))
        inner = functional.gelu(self.mlp["fc1"](self.norm2(tokens_NTD)))
        summed: torch.Tensor = tokens_NTD + self.mlp["fc2"](inner)
        return summed


class DividedAttention(nn.Module):
    """Patches attend to those of their place at all steps, or of their step at all places, and to the first token.

    The first token attends to all.
    """

    def __init__(self, width: int, *, along_time: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self._along_time = along_time

    @override
    def forward(self, tokens_NTD: torch.Tensor) -> torch.Tensor:
        count, tokens, width = tokens_NTD.shape
        q, k, v = self.qkv(tokens_NTD).reshape(count, tokens, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        first = functional.scaled_dot_product_attention(q[:, :, :1], k, v)
        lines = functional.scaled_dot_product_attention(
            self._lines(q[:, :, 1:]), self._lines(k[:, :, 1:], k[:, :, :1]), self._lines(v[:, :, 1:], v[:, :, :1])
        )
        back = lines.transpose(1, 2) if self._along_time else lines
        rest = back.reshape(count, _HEADS, tokens - 1, width // _HEADS)
        joined = torch.cat([first, rest], dim=2).transpose(1, 2).reshape(count, tokens, width)
        out: torch.Tensor = self.proj(joined)
        return out

    def _lines(self, patches_NHPd: torch.Tensor, first_NH1d: torch.Tensor | None = None) -> torch.Tensor:
        """[N, H, steps * places, d] as lines that attend within themselves [N * H, lines, length, d]."""
        lines = patches_NHPd.unflatten(2, (_STEPS, -1)).flatten(0, 1)
        if self._along_time:
            lines = lines.transpose(1, 2)
        if first_NH1d is None:
            return lines
        return torch.cat([first_NH1d.flatten(0, 1)[:, None].expand(-1, lines.shape[1], -1, -1), lines], dim=2)


class Hearing(nn.Module):
    """AST, then one token for each step in time: [N, 66, 128] to [N, 6, D]."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.ast = ASTModel(
            ASTConfig(
                hidden_size=width, num_hidden_layers=depth, num_attention_heads=_HEADS, intermediate_size=4 * width,
                max_length=MEL_FRAMES, num_mel_bins=MEL_BANDS, hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip
        self.freq_attn_agg = Summary(width)

    @override
    def forward(self, mel_NTM: torch.Tensor) -> torch.Tensor:
        patches = self.ast(mel_NTM).last_hidden_state[:, 2:]
        count, _, width = patches.shape
        bands = patches.reshape(count, _AUDIO_BANDS, _AUDIO_STEPS, width).transpose(1, 2)
        summed: torch.Tensor = self.freq_attn_agg(bands.reshape(count * _AUDIO_STEPS, _AUDIO_BANDS, width))
        return summed.reshape(count, _AUDIO_STEPS, width)


class Summary(nn.TransformerEncoderLayer):
    """A transformer layer over a token of its own and those it is given; its own token is the summary [N, D]."""

    def __init__(self, width: int) -> None:
        super().__init__(
            width, _HEADS, 4 * width, 0.0, nn.GELU(), layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    @override
    def forward(self, tokens_NTD: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        own = self.cls_token.expand(len(tokens_NTD), -1, -1)
        normed = self.norm1(torch.cat([own, tokens_NTD], dim=1))
        # Nobody reads the other tokens' outputs, so they are not computed.
        own = own + self.self_attn(normed[:, :1], normed, normed, need_weights=False)[0]
        summed: torch.Tensor = own + self.linear2(self.activation(self.linear1(self.norm2(own))))
        return summed[:, 0]


class Joint(nn.Module):
    """The transformer over OFF, what was seen, MOD, what was heard; OFF is read: [B, 112, D], [B, 84, D] to [B, 21]."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.zeros(1, 1, width))
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        length = 2 + SEGMENTS * (_STEPS + _AUDIO_STEPS)
        self.pos_emb_cfg = nn.ParameterDict({"pos_emb": nn.Parameter(torch.zeros(1, length, width))})
        self.blocks = nn.ModuleList(JointBlock(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, CLASSES)

    @override
    def forward(self, seen_BVD: torch.Tensor, heard_BAD: torch.Tensor) -> torch.Tensor:
        off, mod = (token.expand(len(seen_BVD), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        tokens = torch.cat([off, self.vis_in_lnorm(seen_BVD), mod, self.aud_in_lnorm(heard_BAD)], dim=1)
        tokens = tokens + self.pos_emb_cfg["pos_emb"]
        for block in self.blocks:
            tokens = block(tokens)
        logits: torch.Tensor = self.off_head(self.ln_f(tokens[:, 0]))
        return logits


class JointBlock(nn.Module):
    """Attention and an MLP, each after its norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({part: nn.Linear(width, width) for part in ("key", "query", "value", "proj")})
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    @override
    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        normed = self.ln1(tokens_BTD)
        q, k, v = (
            self.attn[part](normed).unflatten(2, (_SYNC_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens_BTD = tokens_BTD + self.attn["proj"](out)
        summed: torch.Tensor = tokens_BTD + self.mlp(self.ln2(tokens_BTD))
        return summed
