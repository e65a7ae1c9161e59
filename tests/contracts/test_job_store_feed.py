"""What happens to jobs, as readers get it: progress, the feed of all jobs, and what a job waits for."""

from __future__ import annotations

import threading
import time

from accord.events import Progress, Warned, read_event
from services.jobs.job import JobState, Reason
from services.jobs.store import JobStore
from tests.contracts.stores import BACKOFF, running, step_event, submit


def progress(done: int) -> Progress:
    return Progress(phase="rollout", step=1, done=done, total=6)


def test_progress_is_one_field_and_no_history(store: JobStore) -> None:
    job_id = running(store)
    before = store.events(job_id)
    for done in range(50):
        assert store.append(job_id, 1, progress(done)) == ""
    assert store.events(job_id) == before
    shown = store.get(job_id).progress
    assert shown is not None and shown.done == 49
    assert store.page().jobs[0].progress == shown
    store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    assert store.get(job_id).progress is None, "the bars of an attempt end with it"


def test_the_feed_tells_everything_of_all_jobs_in_order(store: JobStore) -> None:
    old = running(store)
    end = store.feed_end()
    assert store.feed(end) == []
    store.append(old, 1, progress(1))
    new = submit(store)
    step_id = store.append(old, 1, step_event(1))
    warned_id = store.append(old, 1, Warned(code="c", message="m"))
    store.finish(old, 1, JobState.SUCCEEDED, Reason.NONE)
    entries = store.feed(end)
    told = [(entry.job_id, read_event(entry.json).type) for entry in entries]
    assert told == [(old, "progress"), (new, "state"), (old, "step"), (old, "warning"), (old, "state")]
    assert [entry.event_id for entry in entries] == [
        "", store.events(new)[-1].id, step_id, warned_id, store.events(old)[-1].id,
    ]  # fmt: skip
    assert [entry.number for entry in entries] == list(range(entries[0].number, entries[0].number + 5))
    assert store.feed_end() == entries[-1].id
    assert [entry.id for entry in store.feed(entries[1].id, limit=2)] == [entry.id for entry in entries[2:4]]


def test_the_feed_is_waited_for(store: JobStore) -> None:
    job_id = running(store)
    end = store.feed_end()
    began = time.monotonic()
    assert store.feed(end, wait_s=0.2) == []
    assert time.monotonic() - began > 0.15
    later = threading.Timer(0.1, lambda: store.append(job_id, 1, progress(1)))
    later.start()
    (entry,) = store.feed(end, wait_s=2)
    later.join()
    assert read_event(entry.json) == store.get(job_id).progress


def test_an_empty_store_has_a_feed(store: JobStore) -> None:
    assert store.feed_end() == "0-0" and store.feed("0-0") == []


def test_a_job_that_cannot_be_run_now_waits_and_keeps_its_attempts_and_its_place(store: JobStore) -> None:
    first, second = submit(store, max_attempts=1), submit(store)
    assert store.claim("a", 30, BACKOFF).job.id == first  # type: ignore[union-attr]
    released = store.release(first, 1, delay_s=1.0, message="the disk is full")
    assert (released.state, released.waiting, released.lost_attempts) == (JobState.QUEUED, "the disk is full", 0)
    assert {job.id: job.waiting for job in store.page().jobs} == {first: "the disk is full", second: ""}
    assert store.claim("a", 30, BACKOFF).job.id == second  # type: ignore[union-attr]
    third = submit(store)
    time.sleep(1.1)
    assert store.claim("a", 30, BACKOFF).job.id == first, "before what came after it"  # type: ignore[union-attr]
    assert store.get(first).waiting == ""
    assert store.claim("a", 30, BACKOFF).job.id == third  # type: ignore[union-attr]


def test_a_waiting_job_can_be_cancelled(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", 30, BACKOFF)
    store.release(job_id, 1, delay_s=0.1, message="no room")
    assert store.cancel(job_id).state is JobState.CANCELLED
    assert store.get(job_id).waiting == ""
    time.sleep(0.15)
    assert store.claim("a", 30, BACKOFF).job is None
