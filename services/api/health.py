"""Routes for machines that watch this process; open, because they say nothing about jobs' contents."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from accord.errors import AccordError
from services.api.problems import problem
from services.api.state import state_of

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
def readyz(request: Request) -> Response | dict[str, str]:
    """The process can do its work: the store takes writes, and whatever else was asked for."""
    state = state_of(request)
    failures = {}
    for name, check in {"store": state.store.ready, **state.checks}.items():
        try:
            check()
        except AccordError as error:
            failures[name] = str(error)
    if failures:
        detail = "; ".join(f"{name}: {message}" for name, message in failures.items())
        return problem(
            503,
            detail,
            code="not_ready",
            context=(str(request.scope["accord_request_id"]), "/readyz"),
            headers={"Retry-After": "2"},
        )
    return {"status": "ready"}


@router.get("/metrics")
def metrics(request: Request) -> PlainTextResponse:
    """Prometheus exposition."""
    return PlainTextResponse(state_of(request).metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
