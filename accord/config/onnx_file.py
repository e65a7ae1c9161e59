"""What can be known of an ONNX file without a runtime: whether it stands alone, and what goes in and comes out.

An ONNX file is one Protocol Buffers message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Only the fields
that a check needs are walked; numbers below are theirs. A file may make a runtime open other files (external data) or
want operators from a library of somebody's; neither is ever needed here, and either is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from accord.config.files import read_bytes
from accord.config.paths import MIB
from accord.errors import InputError, ModelError

MOST_BYTES = 16 * MIB
"""Of a file: it is walked field by field where a job is checked, and the networks here are small."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
"""Of operators that the standard defines."""
FLOAT = 1
"""Type number of float32."""
_DEEPEST = 8
"""Graphs within nodes of graphs."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that goes into a graph or comes out."""

    name: str
    kind: int
    """Number of its type; 0 = it is no tensor."""
    shape: tuple[int | None, ...]
    """None where a side is not fixed."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A model that needs no other file and no foreign code."""

    inputs: tuple[Value, ...]
    """Without those that have a value in the file."""
    outputs: tuple[Value, ...]


def inspect_onnx(path: str | Path) -> OnnxModel:
    """Walk a whole file. Raises ModelError: missing, torn, no ONNX, with external data, or with operators of others."""
    try:
        content = memoryview(read_bytes(path, MOST_BYTES))
    except InputError as error:
        raise ModelError(str(error)) from error
    try:
        graphs = [bytes_ for number, bytes_ in _fields(content) if number == 7 and isinstance(bytes_, memoryview)]
        if len(graphs) != 1:
            raise ValueError("it holds no graph")
        if any(True for _ in _parts(content, 25)):
            raise ModelError(f"{path}: brings functions of its own, which nothing here reads; export it without them")
        _refuse_foreign(path, graphs[0], 0)
        return _signature(graphs[0])
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: torn, or not an ONNX model ({error}); copy it again") from error


def _signature(graph: memoryview) -> OnnxModel:
    given = {_text(tensor, 8) for tensor in _parts(graph, 5)}
    inputs = tuple(value for value in map(_value, _parts(graph, 11)) if value.name not in given)
    return OnnxModel(inputs, tuple(map(_value, _parts(graph, 12))))


def _refuse_foreign(path: str | Path, graph: memoryview, depth: int) -> None:
    """Look at every node and tensor of a graph, and of the graphs in its nodes. Raises ModelError."""
    if depth > _DEEPEST:
        raise ValueError("graphs within graphs without an end")
    for tensor in _parts(graph, 5):
        _refuse_external(path, tensor)
    _refuse_sparse(path, graph, {15})
    for node in _parts(graph, 1):
        domain, operator = _text(node, 7), _text(node, 4)
        if domain not in DOMAINS:
            raise ModelError(
                f"{path}: wants the operator {operator!r} of {domain!r}, which is foreign code; export it with "
                "standard operators"
            )
        for attribute in _parts(node, 5):
            _refuse_sparse(path, attribute, {22, 23})
            for tensor in (*_parts(attribute, 5), *_parts(attribute, 10)):
                _refuse_external(path, tensor)
            for inner in (*_parts(attribute, 6), *_parts(attribute, 11)):
                _refuse_foreign(path, inner, depth + 1)


def _refuse_sparse(path: str | Path, message: memoryview, numbers: Set[int]) -> None:
    if any(number in numbers for number, _ in _fields(message)):
        raise ModelError(f"{path}: holds sparse weights, which nothing here reads; export it with plain ones")


def _refuse_external(path: str | Path, tensor: memoryview) -> None:
    if any(number == 13 or (number == 14 and found != 0) for number, found in _fields(tensor)):
        raise ModelError(
            f"{path}: keeps {_text(tensor, 8)!r} in another file, and none is opened; save it with all weights inside"
        )


def _value(info: memoryview) -> Value:
    """A ValueInfoProto: name, and type with its shape."""
    tensors = [tensor for kind in _parts(info, 2) for tensor in _parts(kind, 1)]
    if len(tensors) != 1:
        return Value(_text(info, 1), 0, ())
    kind = next((found for number, found in _fields(tensors[0]) if number == 1 and isinstance(found, int)), 0)
    sides = [side for shape in _parts(tensors[0], 2) for side in _parts(shape, 1)]
    return Value(_text(info, 1), kind, tuple(map(_side, sides)))


def _side(dimension: memoryview) -> int | None:
    return next((found for number, found in _fields(dimension) if number == 1 and isinstance(found, int)), None)


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(part).decode("utf-8", "replace") for part in _parts(message, wanted)), "")


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The messages, or texts, that stand under a number."""
    for number, found in _fields(message):
        if number == wanted and isinstance(found, memoryview):
            yield found


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of every field of a message. Raises ValueError or IndexError where it is torn."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            found, place = _varint(message, place)
            yield number, found
            continue
        size = {_EIGHT: 8, _FOUR: 4}.get(kind, -1)
        if kind == _BYTES:
            size, place = _varint(message, place)
        if size < 0 or number == 0 or size > len(message) - place:
            raise ValueError(f"a field ends behind byte {place}")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number in base 128, least digits first, and the place behind it."""
    found = 0
    for shift in range(0, 70, 7):
        digit = message[place]
        place += 1
        found |= (digit & 127) << shift
        if digit < 128:
            return found, place
    raise ValueError(f"a number without an end before byte {place}")
