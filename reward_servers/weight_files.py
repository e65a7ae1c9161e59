"""The files of a checkpoint as a model reads them: their digest, and tensors without code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

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
    return tensors_of(path, load_tree(path))


def load_tree(path: Path) -> dict[str, Any]:
    """What a file that torch.save wrote holds by name: tensors, numbers, texts, lists and dicts. No code in it is run.

    Raises:
        ModelError: missing, torn, holds something else.
    """
    inspect_torch_file(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the library raises whatever its unpickler meets
        raise ModelError(f"{path}: not weights that torch can load ({error}); save the state dict again") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ModelError(f"{path}: holds nothing by name; save the state dict again")
    return dict(found)


def tensors_of(path: Path, found: Any) -> dict[str, torch.Tensor]:
    """A tree from `path` as tensors by name. Raises ModelError when it holds anything else."""
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise ModelError(f"{path}: holds more than tensors by name; save the state dict alone")
    return dict(found)


def fill(path: Path, model: nn.Module, state: Mapping[str, torch.Tensor], given: str = "weights") -> None:
    """Give a model its weights, all of them and no others. Raises ModelError that names the first that does not fit."""
    wanted = model.state_dict()
    for names, word in ((wanted.keys() - state.keys(), "lacks"), (state.keys() - wanted.keys(), "holds the unknown")):
        if names:
            raise ModelError(f"{path}: {word} {min(names)} ({len(names)} such); take the {given} from one model")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            sizes = f"{tuple(tensor.shape)}, where {tuple(wanted[name].shape)} is wanted"
            raise ModelError(f"{path}: {name} has the shape {sizes}; take the {given} from one model")
    model.load_state_dict(dict(state))
    model.eval().requires_grad_(False)
