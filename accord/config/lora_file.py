"""Does a LoRA file fit a job? Read from its safetensors header, so that a job is refused before anything is loaded.

Two ways of naming tensors are known, with `<layer>` the path of a linear layer in the transformer:
`transformer.<layer>.lora_A.weight` (diffusers, and what Accord exports) and `diffusion_model.<layer>.lora_A.weight`
(original LTX-2). The layers that carry adapters are called the same in both.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.backbones import LoRASpec
from accord.config.model_dir import ModelFacts
from accord.config.weights import read_safetensors_header, weight_files
from accord.errors import ModelError

_KEY = re.compile(r"(transformer|diffusion_model)\.(.+)\.lora_([AB])\.weight")
_NOT_ADAPTED = "to_gate_logits"
"""Per-head gates never carry an adapter; see accord/backbones/adapters.py."""
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoRAFile:
    """The adapter in a file."""

    path: Path
    layers: Mapping[str, tuple[Shape, Shape]]
    """Shapes of A [rank, in] and B [out, rank] by layer."""
    rank: int
    scale: float
    """What a reader multiplies B A by: alpha / rank where the file states an alpha, else 1."""


def read_lora_file(path: str) -> LoRAFile:
    """Read a header. Raises ModelError when the file is missing or torn, or holds anything but one LoRA of one rank."""
    file = Path(path)
    header = read_safetensors_header(file)
    unknown = sorted(name for name in header if not _KEY.fullmatch(name))
    if unknown or not header:
        raise ModelError(
            f"{path}: {unknown[0] if unknown else 'nothing'} is no part of an adapter on the transformer; expected are "
            "transformer.<layer>.lora_A.weight and lora_B (or diffusion_model.…), with alpha multiplied into lora_B"
        )
    found = [match for match in map(_KEY.fullmatch, header) if match]
    if len({match[1] for match in found}) > 1:
        raise ModelError(f"{path}: mixes names under transformer. and diffusion_model.; keep one kind")
    shapes = {(match[2], match[3]): tuple(header[match[0]]["shape"]) for match in found}
    layers = {layer: (shapes.get((layer, "A"), ()), shapes.get((layer, "B"), ())) for layer, _ in shapes}
    ranks = {a[0] if len(a) == len(b) == 2 and a[0] == b[1] else 0 for a, b in layers.values()}
    if ranks == {0} or len(ranks) != 1:
        listed = ", ".join(str(rank or "unequal A and B") for rank in sorted(ranks))
        raise ModelError(f"{path}: its layers have different ranks ({listed}); a job's adapter has one")
    rank = ranks.pop()
    return LoRAFile(file, layers, rank, _scale(file, rank))


def lora_misfits(file: LoRAFile, spec: LoRASpec, facts: ModelFacts) -> list[str]:
    """What keeps an adapter from being the start of a job's, each with its remedy; empty when it fits."""
    wanted = {layer: shape for layer, shape in _linear_layers(facts).items() if {*layer.split(".")} & {*spec.targets}}
    if file.layers.keys() != wanted.keys():
        return [_other_layers(file, wanted)]
    found = []
    if file.rank != spec.rank:
        found.append(f"{file.path}: has rank {file.rank}, the job's adapter {spec.rank}; set lora.rank = {file.rank}")
    for layer, (a, b) in file.layers.items():
        if (b[0], a[1]) != wanted[layer]:
            return [*found, f"{file.path}: {layer} is for a layer of {(b[0], a[1])}, the model's is {wanted[layer]}"]
    return found


def _other_layers(file: LoRAFile, wanted: Mapping[str, Shape]) -> str:
    """Say how the layers of the file differ from those that the job adapts."""
    here, there = (sorted({_part(layer) for layer in layers}) for layers in (file.layers, wanted))
    if here != there:
        return (
            f"{file.path}: has adapters on {', '.join(here)}, the job on {', '.join(there)}; "
            f"set lora.targets = {json.dumps(here)}, if the model has them"
        )
    example = sorted(file.layers.keys() ^ wanted.keys())[0]
    owner = "the file" if example in file.layers else "the model"
    return f"{file.path}: only {owner} has {example} under lora.targets; was the adapter made for another model?"


def _part(layer: str) -> str:
    """`attn1` of `transformer_blocks.0.attn1.to_q`."""
    pieces = layer.split(".")
    return pieces[2] if pieces[0] == "transformer_blocks" and len(pieces) > 2 else layer


def _linear_layers(facts: ModelFacts) -> dict[str, Shape]:
    """Shapes [out, in] of the transformer's linear layers that may carry an adapter."""
    return {
        name.removesuffix(".weight"): tuple(entry["shape"])
        for file in weight_files(facts.path / "transformer")
        for name, entry in read_safetensors_header(file).items()
        if name.endswith(".weight") and len(entry["shape"]) == 2 and not name.endswith(f"{_NOT_ADAPTED}.weight")
    }


def _scale(file: Path, rank: int) -> float:
    """The scale that the file's metadata states in the way of diffusers, else 1."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    try:
        stated: Any = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
        config = {name.removeprefix("transformer."): value for name, value in stated.items()}
        if config.get("alpha_pattern") or config.get("rank_pattern"):
            raise ModelError(f"{file}: states alphas or ranks by layer (alpha_pattern, rank_pattern); not supported")
        if config.get("use_dora"):
            raise ModelError(f"{file}: is a DoRA adapter; only LoRA is supported")
        alpha = float(config.get("lora_alpha", rank))
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: its metadata lora_adapter_metadata is not a LoRA config ({error})") from error
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)
