"""Every error answer is RFC 9457 `application/problem+json` with the request's id."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from accord.config.base import bounded, pointer
from accord.errors import (
    AccordError,
    Conflict,
    JobNotFound,
    Overloaded,
    SpecError,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UserError,
)

MEDIA_TYPE = "application/problem+json"
_INSTANCE = 300
"""Most characters of a path that an answer repeats."""

log = logging.getLogger("accord.api")

STATUS: tuple[tuple[type[AccordError], int], ...] = (
    (UserError, 422),
    (JobNotFound, 404),
    (Conflict, 409),
    (StoreFull, 507),
    (StoreUnavailable, 503),
    (Overloaded, 503),
)


def problem(
    status: int,
    detail: str,
    *,
    context: tuple[str, str] = ("", ""),
    code: str = "",
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build one answer. `context` is (request id, path); `code` is a word for programs, the status by default."""
    request_id, instance = context
    title = HTTPStatus(status).phrase
    code = code or title.lower().replace(" ", "_").replace("-", "_")
    body: dict[str, Any] = {
        "type": f"urn:accord:problem:{code}", "title": title, "status": status, "detail": detail, "code": code,
        "instance": instance[:_INSTANCE], "request_id": request_id,
    }  # fmt: skip
    if errors:
        body["errors"] = list(errors)
    text = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")  # half a character is no UTF-8
    return Response(text, status, media_type=MEDIA_TYPE, headers=dict(headers or {}))


def install(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Make the app answer all its errors this way; `routers` tell what is possible where something else was tried."""
    app.state.accord_methods = [
        (route.path_regex, route.methods) for router in routers for route in router.routes if isinstance(route, Route)
    ]
    app.add_exception_handler(AccordError, _accord)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)


def _context(request: Request) -> tuple[str, str]:
    """From the path alone: an address built with the caller's Host header may not even be one."""
    return str(request.scope.get("accord_request_id", "")), str(request.scope["path"])


def _allowed(request: Request) -> str:
    """The methods of every route at this path."""
    methods: set[str] = set()
    for pattern, possible in request.app.state.accord_methods:
        if pattern.match(request.scope["path"]):
            methods |= possible
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))


async def _accord(request: Request, error: Exception) -> Response:
    assert isinstance(error, AccordError)
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if isinstance(error, SpecError):
        errors = [{"pointer": where, "detail": message} for where, message in error.problems]
        return problem(
            status, "The job does not validate.", code=error.reason, errors=errors, context=_context(request)
        )  # fmt: skip
    if status == 500:
        log.error("request %s failed: %s", _context(request)[0], error, exc_info=error)
        # Of a record that cannot be read, what it says is what helps.
        detail = (
            str(error)
            if type(error) is StoreError
            else "Something failed inside the service; its log has this request id."
        )
        return problem(500, detail, context=_context(request))
    headers = {"Retry-After": "2"} if status == 503 else None
    return problem(status, str(error), code=error.reason, headers=headers, context=_context(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail, headers = error.detail, dict(error.headers or {})
    path = request.scope["path"][:_INSTANCE]
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {path}."
    elif error.status_code == 405:
        headers["Allow"] = _allowed(request) or "GET, HEAD"
        detail = f"{request.method} is not possible at {path}; use {headers['Allow']}."
    return problem(error.status_code, detail, headers=headers, context=_context(request))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [(pointer(item["loc"]), str(item["msg"]).removeprefix("Value error, ")) for item in error.errors()]
    errors = [{"pointer": where, "detail": message} for where, message in bounded(found)]
    return problem(422, "A parameter of the request is wrong.", errors=errors, context=_context(request))
