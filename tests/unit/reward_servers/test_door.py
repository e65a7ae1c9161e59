"""The web server of the door by itself: address, port, TLS. With a cluster behind it: tests/integration."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from ray.exceptions import ActorDiedError, ObjectStoreFullError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException

from accord.config.settings import Settings
from accord.errors import UserError
from accord.types import Prompt
from reward_servers import door
from reward_servers.controller import Served
from reward_servers.door import ClusterRewards, Door, HttpDoor
from reward_servers.gateway import Refusal


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "door")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return cert, secret


def test_beyond_loopback_there_is_a_token():
    with pytest.raises(UserError, match=r"0\.0\.0\.0.*token"):
        Door(host="0.0.0.0")
    assert "secret" not in repr(Door(host="0.0.0.0", token="secret"))
    assert Door.of(Settings(rewards_port=0)) is None
    assert Door.of(Settings()) == Door()


def test_https_is_spoken_where_there_is_a_certificate(tmp_path):
    """And nobody is served before it is told whom; a token that changes holds from then on."""
    cert, key = certificate(tmp_path)
    where = Door(port=free_port(), certificate=cert, key=key)

    async def asked():
        server = HttpDoor.__new__(HttpDoor)
        await server.__init__(where.place)
        trust = ssl.create_default_context(cafile=cert)
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{where.port}", verify=trust) as http:
            found = [(await http.get("/else")).status_code]
            for digest in ("", "0" * 64):
                server.reconfigure({"token_digest": digest})
                found.append((await http.get("/else")).status_code)
        server.check_health()
        server._server.should_exit = True
        await asyncio.wait_for(server._serving, 10)
        with pytest.raises(RuntimeError, match="ended"):
            server.check_health()
        return found

    assert asyncio.run(asked()) == [401, 404, 401]


def test_strangers_hold_no_connection(monkeypatch):
    """Not with half a head, the first or one after an answer, and not with a body that is not wanted."""
    monkeypatch.setattr(door, "_HEAD_S", 0.3)
    where = Door(port=free_port())

    async def sent(text: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(text)
        try:
            return await asyncio.wait_for(reader.read(), 3)
        finally:
            writer.close()

    async def asked():
        server = HttpDoor.__new__(HttpDoor)
        await server.__init__(where.place)
        refused = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: "
        heads = [b"GET /v1/rewards HT", refused + b"0\r\n\r\nGET /", refused + b"9\r\n\r\nbody"]
        found = await asyncio.gather(*map(sent, heads))
        server._server.should_exit = True
        await asyncio.wait_for(server._serving, 10)
        return found

    silent, *others = asyncio.run(asked())
    assert silent == b""
    assert all(answer.startswith(b"HTTP/1.1 401") and answer.count(b"HTTP/1.1") == 1 for answer in others)


def test_a_port_that_is_still_taken_is_waited_for(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        threading.Timer(0.3, taken.close).start()
        with door._listen("127.0.0.1", port) as listener:
            assert listener.getsockname()[1] == port
            monkeypatch.setattr(door, "_BIND_S", 0.0)
            with pytest.raises(OSError, match="in use"):
                door._listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 429),
        (ActorDiedError(), 503),
        (RayServeException("no replica"), 503),
        (RayTaskError("answer", "trace", ActorDiedError()), 503),
        (RayTaskError("answer", "trace", ValueError("bug")), 500),
    ],
)
def test_why_a_replica_has_no_answer_is_told(monkeypatch, error, status):
    """A handle whose call ends in an error, as Serve raises it."""

    async def lost():
        raise error

    handle = SimpleNamespace(answer=SimpleNamespace(remote=lambda *_: lost()))
    monkeypatch.setattr(door.serve, "get_app_handle", lambda _application: handle)
    monkeypatch.setattr(door.ray, "put", lambda clips: clips)
    monkeypatch.setattr(door.controller, "served", lambda _deployment: {"sync": Served("RUNNING", 1, ("sync",))})
    with pytest.raises(Refusal) as caught:
        asyncio.run(ClusterRewards().score("sync", Prompt("p", "x", "x", "x"), []))
    assert caught.value.status == status
    assert ("Retry-After" in caught.value.headers) == (status != 500)


def test_clips_that_the_cluster_has_no_room_for_are_told_so(monkeypatch):
    def full(_clips):
        raise ObjectStoreFullError("full")

    monkeypatch.setattr(door.ray, "put", full)
    monkeypatch.setattr(door.controller, "served", lambda _deployment: {"sync": Served("RUNNING", 1, ("sync",))})
    with pytest.raises(Refusal, match="no room") as caught:
        asyncio.run(ClusterRewards().score("sync", Prompt("p", "x", "x", "x"), []))
    assert caught.value.status == 429 and caught.value.headers["Retry-After"]


def test_a_controller_that_hangs_is_asked_once_and_holds_up_nobody(monkeypatch):
    free, asks = threading.Event(), []

    def served(_deployment):
        asks.append(free.wait(10))
        return {"sync": Served("DEPLOYING", 0, ("sync",))}

    monkeypatch.setattr(door.controller, "served", served)
    monkeypatch.setattr(door, "_SOON_S", 0.05)

    async def asked():
        rewards = ClusterRewards()
        for call in (rewards.cards, partial(rewards.needs, "sync"), rewards.cards):
            with pytest.raises(Refusal, match="does not tell") as caught:
                await asyncio.wait_for(call(), 5)
            assert caught.value.status == 503
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rewards.cards(), 0.01)
        free.set()
        await asyncio.wait_for(rewards._looking, 5)
        return await rewards.cards()

    assert asyncio.run(asked()) == [] and asks == [True]


@pytest.mark.parametrize(("state", "opened"), [("RUNNING", 0), ("UNHEALTHY", 0), ("DEPLOY_FAILED", 1)])
def test_a_door_that_asks_for_a_token_is_not_opened_to_all(monkeypatch, state, opened):
    """Not by a service that knows of no token, however the door is."""
    runs = []
    there = SimpleNamespace(status=state, message="")
    monkeypatch.setattr(door.serve, "status", lambda: SimpleNamespace(applications={door.APPLICATION: there}))
    monkeypatch.setattr(door.serve, "run_many", lambda targets, **_: runs.append(targets))
    door.open_door(Door())
    assert len(runs) == opened


@pytest.mark.parametrize("state", ["DEPLOYING", "DEPLOY_FAILED", "DELETING"])
def test_a_reward_that_is_not_up_is_told_so(monkeypatch, state):
    monkeypatch.setattr(door.controller, "served", lambda _deployment: {"sync": Served(state, 0, ("sync",))})
    with pytest.raises(Refusal, match=state) as caught:
        asyncio.run(ClusterRewards().card("sync"))
    assert caught.value.status == 503 and caught.value.headers["Retry-After"]
