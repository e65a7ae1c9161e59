"""What can be known of a CLIP in a transformers directory without loading it: its files, and which tensors it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.files import kind_of
from accord.config.gaps import refuse_gaps
from accord.config.torch_files import inspect_torch_file
from accord.config.weights import Shapes, read_json, read_safetensors_header, refuse_quantised
from accord.errors import ModelError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names that the weights may have, the first that is there wins."""
VISION, TEXT, SCALE = ("vision_model.", "visual_projection."), ("text_model.", "text_projection."), "logit_scale"
DERIVED = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}
"""Buffers that older files hold and that transformers recomputes."""
_BOTH = {"num_hidden_layers": 12}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "text": _BOTH | {"vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048,
                     "max_position_embeddings": 77},
    "vision": _BOTH | {"hidden_size": 768, "intermediate_size": 3072, "image_size": 224, "patch_size": 32},
}  # fmt: skip
"""What a config says by leaving it out."""


@dataclass(frozen=True, slots=True)
class ClipFiles:
    """A CLIP whose files agree."""

    root: Path
    config: Mapping[str, Any]
    weights: Path


def weights_of(root: Path) -> Path:
    """The file of weights, or where it should be."""
    return next((root / name for name in WEIGHTS if kind_of(root / name) == "file"), root / WEIGHTS[0])


def inspect_clip(path: str | Path) -> ClipFiles:
    """Check config and weights of both towers. Raises ModelError that names the file."""
    return _inspect(Path(path), ("vision", "text"))


def inspect_clip_image(path: str | Path) -> ClipFiles:
    """Check config and weights of the tower for pictures; the other need not be there. Raises ModelError."""
    return _inspect(Path(path), ("vision",))


def inspect_tokenizer(path: str | Path) -> Path:
    """Check the tokenizer of a directory and return its file. Raises ModelError."""
    file = Path(path) / TOKENIZER
    if kind_of(file) != "file":
        raise ModelError(f"{file}: not found; name a directory that has the {TOKENIZER} of this model, as tokenizer")
    if not isinstance(read_json(file).get("model"), dict):
        raise ModelError(f"{file}: holds no model of a tokenizer; copy it again")
    return file


def _inspect(root: Path, towers: tuple[str, ...]) -> ClipFiles:
    config = read_json(root / CONFIG)
    if config.get("model_type") != "clip":
        raise ModelError(f"{root / CONFIG}: model_type is {config.get('model_type')!r}, not 'clip'; name a CLIP")
    try:
        wanted = {name: shape for tower in towers for name, shape in _shapes(config, tower)}
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{root / CONFIG}: says no sizes of a CLIP ({error}); copy it again") from error
    file = weights_of(root)
    if file.suffix == ".bin":
        inspect_torch_file(file)
        return ClipFiles(root, config, file)
    header = read_safetensors_header(file)
    refuse_quantised(file, header)
    of_towers = (*VISION, *TEXT) if "text" in towers else VISION
    found = {name: tuple(entry["shape"]) for name, entry in header.items() if name.startswith(of_towers)}
    _refuse_unlike(file, {name: shape for name, shape in found.items() if name not in DERIVED}, wanted)
    return ClipFiles(root, config, file)


def _refuse_unlike(file: Path, found: Shapes, wanted: Shapes) -> None:
    refuse_gaps(file, wanted.keys() - found.keys())
    if unknown := sorted(found.keys() - wanted.keys()):
        raise ModelError(f"{file}: holds the unknown {unknown[0]} ({len(unknown)} such); is {CONFIG} of this model?")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(
                f"{file}: {name} is {found[name]}, and {CONFIG} asks for {shape}; take both from one model"
            )


def _shapes(config: Mapping[str, Any], tower: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a tower's tensors."""
    said = config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
    part = {name: int(said.get(name, default)) for name, default in _DEFAULTS[tower].items()}
    wide, inner = part["hidden_size"], part["intermediate_size"]
    out = int(config.get("projection_dim", 512))
    at = f"{tower}_model."
    norms = {"text": ("final_layer_norm",), "vision": ("pre_layrnorm", "post_layernorm")}[tower]
    if tower == "text":
        yield f"{at}embeddings.token_embedding.weight", (part["vocab_size"], wide)
        yield f"{at}embeddings.position_embedding.weight", (part["max_position_embeddings"], wide)
        yield "text_projection.weight", (out, wide)
    else:
        patch = part["patch_size"]
        yield f"{at}embeddings.class_embedding", (wide,)
        yield f"{at}embeddings.patch_embedding.weight", (wide, 3, patch, patch)
        yield f"{at}embeddings.position_embedding.weight", ((part["image_size"] // patch) ** 2 + 1, wide)
        yield "visual_projection.weight", (out, wide)
    for index in range(part["num_hidden_layers"]):
        layer = f"{at}encoder.layers.{index}."
        linears = {f"self_attn.{name}_proj": (wide, wide) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (inner, wide), "mlp.fc2": (wide, inner)}
        for name, (height, width) in linears.items():
            yield f"{layer}{name}.weight", (height, width)
            yield f"{layer}{name}.bias", (height,)
        norms += tuple(f"encoder.layers.{index}.layer_norm{place}" for place in (1, 2))
    for name in norms:
        yield f"{at}{name}.weight", (wide,)
        yield f"{at}{name}.bias", (wide,)
