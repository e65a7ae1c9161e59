"""Event streams over a real store: whatever happens to the feed, each client hears every event once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from accord.errors import StoreUnavailable
from accord.events import Progress, StepCompleted
from accord.ids import new_job_id
from services.api import streams
from services.api.streams import Hub
from services.jobs.job import JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import FeedEntry, StoredEvent, Submission
from services.node.embedded import EmbeddedStore
from services.registry import Metrics

LEASE_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def store(server: EmbeddedStore) -> Iterator[RedisJobStore]:
    made = RedisJobStore(server.url, timeout_s=1.0)
    made._redis.flushall()
    yield made
    made.close()


def insist(call: Callable[[], object]) -> object:
    deadline = time.monotonic() + 20
    while True:
        try:
            return call()
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def started(store: RedisJobStore) -> str:
    job_id = str(new_job_id())
    store.enqueue(Submission(id=job_id, name="n", spec_json="{}", steps=100))
    job = store.claim("me", LEASE_S, 1.0).job
    assert job is not None and job.id == job_id
    return job_id


def step(number: int) -> StepCompleted:
    return StepCompleted(step=number, policy_version=number, metrics={"x": 1.0}, phase_seconds={}, samples=1)


def finish(store: RedisJobStore, job_id: str) -> None:
    insist(lambda: store.finish(job_id, 1, JobState.SUCCEEDED, Reason.NONE))


async def heard(stream: AsyncIterator[bytes]) -> list[str]:
    """Ids of the events of a stream to its end; the last is `end`."""
    found: list[str] = []
    async with asyncio.timeout(30):
        async for text in stream:
            for block in text.decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
                if "id" in fields:
                    found.append(fields["id"])
                elif fields.get("event") == "end":
                    found.append("end")
    return found


async def follow_all(store: RedisJobStore, clients: list[tuple[str, str]], work: Callable[[], None]) -> list[list[str]]:
    """Follow (job, cursor) of each client while `work` runs in a thread."""
    hub = Hub(store, Metrics(), threading.Event())
    waiting = [asyncio.create_task(heard(hub.follow(job_id, cursor))) for job_id, cursor in clients]
    await asyncio.sleep(0.1)
    await asyncio.to_thread(work)
    return list(await asyncio.gather(*waiting))


@pytest.fixture(autouse=True)
def only_the_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOOK_S", 1e9)


def history(store: RedisJobStore, job_id: str) -> list[str]:
    return [entry.id for entry in store.events(job_id, limit=10_000)]


@pytest.mark.parametrize("trouble", ["none", "connections", "server"])
def test_fifty_clients_hear_everything_once(store: RedisJobStore, server: EmbeddedStore, trouble: str) -> None:
    jobs = [started(store) for _ in range(5)]
    cursors = [history(store, job_id)[0] for job_id in jobs]

    def work() -> None:
        for number in range(40):
            for job_id in jobs:
                insist(lambda job_id=job_id, number=number: store.append(job_id, 1, step(number)))
                progress = Progress(phase="learn", step=number, done=1, total=2)
                insist(lambda job_id=job_id, progress=progress: store.append(job_id, 1, progress))
            if trouble == "connections" and number % 10 == 5:
                with contextlib.suppress(StoreUnavailable):
                    store._guard(lambda: store._redis.client_kill_filter(_type="normal", skipme=True))
            if trouble == "server" and number == 20:
                server.kill()
        for job_id in jobs:
            finish(store, job_id)

    clients = [(job_id, "0-0" if index % 2 else cursor) for index in range(10) for job_id, cursor in
               zip(jobs, cursors, strict=True)]  # fmt: skip
    everything = asyncio.run(follow_all(store, clients, work))
    for (job_id, cursor), found in zip(clients, everything, strict=True):
        told = history(store, job_id)
        assert len(told) >= 43
        assert found == [*(told if cursor == "0-0" else told[1:]), "end"]


def test_what_the_feed_leaves_out_is_read_from_the_history(server: EmbeddedStore, store: RedisJobStore) -> None:
    class Forgetful(RedisJobStore):
        def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
            kept: list[FeedEntry] = []
            while not kept and (found := super().feed(after, wait_s, limit)):
                after = found[-1].id
                kept = [entry for entry in found if entry.number % 3 or entry.number < 6 or '"step"' not in entry.json]
            return kept

    job_id = started(store)

    def work() -> None:
        for number in range(30):
            store.append(job_id, 1, step(number))
            time.sleep(0.005)
        finish(store, job_id)

    forgetful = Forgetful(server.url)
    found = asyncio.run(follow_all(forgetful, [(job_id, "0-0")] * 3, work))
    assert found == [[*history(store, job_id), "end"]] * 3
    forgetful.close()


def test_what_comes_by_both_ways_is_told_once(server: EmbeddedStore, store: RedisJobStore) -> None:
    job_id = started(store)

    class Late(RedisJobStore):
        """Something happens between the subscription and the look at the history, each time."""

        looks = 0

        def events(self, job_id: str, after: str = "0-0", limit: int = 500) -> list[StoredEvent]:
            self.looks += 1
            store.append(job_id, 1, step(self.looks))
            time.sleep(0.2)
            return super().events(job_id, after, limit)

    late = Late(server.url)

    def work() -> None:
        time.sleep(0.8)
        finish(store, job_id)

    found = asyncio.run(follow_all(late, [(job_id, "0-0")], work))
    assert late.looks >= 2
    assert found == [[*history(store, job_id), "end"]]
    late.close()


def test_events_that_the_feed_never_tells_come_when_the_history_is_looked_at(
    server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(RedisJobStore):
        def feed(self, after: str, wait_s: float = 0.0, limit: int = 500) -> list[FeedEntry]:
            time.sleep(0.05)
            return []

    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(streams, "LOOK_S", 0.2)
    silent = Silent(server.url)
    silent._redis.flushall()
    job_id = started(silent)
    found = asyncio.run(follow_all(silent, [(job_id, "0-0")], lambda: finish(silent, job_id)))
    assert found == [[*history(silent, job_id), "end"]]
    silent.close()


def test_a_client_that_reads_slowly_costs_no_memory_and_loses_nothing(
    store: RedisJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BUFFER", 10)
    monkeypatch.setattr(streams, "PAGE", 7)
    job_id = started(store)

    async def slowly() -> tuple[list[str], int]:
        hub = Hub(store, Metrics(), threading.Event())
        stream = hub.follow(job_id, "0-0")
        first = await anext(stream)
        await asyncio.sleep(0.2)
        store.append(job_id, 1, step(99))
        first += await anext(stream)  # now it follows the feed
        most = 0

        def work() -> None:
            nonlocal most
            for number in range(60):
                store.append(job_id, 1, step(number))
                most = max([most, *(len(one.waiting) for one in hub._followers[job_id])])
            finish(store, job_id)

        await asyncio.to_thread(work)

        async def all_of_it() -> AsyncIterator[bytes]:
            yield first
            async for text in stream:
                yield text

        return await heard(all_of_it()), most

    found, most = asyncio.run(slowly())
    assert found == [*history(store, job_id), "end"]
    assert most <= 10


def test_a_cursor_in_the_future_waits_and_ends_with_the_job(store: RedisJobStore) -> None:
    job_id = started(store)
    ahead = f"{int((time.time() + 600) * 1000)}-0"
    ended: list[bool] = []

    async def wait() -> list[str]:
        hub = Hub(store, Metrics(), threading.Event())
        task = asyncio.create_task(heard(hub.follow(job_id, ahead)))
        await asyncio.sleep(0.4)
        ended.append(task.done())
        finish(store, job_id)
        streams_stale = [one for followers in hub._followers.values() for one in followers]
        for one in streams_stale:
            one.expire()
        return await task

    assert asyncio.run(wait()) == ["end"]
    assert ended == [False]


def test_streams_end_without_an_end_when_the_service_does(store: RedisJobStore) -> None:
    job_id = started(store)

    async def close() -> list[str]:
        closing, metrics = threading.Event(), Metrics()
        hub = Hub(store, metrics, closing)
        task = asyncio.create_task(heard(hub.follow(job_id, "0-0")))
        await asyncio.sleep(0.2)
        assert b"accord_event_streams 1.0" in metrics.exposition()
        closing.set()
        async with asyncio.timeout(5):
            found = await task
        assert b"accord_event_streams 0.0" in metrics.exposition()
        return found

    assert asyncio.run(close()) == history(store, job_id)


def test_a_job_that_is_deleted_ends_its_streams(store: RedisJobStore) -> None:
    job_id = started(store)
    assert asyncio.run(follow_all(store, [(str(new_job_id()), "0-0")], lambda: None)) == [["end"]]
    assert history(store, job_id)
