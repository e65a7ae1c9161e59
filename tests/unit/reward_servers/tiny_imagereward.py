"""A tiny ImageReward: files and key names of the published one, random weights, 64 wide, 2 layers, 32 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.unit.reward_servers.tiny_clip import DINO_GRID, DINO_PATCH, DINO_WIDE, LAYERS, SENTENCE, dino_state

WIDE, INNER, HEADS, PLACES = 64, 96, 4, 48
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(SENTENCE.split())]
ROWS = len(WORDS) + 2
"""Two more than the tokenizer has, as published."""
SIZES = (40, 16, 8, 4, 1)
SIDE = DINO_GRID * DINO_PATCH


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.json` as bert-base-uncased's."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


def state_dict() -> dict[str, torch.Tensor]:
    """Random weights by published name."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (ROWS, WIDE), "embeddings.position_embeddings.weight": (PLACES, WIDE),
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for index in range(LAYERS):
        at = f"encoder.layer.{index}"
        linears = {"intermediate.dense": (INNER, WIDE), "output.dense": (WIDE, INNER)}
        for part, seen in (("attention", WIDE), ("crossattention", DINO_WIDE)):
            linears |= {f"{part}.self.query": (WIDE, WIDE), f"{part}.output.dense": (WIDE, WIDE)}
            linears |= {f"{part}.self.{name}": (WIDE, seen) for name in ("key", "value")}
            norms.append(f"{at}.{part}.output.LayerNorm")
        norms.append(f"{at}.output.LayerNorm")
        for name, size in linears.items():
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[:1]}
    shapes |= {f"{name}.{part}": (WIDE,) for name in norms for part in ("weight", "bias")}
    shapes = {f"blip.text_encoder.{name}": shape for name, shape in shapes.items()}
    wide = WIDE
    for place, out in zip((0, 2, 4, 6, 7), SIZES, strict=True):
        shapes |= {f"mlp.layers.{place}.weight": (out, wide), f"mlp.layers.{place}.bias": (out,)}
        wide = out
    generator = torch.Generator().manual_seed(11)
    state = {f"blip.visual_encoder.{name}": tensor for name, tensor in dino_state().items()}
    for name, shape in shapes.items():
        one = 1.0 if "LayerNorm.weight" in name else 0.0
        state[name] = one + torch.randn(shape, generator=generator) * (shape[-1] if len(shape) > 1 else 9) ** -0.5
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(PLACES)[None]
    return state


def write_checkpoint(folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`ImageReward.pt` and `med_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state or state_dict(), folder / "ImageReward.pt")
    config = {"architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": WIDE, "num_attention_heads": HEADS,
              "layer_norm_eps": 1e-12, "encoder_width": 768, "add_cross_attention": True}  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(config))
