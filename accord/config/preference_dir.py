"""What can be known of the checkpoints of HPSv3 and VideoReward without loading them: files and shapes.

Neither holds the config and the tokenizer of the Qwen2-VL below; those are the `base`, maybe in the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accord.config.files import kind_of
from accord.config.qwen_dir import (
    EMBEDDING,
    HEAD,
    LM_HEAD,
    QwenBase,
    base_shapes,
    has_old_names,
    refuse_unlike,
    renamed,
)
from accord.config.reward_template import BESIDE, read_template
from accord.config.weights import Shapes, read_safetensors_header, refuse_quantised
from accord.errors import ModelError


@dataclass(frozen=True, slots=True)
class HPSv3Files:
    """A checkpoint of HPSv3 whose files agree."""

    weights: Path
    base: QwenBase
    template: str
    old_names: bool
    head: tuple[int, ...]
    """Places of the rank head's linear layers in their sequence; a ReLU stands between any two."""


def template_of(part: Path, named: str, tokens: Sequence[str]) -> str:
    """The words around a prompt: of the file that is named, or of the one beside the weights. Raises ModelError."""
    if not named and kind_of(part / BESIDE) != "file":
        raise ModelError(
            f"{part}: the words that the checkpoint was trained with are not in it. Name the authors' Python file that "
            f"holds them, or a text with {{text_prompt}} and {', '.join(tokens)}; beside the weights, as {BESIDE}, it "
            "is found by itself"
        )
    return read_template(Path(named) if named else part / BESIDE, tokens)


def inspect_hpsv3(weights: Path, base: QwenBase, template: str) -> HPSv3Files:
    """Check the weights against their base. Raises ModelError that names the file and what would do."""
    header = read_safetensors_header(weights)
    refuse_quantised(weights, header)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    head = {name: shape for name, shape in shapes.items() if name.startswith(HEAD)}
    layers = head_layers(weights, head, int(base.text["hidden_size"]), 2)
    refuse_other_backbone(weights, backbone_shapes(shapes), base)
    return HPSv3Files(weights, base, template, has_old_names(shapes), layers)


def backbone_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What a file holds of a `Qwen2VLModel`, by the later names: no head, and nothing of the language head."""
    old = has_old_names(shapes)
    return {renamed(name, old=old): shape for name, shape in shapes.items() if not name.startswith((HEAD, LM_HEAD))}


def refuse_other_backbone(where: Path, found: Shapes, base: QwenBase) -> None:
    """Raise ModelError for tensors that are not those of the base's Qwen2-VL."""
    refuse_unlike(where, found, base_shapes(base, found.get(EMBEDDING, (0,))[0]), base)


def head_layers(where: Path, head: Shapes, wide: int, out: int) -> tuple[int, ...]:
    """Places of a head's linear layers. Raises ModelError unless they lead from `wide` to `out` numbers."""
    places = sorted(int(match[1]) for name in head if (match := re.fullmatch(r"rm_head\.(\d+)\.weight", name)))
    width = wide
    for place in places:
        shape = head[f"{HEAD}{place}.weight"]
        if len(shape) != 2 or shape[1] != width or head.get(f"{HEAD}{place}.bias") != shape[:1]:
            raise ModelError(
                f"{where}: {HEAD}{place} is {shape} with a bias of {head.get(f'{HEAD}{place}.bias')}, "
                f"and gets {width} numbers; take the base that the checkpoint was trained from, or copy it again"
            )
        width = shape[0]
    if not places or width != out:
        raise ModelError(f"{where}: its rank head ({HEAD}*) gives {width if places else 0} numbers instead of {out}")
    return tuple(places)
