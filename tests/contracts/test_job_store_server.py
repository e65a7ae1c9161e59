"""The server under the store: what it must be, what the account on it may do, where its address leads, what is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from accord.errors import AccordError, StoreUnavailable, UnsafeStore
from accord.events import Progress
from services.jobs import redis_store as module
from services.jobs.job import JobState, Reason
from services.jobs.redis_store import RedisJobStore, without_password
from services.jobs.scripts import scripts
from services.jobs.server import complaints
from services.jobs.store import PREFIX, Beat, JobStore
from services.node.embedded import EmbeddedStore
from tests.contracts.stores import BACKOFF, states, step_event, submit, valkey

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
CLIENT_COMMANDS = frozenset({
    "evalsha", "exists", "hget", "hgetall", "hmget", "info", "script|load", "set", "srandmember", "srem", "time",
    "xread", "xrevrange", "zcard", "zrange", "zrangebylex", "zrevrangebylex",
})  # fmt: skip
"""What redis_store.py sends besides what its scripts call."""


def commands() -> list[str]:
    """Every command that is used, in order."""
    called = {name.lower() for text in scripts().values() for name in re.findall(r"redis\.p?call\('([A-Z]+)'", text)}
    return sorted(called | CLIENT_COMMANDS)


def acl_rule() -> str:
    """The ACL rule of an account for Accord: its keys, and these commands; @connection is signing in and PING."""
    allowed = " ".join(f"+{name}" for name in commands())
    return f"ACL SETUSER accord on >PASSWORD ~{PREFIX}* resetchannels -@all +@connection {allowed}"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="accord-") as folder:
        yield Path(folder)


def live(store: JobStore) -> None:
    """Every operation of a store, once."""
    store.ready()
    end = store.feed_end()
    job_id = submit(store, key="k", fingerprint="f")
    assert store.accepted("k", "f") is not None
    assert store.claim("a", 30, BACKOFF).job is not None
    store.running(job_id, 1)
    assert store.beat(job_id, 1, 30) is Beat.OK
    store.append(job_id, 1, step_event(1))
    store.append(job_id, 1, Progress(phase="learn", step=1, done=1, total=2))
    store.release(job_id, 1, delay_s=0.001, message="later")
    time.sleep(0.05)
    assert store.claim("a", 30, BACKOFF).job is not None
    assert store.lose(job_id, 2, Reason.KILLED, "", 0.001).state is JobState.QUEUED
    other = submit(store)
    store.cancel(other)
    store.delete(other)
    store.folder_removed(store.folders_to_remove()[0])
    assert [job.id for job in store.page().jobs] == [job_id] and store.page(state=JobState.RUNNING).jobs == []
    assert states(store, job_id)[0] == "queued"
    store.explain("room")
    store.events(job_id, store.events(job_id)[-1].id)
    assert store.feed(end, wait_s=0.01)
    assert store.sweep(1000) == 0
    assert store.stats().by_state["cancelled"] == 0
    assert store.mark(job_id, 1) and store.marked(job_id)
    claimed = store.claim("b", 30, BACKOFF).job
    assert claimed is not None and store.finish(job_id, 3, JobState.SUCCEEDED, Reason.NONE).finished


def test_the_account_that_the_documentation_describes_is_enough(
    redis_store: RedisJobStore, server: EmbeddedStore
) -> None:
    line = next(line for line in OPERATIONS.read_text().splitlines() if line.startswith("ACL SETUSER"))
    assert line == acl_rule(), "put what acl_rule() gives into docs/operations.md"
    words = line.replace(">PASSWORD", ">pw").split()
    redis_store._redis.execute_command(*words)
    account = RedisJobStore(server.url.replace("unix://:", "unix://accord:").replace(server._password, "pw"))
    live(account)
    with pytest.raises(redis.exceptions.NoPermissionError):
        account._redis.config_get("*")
    with pytest.raises(redis.exceptions.NoPermissionError):
        account._redis.get("someone:else")
    account.close()


def test_an_account_that_may_not_ask_is_served_unchecked(
    redis_store: RedisJobStore, server: EmbeddedStore, caplog: pytest.LogCaptureFixture
) -> None:
    words = acl_rule().replace(">PASSWORD", ">pw").replace("accord on", "blind on").replace(" +info", "").split()
    redis_store._redis.execute_command(*words)
    account = RedisJobStore(server.url.replace("unix://:", "unix://blind:").replace(server._password, "pw"))
    live(account)
    account.ready()
    assert sum("may not call INFO" in record.message for record in caplog.records) == 1
    account.close()


def test_commands_that_the_client_sends_are_all_counted() -> None:
    text = Path(module.__file__).read_text(encoding="utf-8")
    sent = set(re.findall(r"(?:self\._redis|pipe|client)\.([a-z_]+)", text))
    no_commands = {"pipeline", "execute", "close", "register_script", "connection_pool"}
    assert {name.replace("script_load", "script|load") for name in sent - no_commands} == CLIENT_COMMANDS
    assert {"xadd", "zadd", "time", "hset"} <= set(commands())


SAFE = {"redis_version": "7.0.15", "role": "master", "maxmemory_policy": "noeviction", "aof_enabled": 1}


@pytest.mark.parametrize(("fact", "value", "remedy"), [
    ("redis_version", "6.0.16", "6.2 or newer"),
    ("role", "slave", "the primary"),
    ("maxmemory_policy", "allkeys-lru", "noeviction"),
    ("maxmemory_policy", "volatile-ttl", "noeviction"),
    ("aof_enabled", 0, "appendonly yes"),
])  # fmt: skip
def test_a_server_that_would_lose_jobs_is_told_apart(fact: str, value: object, remedy: str) -> None:
    assert complaints(SAFE) == [] and complaints({}) == []
    (complaint,) = complaints({**SAFE, fact: value})
    assert remedy in complaint


def test_a_real_server_that_evicts_or_forgets_is_refused_until_it_is_mended(short: Path) -> None:
    with valkey(short / "a", "--maxmemory-policy", "allkeys-lru") as socket:
        store = RedisJobStore(f"unix://{socket}")
        with pytest.raises(UnsafeStore, match=r"allkeys-lru.*noeviction.*appendonly yes.*ACCORD_ALLOW_VOLATILE_STORE"):
            store.ready()
        RedisJobStore(f"unix://{socket}", allow_volatile=True).ready()
        store._redis.config_set("maxmemory-policy", "noeviction")
        with pytest.raises(UnsafeStore, match="appendonly"):
            store.ready()
        store._redis.config_set("appendonly", "yes")
        store.ready()
        store._redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(UnsafeStore, match="replica"):
            store.ready()


def test_no_process_starts_on_a_server_that_loses(short: Path) -> None:
    with valkey(short / "a", "--maxmemory-policy", "allkeys-lru", "--appendonly", "yes") as socket:
        environment = {
            **os.environ, "REDIS_URL": f"unix://:hush@{socket}", "RAY_ADDRESS": "127.0.0.1:1",
            "ACCORD_DATA_DIR": str(short / "data"), "ACCORD_RUNS_DIR": str(short / "runs"), "ACCORD_PORT": "1",
        }  # fmt: skip
        redis.Redis(unix_socket_path=str(socket)).config_set("requirepass", "hush")
        done = subprocess.run(
            [sys.executable, "-m", "services.cli.main", "api"], env=environment, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
    assert done.returncode == 2 and "set maxmemory-policy noeviction" in done.stderr and "hush" not in done.stderr


def test_a_failover_behind_one_address_is_followed(short: Path) -> None:
    """Old connections stay at what was the primary, as through a Kubernetes Service or a virtual address."""
    with valkey(short / "a", "--appendonly", "yes") as first, valkey(short / "b", "--appendonly", "yes") as second:
        address = short / "address"
        address.symlink_to(first)
        store = RedisJobStore(f"unix://{address}")
        live(store)
        fresh = short / "fresh"
        fresh.symlink_to(second)
        fresh.replace(address)
        redis.Redis(unix_socket_path=str(first)).execute_command("REPLICAOF", "127.0.0.1", "1")
        for operation in (lambda: submit(store), lambda: store.mark("n", 1)):
            with pytest.raises(StoreUnavailable, match="read only replica"):
                operation()
            operation()
            fresh.symlink_to(first)
            redis.Redis(unix_socket_path=str(first)).execute_command("REPLICAOF", "NO", "ONE")
            redis.Redis(unix_socket_path=str(second)).execute_command("REPLICAOF", "127.0.0.1", "1")
            fresh.replace(address)
            first, second = second, first
        store.close()


@pytest.mark.parametrize("url", [
    "redis://user:s3cret@store:1/0",
    "redis://:s3cret@store:1/0",
    "redis://store:1/0?password=s3cret",
    "redis://:s3cret%2Fx@store:1/0?ssl_cert_reqs=none",
    "redis://:s3cret/x@store:1/0",
    "redis://:a@s3cret@store:1/0",
    "unix://:s3cret@/nowhere/at.all?db=0",
    "unix:///nowhere/at.all?password=s3cret",
    "s3cret",
    "http://:s3cret@store",
])  # fmt: skip
def test_no_error_tells_the_password(url: str) -> None:
    assert "s3cret" not in without_password(url)
    with pytest.raises(AccordError) as caught:
        RedisJobStore(url, timeout_s=0.5).ready()
    error: BaseException | None = caught.value
    assert "s3cret" not in str(error)


def test_a_wrong_password_is_not_told(server: EmbeddedStore) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        RedisJobStore(server.url.replace(server._password, "s3cret")).ready()
    assert "s3cret" not in str(caught.value)
