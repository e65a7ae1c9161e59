"""Reads what a job left in its run folder. A job id comes from the store, an artifact id from the manifest: no path of
a user's is ever joined."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.errors import JobNotFound
from accord.run_folder import Artifact, RunFolder, parse_object
from services.api.views import CheckpointView, Series

MAX_STEPS = 20_000
MAX_BYTES = 32 * 2**20
"""Newest rows, and newest bytes of the file, that one answer is made of."""


def series(folder: RunFolder, names: Sequence[str] = (), since_step: int = 0) -> Series:
    """Curves, one row per step after `since_step`; at most the newest MAX_STEPS."""
    rows: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):  # none yet, a folder, or a disk that fails
        for line in folder.lines_backwards(MAX_BYTES):
            row = parse_object(line)
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


def checkpoints(folder: RunFolder) -> list[CheckpointView]:
    """The complete checkpoints (those with a manifest), oldest first."""
    found = ((one, one.manifest()) for one in folder.checkpoints())
    return [CheckpointView(step=one.step, name=one.path.name, manifest=manifest) for one, manifest in found if manifest]


def artifacts(folder: RunFolder) -> list[Artifact]:
    """What can be downloaded; nothing before the job has written its results."""
    return [one for one in folder.artifacts() if one.media_type.isascii() and one.media_type.isprintable()]  # a header


def open_artifact(folder: RunFolder, artifact_id: str) -> tuple[Artifact, Path, os.stat_result]:
    """Find a listed file. Raises JobNotFound when it is not listed, not there, or not a plain file in the folder."""
    for artifact in artifacts(folder):
        if artifact.id == artifact_id:
            root = folder.path().resolve()
            path = root / artifact.name
            try:
                inside = path.resolve() == path and path.is_relative_to(root)  # no link, no `..`
                status = path.lstat()
            except (OSError, ValueError):  # gone, or a name that no file can have
                break
            if inside and stat.S_ISREG(status.st_mode):
                return artifact, path, status
    raise JobNotFound(f"no artifact {artifact_id!r}")
