"""What can be known of a vision transformer's weights by timm's names without torch: whether the file is whole."""

from __future__ import annotations

import re
from pathlib import Path

from accord.config.gaps import refuse_gaps, refuse_odd, unlike
from accord.config.torch_files import inspect_torch_file
from accord.config.weights import read_safetensors_header, refuse_quantised
from accord.errors import ModelError

_EVERY = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias",
          "blocks.0.attn.qkv.weight"}  # fmt: skip


def inspect_vit(path: str) -> Path:
    """Check a file of weights, safetensors or written by torch.save. Raises ModelError that names the file."""
    file = Path(path)
    if file.suffix != ".safetensors":
        inspect_torch_file(file)
        return file
    header = read_safetensors_header(file)
    refuse_quantised(file, header)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    refuse_gaps(file, {*_EVERY, *unlike(shapes, ("blocks",))} - shapes.keys())
    refuse_odd(file, shapes, ("blocks",))
    if unknown := sorted(name for name in shapes if name not in _EVERY and not re.match(r"blocks\.\d+\.", name)):
        raise ModelError(f"{file}: holds the unknown {unknown[0]}; take a vision transformer without a head, as DINO's")
    return file
