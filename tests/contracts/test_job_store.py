"""One suite for every JobStore: the in-memory twin and the Redis store on a real server."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from accord.errors import Conflict, Fenced, JobNotFound, StoreUnavailable
from accord.events import ProcessLost
from accord.ids import new_job_id
from services.jobs.job import TRANSITIONS, JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import Beat, JobStore, Submission
from services.node.embedded import EmbeddedStore
from tests.contracts.stores import BACKOFF, LEASE, states, step_event, submit


def test_a_job_lives_from_queue_to_success(store: JobStore) -> None:
    job_id = submit(store)
    claimed = store.claim("a", LEASE, BACKOFF)
    job = claimed.job
    assert job is not None and (job.id, job.epoch, job.state, job.owner) == (job_id, 1, JobState.STARTING, "a")
    assert job.started_at is not None and job.finished_at is None
    store.running(job_id, 1)
    store.running(job_id, 1)
    assert store.beat(job_id, 1, LEASE) is Beat.OK
    store.append(job_id, 1, step_event(2))
    done = store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    assert done.finished and done.step == 2 and done.finished_at is not None
    assert states(store, job_id) == ["queued", "starting", "running", "succeeded"]
    since = [entry.event.type for entry in store.events(job_id, claimed.event_id)]
    assert since == ["state", "step", "state"], "what comes after the claim is the attempt's"
    assert store.claim("a", LEASE, BACKOFF).job is None


def test_several_submissions_at_once_each_on_its_own(store: JobStore) -> None:
    if isinstance(store, RedisJobStore):
        store._redis.script_flush()  # as after a restart of the server
    wanted = [
        Submission(id=new_job_id(), name=name, spec_json="{}", steps=3, key=key, fingerprint=fingerprint)
        for name, key, fingerprint in (("a", "k", "1"), ("b", "", ""), ("c", "k", "2"), ("d", "k", "1"), ("e", "", ""))
    ]
    first, second, other, same, last = store.enqueue_all(wanted)
    assert isinstance(other, Conflict)
    assert not any(isinstance(answer, Exception) for answer in (first, second, same, last))
    created = [(job.id, made) for job, made in (first, second, same, last)]  # type: ignore[misc]
    assert created == [(wanted[0].id, True), (wanted[1].id, True), (wanted[0].id, False), (wanted[4].id, True)]
    assert {job.id for job in store.page().jobs} == {wanted[index].id for index in (0, 1, 4)}


def test_oldest_job_first(store: JobStore) -> None:
    ids = [submit(store) for _ in range(3)]
    assert [store.claim("a", LEASE, BACKOFF).job.id for _ in ids] == ids  # type: ignore[union-attr]


def test_a_stale_owner_is_fenced_everywhere(store: JobStore) -> None:
    job_id = submit(store)
    assert store.claim("old", LEASE, 0.001).job
    time.sleep(LEASE + 0.05)
    (lost,) = store.claim("new", LEASE, 0.001).lost
    assert (lost.id, lost.state, lost.reason, lost.lost_attempts) == (job_id, JobState.QUEUED, Reason.LEASE_LOST, 1)
    time.sleep(0.02)
    taken = store.claim("new", 10, 0.001).job
    assert taken is not None and taken.epoch == 2 and taken.lost_attempts == 1
    assert store.beat(job_id, 1, LEASE) is Beat.FENCED
    for write in (
        lambda: store.running(job_id, 1),
        lambda: store.append(job_id, 1, step_event(1)),
        lambda: store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE),
        lambda: store.lose(job_id, 1, Reason.CRASHED, "", BACKOFF),
        lambda: store.release(job_id, 1),
    ):
        with pytest.raises(Fenced):
            write()
    assert store.beat(job_id, 2, LEASE) is Beat.OK
    assert store.get(job_id).step == 0
    store.finish(job_id, 2, JobState.SUCCEEDED, Reason.NONE)
    with pytest.raises(Fenced):
        store.finish(job_id, 2, JobState.SUCCEEDED, Reason.NONE)
    assert states(store, job_id).count("succeeded") == 1


def test_an_expired_lease_fences_its_owner_before_anyone_claims_again(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", LEASE, 60)
    time.sleep(LEASE + 0.05)
    assert store.claim("b", LEASE, 60).job is None
    assert store.get(job_id).state is JobState.QUEUED and store.get(job_id).reason is Reason.LEASE_LOST
    assert store.beat(job_id, 1, LEASE) is Beat.FENCED


def test_beats_keep_a_lease(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", LEASE, BACKOFF)
    for _ in range(4):
        time.sleep(LEASE / 2)
        assert store.beat(job_id, 1, LEASE) is Beat.OK
        assert store.claim("b", LEASE, BACKOFF).job is None


def test_lost_attempts_back_off_and_then_fail_the_job(store: JobStore) -> None:
    job_id = submit(store, max_attempts=2)
    store.claim("a", LEASE, BACKOFF)
    assert store.lose(job_id, 1, Reason.KILLED, "signal 9", 0.2).state is JobState.QUEUED
    assert store.claim("a", LEASE, BACKOFF).job is None, "must wait for its backoff"
    time.sleep(0.25)
    assert store.claim("a", LEASE, BACKOFF).job.epoch == 2  # type: ignore[union-attr]
    failed = store.lose(job_id, 2, Reason.KILLED, "signal 9", 0.01)
    assert (failed.state, failed.reason, failed.lost_attempts, failed.message) == (
        JobState.FAILED, Reason.KILLED, 2, "signal 9",
    )  # fmt: skip


def test_a_lost_job_goes_to_the_end_of_the_line(store: JobStore) -> None:
    """Else one that takes its runner down with it is claimed first by the next."""
    first, second = submit(store), submit(store)
    store.claim("a", 30, BACKOFF)
    store.lose(first, 1, Reason.KILLED, "", 0.001)
    third = submit(store)
    time.sleep(0.05)
    assert [store.claim("b", 30, BACKOFF).job.id for _ in range(2)] == [second, first]  # type: ignore[union-attr]
    assert store.claim("b", 30, BACKOFF).job.id == third  # type: ignore[union-attr]
    fourth = submit(store)
    store.lose(second, 1, Reason.KILLED, "", 0.001)
    fifth = submit(store)
    time.sleep(0.05)
    assert [store.claim("b", 30, BACKOFF).job.id for _ in range(3)] == [fourth, second, fifth]  # type: ignore[union-attr]


def test_a_graceful_release_requeues_at_once_in_the_old_place_and_costs_no_attempt(store: JobStore) -> None:
    first = submit(store, max_attempts=1)
    submit(store)
    store.claim("a", LEASE, BACKOFF)
    released = store.release(first, 1)
    assert (released.state, released.reason, released.lost_attempts) == (JobState.QUEUED, Reason.DRAINED, 0)
    again = store.claim("b", LEASE, BACKOFF).job
    assert again is not None and again.id == first and again.epoch == 2


def test_four_claimers_one_owner(store: JobStore) -> None:
    for _ in range(20):
        submit(store)
    claimed: list[str] = []
    start = threading.Barrier(4)

    def claim_all(name: str) -> None:
        start.wait(5)
        while (job := store.claim(name, 30, BACKOFF).job) is not None:
            claimed.append(job.id)

    threads = [threading.Thread(target=claim_all, args=(f"w{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(claimed) == 20 and len(set(claimed)) == 20


def test_idempotency_key(store: JobStore) -> None:
    one = Submission(new_job_id(), "n", "{}", 3, key="k", fingerprint="f")
    same = Submission(new_job_id(), "n", "{}", 3, key="k", fingerprint="f")
    other = Submission(new_job_id(), "n", "{}", 3, key="k", fingerprint="g")
    first, created = store.enqueue(one)
    assert created
    again, created_again = store.enqueue(same)
    assert again.id == first.id and not created_again
    with pytest.raises(Conflict):
        store.enqueue(other)
    assert len(store.page().jobs) == 1


def test_fifty_posts_with_one_key_make_one_job(store: JobStore) -> None:
    found: list[str] = []

    def post() -> None:
        found.append(store.enqueue(Submission(new_job_id(), "n", "{}", 3, key="k", fingerprint="f"))[0].id)

    threads = [threading.Thread(target=post) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 50 and len(set(found)) == 1


def test_cancel_in_every_state(store: JobStore) -> None:
    queued = submit(store)
    assert store.cancel(queued).state is JobState.CANCELLED
    with pytest.raises(Conflict):
        store.cancel(queued)
    assert store.claim("a", LEASE, BACKOFF).job is None, "a cancelled job is not in line any more"

    starting = submit(store)
    store.claim("a", 30, BACKOFF)
    assert store.cancel(starting).state is JobState.CANCELLING
    assert store.cancel(starting).state is JobState.CANCELLING
    assert store.beat(starting, 1, 30) is Beat.CANCEL
    assert store.finish(starting, 1, JobState.CANCELLED, Reason.CANCELLED).state is JobState.CANCELLED

    running = submit(store)
    store.claim("a", 30, BACKOFF)
    store.running(running, 1)
    assert store.cancel(running).state is JobState.CANCELLING
    assert store.finish(running, 1, JobState.SUCCEEDED, Reason.NONE).state is JobState.SUCCEEDED, "the result wins"
    with pytest.raises(Conflict):
        store.cancel(running)

    failed = submit(store)
    store.claim("a", 30, BACKOFF)
    store.finish(failed, 1, JobState.FAILED, Reason.USER_ERROR)
    with pytest.raises(Conflict):
        store.cancel(failed)


@pytest.mark.parametrize("end", ["lose", "release", "expire"])
def test_a_cancelling_job_whose_attempt_ends_any_way_is_cancelled(store: JobStore, end: str) -> None:
    job_id = submit(store)
    store.claim("a", LEASE, BACKOFF)
    store.cancel(job_id)
    if end == "lose":
        store.lose(job_id, 1, Reason.KILLED, "", BACKOFF)
    elif end == "release":
        store.release(job_id, 1)
    else:
        time.sleep(LEASE + 0.05)
        store.claim("b", LEASE, BACKOFF)
    assert store.get(job_id).state is JobState.CANCELLED


def test_a_backing_off_job_can_be_cancelled(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", LEASE, BACKOFF)
    store.lose(job_id, 1, Reason.KILLED, "", 0.05)
    store.cancel(job_id)
    time.sleep(0.1)
    assert store.claim("a", LEASE, BACKOFF).job is None


def test_illegal_moves_are_refused(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", 30, BACKOFF)
    with pytest.raises(Conflict, match=r"starting.*cancelled"):
        store.finish(job_id, 1, JobState.CANCELLED, Reason.CANCELLED)
    assert store.get(job_id).state is JobState.STARTING


def test_events_page_and_resume(store: JobStore) -> None:
    job_id = submit(store)
    store.claim("a", 30, BACKOFF)
    for done in range(6):
        store.append(job_id, 1, step_event(1) if done % 2 else ProcessLost(process=str(done), outcome="restarted"))
    everything = store.events(job_id)
    assert len(everything) == 8
    assert [entry.event.type for entry in everything[2:]] == ["process_lost", "step"] * 3
    ids = [entry.id for entry in everything]
    assert [entry.id for entry in store.events(job_id, after=ids[4])] == ids[5:]
    assert [entry.id for entry in store.events(job_id, limit=3)] == ids[:3]
    assert store.events(job_id, after=ids[-1]) == []


def test_unknown_jobs(store: JobStore) -> None:
    for call in (
        lambda: store.get("job-nope"),
        lambda: store.get(f"{submit(store)}:ev"),
        lambda: store.events("*"),
        lambda: store.cancel("job-nope"),
        lambda: store.events("job-nope"),
        lambda: store.append("job-nope", 1, step_event(1)),
    ):
        with pytest.raises(JobNotFound):
            call()


def test_list_pages_newest_first_and_filters(store: JobStore) -> None:
    ids = []
    for _ in range(5):
        ids.append(submit(store))
        time.sleep(0.002)
    store.cancel(ids[1])
    page = store.page(limit=2)
    assert [job.id for job in page.jobs] == ids[:2:-1] and page.after == ids[3]
    rest = store.page(limit=10, after=page.after)
    assert [job.id for job in rest.jobs] == ids[2::-1] and rest.after is None
    assert [job.id for job in store.page(state=JobState.CANCELLED).jobs] == [ids[1]]
    stats = store.stats()
    assert stats.by_state["queued"] == 4 and stats.by_state["cancelled"] == 1 and stats.by_state["running"] == 0
    assert 0 <= stats.oldest_queued_s < 60


def test_both_stores_obey_the_same_table(store: JobStore) -> None:
    """Every outcome an attempt may report, from every state it may be in, against TRANSITIONS."""
    for cancelling in (False, True):
        for outcome in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
            job_id = submit(store)
            store.claim("a", 30, BACKOFF)
            store.running(job_id, 1)
            if cancelling:
                store.cancel(job_id)
            before = store.get(job_id).state
            if outcome in TRANSITIONS[before]:
                assert store.finish(job_id, 1, outcome, Reason.NONE).state is outcome
            else:
                with pytest.raises(Conflict):
                    store.finish(job_id, 1, outcome, Reason.NONE)
                store.finish(job_id, 1, JobState.FAILED, Reason.NONE)


def test_no_acknowledged_write_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    with EmbeddedStore(tmp_path) as server:
        store = RedisJobStore(server.url)
        stop = threading.Event()

        def keep_submitting() -> None:
            while not stop.is_set():
                with contextlib.suppress(StoreUnavailable):
                    acknowledged.append(submit(store))

        writer = threading.Thread(target=keep_submitting)
        writer.start()
        for _ in range(2):
            time.sleep(0.3)
            server.kill()
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                try:
                    store.ready()
                    break
                except StoreUnavailable:
                    time.sleep(0.02)
            else:
                raise AssertionError("the store was not restarted")
        stop.set()
        writer.join(10)
        assert len(acknowledged) > 50
        stored = set()
        after = None
        while True:
            page = store.page(limit=500, after=after)
            stored |= {job.id for job in page.jobs}
            after = page.after
            if after is None:
                break
        assert set(acknowledged) <= stored
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.ready()


def test_a_mark_is_set_once_and_passes(store: JobStore) -> None:
    assert not store.marked("ended:a")
    assert store.mark("ended:a", 0.3) and not store.mark("ended:a", 60)
    assert store.marked("ended:a") and not store.marked("ended:b")
    deadline = time.monotonic() + 10
    while store.marked("ended:a"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.mark("ended:a", 60)


def test_those_in_line_are_told_what_they_wait_for(store: JobStore) -> None:
    running, first, second = (submit(store) for _ in range(3))
    store.claim("a", LEASE, BACKOFF)
    store.explain("the disk is full")
    assert [store.get(job_id).waiting for job_id in (running, first, second)] == ["", *["the disk is full"] * 2]
    store.explain("")
    assert store.get(second).waiting == ""
    store.explain("Ray is away")
    claimed = store.claim("a", LEASE, BACKOFF).job
    assert claimed is not None and (claimed.id, claimed.waiting) == (first, "")
