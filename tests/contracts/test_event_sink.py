"""The sink of an event loop, on a real server: it holds nothing up, keeps the order, and tells what went wrong."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from accord.config.settings import Settings
from accord.errors import Fenced, StoreUnavailable
from accord.events import StepCompleted
from services.jobs.job import Reason
from services.jobs.redis_store import RedisJobStore
from services.node.embedded import EmbeddedStore
from services.runner.sink import QueuedEventSink, StoreEventSink
from tests.contracts.stores import running, step_event


@pytest.fixture
def settings(server: EmbeddedStore, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, runs_dir=tmp_path, redis_url=server.url, lease_s=90)  # type: ignore[arg-type]


@pytest.fixture
def away(server: EmbeddedStore) -> Iterator[psutil.Process]:
    """The server, stopped: it takes connections and answers nothing."""
    assert server._process is not None
    process = psutil.Process(server._process.pid)
    process.suspend()
    yield process
    process.resume()


def steps(store: RedisJobStore, job_id: str) -> list[int]:
    return [entry.event.step for entry in store.events(job_id) if isinstance(entry.event, StepCompleted)]


def test_the_loop_runs_on_while_the_store_is_away(
    redis_store: RedisJobStore, settings: Settings, request: pytest.FixtureRequest
) -> None:
    job_id = running(redis_store)
    sink = pickle.loads(pickle.dumps(QueuedEventSink(StoreEventSink(settings, job_id, 1))))
    stopped = request.getfixturevalue("away")

    async def work() -> int:
        turns = 0
        for step in range(1, 51):
            sink.emit(step_event(step))
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(work()) == 50
    stopped.resume()
    deadline = time.monotonic() + 20
    while len(found := steps(redis_store, job_id)) < 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found == list(range(1, 51))


def test_no_more_events_wait_than_there_is_room(
    redis_store: RedisJobStore, settings: Settings, request: pytest.FixtureRequest
) -> None:
    sink = QueuedEventSink(StoreEventSink(settings, running(redis_store), 1), room=3)
    request.getfixturevalue("away")
    with pytest.raises(StoreUnavailable, match="3 events wait"):
        for step in range(1, 6):
            sink.emit(step_event(step))


def test_a_fenced_attempt_hears_of_it_at_a_later_event(redis_store: RedisJobStore, settings: Settings) -> None:
    job_id = running(redis_store)
    sink = QueuedEventSink(StoreEventSink(settings, job_id, 1))
    redis_store.lose(job_id, 1, Reason.CRASHED, "", 0.0)
    deadline = time.monotonic() + 20
    with pytest.raises(Fenced, match="attempt 1 does not own"):
        while time.monotonic() < deadline:
            sink.emit(step_event(1))
            time.sleep(0.01)
    assert steps(redis_store, job_id) == []
