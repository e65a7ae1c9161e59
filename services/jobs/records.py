"""How records of the Redis store become objects. This or another release wrote them, so they are read leniently:
what is unknown is kept or left out, and what cannot be read at all is counted, said once, and skipped by lists."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from accord.errors import StoreError
from accord.events import Gap, OpaqueEvent, Progress, read_event
from services.jobs.job import JobSummary
from services.jobs.store import FeedEntry, StoredEvent

log = logging.getLogger("accord.store")

KINDS = ("missing_job", "job", "event")
SUMMARY_FIELDS = tuple(JobSummary.model_fields)
_TIMES = ("created_at", "updated_at", "started_at", "finished_at")
_SAID_AT_MOST = 1000
_LAST_ID = (2**63 - 1, 2**64 - 1)

Record = TypeVar("Record", bound=JobSummary)


class Unreadable:
    """What this process could not read, by kind. Thread-safe."""

    def __init__(self) -> None:
        self._counts = Counter(dict.fromkeys(KINDS, 0))
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def report(self, kind: str, name: str, why: object) -> None:
        """Count one; log it the first time it is met."""
        with self._lock:
            self._counts[kind] += 1
            new = (kind, name) not in self._said and len(self._said) < _SAID_AT_MOST
            if new:
                self._said.add((kind, name))
        if new:
            log.warning("a record of the job store is skipped, %s %s: %s", kind, name, why)

    def counts(self) -> dict[str, int]:
        """How many so far."""
        with self._lock:
            return dict(self._counts)


def read_job(kind: type[Record], fields: Mapping[str, Any] | Sequence[Any]) -> Record:
    """Build a job from its hash, as a mapping or as Lua's flat list. Raises StoreError when it lacks what it needs."""
    pairs = fields if isinstance(fields, Mapping) else dict(zip(fields[::2], fields[1::2], strict=True))
    values = {name: pairs[name] for name in kind.model_fields if pairs.get(name) is not None}
    try:
        values |= {name: int(values[name]) / 1000 for name in _TIMES if name in values}
        values["progress"] = _progress(values.get("progress"))
        return kind.model_validate(values, extra="ignore")
    except ValueError as error:
        name = pairs.get("id", "without an id")
        raise StoreError(
            f"the record of job {name} cannot be read; `accord delete` removes it: {_why(error)}"
        ) from error


def read_jobs(kind: type[Record], found: Iterable[Any], unreadable: Unreadable) -> list[Record]:
    """Build those jobs that can be read."""
    jobs = []
    for fields in found:
        try:
            jobs.append(read_job(kind, fields))
        except StoreError as error:
            unreadable.report("job", str(error), error)
    return jobs


def _why(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return str(error)


def _progress(text: str | None) -> Progress | None:
    try:
        return Progress.model_validate_json(text, extra="ignore") if text else None
    except ValidationError:
        return None


def read_history(
    entries: Iterable[Sequence[Any]], after: str, dropped: tuple[str, str], unreadable: Unreadable
) -> list[StoredEvent]:
    """Build events from entries of both streams, in order, with a Gap where steps were dropped after `after`.

    `dropped` is the id of the last dropped step and how many were, as the job's hash has them.
    """
    history = []
    for entry_id, fields in entries:
        text = _value(fields, "json")
        try:
            event = read_event(text)
        except ValueError as error:  # it keeps its place, so that a reader's cursor passes it
            unreadable.report("event", str(entry_id), error)
            event = OpaqueEvent(at=order_of(str(entry_id))[0] / 1000, type="unreadable")
        history.append(StoredEvent(str(entry_id), event))
    gap = _gap(*dropped)
    if gap is not None and order_of(after) < order_of(gap.id):
        history.append(gap)
    return sorted(history, key=lambda stored: order_of(stored.id))


def _gap(dropped_to: str, dropped: str) -> StoredEvent | None:
    """The place of dropped steps; None where there is none, or none that can be read."""
    try:
        return StoredEvent(dropped_to, Gap(at=order_of(dropped_to)[0] / 1000, dropped=int(dropped)))
    except ValueError:
        return None


def read_feed(answer: Any) -> list[FeedEntry]:
    """Build feed entries from an answer to XREAD, in either protocol version.

    One that is not understood belongs to no job and breaks the numbering, so that readers look at the store again.
    """
    if not answer:
        return []
    entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
    if entries and isinstance(entries[0], list):  # RESP3 nests one level deeper
        entries = list(itertools.chain.from_iterable(entries))
    return [_feed_entry(str(entry_id), fields) for entry_id, fields in entries]


def _feed_entry(entry_id: str, fields: Mapping[str, str]) -> FeedEntry:
    try:
        return FeedEntry(entry_id, int(fields["number"]), fields["job"], fields["event"], fields["json"])
    except (KeyError, ValueError):
        return FeedEntry(entry_id, -1, "", "", "")


def _value(fields: Any, name: str) -> str:
    pairs = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return str(pairs.get(name, ""))


def order_of(event_id: str) -> tuple[int, int]:
    """An event id as numbers that sort; one beyond what a server can hold is the last there can be."""
    milliseconds, _, sequence = event_id.partition("-")
    return min((int(milliseconds), int(sequence or 0)), _LAST_ID)
