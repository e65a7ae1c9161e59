"""Tiny checkpoints of the CLIP family and DINO: files, layout and key names of the published ones, random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel

SENTENCE = "a red ball bounces with a bell sound on a green ground while the camera pans slowly to the left"
START, END = "<|startoftext|>", "<|endoftext|>"


def _merges() -> list[tuple[str, str]]:
    """Those that make the sentence's words, from left to right."""
    found = []
    for word in SENTENCE.split():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        found += [("".join(parts[:place]), parts[place]) for place in range(1, len(parts))]
    return list(dict.fromkeys(found))


MERGES = _merges()
_PIECES = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
VOCABULARY = {
    piece: place for place, piece in enumerate([*dict.fromkeys([*_PIECES, *map("".join, MERGES)]), START, END])
}
ROWS = len(VOCABULARY)
OUT = 32
PATCH, GRID = 14, 2
SIDE = PATCH * GRID
"""Of the open_clip picture."""
HEADS = 2
OPEN_VISION, OPEN_TEXT = 160, 128
"""Two heads of 80 and two of 64, as wide as those of ViT-H-14."""
DINO_WIDE, DINO_PATCH, DINO_GRID = 128, 16, 2
LAYERS = 2
OPEN_LAYERS = (LAYERS, LAYERS)
"""For pictures and for texts."""
SIZES = (24, 16, 8, 4, 1)
"""Of LAION's second head, in place of 1024, 128, 64, 16, 1."""


def write_tokenizer(folder: Path) -> None:
    """`tokenizer.json` as CLIP's: lower case, words that end with </w>, start and end of text as the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE(VOCABULARY, MERGES, end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([START, END])
    ends = [(mark, VOCABULARY[mark]) for mark in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_clip(folder: Path, *, scale: float = 3.0, act: str = "quick_gelu", old: bool = False) -> None:
    """A transformers directory, by the library itself; `old`: `pytorch_model.bin` with the tables of positions."""
    write_tokenizer(folder)
    tower = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": act, "projection_dim": OUT}
    text = tower | {"hidden_size": 32, "intermediate_size": 64, "vocab_size": ROWS, "max_position_embeddings": 77,
                    "bos_token_id": ROWS - 2, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    vision = tower | {"hidden_size": 48, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=OUT))
        for part in model.parameters():
            torch.nn.init.normal_(part, std=0.2 if part.ndim > 1 else 0.5)
    model.logit_scale.data.fill_(scale)
    model.save_pretrained(folder)
    if old:
        places = {
            f"{at}_model.embeddings.position_ids": torch.arange(n)[None] for at, n in (("text", 77), ("vision", 17))
        }
        torch.save({**model.state_dict(), **places}, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        one = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        fan = torch.tensor(shape[1:]).prod().item() if len(shape) > 1 else 9
        state[name] = one + torch.randn(shape, generator=generator) * fan**-0.5
    return state


def open_clip_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of ViT-H-14's state dict by open_clip's names, at tiny sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, OPEN_TEXT), "text_projection": (OPEN_TEXT, OUT), "logit_scale": (),
        "visual.class_embedding": (OPEN_VISION,), "visual.positional_embedding": (GRID**2 + 1, OPEN_VISION),
        "visual.proj": (OPEN_VISION, OUT), "visual.conv1.weight": (OPEN_VISION, 3, PATCH, PATCH),
        "token_embedding.weight": (ROWS, OPEN_TEXT),
    }  # fmt: skip
    norms = {"visual.ln_pre": OPEN_VISION, "visual.ln_post": OPEN_VISION, "ln_final": OPEN_TEXT}
    towers = (("visual.transformer", OPEN_VISION), ("transformer", OPEN_TEXT))
    for (at, wide), layers in zip(towers, OPEN_LAYERS, strict=True):
        for index in range(layers):
            block = f"{at}.resblocks.{index}"
            norms |= {f"{block}.ln_1": wide, f"{block}.ln_2": wide}
            shapes |= {f"{block}.attn.in_proj_weight": (3 * wide, wide), f"{block}.attn.in_proj_bias": (3 * wide,)}
            for name, size in {"attn.out_proj": (wide, wide), "mlp.c_fc": (4 * wide, wide),
                               "mlp.c_proj": (wide, 4 * wide)}.items():  # fmt: skip
                shapes |= {f"{block}.{name}.weight": size, f"{block}.{name}.bias": size[:1]}
    return shapes | {f"{name}.{part}": (wide,) for name, wide in norms.items() for part in ("weight", "bias")}


def open_clip_state() -> dict[str, torch.Tensor]:
    """Weights of the tiny ViT-H-14."""
    return _drawn(open_clip_shapes(), 5)


def write_hpsv2(file: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`HPS_v2.1_compressed.pt` as published, weights in half precision below `state_dict`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {name: tensor.half() for name, tensor in (state or open_clip_state()).items()}}, file)


def write_laion(file: Path, wide: int = OUT) -> dict[str, torch.Tensor]:
    """`sac+logos+ava1-l14-linearMSE.pth`: places 0, 2, 4, 6, 7 of a sequence."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for place, out in zip((0, 2, 4, 6, 7), SIZES, strict=True):
        shapes |= {f"layers.{place}.weight": (out, wide), f"layers.{place}.bias": (out,)}
        wide = out
    state = _drawn(shapes, 6)
    torch.save(state, file)
    return state


def write_linear(file: Path) -> dict[str, torch.Tensor]:
    """`sa_0_4_vit_l_14_linear.pth`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = _drawn({"weight": (1, OUT), "bias": (1,)}, 7)
    torch.save(state, file)
    return state


def dino_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of a vision transformer by timm's names."""
    wide = DINO_WIDE
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, wide), "pos_embed": (1, DINO_GRID**2 + 1, wide),
        "norm.weight": (wide,), "norm.bias": (wide,),
        "patch_embed.proj.weight": (wide, 3, DINO_PATCH, DINO_PATCH), "patch_embed.proj.bias": (wide,),
    }  # fmt: skip
    for index in range(LAYERS):
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{index}.{name}.{part}": (wide,) for part in ("weight", "bias")}
        for name, size in {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide), "mlp.fc1": (4 * wide, wide),
                           "mlp.fc2": (wide, 4 * wide)}.items():  # fmt: skip
            shapes |= {f"blocks.{index}.{name}.weight": size, f"blocks.{index}.{name}.bias": size[:1]}
    return shapes


def dino_state() -> dict[str, torch.Tensor]:
    """Its weights."""
    return _drawn(dino_shapes(), 8)


def write_dino(file: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """`model.safetensors` as timm's, or `dino_vitbase16_pretrain.pth` as the authors'."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = state or dino_state()
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
