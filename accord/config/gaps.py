"""What is missing or odd among the tensors of a component, judged by the others beside it: names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from accord.config.weights import Shapes
from accord.errors import ModelError


def refuse_gaps(component: Path, missing: Set[str]) -> None:
    """Raise ModelError that names the first missing tensor and the number of all."""
    if missing:
        raise ModelError(
            f"{component}: lacks {min(missing)} ({len(missing)} such); an interrupted or pruned copy? Copy it again"
        )


def unlike(shapes: Shapes, stacks: Sequence[str]) -> Iterator[str]:
    """Tensors that others of their layer, their kind, or their stack of equal blocks make expect; some may be there."""
    yield from (f"{name.removesuffix('bias')}weight" for name in shapes if name.endswith(".bias"))
    yield from _unlike_their_stack(shapes, stacks) if stacks else ()
    yield from _unlike_their_kind(shapes)


def refuse_odd(component: Path, shapes: Shapes, stacks: Sequence[str]) -> None:
    """Find tensors of a shape that no config makes. Raises ModelError that names the tensor and the one beside it.

    A bias is as long as its layer is wide, and equal blocks are of equal shapes.
    """
    for name, shape in shapes.items():
        weight = shapes.get(f"{name.removesuffix('bias')}weight", ()) if name.endswith(".bias") else ()
        if weight and (len(shape) != 1 or shape[0] not in weight[:2]):  # a transposed convolution counts from the other
            raise ModelError(
                f"{component}: {name} is {_sides(shape)} beside a weight of {_sides(weight)}; copy it again"
            )
    first: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
    for name, shape in sorted(shapes.items()) if stacks else ():
        match = re.search(rf"(?:^|\.)(?:{'|'.join(stacks)})\.(\d+)\.", name)
        if match is None:
            continue
        other, usual = first.setdefault((name[: match.start(1)], name[match.end() :]), (name, shape))
        if shape != usual:
            raise ModelError(
                f"{component}: {name} is {_sides(shape)}, but {other} is {_sides(usual)}; copy the weights again"
            )


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _unlike_their_stack(shapes: Shapes, lists: Sequence[str]) -> Iterator[str]:
    """What a block lacks that another block of its stack has; blocks count from 0 without a gap."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in shapes:
        for match in re.finditer(rf"(?:^|\.)(?:{'|'.join(lists)})\.(\d+)\.", name):
            stack = stacks.setdefault(name[: match.start(1)], {})
            stack.setdefault(int(match[1]), set()).add(name[match.end() :])
    for prefix, blocks in stacks.items():
        whole = set.union(*blocks.values())
        for index in range(max(blocks) + 1) if max(blocks) < len(shapes) else ():
            yield from (f"{prefix}{index}.{name}" for name in whole - blocks.get(index, set()))


def _unlike_their_kind(shapes: Shapes) -> Iterator[str]:
    """Biases that a layer lacks while others have one whose name differs by numbers only."""
    kinds: dict[str, list[str]] = {}
    for name in shapes:
        if name.endswith(".weight"):
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".#", name), []).append(name.removesuffix("weight"))
    for layers in kinds.values():
        if any(f"{layer}bias" in shapes for layer in layers):
            yield from (f"{layer}bias" for layer in layers)
