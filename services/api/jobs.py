"""Routes of the resource `job`: submit, read, list, cancel, follow."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse

from accord.config.job import JobSpec
from accord.ids import new_job_id
from services.api.path_types import EVENT_ID_SCHEMA, JobId, ListCursor, event_cursor
from services.api.state import state_of
from services.api.views import EventPage, EventView, JobDetail, JobPage
from services.jobs.job import Job, JobState
from services.jobs.store import JobStore, Submission

router = APIRouter(prefix="/v1/jobs")

T = TypeVar("T")

SMALL_BODY = 16_384
"""Bytes up to which a body is parsed on the event loop."""


@router.post("", status_code=202, response_model=JobDetail)
async def submit(request: Request, idempotency_key: Annotated[str, Header(max_length=255)] = "") -> Response:
    """Accept a job. With an Idempotency-Key, sending it again within 24 hours returns the first job."""
    state, body = state_of(request), await request.body()
    fingerprint = ""
    if idempotency_key:
        fingerprint = await _aside(body, content_digest)
        known = await state.calls.run(state.store.accepted, idempotency_key, fingerprint)
        if known is not None:
            return _accepted(known, None, created=False)
    spec = await _aside(body, JobSpec.parse)
    if not state.lately(spec):
        await asyncio.get_running_loop().run_in_executor(state.submitting, state.preflight, spec)
    job, created = await state.calls.enqueue(
        Submission(
            id=new_job_id(),
            name=spec.name,
            spec_json=spec.model_dump_json(),
            steps=spec.steps,
            max_attempts=min(spec.max_attempts, state.settings.max_attempts),
            key=idempotency_key,
            fingerprint=fingerprint,
        )
    )
    return _accepted(job, spec if created else None, created=created)


async def _aside(body: bytes, work: Callable[[bytes], T]) -> T:
    """Do `work` on a body: a small one here, because a thread would cost more; a large one aside."""
    return work(body) if len(body) <= SMALL_BODY else await asyncio.to_thread(work, body)


def content_digest(body: bytes) -> str:
    """What makes two bodies the same submission: their JSON, whatever its order and spacing.

    It knows nothing of jobs, so that a later release, or a file that has gone, cannot change what a key stands for.
    """
    with contextlib.suppress(ValueError, RecursionError):  # no JSON: these very bytes
        body = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(body).hexdigest()


def _accepted(job: Job, spec: JobSpec | None, *, created: bool) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", **({} if created else {"Idempotency-Replayed": "true"})}
    return _json(JobDetail.json_of(job, spec), 202, headers)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, media_type="application/json")


@router.get("", response_model=JobPage)
async def list_jobs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: ListCursor | None = None,
    state: JobState | None = None,
) -> Response:
    """List jobs, newest first."""
    parts = state_of(request)
    page = await parts.calls.run(parts.store.page, limit=limit, after=after, state=state)
    return _json(JobPage.json_of(page))


@router.get("/{job_id}", response_model=JobDetail)
async def read(request: Request, job_id: JobId) -> Response:
    """Read one job."""
    state = state_of(request)
    return _json(JobDetail.json_of(await state.calls.run(state.store.get, job_id)))


@router.post("/{job_id}/cancel", status_code=202, response_model=JobDetail)
async def cancel(request: Request, job_id: JobId) -> Response:
    """Ask a job to stop; it keeps its last checkpoint."""
    state = state_of(request)
    job = await state.calls.run(state.store.cancel, job_id)
    if job.finished:  # it was still in line, so no runner will count it
        state.metrics.counter("accord_jobs_finished_total").labels(outcome=job.state, reason=job.reason).inc()
    return _json(JobDetail.json_of(job), 202)


@router.delete("/{job_id}", status_code=204)
async def delete(request: Request, job_id: JobId) -> None:
    """Remove a job that has ended, and its run folder soon after."""
    state = state_of(request)
    await state.calls.run(state.store.delete, job_id)


@router.get("/{job_id}/events", response_model=None)
async def events(
    request: Request,
    job_id: JobId,
    after: Annotated[str, Query(max_length=41, json_schema_extra=EVENT_ID_SCHEMA)] = "0-0",
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    last_event_id: Annotated[str | None, Header(max_length=41, json_schema_extra=EVENT_ID_SCHEMA)] = None,
) -> Response:
    """Follow a job by server-sent events, or read a page of events with `Accept: application/json`."""
    cursor = event_cursor(after)
    if last_event_id is not None:
        cursor = event_cursor(last_event_id)
    state = state_of(request)
    if "application/json" in request.headers.get("accept", "").lower():
        page = await state.calls.run(_event_page, state.store, job_id, cursor, limit)
        return _json(page.model_dump_json().encode())
    await state.hub.find(job_id)
    return EventSourceResponse(state.hub.follow(job_id, cursor), headers={"X-Accel-Buffering": "no"})


def _event_page(store: JobStore, job_id: str, cursor: str, limit: int) -> EventPage:
    finished = store.get(job_id).finished
    found = store.events(job_id, cursor, limit)
    return EventPage(
        items=[EventView(id=entry.id, event=entry.event) for entry in found],
        next=found[-1].id if found else cursor,
        finished=finished and len(found) < limit,
    )
