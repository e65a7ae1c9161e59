"""Identifiers as they come in: looked at before anything is asked of the store, so that nothing else reaches a key."""

from __future__ import annotations

import re
import time
from typing import Annotated

from fastapi import HTTPException, Path
from pydantic import AfterValidator, WithJsonSchema

from accord.errors import JobNotFound
from accord.ids import JOB_ID

_EVENT_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_AHEAD_S = 3600
"""How far a store's clock may be ahead of this one's."""


def _job_id(text: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise JobNotFound(f"no job {text[:100]!r}")
    return text


def _list_cursor(text: str) -> str:
    if not JOB_ID.fullmatch(text):
        raise ValueError("not a cursor; take `next` of an earlier page")
    return text


JobId = Annotated[
    str,
    AfterValidator(_job_id),
    WithJsonSchema({"type": "string", "pattern": f"^{JOB_ID.pattern}$"}),
    Path(description="Id of a job, as the answer to its submission has it."),
]
"""Anything that no id looks like is a job that does not exist."""

ArtifactId = Annotated[str, Path(max_length=200, description="Id of a file, as the list of artifacts has it.")]

ListCursor = Annotated[
    str,
    AfterValidator(_list_cursor),
    WithJsonSchema({"type": "string", "pattern": f"^{JOB_ID.pattern}$"}),
]

EVENT_ID_SCHEMA = {"pattern": "^[0-9]{1,19}(-[0-9]{1,19})?$"}


def event_cursor(text: str) -> str:
    """An event id that a stream can go on from. Raises HTTPException (400) for text that is none.

    Ids hold the time of their event, so one from the future was never given out: nothing would ever follow it.
    """
    found = _EVENT_ID.fullmatch(text)
    if found is None or max(int(part or 0) for part in found.groups()) >= 2**64:
        raise HTTPException(400, f"{text[:50]!r} is not an event id; take one from an earlier answer.")
    if int(found[1]) / 1000 > time.time() + _AHEAD_S:
        raise HTTPException(
            400, f"{text[:50]!r} lies beyond every event; take an id from an earlier answer, or leave it out."
        )
    return text
