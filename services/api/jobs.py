"""Routes of the resource `job`: submit, read, list, cancel, follow."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from accord.config.job import JobSpec
from accord.errors import StoreUnavailable
from accord.events import StateChanged
from accord.ids import new_job_id
from services.api.path_types import EVENT_ID_SCHEMA, JobId, ListCursor, event_cursor
from services.api.state import state_of
from services.api.views import EventPage, EventView, JobDetail, JobPage, JobView
from services.jobs.job import TERMINAL, Job, JobState
from services.jobs.store import JobStore, StoredEvent, Submission

router = APIRouter(prefix="/v1/jobs")

POLL_S = 0.2
HEARTBEAT_S = 10.0


@router.post("", status_code=202)
async def submit(
    request: Request,
    response: Response,
    idempotency_key: Annotated[str, Header(max_length=255)] = "",
) -> JobDetail:
    """Accept a job. With an Idempotency-Key, sending it again within 24 hours returns the first job."""
    job, created = await asyncio.get_running_loop().run_in_executor(
        state_of(request).submitting, _accept, request, await request.body(), idempotency_key
    )
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return JobDetail.detail_of(job)


def _accept(request: Request, body: bytes, key: str) -> tuple[Job, bool]:
    state = state_of(request)
    spec = JobSpec.parse(body)
    state.preflight(spec)
    text = spec.model_dump_json()
    return state.store.enqueue(
        Submission(
            id=new_job_id(),
            name=spec.name,
            spec_json=text,
            steps=spec.steps,
            max_attempts=spec.max_attempts,
            key=key,
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        )
    )


@router.get("")
def list_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: ListCursor | None = None,
    state: JobState | None = None,
) -> JobPage:
    """List jobs, newest first."""
    page = state_of(request).store.page(limit=limit, after=after, state=state)
    return JobPage(items=[JobView.of(job) for job in page.jobs], next=page.after)


@router.get("/{job_id}")
def read(request: Request, job_id: JobId) -> JobDetail:
    """Read one job."""
    return JobDetail.detail_of(state_of(request).store.get(job_id))


@router.post("/{job_id}/cancel", status_code=202)
def cancel(request: Request, job_id: JobId) -> JobDetail:
    """Ask a job to stop; it keeps its last checkpoint."""
    state = state_of(request)
    job = state.store.cancel(job_id)
    if job.finished:  # it was still in line, so no runner will count it
        state.metrics.counter("accord_jobs_finished_total").labels(outcome=job.state, reason=job.reason).inc()
    return JobDetail.detail_of(job)


@router.get("/{job_id}/events", response_model=None)
async def events(
    request: Request,
    job_id: JobId,
    after: Annotated[str, Query(max_length=41, json_schema_extra=EVENT_ID_SCHEMA)] = "0-0",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    last_event_id: Annotated[str, Header(max_length=41, json_schema_extra=EVENT_ID_SCHEMA)] = "",
) -> Response:
    """Follow a job by server-sent events, or read a page of events with `Accept: application/json`."""
    cursor = event_cursor(last_event_id or after)
    state = state_of(request)
    if "application/json" in request.headers.get("accept", ""):
        page = await asyncio.to_thread(_event_page, state.store, job_id, cursor, limit)
        return Response(page.model_dump_json(), media_type="application/json")
    await asyncio.to_thread(state.store.get, job_id)
    return EventSourceResponse(_follow(state.store, job_id, cursor, state.closing.is_set), headers={
        "X-Accel-Buffering": "no",
    })  # fmt: skip


def _event_page(store: JobStore, job_id: str, cursor: str, limit: int) -> EventPage:
    finished = store.get(job_id).finished
    found = store.events(job_id, cursor, limit)
    return EventPage(
        items=[EventView.of(entry) for entry in found],
        next=found[-1].id if found else cursor,
        finished=finished and len(found) < limit,
    )


async def _follow(store: JobStore, job_id: str, cursor: str, closing: object) -> AsyncIterator[bytes]:
    """Events as they come, a comment when it is quiet, and `end` after the last one of a finished job."""
    assert callable(closing)
    said, progress = time.monotonic(), None
    while not closing():
        try:
            job = await asyncio.to_thread(store.get, job_id)
            found = await asyncio.to_thread(store.events, job_id, cursor)
        except StoreUnavailable:
            return  # the client comes back with its Last-Event-ID
        if job.progress is not None and job.progress != progress:
            progress, said = job.progress, time.monotonic()
            yield format_sse_event(data_str=progress.model_dump_json(), event=progress.type)
        for entry in found:
            cursor, said = entry.id, time.monotonic()
            yield format_sse_event(data_str=entry.event.model_dump_json(), event=entry.event.type, id=entry.id)
        if (job.finished and not found) or (found and _ends(found[-1])):
            yield format_sse_event(data_str="{}", event="end")
            return
        if time.monotonic() - said > HEARTBEAT_S:
            said = time.monotonic()
            yield KEEPALIVE_COMMENT
        if not found:
            await asyncio.sleep(POLL_S)


def _ends(entry: StoredEvent) -> bool:
    return isinstance(entry.event, StateChanged) and entry.event.state in TERMINAL
