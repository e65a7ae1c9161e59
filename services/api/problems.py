"""Every error answer is RFC 9457 `application/problem+json` with the request's id."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from accord.config.base import pointer
from accord.errors import AccordError, Conflict, JobNotFound, SpecError, StoreUnavailable, UserError

log = logging.getLogger("accord.api")

STATUS: tuple[tuple[type[AccordError], int], ...] = (
    (UserError, 422),
    (JobNotFound, 404),
    (Conflict, 409),
    (StoreUnavailable, 503),
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
        "instance": instance, "request_id": request_id,
    }  # fmt: skip
    if errors:
        body["errors"] = list(errors)
    return JSONResponse(body, status, media_type="application/problem+json", headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Make the app answer all its errors this way."""
    app.add_exception_handler(AccordError, _accord)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)


def _context(request: Request) -> tuple[str, str]:
    return str(request.scope.get("accord_request_id", "")), request.url.path


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
        return problem(
            500, "Something failed inside the service; its log has this request id.", context=_context(request)
        )
    headers = {"Retry-After": "2"} if status == 503 else None
    return problem(status, str(error), code=error.reason, headers=headers, context=_context(request))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {request.url.path}."
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path}."
    return problem(error.status_code, detail, headers=error.headers, context=_context(request))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"pointer": pointer(item["loc"]), "detail": str(item["msg"])} for item in error.errors()]
    return problem(422, "A parameter of the request is wrong.", errors=errors, context=_context(request))
