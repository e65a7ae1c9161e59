"""Reads a job file for the commands: TOML, `--set` overrides, paths made absolute against the file."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.config.job import JobSpec
from accord.config.paths import input_paths
from accord.config.reward_presets import preset_paths
from accord.errors import SpecError, UserError


def read_job(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the job as a tree, not yet validated. Raises SpecError for an unreadable file, UserError for `--set`."""
    try:
        tree = _parse(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SpecError([("", f"cannot read {path}: {error.strerror}")]) from error
    except ValueError as error:
        raise SpecError([("", f"{path} is not valid TOML: {error}")]) from error
    _make_absolute(tree, path.resolve().parent)
    for override in overrides:
        _apply(tree, override)
    _make_absolute(tree, Path.cwd())  # what was typed means relative to where it was typed
    return tree


def reward_fields(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of one reward that a job need not have around it. Raises UserError for `--set`."""
    tree: dict[str, Any] = {"rewards": [{"name": name}]}
    for override in overrides:
        _apply(tree["rewards"][0], override)
    _make_absolute(tree, Path.cwd())
    fields: dict[str, Any] = tree["rewards"][0]
    return fields


def _parse(text: str) -> dict[str, Any]:
    """Raises ValueError for what is not TOML, or TOML that JSON cannot say."""
    try:
        tree = tomllib.loads(text)
        json.dumps(tree)
    except RecursionError:
        raise ValueError("it is nested too deeply; a few levels are enough") from None
    except TypeError:
        raise ValueError("it holds a date or a time, which no field takes; put a text in quotes") from None
    return tree


def _make_absolute(tree: dict[str, Any], base: Path) -> None:
    """A path in a file means relative to that file, and `~` the home of who reads it; `builtin:` names stay."""
    for named in [*input_paths(JobSpec, tree), *preset_paths(tree)]:
        holder: Any = tree
        for part in named.place[:-1]:
            holder = holder[part]
        holder[named.place[-1]] = str(base / os.path.expanduser(named.path))  # noqa: PTH111 - leaves what it does not know


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set `a.b.0.c=value`; the value is TOML, or plain text where it is not."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise UserError(f"--set {override}: write it as name=value, for example --set steps=5")
    try:
        tree_of_one = _parse(f"value = {text}")
        value = tree_of_one["value"] if len(tree_of_one) == 1 else text
    except ValueError:
        value = text
    *way, last = name.strip().split(".")
    place: Any = tree
    for part in way:
        place = _step(place, part, override)
    _step(place, last, override)
    place[int(last) if isinstance(place, list) else last] = value


def _step(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        if not part.isdecimal() or int(part) >= len(place):
            raise UserError(
                f"--set {override}: {part!r} is not one of the {len(place)} entries (0 to {len(place) - 1})"
            )
        return place[int(part)]
    if not isinstance(place, dict):
        raise UserError(f"--set {override}: {part!r} lies inside a value that has no fields")
    return place.setdefault(part, {})


def shown(tree: Any) -> str:
    """A tree as indented JSON."""
    return json.dumps(tree, indent=2, ensure_ascii=False)
