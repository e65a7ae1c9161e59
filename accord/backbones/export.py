"""A trained adapter as something other programs load: merged into a component of a whole pipeline directory.

Works file by file on the safetensors of the base directory: memory is bounded by its largest file, and the result has
the layout of the base. The adapter alone is `adapters.export_lora`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from accord.config.contract import BackboneSpec
from accord.config.weights import weight_files
from accord.errors import ModelError

Delta = tuple[np.ndarray, np.ndarray]
"""A [rank, in] and B [out, rank] of one layer."""


def write_merged(
    base: Path, spec: BackboneSpec, state: Mapping[str, np.ndarray], directory: Path, *, link: bool = False
) -> None:
    """Write the pipeline directory `base` with an adapter merged into one component: W + alpha / rank * B A.

    Args:
        base: a diffusers pipeline directory.
        spec: which component, the adapter's rank and alpha, and what the job computed in. The component is written in
            the wider of this and its own type, so that nothing of a float32 adapter is rounded away that the job did
            not round.
        state: the tensors of one role by key, as `adapters.adapter_state` returns them.
        directory: where to write; must not exist.
        link: hard links instead of copies of all that stays as it is, where the file system can.

    Raises:
        ModelError: a tensor of the adapter has no weight in the base, or one of another shape.
    """
    directory.mkdir(parents=True)
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    for name, entry in index.items():
        if not name.startswith("_") and entry != [None, None] and name != spec.component:
            shutil.copytree(base / name, directory / name, copy_function=_link_or_copy if link else shutil.copyfile)
    source, target, dtype = base / spec.component, directory / spec.component, getattr(torch, spec.dtype)
    _merge(source, target, _deltas(state), spec.lora.alpha / spec.lora.rank, dtype)
    shutil.copyfile(base / "model_index.json", directory / "model_index.json")  # last: whole or no pipeline at all


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _deltas(state: Mapping[str, np.ndarray]) -> dict[str, Delta]:
    """The adapter by the name of the weight that it changes."""
    ending = ".lora_A.weight"
    layers = [key.removesuffix(ending) for key in state if key.endswith(ending)]
    return {f"{layer}.weight": (state[f"{layer}{ending}"], state[f"{layer}.lora_B.weight"]) for layer in layers}


def _merge(source: Path, target: Path, deltas: dict[str, Delta], scale: float, dtype: torch.dtype) -> None:
    """Write the component's files anew, with the layout they have."""
    target.mkdir()
    seen: set[str] = set()
    size = 0
    for file in weight_files(source):
        with safe_open(file, framework="pt") as shard:
            names = shard.keys()
            tensors = {name: _merged(name, shard.get_tensor(name), deltas.get(name), scale, dtype) for name in names}
        if seen & tensors.keys():
            raise ModelError(f"{file}: holds weights that another file of {source} holds too; keep one variant")
        seen |= tensors.keys()
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    missing = sorted(deltas.keys() - seen)
    if missing:
        raise ModelError(f"{source}: has no {missing[0]} ({len(missing)} such); was the adapter trained on this model?")
    for file in sorted(path for path in source.iterdir() if path.suffix == ".json"):
        _copy_json(file, target / file.name, size)


def _merged(name: str, weight: Tensor, delta: Delta | None, scale: float, dtype: torch.dtype) -> Tensor:
    """One weight of the merged model; the sum is taken in float32."""
    if not weight.is_floating_point():
        return weight
    wide = torch.promote_types(weight.dtype, dtype)
    if delta is None:
        return weight.to(wide)
    a, b = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in delta)
    if weight.shape != (b.shape[0], a.shape[1]):
        raise ModelError(f"{name} is {tuple(weight.shape)}, the adapter is for {(b.shape[0], a.shape[1])}")
    return (weight.float() + scale * (b @ a)).to(wide)


def _copy_json(file: Path, place: Path, size: int) -> None:
    """Config files as they are; an index gets the new size in bytes."""
    if not file.name.endswith(".safetensors.index.json"):
        shutil.copyfile(file, place)
        return
    index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    index["metadata"] = {**index.get("metadata", {}), "total_size": size}
    place.write_text(json.dumps(index, indent=2), encoding="utf-8")
