"""What opens the store is in no message."""

from __future__ import annotations

import socket
import threading

import pytest

from accord.errors import StoreUnavailable
from services.jobs.address import without_password
from services.jobs.redis_store import RedisJobStore


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:hush@store:6379/0", "redis://store:6379/0"),
        ("rediss://user:hush@store:6379/0?ssl_cert_reqs=none", "rediss://store:6379/0"),
        ("redis://store:6379/0?password=hush", "redis://store:6379/0"),
        ("unix://:hush@/run/valkey.sock?db=0", "unix:///run/valkey.sock"),
        ("unix:///run/valkey.sock?password=hush&db=1", "unix:///run/valkey.sock"),
        ("redis://:hu/sh@store:6379/0", "redis://store:6379/0"),
        ("redis://:hu@sh@store:6379/0", "redis://store:6379/0"),
        ("redis://:hu?sh#@store:6379", "redis://…"),
        ("redis://store:6379/0?password=hu@sh", "redis://…"),
        ("hush", "the address in REDIS_URL"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    ["redis://:hu/sh@127.0.0.1:1/0", "redis://:hush@127.0.0.1:x/0", "redis://127.0.0.1:1/0?password=hush", "hush"],
)
def test_no_failure_repeats_it(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        RedisJobStore(url, timeout_s=0.5).ready()
    told = f"{caught.value!r} {caught.value.__cause__!r}"
    assert "hush" not in told and "hu/sh" not in told and "hu" not in told.replace("hush", "")


def test_a_server_that_repeats_what_it_was_sent() -> None:
    """An old one does, when it does not know the command that carries the password."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_repeat, args=(server,), daemon=True).start()
        url = f"redis://user:correct%20horse@127.0.0.1:{server.getsockname()[1]}/0"
        with pytest.raises(StoreUnavailable) as caught:
            RedisJobStore(url, timeout_s=5).ready()
    told = f"{caught.value!r} {caught.value.__cause__!r}"
    assert "unknown command" in told and "horse" not in told


def _repeat(server: socket.socket) -> None:
    with server.accept()[0] as connection:
        while sent := connection.recv(65536):
            words = [word for word in sent.decode().split("\r\n") if word and word[0] not in "*$"]
            connection.sendall(f"-ERR unknown command, with args beginning with: {' '.join(words)}\r\n".encode())
