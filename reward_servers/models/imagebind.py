"""ImageBind as a module: pictures, sound and texts to one space of 1024 numbers.

Girdhar et al. 2023, "ImageBind: One Embedding Space To Bind Them All" (arXiv 2305.05665). Each tower is a transformer
that normalises first, with one token for the whole (the first; of a text, its last word), a norm and a linear map.
* sight: patches of 14 x 14 pixels in two frames, 32 layers of 1280, 16 heads; a norm before the layers, too.
* hearing: patches of 16 x 16, one every 10, of a log-mel spectrogram [128, 204], normalised; 12 layers of 768, 12
  heads, whose attention has one learned key and value more.
* reading: CLIP's words, each of which sees those before it; 24 layers of 1024, 16 heads.

Written from what is published of the sizes and of the names in `imagebind_huge.pth`, whose towers for depth, heat and
motion are passed over. Widths, depths and grids are read off the weights; heads are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import override

from accord.config.rewards.imagebind import Sense
from accord.errors import ModelError
from reward_servers.weight_files import fill

State = Mapping[str, torch.Tensor]

HEADS: Mapping[Sense, int] = {"vision": 16, "audio": 12, "text": 16}
BANDS, STEPS, STRIDE = 128, 204, 10
"""Of the spectrogram, and between its patches."""
FRAMES = 2
_EPS = 1e-6
_NAMES: Mapping[str, str] = {
    "modality_preprocessors.{}.cls_token": "first",
    "modality_preprocessors.{}.pos_embedding_helper.pos_embed": "places",
    "modality_preprocessors.{}.pos_embed": "places",
    "modality_preprocessors.{}.rgbt_stem.proj.1.weight": "patches.weight",
    "modality_preprocessors.{}.rgbt_stem.proj.weight": "patches.weight",
    "modality_preprocessors.{}.rgbt_stem.norm_layer.": "patch_norm.",
    "modality_preprocessors.{}.token_embedding.weight": "words.weight",
    "modality_trunks.{}.pre_transformer_layer.0.": "before.",
    "modality_trunks.{}.blocks.": "blocks.",
    "modality_heads.{}.0.": "after.", "modality_heads.{}.2.": "out.",
    "modality_heads.{}.proj.0.": "after.", "modality_heads.{}.proj.1.": "out.",
}  # fmt: skip
"""Names, or beginnings of names that end with a dot, in the published file and here."""
_DERIVED = ("modality_preprocessors.text.mask",)
"""What the file holds and nobody needs to read."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the weights of one tower are like."""

    width: int
    depth: int
    out: int
    places: int
    """Tokens that have a place."""
    patch: int = 0
    """Pixels, or bands and steps; of texts 0."""
    words: int = 0

    @classmethod
    def of(cls, state: State) -> Sizes:
        """Sizes of a tower by the names here. Raises KeyError, IndexError, ValueError for another one."""
        out, width = state["out.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        patch = state["patches.weight"].shape[-1] if "patches.weight" in state else 0
        words = len(state["words.weight"]) if "words.weight" in state else 0
        return cls(width, depth, out, state["places"].shape[1], patch, words)

    @property
    def side(self) -> int:
        """Pixels of a picture's side."""
        return math.isqrt(self.places - 1) * self.patch


PUBLISHED: Mapping[Sense, Sizes] = {
    "vision": Sizes(1280, 32, 1024, 257, 14), "audio": Sizes(768, 12, 1024, 229, 16),
    "text": Sizes(1024, 24, 1024, 77, 0, 49_408),
}  # fmt: skip


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and added."""

    def __init__(self, width: int, heads: int, more: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=more, batch_first=True)
        self.norm_2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    @override
    def forward(self, tokens_BTD: torch.Tensor, mask_TT: torch.Tensor | None) -> torch.Tensor:
        normed = self.norm_1(tokens_BTD)
        tokens_BTD = tokens_BTD + self.attn(normed, normed, normed, attn_mask=mask_TT, need_weights=False)[0]
        inner = functional.gelu(self.mlp["fc1"](self.norm_2(tokens_BTD)))
        summed: torch.Tensor = tokens_BTD + self.mlp["fc2"](inner)
        return summed


class Tower(nn.Module):
    """One sense, to vectors of length 1."""

    def __init__(self, sense: Sense, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.places = nn.Parameter(torch.zeros(1, sizes.places, width))
        if sense == "text":
            self.words = nn.Embedding(sizes.words, width)
        else:
            self.first = nn.Parameter(torch.zeros(1, 1, width))
        if sense == "vision":
            tube = (FRAMES, sizes.patch, sizes.patch)
            self.patches: nn.Module = nn.Conv3d(3, width, tube, tube, bias=False)
            self.before = nn.LayerNorm(width, eps=_EPS)
        if sense == "audio":
            self.patches = nn.Conv2d(1, width, sizes.patch, STRIDE, bias=False)
            self.patch_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, HEADS[sense], sense == "audio") for _ in range(sizes.depth))
        self.after = nn.LayerNorm(width, eps=_EPS)
        self.out = nn.Linear(width, sizes.out, bias=False)

    def see(self, video_BCFHW: torch.Tensor) -> torch.Tensor:
        """[B, 1024] of pairs of frames [B, 3, 2, side, side], by CLIP's means."""
        patches = self.patches(video_BCFHW).flatten(2).transpose(1, 2)
        return self._read(self.before(self._placed(patches)))

    def hear(self, mel_BMT: torch.Tensor) -> torch.Tensor:
        """[B, 1024] of normalised spectrograms [B, 128, 204]."""
        patches = self.patches(mel_BMT[:, None]).flatten(2).transpose(1, 2)
        return self._read(self._placed(self.patch_norm(patches)))

    def read(self, words_T: torch.Tensor) -> torch.Tensor:
        """[1024] of the words of one text from its start to its end."""
        count = len(words_T)
        later = torch.full((count, count), -math.inf, device=words_T.device).triu(1)
        return self._read(self.words(words_T)[None] + self.places[:, :count], later, whole=-1)[0]

    def _placed(self, patches_BTD: torch.Tensor) -> torch.Tensor:
        first = self.first.expand(len(patches_BTD), -1, -1)
        return torch.cat([first, patches_BTD], dim=1) + self.places

    def _read(self, tokens_BTD: torch.Tensor, mask_TT: torch.Tensor | None = None, whole: int = 0) -> torch.Tensor:
        for block in self.blocks:
            tokens_BTD = block(tokens_BTD, mask_TT)
        return functional.normalize(self.out(self.after(tokens_BTD[:, whole])), dim=-1)


def load_towers(file: Path, state: State, senses: Iterable[Sense]) -> dict[Sense, Tower]:
    """Towers with the weights of a published file. Raises ModelError that names the first that does not fit."""
    towers: dict[Sense, Tower] = {}
    for sense in senses:
        own = own_names(state, sense)
        try:
            sizes = Sizes.of(own)
            with torch.device("meta"):
                tower = Tower(sense, sizes)
        except (KeyError, IndexError, ValueError, AssertionError, ZeroDivisionError) as error:
            what = f"{file}: holds no {sense} tower of ImageBind ({error!r}); take imagebind_huge.pth"
            raise ModelError(what) from error
        fill(file, tower.to_empty(device="cpu"), own)
        towers[sense] = tower
    return towers


def own_names(state: State, sense: Sense) -> dict[str, torch.Tensor]:
    """The weights of one tower by the names of `Tower`, in float32; what is not known keeps its own."""
    parts = ("preprocessors", "trunks", "heads")
    of = {name: tensor for name, tensor in state.items()
          if any(name.startswith(f"modality_{part}.{sense}.") for part in parts) and name not in _DERIVED}  # fmt: skip
    table = {old.format(sense): new for old, new in _NAMES.items()}
    renamed = {}
    for name, tensor in of.items():
        old = next((old for old in table if name == old or (old.endswith(".") and name.startswith(old))), None)
        renamed[name if old is None else table[old] + name.removeprefix(old)] = tensor.float()
    return renamed
