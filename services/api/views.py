"""What goes over the wire. Times are Unix seconds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json

from accord.config.departures import departures
from accord.config.job import JobSpec
from accord.errors import IncompatibleSpec, StoreError
from accord.events import JobEvent, Progress
from services.api.prefix import ROOT
from services.jobs.job import Job, JobSummary
from services.jobs.store import Page


class View(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="null")


class JobView(View):
    """A job without its spec."""

    id: str
    name: str
    state: str
    reason: str
    message: str
    waiting: str
    """Why a queued job is not being run although runners have seen it."""
    attempt: int
    """Number of the latest attempt; 0 before the first."""
    lost_attempts: int
    max_attempts: int
    step: int
    steps: int
    progress: Progress | None
    """The latest of the running attempt."""
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    links: dict[str, str]

    @classmethod
    def fields_of(cls, job: JobSummary) -> dict[str, Any]:
        """A job as values that become JSON, links included."""
        root = ROOT.get()
        base = f"{root}/v1/jobs/{job.id}"
        links = {"self": base, "page": f"{root}/jobs/{job.id}", **{name: f"{base}/{name}" for name in _LINKED}}
        words = {"state": str(job.state), "reason": str(job.reason)}
        return {**{name: getattr(job, name) for name in _KEPT}, **words, "attempt": job.epoch, "links": links}


_KEPT = tuple(name for name in JobView.model_fields if name not in {"attempt", "links"})
_LINKED = ("events", "metrics", "checkpoints", "artifacts")


class JobDetail(JobView):
    """A job with its resolved spec: every field, defaults included."""

    departures: list[str]
    """Fields in which the job differs from what its preset stands for; none where another release wrote the spec."""
    spec: dict[str, Any]

    @classmethod
    def json_of(cls, job: Job, spec: JobSpec | None = None) -> bytes:
        """The answer as it goes over the wire; the spec is passed on as the text it is stored as.

        `spec` is the parsed text, where the caller has it. Raises StoreError when the text is no JSON object.
        """
        fields = {**cls.fields_of(job), "departures": _departures(job, spec)}
        return to_json(fields)[:-1] + b',"spec":' + job.spec_json.encode() + b"}"


def _departures(job: Job, spec: JobSpec | None) -> list[str]:
    try:
        return departures(spec or job.spec)
    except IncompatibleSpec:
        _check_whole(job)
        return []


def _check_whole(job: Job) -> None:
    """A spec of another release is passed on; half a text would make half an answer."""
    try:
        whole = isinstance(from_json(job.spec_json), dict)
    except ValueError:
        whole = False
    if not whole:
        raise StoreError(f"the record of job {job.id} cannot be read; `accord delete` removes it: no spec is in it")


class JobPage(View):
    """Jobs, newest first. `next` is the cursor for `after`, null at the end."""

    items: list[JobView]
    next: str | None

    @classmethod
    def json_of(cls, page: Page) -> bytes:
        """The answer as it goes over the wire."""
        return to_json({"items": [JobView.fields_of(job) for job in page.jobs], "next": page.after})


class EventView(View):
    """An event and its place in the stream."""

    id: str
    event: JobEvent


class EventPage(View):
    """Events, oldest first. `next` is the cursor for `after`; `finished` says that nothing will follow the last one."""

    items: list[EventView]
    next: str
    finished: bool


class Series(View):
    """Training curves from the run folder. Each series has one value (or null) per entry of `steps`."""

    steps: list[int]
    metrics: dict[str, list[float | None]]
    phase_seconds: dict[str, list[float | None]]


class CheckpointView(View):
    """A complete checkpoint and its manifest."""

    step: int
    name: str
    manifest: dict[str, Any]
