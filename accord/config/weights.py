"""Weight files of one component of a model: which are loaded, what their headers say, and whether they agree.

A safetensors file begins with 8 bytes of length and a header in JSON; nothing behind it is read.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.config.files import JSON_BYTES, files_below, open_file, read_bytes, read_some
from accord.config.paths import LORA_BYTES
from accord.errors import InputError, ModelError

Shapes = Mapping[str, tuple[int, ...]]

_MAX_HEADER = 100_000_000
_WEIGHT_BYTES = 1024 * LORA_BYTES
_DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
               "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}  # fmt: skip
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""Types that hold weights as they are; whole numbers stand for something quantised, which a cast does not undo."""
_STEMS = {"text_encoder": "model"}
"""What a component's weights are called; transformers and diffusers differ."""
_STEM = "diffusion_pytorch_model"
_ENDING = ".safetensors"


def read_safetensors_header(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the header of a safetensors file, name to entry. Raises ModelError when it is torn or is no such file.

    With `whole = False` the tensors behind the header may be missing.
    """
    text, behind = _header_of(path)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a safetensors file (its header is not JSON)") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: not a safetensors file (its header is not an object)")
    header.pop("__metadata__", None)
    if whole:
        _check_extents(path, header, behind)
    return header


def read_metadata(path: Path) -> Any:
    """Return what the header of a file that was checked says besides its tensors; None when it says nothing."""
    return json.loads(header_bytes(path)).get("__metadata__")


def header_bytes(path: Path) -> bytes:
    """Return a file's header as written. Raises ModelError when it is torn."""
    return _header_of(path)[0]


def _header_of(path: Path) -> tuple[bytes, int]:
    """The header, and how many bytes come behind it."""
    try:
        with open_file(path, _WEIGHT_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            head = read_some(file, path, 8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length > min(size - 8, _MAX_HEADER):
                raise ModelError(f"{path}: torn; the file ends inside its header ({size} bytes). Copy it again")
            return read_some(file, path, length), size - 8 - length
    except InputError as error:
        raise ModelError(str(error)) from error


def _check_extents(path: Path, header: Mapping[str, Any], available: int) -> None:
    end = 0
    for begin, stop, name, entry in sorted(_extents(path, header), key=lambda found: found[:3]):
        bits = _DTYPE_BITS.get(entry["dtype"])
        if begin > stop or (bits is not None and (stop - begin) * 8 != math.prod(entry["shape"]) * bits):
            raise ModelError(f"{path}: tensor {name!r} does not have the bytes its shape needs")
        if begin != end:
            raise ModelError(f"{path}: tensor {name!r} does not begin where another ends; save the file again")
        end = stop
    if end != available:
        raise ModelError(f"{path}: torn; its tensors need {end} bytes, the file has {available}. Copy it again")


def _extents(path: Path, header: Mapping[str, Any]) -> Iterator[tuple[int, int, str, Mapping[str, Any]]]:
    """Begin, end, name and entry of every tensor. Raises ModelError for an entry that describes none."""
    for name, entry in header.items():
        try:
            begin, stop = entry["data_offsets"]
            sizes = (begin, stop, *entry["shape"])
            sound = isinstance(entry["dtype"], str) and all(type(size) is int and size >= 0 for size in sizes)
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound:
            raise ModelError(f"{path}: header entry {name!r} is malformed")
        yield begin, stop, name, entry


def component_shapes(component: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's tensors by name, from all its weight files.

    Raises ModelError: no file that would be loaded, a torn one, or files that do not hold what their index says.
    """
    files = weight_files(component)
    if not files:
        raise ModelError(_why_none(component))
    listed = _weight_map(component)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        header = read_safetensors_header(file)
        refuse_quantised(file, header)
        if twice := sorted(shapes.keys() & header.keys()):
            raise ModelError(f"{file}: holds {twice[0]}, which another file of {component.name} holds, too")
        if listed is not None:
            _compare(file, header, {name for name, there in listed.items() if there == file.name})
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    if not shapes:
        raise ModelError(f"{component}: its weight files hold no tensor")
    return shapes


def refuse_quantised(file: Path, header: Mapping[str, Any]) -> None:
    """Raise ModelError for whole numbers as weights. Counters and tables of positions are such rightly."""
    for name, entry in header.items():
        if name.endswith((".weight", ".bias")) and entry["dtype"] not in FLOATS:
            kind = entry["dtype"]
            raise ModelError(f"{file}: {name} is {kind}, which is quantised; take the model in bfloat16 or float32")


def weight_files(component: Path) -> list[Path]:
    """The files that diffusers and transformers load for a component, whether they exist or not; may be none.

    Raises ModelError when there is an index as well as a whole file, or an index that is none.
    """
    listed = _weight_map(component)
    whole = component / f"{_stem(component)}{_ENDING}"
    there = {file.name for file in _listing(component)}
    if listed is None:
        return [whole] if whole.name in there else []
    if whole.name in there:
        raise ModelError(f"{whole}: stands beside an index of shards; keep one of them")
    return [component / name for name in sorted({*listed.values()})]


def _stem(component: Path) -> str:
    return _STEMS.get(component.name, _STEM)


def _weight_map(component: Path) -> dict[str, str] | None:
    """The file of every tensor; None where no index is."""
    index = component / f"{_stem(component)}{_ENDING}.index.json"
    if index not in _listing(component):
        return None
    found = read_json(index).get("weight_map")
    plain = isinstance(found, dict) and all(
        isinstance(name, str) and name.endswith(_ENDING) and Path(name).name == name for name in found.values()
    )
    if not plain or not found:
        raise ModelError(f"{index}: has no weight_map from tensors to files beside it")
    return dict(found)


def _why_none(component: Path) -> str:
    """Weights under a name that nobody loads are worth a word."""
    names = [file.name for file in _listing(component) if file.suffix == _ENDING]
    wanted = f"{_stem(component)}{_ENDING}"
    if not names:
        return f"{component}: holds no .safetensors weights; expected {wanted}"
    if any("-of-" in name for name in names):
        return f"{component}: holds shards ({names[0]}, …) without {wanted}.index.json; copy the index, too"
    return (
        f"{component}: holds {', '.join(names[:3])}, but what is loaded is {wanted}; a variant goes by its plain name"
    )


def _compare(file: Path, header: Mapping[str, Any], listed: set[str]) -> None:
    missing, unexpected = sorted(listed - header.keys()), sorted(header.keys() - listed)
    if missing:
        raise ModelError(f"{file}: lacks {missing[0]} ({len(missing)} such), which the index says it holds")
    if unexpected:
        raise ModelError(f"{file}: holds {unexpected[0]} ({len(unexpected)} such), of which the index does not know")


def _listing(component: Path) -> Sequence[Path]:
    try:
        return [file for file in files_below(component) if file.parent == component]
    except InputError as error:
        raise ModelError(str(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a config. Raises ModelError when it is not there, too big, or no JSON object."""
    try:
        tree = json.loads(read_bytes(path, JSON_BYTES))
    except InputError as error:
        raise ModelError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path}: holds no JSON object")
    return tree
