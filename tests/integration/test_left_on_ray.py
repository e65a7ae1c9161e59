"""What a job leaves on Ray: errors that keep their class from wherever they arise, and no reward that nobody uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray import serve

from accord.config.clap_dir import SHIPPED
from accord.config.job import JobSpec
from accord.config.rewards.panel import SyncReward
from accord.errors import ModelError
from accord.ids import PolicyVersion
from accord.run_folder import RunFolder
from accord.types import PolicyState
from learner import workers
from reward_servers import app, owners
from rollout_workers.actor import start_stream
from tests.integration.service import small_job


@pytest.fixture(scope="module", autouse=True)
def cluster():
    context = ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield context.address_info["gcs_address"]
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def job() -> JobSpec:
    """Its model directory was there when it was submitted, and is not there now."""
    return JobSpec.parse(json.dumps(small_job(backbone={"path": "/nowhere/model"}, cluster={"learner_ranks": 1})))


class Silent:
    """Counts the lives of the group: a restarted one would report the loss of the life before it."""

    def emit(self, event) -> None:
        raise AssertionError(event)


def test_a_rollout_worker_that_cannot_load_its_model_says_why(job):
    stream = start_stream(job, [], None)
    with pytest.raises(ModelError, match="/nowhere/model") as caught:
        stream.publish(PolicyState(PolicyVersion(0), {}))
    assert type(caught.value) is ModelError
    stream.stop()


def test_a_learner_rank_that_cannot_load_its_model_ends_the_group_at_once(job, tmp_path):
    with pytest.raises(ModelError, match="/nowhere/model") as caught:
        workers.run(job, RunFolder(tmp_path), source=None, events=Silent(), deadline_s=120)
    assert type(caught.value) is ModelError


IDLE_S = 1.0

ANOTHER_JOB = """
import sys, time, ray
from accord.config.rewards.panel import SyncReward
from accord.config.rewards.sound import ClapReward
from reward_servers import app
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(*app.deploy([SyncReward(num_cpus=0.1), ClapReward(path=sys.argv[2], num_cpus=0.1)], idle_s=1.0))
sys.stdout.flush()
time.sleep(600)
"""


def until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def there() -> set[str]:
    return {entry.name for entry in app.status() if entry.status != "DELETING"}


def test_rewards_end_with_the_last_job_that_uses_them(cluster, tmp_path):
    """Another job shares one reward with this one and has a model of its own; it is killed the hard way."""
    checkpoint = shutil.copytree(SHIPPED["builtin:tiny-clap"], tmp_path / "clap")
    other = subprocess.Popen(
        [sys.executable, "-c", ANOTHER_JOB, cluster, checkpoint], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        assert other.stdout is not None
        shared, own = other.stdout.readline().split()
        assert (shared, there()) == ("sync", {"sync", own})
        app.deploy([SyncReward(num_cpus=0.1)], idle_s=IDLE_S)
    finally:
        other.kill()
        other.wait(10)
    until(lambda: there() == {"sync"}, f"{own} ends, for nobody uses it any more")
    time.sleep(3 * IDLE_S)
    assert there() == {"sync"}, "this process uses it"
    owners.let_go("sync")
    until(lambda: not there(), "its last owner let it go")
    app.deploy([SyncReward(num_cpus=0.1)], idle_s=IDLE_S)
    assert there() == {"sync"}, "and the next job gets it anew"


def test_a_new_owner_and_a_server_that_is_about_to_end_cannot_miss_each_other():
    assert owners.hold(["some"], IDLE_S) == ["some"]
    assert owners.hold(["some", "other"], IDLE_S) == ["other"]
    assert not owners.mark_closing("some") and not owners.closing("some")
    owners.let_go("some")
    assert owners.mark_closing("some")
    owners.hold(["some"], IDLE_S)
    assert owners.closing("some"), "the new owner sees that it must wait"
    owners.clear_closing("some")
    owners.let_go("some")
