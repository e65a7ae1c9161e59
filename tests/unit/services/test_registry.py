"""What `/metrics` says and costs, whatever callers do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from accord.config.settings import Settings
from services.api.app import create_app
from services.jobs.store import Submission
from tests.memory_store import InMemoryJobStore

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def store() -> InMemoryJobStore:
    return InMemoryJobStore()


@pytest.fixture
def client(tmp_path: Path, store: InMemoryJobStore) -> Iterator[TestClient]:
    settings = Settings(data_dir=tmp_path / "d", runs_dir=tmp_path / "r", api_key=KEY)  # type: ignore[arg-type]
    with TestClient(create_app(settings, store), headers={"Authorization": f"Bearer {KEY}"}) as made:
        yield made


def test_callers_cannot_make_the_metrics_grow(client: TestClient) -> None:
    def ask(count: int) -> set[str]:
        for number in range(count):
            client.request(f"BREW{number}", f"/v1/jobs/job-{number}")
            client.request("QUERY" if number % 2 else f"X{number}", "/v1/jobs")
            client.get(f"/nowhere/{number}")
            client.get(f"/v1/jobs/job-{number}", headers={"Authorization": f"Bearer {number}"})
            client.get("/v1/jobs", params={"limit": number % 2})
        text = str(client.app.state.accord.metrics.exposition(), "utf-8")  # type: ignore[attr-defined]
        return {line.rsplit(" ", 1)[0] for line in text.splitlines() if line.startswith("accord_http")}

    assert ask(2) == ask(60)


def test_a_scrape_that_follows_at_once_costs_the_store_nothing(client: TestClient, store: InMemoryJobStore) -> None:
    asked: list[int] = []
    real = store.stats
    store.stats = lambda: asked.append(1) or real()  # type: ignore[method-assign,func-returns-value]
    texts = [client.get("/metrics").text for _ in range(20)]
    assert len(asked) <= 5 and "accord_queue_jobs" in texts[-1]


def test_a_stream_is_counted_while_it_is_open_and_is_no_latency(client: TestClient, store: InMemoryJobStore) -> None:
    job_id = "job-" + 25 * "0"
    store.enqueue(Submission(job_id, "n", "{}", 1))
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert client.get(f"/v1/jobs/{job_id}/events").text.endswith("event: end\ndata: {}\n\n")
    text = client.get("/metrics").text
    assert "accord_event_streams 0.0" in text
    assert 'route="/v1/jobs/{job_id}/cancel"' in text and 'route="/v1/jobs/{job_id}/events"' not in text
