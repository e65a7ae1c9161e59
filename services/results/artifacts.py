"""The manifest of a run's result files: what may be downloaded, under ids that say nothing about the place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from accord.run_folder import ARTIFACTS, RESULTS, Artifact, RunFolder
from services.results.summary import Document

MEDIA_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".html": "text/html; charset=utf-8",
    ".mp4": "video/mp4",
    ".safetensors": "application/octet-stream",
    ".md": "text/plain; charset=utf-8",
}


class Artifacts(Document):
    """`artifacts.json`."""

    job_id: str
    artifacts: list[Artifact]


def write_artifacts(folder: RunFolder, job_id: str) -> Artifacts:
    """List the run's result files in `artifacts.json`, whole or not at all.

    Checkpoints and logs are not results, links and hidden files are never listed.
    """
    names = [name for below in ("", *RESULTS) for name in folder.files(below, links=False)]
    found = [_artifact(folder, name, job_id) for name in names if Path(name).suffix in MEDIA_TYPES]
    listing = Artifacts(job_id=job_id, artifacts=[one for one in found if one.name != ARTIFACTS])
    folder.write_whole(ARTIFACTS, listing)
    return listing


def _artifact(folder: RunFolder, name: str, job_id: str) -> Artifact:
    return Artifact(
        id=hashlib.sha256(f"{name}{job_id}".encode()).hexdigest()[:16],
        name=name,
        media_type=MEDIA_TYPES[Path(name).suffix],
        bytes=folder.size(name),
        sha256=folder.sha256(name),
    )
