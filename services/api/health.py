"""Routes for machines that watch this process; open, because they say nothing about jobs' contents."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from services.api.problems import problem
from services.api.state import state_of

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(request: Request) -> Response | dict[str, str]:
    """The process can do its work: the store takes writes, and whatever else was asked for.

    Everybody learns which check failed; why it did is for those who send the key.
    """
    state = state_of(request)
    failures = await state.readiness.failures()
    if not failures:
        return {"status": "ready"}
    if state.keeper.has_key(request.headers):
        detail = "; ".join(f"{name}: {message}" for name, message in failures.items())
    else:
        detail = f"Not ready: {', '.join(failures)}. With the API key this answer says why."
    return problem(
        503, detail, code="not_ready", context=(str(request.scope["accord_request_id"]), "/readyz"),
        headers={"Retry-After": "2"},
    )  # fmt: skip


@router.get("/metrics")
def metrics(request: Request) -> PlainTextResponse:
    """Prometheus exposition."""
    return PlainTextResponse(state_of(request).metrics.scrape(), media_type=CONTENT_TYPE_LATEST)
