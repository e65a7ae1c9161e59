"""Reads what a job left in its run folder. A job id comes from the store, an artifact id from the manifest: no path of
a user's is ever joined."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from accord.errors import JobNotFound
from services.api.views import ArtifactView, CheckpointView, Series

MAX_STEPS = 20_000
MAX_BYTES = 32 * 2**20
"""Newest rows, and newest bytes of the file, that one answer is made of."""
BLOCK = 65_536


def series(folder: Path, names: Sequence[str] = (), since_step: int = 0) -> Series:
    """Curves from metrics.jsonl, one StepCompleted per line, after `since_step`; at most the newest MAX_STEPS."""
    rows: list[dict[str, Any]] = []
    for line in _lines_backwards(folder / "metrics.jsonl"):
        row = _object(line)
        step = row.get("step")
        if type(step) is not int or not 0 <= step < 2**31:
            continue  # being written, or left torn by an attempt that was killed
        if step <= since_step or len(rows) == MAX_STEPS:
            break
        rows.append(row)
    rows.reverse()
    curves = [_numbers(row.get("metrics")) for row in rows]
    phases = [_numbers(row.get("phase_seconds")) for row in rows]
    return Series(
        steps=[row["step"] for row in rows],
        metrics=_columns(curves, {name for row in curves for name in row if not names or name in names}),
        phase_seconds=_columns(phases, {name for row in phases for name in row}),
    )


def _numbers(values: Any) -> dict[str, float | None]:
    """What of a row can be drawn; another release, or whoever else wrote here, may have left something odd."""
    if not isinstance(values, dict):
        return {}
    return {name: value if isinstance(value, float | int) and abs(value) < 2**1000 else None
            for name, value in values.items()}  # fmt: skip


def _columns(rows: Sequence[dict[str, float | None]], names: set[str]) -> dict[str, list[float | None]]:
    return {name: [row.get(name) for row in rows] for name in sorted(names)}


def checkpoints(folder: Path) -> list[CheckpointView]:
    """The complete checkpoints (those with a manifest), oldest first."""
    found = []
    for path in sorted(folder.glob("checkpoints/step-*")):
        manifest = _object(_text(path / "manifest.json"))
        number = path.name.removeprefix("step-")
        if manifest and number.isdecimal():
            found.append(CheckpointView(step=int(number), name=path.name, manifest=manifest))
    return found


def artifacts(folder: Path) -> list[ArtifactView]:
    """What artifacts.json lists; nothing before it is there."""
    listed = _object(_text(folder / "artifacts.json")).get("artifacts", [])
    found = []
    for entry in listed if isinstance(listed, list) else []:
        try:
            view = ArtifactView.model_validate(entry)
        except ValidationError:
            continue  # an entry of another version is not offered
        if view.media_type.isascii() and view.media_type.isprintable():  # it becomes a header
            found.append(view)
    return found


def open_artifact(folder: Path, artifact_id: str) -> tuple[ArtifactView, Path, os.stat_result]:
    """Find a listed file. Raises JobNotFound when it is not listed, not there, or not a plain file in the folder."""
    for artifact in artifacts(folder):
        if artifact.id == artifact_id:
            root = folder.resolve()
            path = root / artifact.name
            try:
                inside = path.resolve() == path and path.is_relative_to(root)  # no link, no `..`
                status = path.lstat()
            except (OSError, ValueError):  # gone, or a name that no file can have
                break
            if inside and stat.S_ISREG(status.st_mode):
                return artifact, path, status
    raise JobNotFound(f"no artifact {artifact_id!r}")


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file from its end, read in blocks, as far as MAX_BYTES go."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        end = os.fstat(descriptor).st_size
        first, begun = max(0, end - MAX_BYTES), b""
        while end > first:
            start = max(first, end - BLOCK)
            block = os.pread(descriptor, end - start, start)
            if len(block) < end - start:
                return  # cut back by an attempt that begins again
            begun, *lines = (block + begun).split(b"\n")
            yield from reversed(lines)
            end = start
        if first == 0:
            yield begun
    except OSError:
        return  # a folder, or a disk that fails
    finally:
        os.close(descriptor)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = from_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
