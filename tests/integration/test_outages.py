"""The whole service through a full runs volume and the death of its Ray: the job has one attempt, and succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.service import Service, running_service, small_job
from tests.integration.volume import Volume, mounted

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a name that must not be taken for an address."""
    made = tmp_path / "odd #1%20?x"
    (made / "runs").mkdir(parents=True)
    return made


@pytest.fixture
def volume(root: Path) -> Iterator[Volume]:
    with mounted(root / "runs", "64m") as made:
        yield made


@pytest.fixture
def service(volume: Volume, root: Path) -> Iterator[Service]:
    with running_service(root, ACCORD_MIN_FREE_BYTES="1048576", ACCORD_REWARD_IDLE_S="5") as running:
        yield running


def test_room_and_ray_go_and_come_back(service: Service, volume: Volume) -> None:
    job_id = service.submit(small_job(steps=4, max_attempts=1))

    def events(kind: str) -> list[dict]:
        return [event for event in service.events(job_id) if event["type"] == kind]

    service.wait(job_id, lambda: events("step"), 240)
    volume.fill()
    warned = service.wait(job_id, lambda: events("warning"), 120)
    assert {event["code"] for event in warned} == {"volume_full"}
    not_ready = service.client.get("/readyz")
    assert not_ready.status_code == 503 and "ACCORD_MIN_FREE_BYTES" in not_ready.json()["detail"]
    assert service.job(job_id)["state"] == "running"
    volume.empty()
    done = len(events("step"))
    service.wait(job_id, lambda: len(events("step")) > done, 120)

    for process in service.processes("gcs_server"):
        process.kill()
    service.finish(job_id, 300)
    job = service.job(job_id)
    assert (job["attempt"], job["lost_attempts"]) == (2, 0)
    assert [event["reason"] for event in events("state")][3] == "drained"
