"""Routes for what a job left behind: curves, checkpoints, files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field

from accord.run_folder import Artifact, RunFolder
from services.api import runs
from services.api.path_types import ArtifactId, JobId
from services.api.state import state_of
from services.api.views import CheckpointView, Series

router = APIRouter(prefix="/v1/jobs/{job_id}")

_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; media-src data: blob:"
)
"""A report is one self-contained file; it runs without an origin, so it can reach nothing of ours."""


async def _folder_of(request: Request, job_id: JobId) -> RunFolder:
    """Threads that read files do not wait for the store."""
    state = state_of(request)
    return state.settings.run_folder((await state.calls.run(state.store.get, job_id)).id)


_Folder = Annotated[RunFolder, Depends(_folder_of)]


@router.get("/metrics")
def metrics(
    folder: _Folder,
    names: Annotated[list[Annotated[str, Field(max_length=200)]], Query(max_length=200)] = [],  # noqa: B006
    since_step: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Series:
    """Curves per optimizer step; `names` picks some, `since_step` leaves out what is known."""
    return runs.series(folder, names, since_step)


@router.get("/checkpoints")
def checkpoints(folder: _Folder) -> list[CheckpointView]:
    """Complete checkpoints, oldest first."""
    return runs.checkpoints(folder)


@router.get("/artifacts")
def artifacts(folder: _Folder) -> list[Artifact]:
    """Files that can be downloaded, once the job has written its results."""
    return runs.artifacts(folder)


@router.get("/artifacts/{artifact_id}")
def artifact(folder: _Folder, artifact_id: ArtifactId) -> FileResponse:
    """Download one file by its id; byte ranges work."""
    listed, path, status = runs.open_artifact(folder, artifact_id)
    is_page = listed.media_type.startswith("text/html")
    return FileResponse(
        path,
        media_type=listed.media_type,
        filename=Path(listed.name).name,
        stat_result=status,
        content_disposition_type="inline" if is_page or listed.media_type == "video/mp4" else "attachment",
        headers={"Content-Security-Policy": _REPORT_POLICY if is_page else "default-src 'none'; sandbox"},
    )
