"""The store as the event loop calls it: together, each on its own, and never more than may wait."""

from __future__ import annotations

import asyncio
import threading

import pytest

from accord.errors import Conflict, StoreUnavailable
from services.api import calls
from services.api.calls import StoreCalls
from services.jobs.store import Submission
from tests.memory_store import InMemoryJobStore


class Counted(InMemoryJobStore):
    """Counts round trips and holds the first one until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.trips = threading.Event(), []

    def enqueue_all(self, submissions):
        self.trips.append(len(submissions))
        assert self.go.wait(10)
        return super().enqueue_all(submissions)


def submission(name: str, key: str = "", fingerprint: str = "") -> Submission:
    return Submission(id=f"job-{name}", name=name, spec_json="{}", steps=1, key=key, fingerprint=fingerprint)


def test_what_comes_while_one_is_written_goes_together() -> None:
    store = Counted()

    async def submit() -> list[object]:
        made = StoreCalls(store)
        tasks = [asyncio.create_task(made.enqueue(submission("first", "k", "1")))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(made.enqueue(submission(f"n{index}"))) for index in range(20)]
        tasks.append(asyncio.create_task(made.enqueue(submission("other", "k", "2"))))
        await asyncio.sleep(0)
        store.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        made.close()
        return answers

    *good, other = asyncio.run(submit())
    assert store.trips == [1, 21]
    assert isinstance(other, Conflict), "the trouble of one is not the trouble of the others"
    assert [job.id for job, _ in good] == ["job-first", *(f"job-n{index}" for index in range(20))]  # type: ignore[misc]


def test_a_client_that_left_does_not_stop_the_others() -> None:
    store = Counted()

    async def submit() -> str:
        made = StoreCalls(store)
        left, stayed = (asyncio.create_task(made.enqueue(submission(name))) for name in ("left", "stayed"))
        await asyncio.sleep(0.05)
        left.cancel()
        store.go.set()
        job, _ = await stayed
        made.close()
        return job.id

    assert asyncio.run(submit()) == "job-stayed"


def test_a_store_that_breaks_is_told_to_everybody_who_waits() -> None:
    store = InMemoryJobStore()

    def broken(_: object) -> None:
        raise StoreUnavailable("away")

    store.enqueue_all = broken  # type: ignore[method-assign,assignment]

    async def submit() -> list[object]:
        made = StoreCalls(store)
        found = await asyncio.gather(*(made.enqueue(submission(name)) for name in "abc"), return_exceptions=True)
        made.close()
        return found

    assert all(isinstance(answer, StoreUnavailable) for answer in asyncio.run(submit()))


def test_callers_of_a_store_that_hangs_are_refused_before_they_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "WAITING", 8)
    go = threading.Event()

    async def ask() -> int:
        made = StoreCalls(InMemoryJobStore())
        waiting = [asyncio.create_task(made.run(go.wait, 10)) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="8 calls already wait"):
            await made.run(go.wait, 10)
        go.set()
        answers = await asyncio.gather(*waiting)
        assert await made.run(go.wait, 10), "there is room again"
        made.close()
        return sum(answers)

    assert asyncio.run(ask()) == 8


def test_nobody_waits_for_a_store_that_hangs_longer_than_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's own deadline is for one call; in line, each would wait for the calls of all before it."""
    monkeypatch.setattr(calls, "WAIT_S", 0.1)
    store, asked = Counted(), []

    async def ask() -> list[object]:
        made = StoreCalls(store, threads=1)
        held = [made.run(store.go.wait, 10), made.enqueue(submission("held"))]
        tasks = [asyncio.ensure_future(call) for call in held]
        await asyncio.sleep(0.02)
        line = [made.run(asked.append, 1), made.enqueue(submission("late"))]
        found = await asyncio.gather(*tasks, *line, return_exceptions=True)
        monkeypatch.setattr(calls, "WAIT_S", 30)
        store.go.set()
        await made.run(int), await made.enqueue(submission("next"))
        made.close()
        return found

    assert all(isinstance(answer, StoreUnavailable) for answer in asyncio.run(ask()))
    assert asked == [] and store.trips[1:] == [1], "what was given up in line is not done later"
    assert [job.id for job in store.page().jobs if job.id == "job-late"] == []
