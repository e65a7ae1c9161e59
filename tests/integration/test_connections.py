"""Clients that are slow, many, or never finish: they are told so and let go, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.live_api import KEY, LiveApi, live_api

MANY, ALL = 30, 36
HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n"
ELSEWHERE = ("127.0.0.2", 0)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    folder: Path = tmp_path_factory.mktemp("api")
    with live_api(
        folder, header_timeout_s=1, body_timeout_s=1, send_timeout_s=1, max_header_bytes=4096,
        max_connections=ALL, max_connections_per_client=MANY, max_streams_per_client=1,
    ) as running:  # fmt: skip
        job = folder / "runs" / running.jobs["succeeded"]
        with (job / "big.bin").open("wb") as file:
            file.truncate(64 << 20)
        entry = {"id": "big", "name": "big.bin", "media_type": "application/octet-stream", "bytes": 1, "sha256": "0"}
        (job / "artifacts.json").write_text(json.dumps({"artifacts": [entry]}))
        yield running


@contextlib.contextmanager
def connections(api: LiveApi, count: int, source: tuple[str, int] | None = None) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((api.host, api.port), timeout=30, source_address=source))
            for _ in range(count)
        ]


def read(connection: socket.socket) -> bytes:
    """All there is until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65536):
            got += more
    return got


def get(api: LiveApi, path: str, source: tuple[str, int] | None = None, more: str = "Connection: close\r\n") -> bytes:
    with connections(api, 1, source) as (connection,):
        connection.sendall(f"GET {path} HTTP/1.1\r\n{HEAD}{more}\r\n".encode())
        return read(connection)


def until_served(api: LiveApi, path: str = "/healthz") -> None:
    deadline = time.monotonic() + 30
    while not get(api, path).startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < deadline, "the slots were not given back"
        time.sleep(0.05)


@contextlib.contextmanager
def stream(api: LiveApi, path: str) -> Iterator[socket.socket]:
    """An event stream, once the slot of the one before was given back."""
    deadline = time.monotonic() + 30
    while True:
        with connections(api, 1) as (connection,):
            connection.sendall(f"GET {path} HTTP/1.1\r\n{HEAD}\r\n".encode())
            if connection.recv(65536).startswith(b"HTTP/1.1 200"):
                yield connection
                return
        assert time.monotonic() < deadline, "the slot of the stream was not given back"
        time.sleep(0.05)


def assert_told(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert b"application/problem+json" in head and json.loads(body)["detail"]


def test_half_sent_requests_are_many_and_others_are_served(api: LiveApi) -> None:
    with connections(api, MANY + 20) as held:
        for connection in held:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert get(api, "/healthz", ELSEWHERE).startswith(b"HTTP/1.1 200"), "another address is served"
        answers = [read(connection) for connection in held]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
    late = [answer for answer in answers if answer.startswith(b"HTTP/1.1 408")]
    assert len(refused) >= 20 and len(late) > 0
    assert_told(refused[0], 429)
    assert_told(late[0], 408)
    until_served(api)


def test_a_connection_that_says_nothing_ends(api: LiveApi) -> None:
    with connections(api, 3) as held:
        held[1].sendall(b"\r\n")
        for connection in held:
            assert read(connection)[:12] in {b"", b"HTTP/1.1 408"}


def test_too_many_in_all(api: LiveApi) -> None:
    third = ("127.0.0.3", 0)
    with connections(api, MANY, ELSEWHERE), connections(api, ALL - MANY):
        for path in ("/healthz", "/readyz", "/metrics"):
            answer = get(api, path, third, more="")
            assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer, "who watches is let in"
        answer = get(api, "/v1/jobs", third)
        assert_told(answer, 503)
        assert b"retry-after" in answer.lower()
        with connections(api, 3, third) as silent:
            assert [read(connection)[:12] for connection in silent] == [b"HTTP/1.1 503"] * 3
        assert get(api, "/healthz", third).startswith(b"HTTP/1.1 200"), "what it held was given back"
    until_served(api)


@pytest.mark.parametrize("length", ["Content-Length: 50", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come(api: LiveApi, length: str) -> None:
    with connections(api, 1) as (connection,):
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\n{HEAD}{length}\r\n\r\n".encode())
        assert_told(read(connection), 408)


def test_an_unread_body_holds_no_connection(api: LiveApi) -> None:
    """Refused at once for its key; what trickles in afterwards keeps nothing open."""
    with connections(api, 1) as (connection,):
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        deadline = time.monotonic() + 30
        with contextlib.suppress(ConnectionError):
            while True:
                connection.sendall(b" ")
                connection.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    if connection.recv(65536) == b"":
                        break
                assert time.monotonic() < deadline, "it is still open"


@pytest.mark.parametrize(
    "start", ["GET /" + "a" * 9000, "GET / HTTP/1.1\r\nX: " + "a" * 9000, "GET / HTTP/1.1\r\n" + "X: y\r\n" * 900]
)
def test_a_head_that_is_too_large(api: LiveApi, start: str) -> None:
    with connections(api, 1) as (connection,):
        connection.sendall(start.encode())
        assert_told(read(connection), 431)


def test_what_is_not_http(api: LiveApi) -> None:
    with connections(api, 1) as (connection,):
        connection.sendall(b"\x16\x03\x01\x02\x00 tls\r\n\r\n")
        assert_told(read(connection), 400)


def test_many_requests_on_one_connection(api: LiveApi) -> None:
    with connections(api, 1) as (connection,):
        for _ in range(40):
            connection.sendall(f"GET /healthz HTTP/1.1\r\n{HEAD}X: {'a' * 500}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_requests_that_wait_on_one_connection_are_bounded(api: LiveApi) -> None:
    """They cost more to keep than to send, so a client that never stops would fill the memory."""
    one = b"GET /healthz HTTP/1.1\r\n\r\n"
    with connections(api, 1) as (connection,):
        connection.sendall(one * 49 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert read(connection).count(b"HTTP/1.1 200") == 50
    with connections(api, 1) as (connection,):
        connection.sendall(one * 2000)
        assert read(connection).count(b"HTTP/1.1 200") < 2000
    assert get(api, "/healthz").startswith(b"HTTP/1.1 200")


def test_a_stream_ends_with_its_connection_whatever_was_sent_behind_it(api: LiveApi) -> None:
    path = f"/v1/jobs/{api.jobs['running']}/events"
    with connections(api, 1) as (connection,):
        connection.sendall(f"GET {path} HTTP/1.1\r\n{HEAD}\r\nGET /healthz HTTP/1.1\r\n{HEAD}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert_told(get(api, path), 429)
    with stream(api, path):
        pass


def test_a_stream_from_a_moment_that_has_not_come_stays_open(api: LiveApi) -> None:
    soon = int((time.time() + 600) * 1000)
    with stream(api, f"/v1/jobs/{api.jobs['running']}/events?after={soon}") as connection:
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                assert connection.recv(65536), "it ended, and its client would come back at once, for ever"


def test_a_client_that_takes_nothing_is_left(api: LiveApi) -> None:
    path = f"/v1/jobs/{api.jobs['succeeded']}/artifacts/big"
    with connections(api, MANY) as held:
        for connection in held:
            connection.sendall(f"GET {path} HTTP/1.1\r\n{HEAD}\r\n".encode())
        until_served(api)
