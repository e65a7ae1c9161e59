"""Records that this release did not write: of the one before (N-1), of a later one (N+1), torn, or gone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from accord.config.settings import Settings
from accord.errors import Conflict, Fenced, IncompatibleSpec, JobNotFound, StoreError
from accord.events import OpaqueEvent, Progress, StateChanged, StepCompleted
from accord.ids import new_job_id
from services.api.app import create_app
from services.jobs.job import TERMINAL, JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import PREFIX, Beat
from services.registry import Metrics
from tests.contracts.stores import BACKOFF, running, step_event, submit


def write(store: RedisJobStore, state: str = "queued", index: str = "ready", **fields: Any) -> str:
    """A job as the release before writes it, and whatever a later one adds."""
    raw, job_id, now = store._redis, str(new_job_id()), int(time.time() * 1000)
    sequence = raw.incr(PREFIX + "sequence")
    record = {
        "id": job_id, "name": "n", "spec_json": "{}", "steps": 3, "max_attempts": 3, "state": state, "reason": "",
        "message": "", "epoch": 0, "lost_attempts": 0, "sequence": sequence, "created_at": now, "updated_at": now,
    } | fields  # fmt: skip
    raw.hset(f"{PREFIX}job:{job_id}", mapping={key: value for key, value in record.items() if value is not None})
    raw.zadd(PREFIX + "all", {job_id: 0})
    raw.zadd(f"{PREFIX}in:{state}", {job_id: 0})
    if index:
        raw.zadd(PREFIX + index, {job_id: sequence if index == "ready" else now - 1000})
    add(store, job_id, {"type": "state", "at": now / 1000, "state": "queued", "reason": "", "attempt": 0})
    return job_id


def add(store: RedisJobStore, job_id: str, event: dict[str, Any] | str, event_id: str = "*") -> str:
    text = event if isinstance(event, str) else json.dumps(event)
    return str(store._redis.xadd(f"{PREFIX}job:{job_id}:ev", {"json": text}, id=event_id))


def indexed(store: RedisJobStore, job_id: str) -> list[str]:
    """The sets and keys that know an id."""
    names = ["all", "ready", "delayed", "leases", *(f"in:{state}" for state in JobState)]
    found = [name for name in names if store._redis.zscore(PREFIX + name, job_id) is not None]
    return found + [str(key) for key in store._redis.scan_iter(f"{PREFIX}job:{job_id}*")]


def test_a_job_of_the_release_before_runs_here(redis_store: RedisJobStore) -> None:
    job_id = write(redis_store)
    job = redis_store.claim("a", 30, BACKOFF).job
    assert job is not None and job.id == job_id and job.progress is None and job.waiting == ""
    redis_store.append(job_id, 1, step_event(1))
    assert redis_store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE).step == 1
    assert [entry.event.type for entry in redis_store.events(job_id)] == ["state", "state", "step", "state"]


def test_a_history_of_the_release_before_is_read_and_continued_in_order(redis_store: RedisJobStore) -> None:
    """It has steps and progress in one stream, and here its clock was ahead."""
    job_id = running(redis_store)
    ahead = int(time.time() * 1000) + 3_600_000
    add(redis_store, job_id, {"type": "progress", "at": 1.0, "phase": "learn", "step": 1, "done": 1, "total": 2,
                              "detail": ""}, f"{ahead}-0")  # fmt: skip
    add(redis_store, job_id, step_event(1).model_dump_json(), f"{ahead}-7")
    redis_store.append(job_id, 1, step_event(2))
    redis_store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    history = redis_store.events(job_id)
    assert [entry.event.type for entry in history[3:]] == ["progress", "step", "step", "state"]
    assert isinstance(history[3].event, Progress) and isinstance(history[4].event, StepCompleted)
    assert [entry.id for entry in history[3:]] == [f"{ahead}-0", f"{ahead}-7", f"{ahead}-8", f"{ahead}-9"]
    assert redis_store.events(job_id, f"{ahead}-7") == history[5:]


def test_finished_jobs_of_the_release_before_expire_and_can_be_deleted(redis_store: RedisJobStore) -> None:
    old = [write(redis_store, "succeeded", "", finished_at=int(time.time() * 1000) - 1000) for _ in range(2)]
    time.sleep(0.05)
    redis_store.delete(old[0])
    assert redis_store.sweep(0.02) == 1 and redis_store.page().jobs == []
    assert indexed(redis_store, old[1]) == []


def test_a_state_of_a_later_release_is_shown_and_left_alone(redis_store: RedisJobStore) -> None:
    strange = write(redis_store, "paused", epoch=1, reason="nap", shard="7")
    leased = write(redis_store, "thinking", "leases", epoch=1)
    late = write(redis_store, "dreaming", "delayed", epoch=1)
    normal = submit(redis_store)
    assert {job.id: str(job.state) for job in redis_store.page().jobs} == {
        strange: "paused", leased: "thinking", late: "dreaming", normal: "queued",
    }  # fmt: skip
    job = redis_store.get(strange)
    assert (job.state, job.reason, job.finished) == ("paused", "nap", False)
    claimed = redis_store.claim("a", 30, BACKOFF)
    assert claimed.job is not None and claimed.job.id == normal and claimed.lost == ()
    assert redis_store.claim("a", 30, BACKOFF).job is None
    with pytest.raises(Fenced):
        redis_store.append(strange, 1, step_event(1))
    for refused in (redis_store.cancel, redis_store.delete):
        with pytest.raises(Conflict, match="paused"):
            refused(strange)
    redis_store.stats()
    before = {job_id: redis_store._redis.hgetall(f"{PREFIX}job:{job_id}") for job_id in (strange, leased, late)}
    assert [fields["state"] for fields in before.values()] == ["paused", "thinking", "dreaming"]
    assert "ready" in indexed(redis_store, strange) and "leases" in indexed(redis_store, leased)
    assert not any(redis_store.unreadable().values()), "nothing is wrong with them"


def test_an_ended_state_of_a_later_release_counts_as_ended(redis_store: RedisJobStore) -> None:
    job_id = write(redis_store, "archived", "", finished_at=int(time.time() * 1000))
    assert redis_store.get(job_id).finished
    redis_store.delete(job_id)
    assert indexed(redis_store, job_id) == [] and redis_store._redis.zcard(PREFIX + "in:archived") == 0


def test_events_of_a_later_release_are_passed_on(redis_store: RedisJobStore) -> None:
    job_id = running(redis_store)
    unknown = {"type": "teleported", "at": 5.0, "where": {"rack": 3}}
    wider = {"type": "state", "at": 6.0, "state": "running", "reason": "", "attempt": 1, "mood": "good"}
    phase = {"type": "progress", "at": 7.0, "phase": "dream", "step": 1, "done": 1, "total": 2, "detail": ""}
    for event in (unknown, wider, phase):
        add(redis_store, job_id, event)
    first, second, third = (entry.event for entry in redis_store.events(job_id)[3:])
    assert isinstance(first, OpaqueEvent) and json.loads(first.model_dump_json()) == unknown
    assert isinstance(second, StateChanged) and second.state == "running"
    assert isinstance(third, OpaqueEvent) and json.loads(third.model_dump_json()) == phase


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"at": 1}', '{"type": 3}', "null"])
def test_what_is_no_event_is_counted_and_passed(redis_store: RedisJobStore, text: str) -> None:
    job_id = running(redis_store)
    torn = add(redis_store, job_id, text)
    redis_store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    (entry,) = redis_store.events(job_id, redis_store.events(job_id)[2].id, limit=1)
    assert (entry.id, entry.event.type) == (torn, "unreadable"), "a cursor gets past it"
    assert redis_store.events(job_id)[-1].event.type == "state"
    assert redis_store.unreadable()["event"] > 0


def test_a_spec_of_a_later_release_is_told_apart_from_a_bad_one(redis_store: RedisJobStore) -> None:
    job_id = write(redis_store, spec_json='{"name": "x", "teleport": true}')
    with pytest.raises(IncompatibleSpec, match="teleport"):
        _ = redis_store.get(job_id).spec


def test_odd_records_reach_clients_over_rest(redis_store: RedisJobStore, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", runs_dir=tmp_path / "runs", api_key=SecretStr("k" * 20))
    strange = write(redis_store, "paused", spec_json='{"teleport": true}', reason="nap")
    gone = submit(redis_store)
    redis_store._redis.delete(f"{PREFIX}job:{gone}")
    job_id = running(redis_store)
    add(redis_store, job_id, {"type": "teleported", "at": 5.0, "rack": 3})
    redis_store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE)
    with TestClient(create_app(settings, redis_store)) as client:
        client.headers["Authorization"] = f"Bearer {'k' * 20}"
        listed = client.get("/v1/jobs").raise_for_status().json()["items"]
        assert {(job["id"], job["state"]) for job in listed} == {(strange, "paused"), (job_id, "succeeded")}
        assert client.get(f"/v1/jobs/{strange}").raise_for_status().json()["spec"] == {"teleport": True}
        url = f"/v1/jobs/{job_id}/events"
        page = client.get(url, headers={"Accept": "application/json"}).raise_for_status().json()
        assert page["items"][3]["event"] == {"type": "teleported", "at": 5.0, "rack": 3} and page["finished"]
        stream = client.get(url, headers={"Accept": "text/event-stream"}).text
        assert "event: teleported" in stream and "event: end" in stream
        assert client.get(f"/v1/jobs/{gone}").status_code == 404
        assert 'accord_records_unreadable_total{kind="missing_job"} 1.0' in client.get("/metrics").text


def test_a_record_that_cannot_be_read_says_what_to_do(redis_store: RedisJobStore, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", runs_dir=tmp_path / "runs", api_key=SecretStr("k" * 20))
    client = TestClient(create_app(settings, redis_store), headers={"Authorization": "Bearer " + "k" * 20})
    for torn in ({"epoch": "two"}, {"spec_json": '{"torn": '}, {"spec_json": "[]"}):
        job_id = write(redis_store, "failed", "", finished_at=1, **torn)
        answer = client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 500 and "`accord delete` removes it" in answer.json()["detail"]
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    for torn in ({"dropped_to": "x", "dropped": 1}, {"dropped_to": "1-0", "dropped": "many"}):
        path = f"/v1/jobs/{write(redis_store, 'failed', '', **torn)}/events"
        assert len(client.get(path, headers={"Accept": "application/json"}).json()["items"]) == 1


def test_a_strange_entry_of_the_feed_is_passed(redis_store: RedisJobStore) -> None:
    end = redis_store.feed_end()
    strange = redis_store._redis.xadd(PREFIX + "feed", {"later": "release"})
    job_id = submit(redis_store)
    first, second = redis_store.feed(end)
    assert (first.id, first.job_id) == (strange, "") and second.job_id == job_id and second.number != first.number + 1


@pytest.mark.parametrize("progress", ["no json", "{}", '{"phase": "dream", "step": 1, "done": 1, "total": 1}'])
def test_progress_that_is_not_understood_is_none(redis_store: RedisJobStore, progress: str) -> None:
    job_id = write(redis_store, progress=progress)
    assert redis_store.get(job_id).progress is None and len(redis_store.page().jobs) == 1


@pytest.mark.parametrize("where", ["ready", "delayed", "leases", "ended"])
def test_a_record_that_is_gone_costs_nothing_else(redis_store: RedisJobStore, where: str) -> None:
    gone = submit(redis_store)
    if where != "ready":
        redis_store.claim("a", 0.001 if where == "leases" else 30, BACKOFF)
    if where == "delayed":
        redis_store.lose(gone, 1, Reason.KILLED, "", 0.001)
    if where == "ended":
        redis_store.finish(gone, 1, JobState.SUCCEEDED, Reason.NONE)
    redis_store._redis.delete(f"{PREFIX}job:{gone}")
    other = submit(redis_store)
    time.sleep(0.02)
    claimed = redis_store.claim("b", 30, BACKOFF)
    assert claimed.job is not None and claimed.job.id == other and claimed.lost == ()
    assert redis_store.claim("b", 30, BACKOFF).job is None
    assert [job.id for job in redis_store.page().jobs] == [other]
    assert [job.id for state in JobState for job in redis_store.page(state=state).jobs] == [other]
    assert sum(redis_store.stats().by_state.values()) == 1
    assert indexed(redis_store, gone) == [], "its listing and its history went as well"
    for call in (redis_store.get, redis_store.events, redis_store.cancel, redis_store.delete):
        with pytest.raises(JobNotFound):
            call(gone)  # type: ignore[operator]
    for write_ in (lambda: redis_store.beat(gone, 1, 30), lambda: redis_store.append(gone, 1, step_event(1))):
        with pytest.raises(JobNotFound):
            write_()
    assert indexed(redis_store, gone) == [], "no write brings half of it back"
    assert redis_store.unreadable()["missing_job"] == 1
    assert b'accord_records_unreadable_total{kind="missing_job"} 1.0' in Metrics(redis_store).exposition()


@pytest.mark.parametrize("index", ["ready", "delayed", "all", "sequence", "feed", "feed-count", "folders"])
def test_an_index_that_is_gone_loses_no_job(redis_store: RedisJobStore, index: str) -> None:
    alive, late = running(redis_store), submit(redis_store)
    assert redis_store.claim("a", 30, BACKOFF).job is not None
    redis_store.lose(late, 1, Reason.KILLED, "", 60)
    first, second = submit(redis_store), submit(redis_store)
    redis_store._redis.delete(PREFIX + index)
    claimed = [job.id for _ in range(4) if (job := redis_store.claim("b", 30, 60).job) is not None]
    assert sorted(claimed) == sorted([first, second, *([late] if index == "delayed" else [])])
    assert claimed.index(first) < claimed.index(second)
    assert {job.id for job in redis_store.page().jobs} == {alive, late, first, second}
    assert redis_store.beat(alive, 1, 30) is Beat.OK


def test_leases_that_are_gone_begin_again(redis_store: RedisJobStore) -> None:
    orphan = running(redis_store)
    ended, gone = write(redis_store, "succeeded", ""), write(redis_store, "running", "leases", epoch=1)
    redis_store._redis.zadd(PREFIX + "in:running", {ended: 0})
    redis_store._redis.delete(PREFIX + "leases", f"{PREFIX}job:{gone}")
    assert redis_store.claim("b", 0.001, 60).job is None
    time.sleep(0.02)
    assert [job.id for job in redis_store.claim("b", 30, 60).lost] == [orphan]
    assert redis_store.get(orphan).state is JobState.QUEUED and indexed(redis_store, gone) == []
    assert [job.id for job in redis_store.page(state=JobState.RUNNING).jobs] == []


@pytest.mark.parametrize("index", ["ready", "delayed", "leases"])
def test_a_key_of_another_kind_in_a_record_s_place_costs_nothing_else(redis_store: RedisJobStore, index: str) -> None:
    odd = write(redis_store, "running" if index == "leases" else "queued", index, epoch=1)
    redis_store._redis.set(f"{PREFIX}job:{odd}", "no hash")
    normal = submit(redis_store)
    assert [job.id for job in redis_store.page().jobs] == [normal]
    claimed = redis_store.claim("a", 30, BACKOFF)
    assert claimed.job is not None and claimed.job.id == normal
    assert indexed(redis_store, odd) == [] and [job.id for job in redis_store.page().jobs] == [normal]


@pytest.mark.parametrize("torn", [
    {"created_at": "yesterday"}, {"steps": None}, {"name": None}, {"epoch": "two"}, {"max_attempts": None},
    {"finished_at": "x"}, {"lost_attempts": "many"}, {"sequence": None}, {"sequence": "x"}, {"spec_json": None},
    {"id": None},
])  # fmt: skip
def test_a_torn_record_stops_neither_lists_nor_claims(redis_store: RedisJobStore, torn: dict[str, Any]) -> None:
    job_id = write(redis_store, "queued", "delayed", **torn)
    normal = submit(redis_store)
    assert normal in {job.id for job in redis_store.page().jobs}
    redis_store.stats()
    claimed = [job for _ in range(4) if (job := redis_store.claim("a", 30, BACKOFF).job) is not None]
    assert normal in {job.id for job in claimed}
    try:
        redis_store.get(job_id)
    except StoreError as error:
        assert "accord delete" in str(error) and redis_store.unreadable()["job"] > 0
    if job_id not in {job.id for job in claimed}:
        redis_store._redis.hset(f"{PREFIX}job:{job_id}", mapping={"state": "cancelled"})
        redis_store.delete(job_id)
        assert not {"all", "ready", "delayed", "leases"} & set(indexed(redis_store, job_id))


@pytest.mark.parametrize("torn", [{"lost_attempts": "many"}, {"max_attempts": None}, {"sequence": None}])
def test_a_torn_record_whose_lease_ran_out_ends_or_goes_back(redis_store: RedisJobStore, torn: dict[str, Any]) -> None:
    job_id = write(redis_store, "running", "leases", epoch=1, **torn)
    normal = submit(redis_store)
    claimed = redis_store.claim("a", 30, 60).job
    assert claimed is not None and claimed.id == normal
    state = redis_store._redis.hget(f"{PREFIX}job:{job_id}", "state")
    assert state == "queued" or state in TERMINAL
    assert redis_store._redis.zscore(PREFIX + "leases", job_id) is None
