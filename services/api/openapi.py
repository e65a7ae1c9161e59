"""`/openapi.json`: what the routes say of themselves, and what they cannot say: the job spec as the body of a
submission, the key, every error, and events in both forms."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field

from accord.config.job import JobSpec
from accord.events import JOB_EVENT
from services.api.prefix import ROOT
from services.api.problems import MEDIA_TYPE
from services.api.views import EventPage

router = APIRouter(include_in_schema=False)

_REF = "#/components/schemas/{model}"
_EVENTS = "/v1/jobs/{job_id}/events"
_EVERYWHERE = {
    400: "The request cannot be read, or a value in it is none.",
    401: "No key, a wrong one, or a session that is over.",
    408: "The request did not arrive in time.",
    422: "A value is wrong; `errors` names each by a JSON pointer.",
    429: "Too much at once from one address.",
    431: "The headers are too large.",
    500: "Something failed inside the service; its log has the request id.",
    503: "The job store does not answer or takes no writes, or there are too many connections; see `Retry-After`.",
}
_OF_A_JOB = {404: "There is no such job or file."}
_HERE: dict[tuple[str, str], dict[int, str]] = {
    ("/v1/jobs", "post"): {
        409: "The Idempotency-Key was used with another job.",
        413: "The body is too large.",
        507: "The job store is nearly full; it takes no new jobs until there is room.",
    },
    ("/v1/jobs/{job_id}", "delete"): {409: "The job has not ended."},
    ("/v1/jobs/{job_id}/cancel", "post"): {409: "The job has finished.", 413: "The body is too large."},
    ("/v1/jobs/{job_id}/artifacts/{artifact_id}", "get"): {416: "The file has no such bytes."},
}
_SSE = {
    "type": "object", "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "description": "For `Last-Event-ID`."},
        "event": {"type": "string", "description": "`type` of the event, or `end`."},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "A JobEvent, or `{}`."},
    },
}  # fmt: skip


class Trouble(BaseModel):
    """One thing that is wrong in a request."""

    pointer: str
    """JSON pointer into the body, or the place of a parameter."""
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    """A word for programs."""
    instance: str
    request_id: str
    """The service's log has it, too."""
    errors: list[Trouble] = Field(default_factory=list)


@router.get("/openapi.json")
async def openapi(request: Request) -> dict[str, Any]:
    """The machine-readable description."""
    return {**description(request.app), "servers": [{"url": ROOT.get() or "/"}]}


def description(app: FastAPI) -> dict[str, Any]:
    """Built once per app."""
    made: dict[str, Any] | None = getattr(app.state, "accord_openapi", None)
    if made is None:
        made = app.state.accord_openapi = _complete(deepcopy(app.openapi()))
    return made


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for schema in (
        JobSpec.model_json_schema(ref_template=_REF),
        JOB_EVENT.json_schema(ref_template=_REF) | {"title": "JobEvent"},
        EventPage.model_json_schema(ref_template=_REF, mode="serialization"),
        Problem.model_json_schema(ref_template=_REF),
    ):
        schemas |= schema.pop("$defs", {})
        schemas[schema["title"]] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "The API key of the service."}
    }
    document["security"] = [{"key": []}]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _errors(path, method, operation)
    _body_and_events(document["paths"])
    return document


def _errors(path: str, method: str, operation: dict[str, Any]) -> None:
    told = _EVERYWHERE | (_OF_A_JOB if "{job_id}" in path else {}) | _HERE.get((path, method), {})
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status, meaning in sorted(told.items()):
        operation["responses"][str(status)] = {"description": meaning, "content": content}
    if method == "get":
        operation["responses"]["304"] = {"description": "What `If-None-Match` named is still right."}


def _body_and_events(paths: dict[str, Any]) -> None:
    submission = paths["/v1/jobs"]["post"]
    submission["requestBody"] = {
        "required": True, "content": {"application/json": {"schema": {"$ref": _REF.format(model="JobSpec")}}},
    }  # fmt: skip
    text = {"description": "Address of the job.", "schema": {"type": "string"}}
    submission["responses"]["202"]["headers"] = {"Location": text}
    follow = paths[_EVENTS]["get"]["responses"]["200"]
    follow["description"] = "Events as they come, or, with `Accept: application/json`, a page of them."
    follow["content"] = {
        "text/event-stream": {"schema": _SSE},
        "application/json": {"schema": {"$ref": _REF.format(model="EventPage")}},
    }
    download = paths["/v1/jobs/{job_id}/artifacts/{artifact_id}"]["get"]["responses"]
    for status, meaning in (("200", "The file."), ("206", "The bytes that `Range` asked for.")):
        download[status] = {
            "description": meaning, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
        }  # fmt: skip
