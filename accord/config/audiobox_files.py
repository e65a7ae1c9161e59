"""What can be known of an AudioBox-Aesthetics checkpoint without torch: in which form it is there, and whether whole.

Published are `checkpoint.pt` (a dict of `state_dict`, `model_cfg`, `target_transform`) and a directory with
`model.safetensors` and `config.json`, which holds the other two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.config.torch_files import inspect_torch_file
from accord.config.weights import read_json, read_safetensors_header, refuse_quantised
from accord.errors import ModelError

AXES = ("CE", "CU", "PC", "PQ")
CONFIG = "config.json"
WHOLE = ".safetensors"
"""Ending of the weights that stand beside a config."""


def inspect_audiobox(path: str) -> Path:
    """Check the file of weights and what belongs to it. Raises ModelError that names the file."""
    file = Path(path)
    if file.suffix != WHOLE:
        inspect_torch_file(file)
        return file
    header = read_safetensors_header(file)
    refuse_quantised(file, header)
    for axis in AXES:
        if not any(f"proj_layer.{axis}." in name for name in header):
            raise ModelError(f"{file}: holds no head for {axis}; take all of AudioBox-Aesthetics")
    scales(file.with_name(CONFIG), read_json(file.with_name(CONFIG)).get("target_transform"))
    return file


def scales(file: Path, transform: Any) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each axis, which its head's output is in units of. Raises ModelError."""
    found = {}
    for axis in AXES:
        entry = transform.get(axis) if isinstance(transform, Mapping) else None
        numbers = [entry.get(name) for name in ("mean", "std")] if isinstance(entry, Mapping) else []
        pair = [float(number) for number in numbers if isinstance(number, int | float) and math.isfinite(number)]
        if len(pair) != 2 or pair[1] <= 0:
            raise ModelError(f"{file}: target_transform says no mean and std of {axis}; copy the file again")
        found[axis] = (pair[0], pair[1])
    return found
