"""The pages: a list of jobs, and one job live. A script fills them from the API with the session cookie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates

from accord.metrics import METRICS
from services.api.auth import COOKIE, SESSION_S
from services.api.path_types import JobId
from services.api.prefix import ROOT
from services.api.state import state_of

router = APIRouter(include_in_schema=False)

_REWARD_MEAN = METRICS["accord_train_reward_mean"].number
_HERE = Path(__file__).parent
_templates = Jinja2Templates(_HERE / "templates")  # autoescapes .html
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@router.get("/")
async def jobs_page(request: Request, ticket: Annotated[str, Query(max_length=200)] = "") -> Response:
    """All jobs. `?ticket=`, from `accord sign-in`, signs the browser in once and leaves the address at once."""
    if not ticket:
        return await _page(request, "jobs.html")
    state = state_of(request)
    found = state.keeper.ticket_in(ticket)
    if found is None or not await state.sessions.end(found):
        return await _page(request, "key.html", status=401, wrong="That link was used already or is too old.")
    return _signed_in(request)


@router.get("/jobs/{job_id}")
async def job_page(request: Request, job_id: JobId) -> Response:
    """One job, live."""
    state = state_of(request)
    if not await state.sessions.admits(request.headers):
        return await _page(request, "key.html", status=401)
    job = await state.calls.run(state.store.get, job_id)
    return await _page(request, "job.html", job_id=job.id, name=job.name, reward_mean=_REWARD_MEAN)


@router.post("/session")
async def session(request: Request) -> Response:
    """Sign a browser in with the key from the form."""
    if not state_of(request).keeper.knows((await _field(request, "key")).strip()):
        return await _page(request, "key.html", status=401, wrong="That is not the key of this service.")
    return _signed_in(request)


@router.post("/session/end")
async def end_session(request: Request) -> Response:
    """Sign the browser out: its session is over on every API of this service, wherever its cookie was copied to."""
    state = state_of(request)
    found = state.keeper.session_in(request.headers)
    if found is not None:
        await state.sessions.end(found)
    response = RedirectResponse("/", 303)
    response.delete_cookie(COOKIE, path=ROOT.get() or "/")
    return response


async def _field(request: Request, name: str) -> str:
    """One field of a form. Raises HTTPException for what is no form."""
    try:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
    except ValueError:
        raise HTTPException(400, f"That is not the form; send one field, {name}.") from None
    return fields.get(name, [""])[0]


def _signed_in(request: Request) -> Response:
    response = RedirectResponse("/", 303)
    response.set_cookie(
        COOKIE, state_of(request).keeper.new_session(), max_age=SESSION_S, httponly=True, samesite="strict",
        secure=request.scope["scheme"] == "https", path=ROOT.get() or "/",
    )  # fmt: skip
    return response


async def _page(request: Request, template: str, status: int = 200, **values: object) -> Response:
    if template != "key.html" and not await state_of(request).sessions.admits(request.headers):
        template, status = "key.html", 401
    values |= {"root": ROOT.get(), "signed_in": template != "key.html"}
    response = _templates.TemplateResponse(request, template, values, status_code=status)
    response.headers["Content-Security-Policy"] = _POLICY
    return response
