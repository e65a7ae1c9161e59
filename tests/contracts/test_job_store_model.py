"""Random histories: the Redis store and its in-memory twin agree on every answer, and only legal moves happen."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from accord.errors import AccordError
from accord.events import Progress, StateChanged, read_event
from accord.ids import new_job_id
from services.jobs.job import TRANSITIONS, JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import JobStore, Submission
from services.node.embedded import EmbeddedStore
from tests.contracts.stores import step_event
from tests.memory_store import InMemoryJobStore

LONG = 1000.0
NOW = 0.0
"""A backoff too short to be seen: the next claim gets the job."""


class TwoStores(RuleBasedStateMachine):
    """Every call goes to both; answers must match. Leases do not expire here: time is the contract suite's matter."""

    server: EmbeddedStore
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.stores: list[JobStore] = [InMemoryJobStore(), RedisJobStore(self.server.url)]
        self.submitted: list[str] = []

    @initialize()
    def empty(self) -> None:
        self.stores[1]._redis.flushall()  # type: ignore[attr-defined]

    def both(self, call: Any) -> Any:
        answers = [outcome(call, store) for store in self.stores]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(target=jobs, key=st.sampled_from(["", "a", "b"]), body=st.sampled_from(["x", "y"]))
    def submit(self, key: str, body: str) -> str:
        job_id = new_job_id()
        submission = Submission(job_id, "n", "{}", 1, max_attempts=2, key=key, fingerprint=body)
        answer = self.both(lambda store: picture(store.enqueue(submission)[0]))
        self.submitted.append(job_id)
        return str(answer[0]) if isinstance(answer, tuple) else job_id

    @rule()
    def claim(self) -> None:
        self.both(lambda store: picture(store.claim("me", LONG, NOW).job))

    @rule(job=jobs, epoch=st.integers(0, 3))
    def beat(self, job: str, epoch: int) -> None:
        self.both(lambda store: store.beat(job, epoch, LONG))

    @rule(job=jobs, epoch=st.integers(0, 3))
    def running(self, job: str, epoch: int) -> None:
        self.both(lambda store: store.running(job, epoch))

    @rule(job=jobs, epoch=st.integers(0, 3), state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, job: str, epoch: int, state: str) -> None:
        self.both(lambda store: picture(store.finish(job, epoch, JobState(state), Reason.NONE)))

    @rule(job=jobs, epoch=st.integers(0, 3), delay_s=st.sampled_from([0.0, 0.0, LONG]))
    def release(self, job: str, epoch: int, delay_s: float) -> None:
        self.both(lambda store: picture(store.release(job, epoch, delay_s=delay_s, message="later")))

    @rule(job=jobs, epoch=st.integers(0, 3))
    def lose(self, job: str, epoch: int) -> None:
        self.both(lambda store: picture(store.lose(job, epoch, Reason.KILLED, "", NOW)))
        time.sleep(0.003)
        self.claim()  # what waited for its backoff is in line from here on

    @rule(why=st.sampled_from(["", "no room"]))
    def explain(self, why: str) -> None:
        self.both(lambda store: store.explain(why))

    @rule(job=jobs)
    def delete(self, job: str) -> None:
        self.both(lambda store: store.delete(job))

    @rule(key=st.sampled_from(["", "a", "b"]), body=st.sampled_from(["x", "y"]))
    def accepted(self, key: str, body: str) -> None:
        self.both(lambda store: picture(store.accepted(key, body)))

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        self.both(lambda store: picture(store.cancel(job)))

    @rule(job=jobs, epoch=st.integers(0, 3))
    def append(self, job: str, epoch: int) -> None:
        event = Progress(phase="rollout", step=1, done=epoch, total=3)
        self.both(lambda store: store.append(job, epoch, event))

    @rule(job=jobs, epoch=st.integers(0, 3))
    def step(self, job: str, epoch: int) -> None:
        self.both(lambda store: bool(store.append(job, epoch, step_event(epoch))))

    @rule(job=jobs)
    def read(self, job: str) -> None:
        states = self.both(lambda store: [
            entry.event.state for entry in store.events(job) if isinstance(entry.event, StateChanged)
        ])  # fmt: skip
        if isinstance(states, list):
            for before, after in pairwise(states):
                assert JobState(after) in TRANSITIONS[JobState(before)]

    @rule(job=jobs)
    def look(self, job: str) -> None:
        self.both(lambda store: (picture(store.get(job)), store.get(job).progress, store.get(job).step))
        self.both(lambda store: [entry.event.type for entry in store.events(job)])

    @invariant()
    def lists_agree(self) -> None:
        self.both(lambda store: [picture(job) for job in store.page(limit=100).jobs])
        self.both(lambda store: store.folders_to_remove())

    @invariant()
    def the_feed_tells_the_same(self) -> None:
        self.both(lambda store: [
            (entry.job_id, bool(entry.event_id), read_event(entry.json).type)
            for entry in store.feed("0-0", limit=10_000)
        ])  # fmt: skip

    @invariant()
    def queues_agree(self) -> None:
        self.both(lambda store: dict(store.stats().by_state))

    def teardown(self) -> None:
        self.stores[1].close()  # type: ignore[attr-defined]


def outcome(call: Any, store: JobStore) -> Any:
    """The answer, or which refusal."""
    try:
        return call(store)
    except AccordError as error:
        return type(error).__name__


def picture(job: Any) -> Any:
    """A job without its times."""
    return None if job is None else (job.id, job.state, job.reason, job.epoch, job.lost_attempts, job.waiting)


def test_random_histories() -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedStore(Path(folder)) as server:
        store = RedisJobStore(server.url)
        store._redis.config_set("appendfsync", "no")
        store.close()
        TwoStores.server = server
        chosen = settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        )
        TwoStores.TestCase.settings = chosen
        TwoStores.TestCase().runTest()
