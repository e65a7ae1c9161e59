"""The pages: a list of jobs, and one job live. A script fills them from the API with the session cookie."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.templating import Jinja2Templates

from services.api.auth import COOKIE, SESSION_S
from services.api.state import state_of

router = APIRouter(include_in_schema=False)

_HERE = Path(__file__).parent
_templates = Jinja2Templates(_HERE / "templates")  # autoescapes .html
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@router.get("/")
def jobs_page(request: Request, key: str = "") -> Response:
    """All jobs. `?key=` signs the browser in and is taken out of the address at once."""
    if key:
        return _sign_in(request, key)
    return _page(request, "jobs.html")


@router.get("/jobs/{job_id}")
def job_page(request: Request, job_id: str, key: str = "") -> Response:
    """One job, live."""
    if key:
        return _sign_in(request, key, f"/jobs/{job_id}")
    if _signed_in(request):
        job = state_of(request).store.get(job_id)
        return _page(request, "job.html", job_id=job.id, name=job.name)
    return _page(request, "job.html")


@router.post("/session")
async def session(request: Request) -> Response:
    """Sign a browser in with the key from the form."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    return _sign_in(request, fields.get("key", [""])[0].strip())


def _sign_in(request: Request, key: str, target: str = "/") -> Response:
    keeper = state_of(request).keeper
    if not keeper.knows(key):
        return _page(request, "key.html", status=401, wrong=True)
    response = RedirectResponse(target, 303)
    response.set_cookie(
        COOKIE, keeper.session(), max_age=SESSION_S, httponly=True, samesite="strict",
        secure=request.url.scheme == "https",
    )  # fmt: skip
    return response


def _signed_in(request: Request) -> bool:
    return state_of(request).keeper.admits("GET", request.headers)


def _page(request: Request, template: str, status: int = 200, **values: object) -> Response:
    if template != "key.html" and not _signed_in(request):
        template, status = "key.html", 401
    response = _templates.TemplateResponse(request, template, dict(values), status_code=status)
    response.headers["Content-Security-Policy"] = _POLICY
    return response
