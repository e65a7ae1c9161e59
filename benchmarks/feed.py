"""Plays the attempts of some jobs: submits them, claims them, and appends events at a steady rate.

Imports the store from whichever checkout PYTHONPATH names. Prints the ids as one line of JSON, then waits for a line on
its standard input before the first event; without one it leaves the jobs open and ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from accord.events import StepCompleted
from accord.ids import new_job_id
from services.jobs.job import JobState, Reason
from services.jobs.redis_store import RedisJobStore
from services.jobs.store import Submission

LEASE_S = 300.0
_METRICS: dict[str, float | None] = {f"reward/{index}/mean": index / 7 for index in range(12)}


def main() -> None:
    """Submit, say so, wait, append, finish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="redis URL")
    parser.add_argument("--spec", required=True, help="the jobs' spec as JSON text")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50.0, help="events a second over all jobs")
    parser.add_argument("--seconds", type=float, default=4.0)
    given = parser.parse_args()
    store = RedisJobStore(given.store)
    wanted = [new_job_id() for _ in range(given.jobs)]
    for job_id in wanted:
        store.enqueue(Submission(id=job_id, name="fed", spec_json=given.spec, steps=1_000_000))
    jobs = [store.claim("feed", LEASE_S, 1.0).job for _ in wanted]
    owned = [(job.id, job.epoch) for job in jobs if job is not None]
    assert {job_id for job_id, _ in owned} == set(wanted), "the store must have no other job in line"
    for job_id, epoch in owned:
        store.running(job_id, epoch)
    print(json.dumps([job_id for job_id, _ in owned]), flush=True)
    if not sys.stdin.readline():
        return
    due = time.monotonic()
    for number in range(int(given.rate * given.seconds)):
        due += 1 / given.rate
        time.sleep(max(0.0, due - time.monotonic()))
        job_id, epoch = owned[number % len(owned)]
        event = StepCompleted(step=number, policy_version=number, metrics=_METRICS, phase_seconds={}, samples=64)
        store.append(job_id, epoch, event)
    for job_id, epoch in owned:
        store.finish(job_id, epoch, JobState.SUCCEEDED, Reason.NONE)


if __name__ == "__main__":
    main()
