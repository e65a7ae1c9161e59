"""Reads what a job left in its run folder. A job id comes from the store, an artifact id from the manifest: no path of
a user's is ever joined."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from accord.errors import JobNotFound
from services.api.views import ArtifactView, CheckpointView, Series

MAX_STEPS = 100_000


def series(folder: Path, names: Sequence[str] = (), since_step: int = 0) -> Series:
    """Read metrics.jsonl: one StepCompleted per line. A line that is being written is left out."""
    rows = []
    for line in _text(folder / "metrics.jsonl").splitlines()[-MAX_STEPS:]:
        row = _object(line)
        if isinstance(row.get("step"), int) and row["step"] > since_step:
            rows.append(row)
    metrics = {name for row in rows for name in row.get("metrics", {}) if not names or name in names}
    phases = {name for row in rows for name in row.get("phase_seconds", {})}
    return Series(
        steps=[row["step"] for row in rows],
        metrics={name: [row.get("metrics", {}).get(name) for row in rows] for name in sorted(metrics)},
        phase_seconds={name: [row.get("phase_seconds", {}).get(name) for row in rows] for name in sorted(phases)},
    )


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
            found.append(ArtifactView.model_validate(entry))
        except ValidationError:
            continue  # an entry of another version is not offered
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
