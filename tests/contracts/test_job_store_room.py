"""What keeps a store from filling up, and what goes on when it is full: bounds, expiry, deletion, admission."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from accord.errors import Conflict, Fenced, JobNotFound, StoreFull
from accord.events import Gap, Progress, StepCompleted, Warned
from accord.ids import new_job_id
from services.jobs.job import JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import MESSAGE_KEPT, STEPS_KEPT, Beat, JobStore, Submission
from tests.contracts.stores import BACKOFF, running, states, step_event, submit


def finished(store: JobStore) -> str:
    job_id = running(store)
    store.append(job_id, 1, step_event(1))
    store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    return job_id


def test_steps_are_bounded_and_everything_else_is_kept(store: JobStore) -> None:
    job_id = running(store)
    store.append(job_id, 1, Warned(code="early", message="kept"))
    first = store.events(job_id)[0].id
    for step in range(1, STEPS_KEPT + 11):
        store.append(job_id, 1, step_event(step))
    store.append(job_id, 1, Warned(code="late", message="kept"))
    store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)

    history = store.events(job_id, limit=10_000)
    assert [entry.event.type for entry in history[:5]] == ["state", "state", "state", "warning", "gap"]
    gap = history[4]
    assert isinstance(gap.event, Gap) and gap.event.dropped == 10
    steps = [entry.event.step for entry in history if isinstance(entry.event, StepCompleted)]
    assert steps == list(range(11, STEPS_KEPT + 11))
    assert [entry.event.type for entry in history[-2:]] == ["warning", "state"]

    paged, cursor = [], "0-0"
    while page := store.events(job_id, cursor, limit=300):
        paged += page
        cursor = page[-1].id
    assert paged == history, "pages meet the gap once, in its place"
    assert [entry.event.type for entry in store.events(job_id, first, limit=4)][-1] == "gap"
    assert not any(isinstance(entry.event, Gap) for entry in store.events(job_id, gap.id, limit=10_000))


def test_a_deleted_job_is_gone_everywhere_and_its_folder_is_to_be_removed(store: JobStore) -> None:
    job_id, other = finished(store), submit(store)
    store.delete(job_id)
    for call in (store.get, store.events, store.delete, store.cancel):
        with pytest.raises(JobNotFound):
            call(job_id)  # type: ignore[operator]
    assert [job.id for job in store.page().jobs] == [other]
    assert store.page(state=JobState.SUCCEEDED).jobs == [] and store.stats().by_state["succeeded"] == 0
    assert store.folders_to_remove() == [job_id]
    store.folder_removed(job_id)
    assert store.folders_to_remove() == []


def test_messages_are_bounded(store: JobStore) -> None:
    first, second, third = (running(store) for _ in range(3))
    assert len(store.finish(first, 1, JobState.FAILED, Reason.USER_ERROR, "x" * 100_000).message) == MESSAGE_KEPT
    assert len(store.lose(second, 1, Reason.CRASHED, "x" * 100_000, 60).message) == MESSAGE_KEPT
    assert len(store.release(third, 1, delay_s=60, message="x" * 100_000).waiting) == MESSAGE_KEPT


def test_only_what_has_ended_can_be_deleted(store: JobStore) -> None:
    job_id = submit(store)
    with pytest.raises(Conflict, match="cancel it"):
        store.delete(job_id)
    store.claim("a", 30, BACKOFF)
    with pytest.raises(Conflict, match="starting"):
        store.delete(job_id)
    store.cancel(job_id)
    with pytest.raises(Conflict, match="cancelling"):
        store.delete(job_id)
    assert states(store, job_id) == ["queued", "starting", "cancelling"] and store.folders_to_remove() == []


def test_jobs_expire_some_time_after_their_end(store: JobStore) -> None:
    old = [finished(store) for _ in range(3)]
    cancelled = submit(store)
    store.cancel(cancelled)
    living = running(store)
    assert store.sweep(60) == 0
    time.sleep(0.3)
    young = finished(store)
    assert store.sweep(0.25, limit=2) == 2
    assert store.sweep(0.25) == 2
    assert {job.id for job in store.page().jobs} == {living, young}
    assert store.folders_to_remove() == [], "results outlive the record"
    assert store.sweep(0.25) == 0 and set(old) & {job.id for job in store.page().jobs} == set()


def test_a_key_whose_job_is_gone_is_free(store: JobStore) -> None:
    first = submit(store, key="k", fingerprint="f")
    accepted = store.accepted("k", "f")
    assert accepted is not None and accepted.id == first
    with pytest.raises(Conflict):
        store.accepted("k", "g")
    assert store.accepted("other", "f") is None and store.accepted("", "") is None
    store.cancel(first)
    store.delete(first)
    assert store.accepted("k", "g") is None
    assert submit(store, key="k", fingerprint="g") != first


@pytest.fixture
def small(redis_store: RedisJobStore) -> Iterator[RedisJobStore]:
    """A store with 4 MB left."""
    server = redis_store._redis
    before = server.config_get("maxmemory")["maxmemory"]
    info = server.info("memory")
    server.config_set("maxmemory", int(info["used_memory"]) + 4_000_000)
    yield redis_store
    server.config_set("maxmemory", before)


def fill(store: RedisJobStore) -> None:
    with pytest.raises(StoreFull, match="delete finished jobs"):
        while True:
            store.enqueue(Submission(new_job_id(), "n", '"' + "x" * 20_000 + '"', 1))


def test_admission_stops_before_the_store_is_full_and_starts_again(small: RedisJobStore) -> None:
    done = finished(small)
    again = Submission(new_job_id(), "n", "{}", 1, key="k", fingerprint="f")
    small.enqueue(again)
    fill(small)
    info = small._redis.info("memory")
    assert info["used_memory"] < 0.97 * info["maxmemory"], "room is left for what runs"
    assert not small.enqueue(again)[1], "a replay needs no room"
    small.delete(done)
    for job in small.page(limit=500).jobs[:60]:
        small.cancel(job.id)
        small.delete(job.id)
    time.sleep(0.3)
    submit(small)


def test_what_runs_goes_on_in_a_store_that_is_over_its_limit(small: RedisJobStore) -> None:
    jobs = [running(small) for _ in range(4)]
    waiting = submit(small)
    small._redis.set("ballast", "x" * 1_000_000)
    small._redis.config_set("maxmemory", int(small._redis.info("memory")["used_memory"]) // 2)
    with pytest.raises(StoreFull):
        submit(small)
    with pytest.raises(Exception, match="maxmemory"):
        small._redis.set("one more", "x")
    first, second, third, fourth = jobs
    assert small.beat(first, 1, 30) is Beat.OK
    small.append(first, 1, Progress(phase="learn", step=1, done=1, total=2))
    small.append(first, 1, step_event(1))
    assert small.finish(first, 1, JobState.SUCCEEDED, Reason.NONE).step == 1
    assert small.lose(second, 1, Reason.KILLED, "", BACKOFF).state is JobState.QUEUED
    assert small.release(third, 1).state is JobState.QUEUED
    assert small.cancel(fourth).state is JobState.CANCELLING
    claimed = small.claim("b", 30, BACKOFF).job
    assert claimed is not None and claimed.id in {third, waiting}
    small.running(claimed.id, claimed.epoch)
    assert small.mark("ended:session", 30) and small.marked("ended:session") and not small.mark("ended:session", 30)
    small.delete(first)
    with pytest.raises(Fenced):
        small.append(second, 1, step_event(2))
