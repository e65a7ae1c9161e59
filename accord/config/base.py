"""How every Accord configuration behaves: frozen, strict, no unknown fields, no NaN."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import SpecError
from accord.plugins import names


class Spec(BaseModel):
    """Base of all specs. The docstring under a field is its help text everywhere."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True,
        validate_default=True,
    )  # fmt: skip

    @classmethod
    def parse(cls, body: str | bytes) -> Self:
        """Validate JSON text. Raises SpecError with one JSON pointer per problem."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise SpecError(problems_of(error)) from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Validate a TOML or JSON file. Raises SpecError; a file that is not there or not TOML names itself."""
        try:
            text = path.read_text(encoding="utf-8")
            tree = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except OSError as error:
            raise SpecError([("", f"cannot read {path}: {error.strerror}")]) from error
        except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SpecError([("", f"{path} is not valid {path.suffix.lstrip('.') or 'TOML'}: {error}")]) from error
        return cls.parse(json.dumps(tree))


def pointer(location: Iterable[Any]) -> str:
    """Join a pydantic location into an RFC 6901 JSON pointer."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Turn pydantic's report into (JSON pointer, message with the value seen)."""
    found = []
    items = error.errors(include_url=False)
    for item in items:
        depth = len(item["loc"])
        inside = [other for other in items if len(other["loc"]) > depth and other["loc"][:depth] == item["loc"]]
        if item["type"] == "too_short" and inside:
            continue  # only empty because its members above did not validate
        message = item["msg"].removeprefix("Value error, ")
        seen = item.get("input")
        if item["type"] not in {"missing", "value_error"} and not isinstance(seen, dict | list):
            message = f"{message} (got {seen!r})"
        where = pointer(_without_tags(item["loc"]))
        if message.startswith("/"):  # a cross-field rule names the field itself
            inner, _, message = message.partition(": ")
            where += inner
        found.append((where, message))
    return found


def _without_tags(location: tuple[int | str, ...]) -> list[int | str]:
    """Drop the tag pydantic inserts after a discriminated field (`algorithm`, `backbone`, `rewards/0`)."""
    tags = {*names("algorithms"), *names("backbones"), *names("rewards")}
    kept: list[int | str] = []
    dropped = False
    for part in location:
        after_union = kept in (["algorithm"], ["backbone"]) or (len(kept) == 2 and kept[0] == "rewards")
        if after_union and not dropped and part in tags:
            dropped = True
            continue
        kept.append(part)
    return kept
