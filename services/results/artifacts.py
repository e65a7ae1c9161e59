"""The manifest of a run's result files: what may be downloaded, under ids that say nothing about the place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from accord.ids import file_sha256
from services.results.summary import Document, write_whole

MEDIA_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".html": "text/html; charset=utf-8",
    ".mp4": "video/mp4",
    ".safetensors": "application/octet-stream",
    ".md": "text/plain; charset=utf-8",
}
ARTIFACT_FOLDERS = ("adapter", "clips", "evaluation")


class Artifact(Document):
    """A file of the run that may be downloaded. Its id says nothing about its place."""

    id: str
    """First 16 hex digits of sha256(relative path + job id)."""
    name: str
    """Path inside the run folder, with forward slashes."""
    media_type: str
    bytes: int
    sha256: str


class Artifacts(Document):
    """`artifacts.json`."""

    job_id: str
    artifacts: list[Artifact]


def write_artifacts(run_dir: Path, job_id: str) -> Artifacts:
    """List the run's result files in `artifacts.json`, whole or not at all.

    Checkpoints and logs are not results, links and hidden files are never listed.
    """
    listing = Artifacts(job_id=job_id, artifacts=[_artifact(run_dir, path, job_id) for path in _results(run_dir)])
    write_whole(run_dir / "artifacts.json", listing.model_dump_json(indent=2) + "\n")
    return listing


def _results(run_dir: Path) -> Iterable[Path]:
    folders = [run_dir, *(run_dir / name for name in ARTIFACT_FOLDERS)]
    found = (path for folder in folders if not folder.is_symlink() for path in sorted(folder.glob("*")))
    return (
        path
        for path in found
        if path.suffix in MEDIA_TYPES
        and path.is_file()
        and not path.is_symlink()
        and not path.name.startswith(".")
        and path.name != "artifacts.json"
    )


def _artifact(run_dir: Path, path: Path, job_id: str) -> Artifact:
    name = path.relative_to(run_dir).as_posix()
    return Artifact(
        id=hashlib.sha256(f"{name}{job_id}".encode()).hexdigest()[:16],
        name=name,
        media_type=MEDIA_TYPES[path.suffix],
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )
