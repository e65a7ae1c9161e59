"""The files of a checkpoint as a model reads them: their digest, and tensors without code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from accord.config.torch_files import inspect_torch_file
from accord.errors import ModelError

_CHUNK = 16 * 2**20


def digest(files: Iterable[Path], words: str = "") -> str:
    """SHA-256 over the name and whole content of each file, in order of name, and over `words`; hexadecimal.

    Read once, when a model is loaded: about a second for each gigabyte.
    """
    whole = hashlib.sha256(words.encode())
    for path in sorted(files, key=lambda file: file.name):
        part = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                part.update(chunk)
        whole.update(f"{path.name}\0".encode() + part.digest())
    return whole.hexdigest()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a file that torch.save wrote, mapped, not copied. No code in it is run.

    Raises:
        ModelError: missing, torn, holds anything but tensors by name.
    """
    inspect_torch_file(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the library raises whatever its unpickler meets
        raise ModelError(f"{path}: not weights that torch can load ({error}); save the state dict again") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise ModelError(f"{path}: holds more than tensors by name; save the state dict alone")
    return dict(found)
