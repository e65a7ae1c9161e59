"""The one type of every field that names a file or a folder, and how to find such fields in a job.

A spec, a plug-in's too, writes `Annotated[str, InputPath("file")]`. That is all it takes: the commands make such a path
absolute, the API and every attempt confine it to the allowed roots, and its content is pinned by the first attempt.
An empty text and a `builtin:` name are no paths.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from accord.plugins import OneOf

BUILT_IN = "builtin:"
MAX_PATH = 4096
"""Longest path in bytes."""
MAX_NAME = 255
"""Longest name of a file or folder in bytes."""
MIB = 2**20
PROMPT_BYTES = 64 * MIB
"""Largest prompt file."""
LORA_BYTES = 16 * 1024 * MIB
"""Largest LoRA file."""

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class InputPath:
    """Marks a text field as a path that a submitter names."""

    kind: Literal["file", "directory"] = "file"
    max_bytes: int = LORA_BYTES
    """Largest file; for a directory, the largest sum of its files is not bounded, their number is."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(well_formed, handler(source))


@dataclass(frozen=True, slots=True)
class NamedPath:
    """A path in a job."""

    place: Place
    """Keys and indices that lead to it."""
    path: str
    mark: InputPath

    @property
    def pointer(self) -> str:
        """JSON pointer of the field."""
        return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in self.place)


def is_path(text: str) -> bool:
    """False for what stands in a path field and is none: nothing, or the name of something built in."""
    return bool(text) and not text.startswith(BUILT_IN)


def well_formed(text: str) -> str:
    """Return `text` if a file system can have such a path. Raises ValueError that says what is wrong with it."""
    if not is_path(text):
        return text
    if "\0" in text:
        raise ValueError("a path cannot hold the character NUL")
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("a path cannot hold a lone surrogate; write it in UTF-8") from None
    if text.startswith("~"):
        raise ValueError("~ means another folder to every user; write the whole path")
    if len(encoded) > MAX_PATH or any(len(name) > MAX_NAME for name in encoded.split(b"/")):
        raise ValueError(f"too long: a path has at most {MAX_PATH} bytes and a name in it {MAX_NAME}")
    return text


def input_paths(kind: Any, value: Any, place: Place = ()) -> Iterator[NamedPath]:
    """Find the paths in `value`, a spec or the tree of one, by the annotation `kind` (`JobSpec` for a job).

    A tree need not be valid: what does not fit its annotation is passed over.
    """
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        yield from _marked(kind, marks, value, place)
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            inner = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
            yield from _marked(field.annotation, field.metadata, inner, (*place, name))
    elif get_origin(kind) in {Union, types.UnionType}:
        yield from _of_union(get_args(kind), value, place)
    elif isinstance(value, dict) and get_args(kind):
        for key, inner in value.items():
            yield from input_paths(get_args(kind)[-1], inner, (*place, key))
    elif isinstance(value, list | tuple) and get_args(kind):
        for index, inner in enumerate(value):
            yield from input_paths(get_args(kind)[0], inner, (*place, index))


def _marked(kind: Any, marks: list[Any], value: Any, place: Place) -> Iterator[NamedPath]:
    plugin = next((mark for mark in marks if isinstance(mark, OneOf)), None)
    if plugin is not None:
        kind = plugin.class_of(value)
    mark = next((mark for mark in marks if isinstance(mark, InputPath)), None)
    if mark is None:
        yield from input_paths(kind, value, place)
    elif isinstance(value, str) and is_path(value):
        yield NamedPath(place, value, mark)


def _of_union(kinds: tuple[Any, ...], value: Any, place: Place) -> Iterator[NamedPath]:
    """Specs of a union are told apart by their `name`, where they have one; else the first that finds a path is it."""
    name = value.get("name") if isinstance(value, dict) else None
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fits = isinstance(value, kind) or "name" not in kind.model_fields or name in _names(kind)
        else:
            fits = True
        found = list(input_paths(kind, value, place)) if fits else []
        if found:
            yield from found
            return


def _names(spec: type[BaseModel]) -> tuple[Any, ...]:
    field = spec.model_fields.get("name")
    return get_args(field.annotation) if field is not None else ()
