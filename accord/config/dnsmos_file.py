"""What can be known of a DNSMOS P.835 file without a runtime: that it takes 9.01 s of sound and gives three numbers."""

from __future__ import annotations

from pathlib import Path

from accord.config.onnx_file import FLOAT, Value, inspect_onnx
from accord.errors import ModelError

WEIGHTS = "sig_bak_ovr.onnx"
RATE = 16_000
SECONDS = 9.01
WINDOW = 144_160
"""Samples that the model looks at."""
NUMBERS = 3
"""Signal, background, overall."""


def inspect_dnsmos(path: str | Path) -> Path:
    """Check the file and return it. Raises ModelError that names it."""
    found, file = inspect_onnx(path), Path(path)
    if len(found.inputs) != 1 or not _fits(found.inputs[0], WINDOW):
        raise ModelError(f"{file}: takes {_told(found.inputs)}, where float32 [1, {WINDOW}] is wanted; take {WEIGHTS}")
    if len(found.outputs) != 1 or not _fits(found.outputs[0], NUMBERS):
        raise ModelError(
            f"{file}: gives {_told(found.outputs)}, where float32 [1, {NUMBERS}] is wanted; take {WEIGHTS}"
        )
    return file


def _fits(value: Value, last: int) -> bool:
    """Whether a value may be float32 [1, last]: sides that the file leaves open are shown when it runs."""
    first_fits = len(value.shape) == 2 and value.shape[0] in {1, None}
    return value.kind == FLOAT and first_fits and value.shape[1] in {last, None}


def _told(values: tuple[Value, ...]) -> str:
    said = [f"{value.name} {['?' if side is None else side for side in value.shape]}" for value in values]
    return ", ".join(said).replace("'", "") or "nothing"
