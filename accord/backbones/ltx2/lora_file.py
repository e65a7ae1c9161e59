"""Does a LoRA file fit a job? Read from its safetensors header, so that a job is refused before anything is loaded.

Three ways of naming tensors are known, with `<layer>` the path of a linear layer in the transformer:
`transformer.<layer>.lora_A.weight` (diffusers, and what Accord exports), `diffusion_model.<layer>.lora_A.weight`
(original LTX-2) and `base_model.model.<layer>.lora_A.weight` (PEFT). The layers that carry adapters are called the same
in all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from accord.backbones.ltx2.model_dir import LTX2Facts
from accord.backbones.ltx2.streams import BLOCKS, GATES
from accord.config.contract import AdapterSpec
from accord.config.lora_alpha import read_numbers, scales
from accord.config.weights import FLOATS, read_metadata, read_safetensors_header, weight_files
from accord.errors import ModelError

_KEY = re.compile(
    r"(?P<prefix>transformer|diffusion_model|base_model\.model)\.(?P<layer>.+)\.(?:lora_(?P<part>[AB])\.weight|alpha)"
)
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoRAFile:
    """The adapter in a file."""

    path: Path
    layers: Mapping[str, tuple[Shape, Shape]]
    """Shapes of A [rank, in] and B [out, rank] by layer."""
    rank: int
    scales: Mapping[str, float]
    """What a reader multiplies B A of a layer by: alpha / rank where an alpha is stated, else 1."""

    @property
    def scale(self) -> float:
        """The scale of the first layer, which is every layer's where the file states one alpha."""
        return next(iter(self.scales.values()))


def read_lora_file(path: str) -> LoRAFile:
    """Read a header, and the alphas if there are any.

    Raises ModelError when the file is missing or torn, holds anything but one LoRA of one rank, or contradicts itself
    about its strength.
    """
    file = Path(path)
    header = read_safetensors_header(file)
    found = {name: match for name in header if (match := _KEY.fullmatch(name))}
    unknown = sorted(header.keys() - found.keys())
    if unknown or not header:
        raise ModelError(
            f"{path}: {unknown[0] if unknown else 'nothing'} is no part of an adapter on the transformer; expected are "
            "transformer.<layer>.lora_A.weight and lora_B (or diffusion_model.…, base_model.model.…), and <layer>.alpha"
        )
    if len({match["prefix"] for match in found.values()}) > 1:
        raise ModelError(
            f"{path}: mixes names under {', '.join(sorted({m['prefix'] for m in found.values()}))}; keep one"
        )
    whole = next((name for name, entry in header.items() if entry["dtype"] not in FLOATS and found[name]["part"]), None)
    if whole is not None:
        raise ModelError(f"{path}: {whole} is {header[whole]['dtype']}; only floating-point adapters are read")
    shapes = {(match["layer"], match["part"]): tuple(header[name]["shape"]) for name, match in found.items()}
    layers = {layer: (shapes.get((layer, "A"), ()), shapes.get((layer, "B"), ())) for layer, part in shapes if part}
    ranks = {a[0] if len(a) == len(b) == 2 and a[0] == b[1] else 0 for a, b in layers.values()}
    if ranks == {0} or len(ranks) != 1:
        listed = ", ".join(str(rank or "unequal A and B") for rank in sorted(ranks))
        raise ModelError(f"{path}: its layers have different ranks ({listed}); a job's adapter has one")
    rank = ranks.pop()
    numbers = {name: match["layer"] for name, match in found.items() if match["part"] is None}
    for name, layer in numbers.items():
        if layer not in layers:
            raise ModelError(f"{path}: {name} is no part of an adapter: {layer} has no lora_A and lora_B")
    alphas = read_numbers(file, numbers)
    return LoRAFile(file, layers, rank, scales(file, read_metadata(file), alphas, layers.keys(), rank))


def lora_misfits(file: LoRAFile, spec: AdapterSpec, facts: LTX2Facts) -> list[str]:
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
    return pieces[2] if pieces[0] == BLOCKS and len(pieces) > 2 else layer


def _linear_layers(facts: LTX2Facts) -> dict[str, Shape]:
    """Shapes [out, in] of the transformer's linear layers that may carry an adapter."""
    return {
        name.removesuffix(".weight"): tuple(entry["shape"])
        for file in weight_files(facts.path / "transformer")
        for name, entry in read_safetensors_header(file).items()
        if name.endswith(".weight") and len(entry["shape"]) == 2 and not name.endswith(f"{GATES}.weight")
    }
