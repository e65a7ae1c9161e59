"""What can be known of a file of exemplars without numpy: for which reward and by which embedder it was written.

It is a safetensors file with `rows` [M, D] in float64, and says in its header `reward`, `embedder` and `weights`, the
digest of the embedder's weights ("" = it has none).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from accord.config.weights import read_metadata, read_safetensors_header
from accord.errors import ModelError

EXEMPLARS_BYTES = 1 << 30
ROWS = "rows"
LEAST = 3
"""Clips of a set whose leave-one-out measure is defined."""


def inspect_exemplars(path: str, reward: str, embedder: str) -> Mapping[str, str]:
    """Check a file of exemplars, but for its rows' values, and return what its header says. Raises ModelError."""
    remedy = f"write it with `accord rewards exemplars {reward} CLIPS --set embedder={embedder} --out FILE`"
    try:
        entry = read_safetensors_header(Path(path)).get(ROWS)
        told = read_metadata(Path(path)) or {}
    except ModelError as error:
        raise ModelError(f"{error}; it holds no exemplars; {remedy}") from error
    for what, wanted in (("reward", reward), ("embedder", embedder)):
        if told.get(what) != wanted:
            raise ModelError(f"{path} holds exemplars of the {what} {told.get(what)!r}, not {wanted!r}; {remedy}")
    shape = entry["shape"] if entry is not None else []
    if entry is None or entry["dtype"] != "F64" or len(shape) != 2 or shape[0] < LEAST or not shape[1]:
        raise ModelError(f"{path} holds rows of the shape {shape}; exemplars are {LEAST} or more rows; {remedy}")
    return {str(name): str(value) for name, value in told.items()}
