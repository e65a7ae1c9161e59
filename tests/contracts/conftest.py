"""Servers are started once for all contract suites; `store` is each implementation in turn, empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.jobs.redis_store import RedisJobStore
from services.jobs.store import JobStore
from services.node.embedded import EmbeddedStore
from tests.contracts.stores import system_redis
from tests.memory_store import InMemoryJobStore


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    with system_redis() as url:
        if url is None:
            pytest.skip("no redis-server is installed")
        yield url


@pytest.fixture
def redis_store(server: EmbeddedStore) -> Iterator[RedisJobStore]:
    """The Redis store on an empty server; `_redis` writes raw records."""
    store = RedisJobStore(server.url)
    store._redis.flushall()
    store._redis.config_set("appendfsync", "no")  # nothing is killed here, and the disk is slow
    yield store
    store.close()


@pytest.fixture(params=["memory", "embedded", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[JobStore]:
    if request.param == "memory":
        yield InMemoryJobStore()
        return
    on = request.getfixturevalue
    if request.param == "embedded":
        yield on("redis_store")
        return
    store = RedisJobStore(on("redis_server"))
    store._redis.flushall()
    yield store
    store.close()
