"""An error of ours keeps its class from the process of Ray's where it arises, and ends what cannot help at once."""

from __future__ import annotations

import json
from functools import partial

import pytest
import ray

from accord.config.job import JobSpec
from accord.errors import ModelError
from accord.ids import PolicyVersion
from accord.types import PolicyState
from learner import group
from rollout_workers.actor import start_stream
from tests.integration.service import small_job


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def job() -> JobSpec:
    """Its model directory was there when it was submitted, and is not there now."""
    return JobSpec.parse(json.dumps(small_job(backbone={"path": "/nowhere/model"})))


def _itself(thing):
    return thing


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
        group.run(
            job, tmp_path, make_source=partial(_itself, None), make_events=partial(_itself, Silent()), deadline_s=120
        )  # fmt: skip
    assert type(caught.value) is ModelError
