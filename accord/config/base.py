"""How every Accord configuration behaves: frozen, strict, no unknown fields, no NaN."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from accord.errors import SpecError
from accord.plugins import names

MAX_FIELDS = 10_000
"""Most values in one document, counted before anything is compared with a schema."""
MAX_REPORTED = 50
"""Most problems that one answer names; the rest is counted."""
_MESSAGE, _VALUE, _PART = 600, 60, 100
"""Most characters of a message, of a value shown in it, and of one part of a pointer."""


class Spec(BaseModel):
    """Base of all specs. The docstring under a field is its help text everywhere."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True,
        validate_default=True,
    )  # fmt: skip

    @classmethod
    def parse(cls, body: str | bytes) -> Self:
        """Validate JSON text. Raises SpecError with one JSON pointer per problem.

        The work is proportional to the text, whatever is in it, and no message repeats more than a glimpse of it.
        """
        body = body.removeprefix("\ufeff") if isinstance(body, str) else body.removeprefix(codecs.BOM_UTF8)
        tree = _check_shape(body)
        full = cls.completed(tree)
        try:
            return cls.model_validate_json(body if full is tree else json.dumps(full))
        except ValidationError as error:
            raise SpecError(cls.told(problems_of(error), full)) from None

    @classmethod
    def completed(cls, tree: Any) -> Any:
        """The document, which may be anything, with what it may leave out. Default: nothing. Raises SpecError."""
        return tree

    @classmethod
    def told(cls, found: list[tuple[str, str]], tree: Any) -> list[tuple[str, str]]:
        """Problems of a completed document, said so that who wrote it knows what is meant. Default: as they are."""
        del tree
        return found


class Problems(ValueError):
    """Several problems that a validator found in one document, each with its JSON pointer from there on."""

    def __init__(self, found: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{where or '/'}: {message}" for where, message in found))
        self.found = found


def _check_shape(body: str | bytes) -> Any:
    """Return the document. Raises SpecError for what is not JSON, holds a key twice in one object, or has more than
    MAX_FIELDS values."""
    try:
        text = body if isinstance(body, str) else body.decode()
        tree = json.loads(text, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise SpecError([("", f"the text is not UTF-8 (byte {error.start}); send JSON in UTF-8")]) from None
    except json.JSONDecodeError as error:
        raise SpecError([("", f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})")]) from None
    except RecursionError:
        raise SpecError([("", "the document is nested too deeply; a few levels are enough")]) from None
    except ValueError:  # Python reads no integer of so many digits
        raise SpecError([("", "a number has thousands of digits; write one that fits its field")]) from None
    # Every value but the first of its object or list has a comma before it.
    if text.count(",") + text.count("[") + text.count("{") > MAX_FIELDS and (count := _values(tree)) > MAX_FIELDS:
        raise SpecError([("", f"the document has {count} values; send at most {MAX_FIELDS}")])
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise SpecError([(pointer([twice]), f"{glimpse(twice)} stands more than once in one object; keep one")])
    return made


def _values(tree: Any) -> int:
    count, left = 0, [tree]
    while left:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return count


def pointer(location: Iterable[Any]) -> str:
    """Join a pydantic location into an RFC 6901 JSON pointer; very long parts are cut."""
    parts = (str(part) if len(str(part)) <= _PART else str(part)[:_PART] + "…" for part in location)
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def glimpse(value: Any) -> str:
    """A value as it is shown in a message: its beginning."""
    if isinstance(value, str | bytes) and len(value) > _VALUE:
        return f"{value[:_VALUE]!r}… of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 2 * _VALUE else shown[: 2 * _VALUE] + "…"


def bounded(found: Sequence[tuple[str, str]], total: int | None = None) -> list[tuple[str, str]]:
    """The first MAX_REPORTED problems, and how many more there are."""
    more = (len(found) if total is None else total) - MAX_REPORTED
    return [*found[:MAX_REPORTED], *([("", f"and {more} more problems")] if more > 0 else [])]


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """Turn pydantic's report into (JSON pointer, message with the value seen), at most MAX_REPORTED and their rest."""
    items = [one for item in error.errors(include_url=False) for one in _each(item)]
    around = {item["loc"][:depth] for item in items for depth in range(len(item["loc"]))}
    # A list may be too short only because its members, which are reported themselves, did not validate.
    told = [item for item in items if item["type"] != "too_short" or item["loc"] not in around]
    tags = {*names("algorithms"), *names("backbones"), *names("rewards")}
    return bounded([_problem(item, tags) for item in told[:MAX_REPORTED]], len(told))


def _each(item: Any) -> Iterator[Any]:
    """What a validator found at once, as if each had been raised alone."""
    raised = item.get("ctx", {}).get("error")
    found = raised.found if isinstance(raised, Problems) else [("", "")]
    for where, message in found:
        yield {**item, "msg": f"{where}: {message}" if where else message} if isinstance(raised, Problems) else item


def _problem(item: Any, tags: set[str]) -> tuple[str, str]:
    seen = item.get("input")
    message = _about_tags(item, seen) or item["msg"].removeprefix("Value error, ")
    if item["type"] not in {"missing", "value_error", "json_invalid"} and not isinstance(seen, dict | list):
        message = f"{message} (got {glimpse(seen)})"
    where = pointer(_without_tags(item["loc"], tags))
    if message.startswith("/"):  # a cross-field rule names the field itself
        inner, _, message = message.partition(": ")
        where += inner
    return where, message if len(message) <= _MESSAGE else message[:_MESSAGE] + "…"


def _about_tags(item: Any, seen: Any) -> str:
    """What pydantic says of a name that tells specs apart, where a function finds it; "" for anything else."""
    if item["type"] == "union_tag_invalid":
        found = item["ctx"]
        known = f"does not match any of the expected tags: {found['expected_tags']}"
        return f"Input tag {glimpse(found['tag'])} found using 'name' {known}"
    if item["type"] == "union_tag_not_found":
        return (
            "Unable to extract tag using discriminator 'name'"
            if isinstance(seen, dict)
            else "Input should be an object"
        )
    return ""


def _without_tags(location: tuple[int | str, ...], tags: set[str]) -> list[int | str]:
    """Drop the tag pydantic inserts after a discriminated field (`algorithm`, `backbone`, `rewards/0`)."""
    place = 2 if location[:1] == ("rewards",) else 1 if location[:1] in {("algorithm",), ("backbone",)} else -1
    return [part for index, part in enumerate(location) if index != place or part not in tags]
