"""The HTTP door as a Serve application of its own: where it stands, who opens it, and how it reaches the rewards.

Its one replica listens by itself, on the Ray head: Serve's proxy would add two processes' hops to every call, and takes
in bodies as fast as they come before anybody has looked at who sends them. No job ever asks through the door.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from accord.config.settings import Settings, is_loopback
from accord.errors import UserError
from accord.types import Clip, Modality, Prompt
from reward_servers import controller
from reward_servers.controller import Served
from reward_servers.gateway import Gateway, Refusal, one_of, token_digest
from reward_servers.placement import SERVERS

log = logging.getLogger(__name__)

APPLICATION = "rewards-door"
_HEAD = {"node:__internal_head__": 0.001}
"""Ray's own resource of the head's node."""
_BIND_S = 20.0
"""How long the port may still be that of a door that ended."""
_CONNECTIONS = 512
_LONGEST_HEAD = 32 * 1024
"""Bytes of a request line with its headers."""
_HEAD_S = 10.0
"""Time to send it."""
_LOOK_S = 2.0
"""How old what is known of the applications may be."""
_LOOK_AGAIN_S = 0.25
"""The same, where a reward is not among them."""
_SOON_S = 5.0
"""How long what a reward is, and which there are, is waited for."""
_UP = frozenset({"RUNNING", "UNHEALTHY"})


@dataclass(frozen=True, slots=True)
class Door:
    """Where rewards are served over HTTP, and to whom. Raises UserError beyond loopback without a token."""

    host: str = "127.0.0.1"
    port: int = 8421
    token: str = field(default="", repr=False)
    """For callers to send; "" = anybody is served."""
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise UserError(f"rewards on {self.host} are beyond loopback; set a token, too")

    @classmethod
    def of(cls, settings: Settings) -> Door | None:
        """As the operator has it; None for no HTTP. Raises ServiceError as `rewards_secret`."""
        if not settings.rewards_port:
            return None
        return cls(
            settings.rewards_host, settings.rewards_port, settings.rewards_secret(), settings.rewards_tls_cert,
            settings.rewards_tls_key,
        )  # fmt: skip

    @property
    def place(self) -> dict[str, Any]:
        """Where it listens; with another one the replica is another."""
        return {
            "host": self.host, "port": self.port, "ssl_certfile": self.certificate and str(self.certificate),
            "ssl_keyfile": self.key and str(self.key),
        }  # fmt: skip


class TimelyProtocol(H11Protocol):
    """Ends a connection whose next request does not come in time: strangers cannot hold all of them. Neither can they
    with a body that nobody reads, which goes on after its answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """The time begins."""
        super().connection_made(transport)
        self.loop.call_later(_HEAD_S, self._end_unless_after, None)

    def on_response_complete(self) -> None:
        """It begins anew."""
        answered = self.cycle
        super().on_response_complete()
        self.loop.call_later(_HEAD_S, self._end_unless_after, answered)

    def _end_unless_after(self, answered: RequestResponseCycle | None) -> None:
        if self.cycle is answered:
            self.transport.close()


class HttpDoor:
    """The deployment: a web server with the gateway before the rewards of the cluster."""

    async def __init__(self, place: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        """Listens when it returns. Raises OSError where the port cannot be had."""
        self._gateway = Gateway(ClusterRewards(), "no digest")  # nobody is served before `reconfigure`
        listener = await asyncio.to_thread(_listen, place["host"], place["port"])
        config = uvicorn.Config(
            self._gateway, **place, http=TimelyProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, limit_concurrency=_CONNECTIONS, h11_max_incomplete_event_size=_LONGEST_HEAD,
            timeout_graceful_shutdown=3,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._serving = asyncio.create_task(self._server.serve([listener]))

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take over the digest of the token, at the start and whenever it changes."""
        self._gateway.token_digest = config["token_digest"]

    def check_health(self) -> None:
        """Raises when nobody listens any more: Serve then starts another."""
        if self._serving.done():
            raise RuntimeError("the web server of the rewards has ended")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Waits for the port while it is taken."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    deadline = time.monotonic() + _BIND_S
    while True:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
            return listener
        except OSError:
            listener.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.25)


class ClusterRewards:
    """The rewards of the cluster that this process is in, asked by handle."""

    def __init__(self) -> None:
        self._served: dict[str, Served] | None = None
        self._looked = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._handles: dict[str, Any] = {}
        self._needs: dict[tuple[str, str], list[Modality]] = {}

    async def cards(self) -> list[dict[str, Any]]:
        """Of all rewards that a replica runs for and that answer soon."""
        served = await self._applications()
        asked = [self._cards(name) for name, entry in served.items() if entry.running]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [card for cards in found if not isinstance(cards, BaseException) for card in cards]

    async def card(self, name: str) -> dict[str, Any]:
        """Of one reward. Raises Refusal."""
        application, reward = await self._found(name)
        return next(card for card in await self._cards(application) if card["name"] == reward)

    async def needs(self, name: str) -> Sequence[Modality]:
        """What a reward looks at. Raises Refusal."""
        application, reward = await self._found(name)
        if (application, reward) not in self._needs:
            for card in await self._called(application, "cards"):
                self._needs[application, card["name"]] = card["needs"]
        return self._needs[application, reward]

    async def score(self, name: str, prompt: Prompt, clips: list[Clip]) -> dict[str, Any]:
        """Score one group. Raises Refusal."""
        application, reward = await self._found(name)
        try:
            reference = await asyncio.to_thread(ray.put, clips)
        except RayError as error:
            log.warning("clips for reward %s were not taken in: %r", application, error)
            raise Refusal(429, "the cluster has no room for these clips", Retry_After="1") from error
        answer: dict[str, Any] = await self._called(application, "answer", reward, prompt, reference)
        return answer

    async def _found(self, name: str) -> tuple[str, str]:
        """Application and reward of that name, where they are up."""
        served = await self._applications()
        try:
            application, reward = _of(name, served)
        except Refusal:
            served = await self._applications(_LOOK_AGAIN_S)
            application, reward = _of(name, served)
        if served[application].status not in _UP:
            raise _not_up(f"{application} is {served[application].status}")
        return application, reward

    async def _applications(self, age_s: float = _LOOK_S) -> dict[str, Served]:
        """Those of the cluster, as they were lately. Where nobody tells soon, as they were last seen.

        Raises Refusal where they were not seen yet.
        """
        if self._looking is None and time.monotonic() - self._looked > age_s:
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=_SOON_S)
        if self._served is None:
            raise _not_up("the cluster does not tell its rewards")
        return self._served

    async def _look(self) -> None:
        """Ask for the applications: once for all that want to know, however long it takes."""
        try:
            self._served = await asyncio.to_thread(controller.served, SERVERS)
        except (RayError, RayServeException) as error:
            log.info("Serve does not tell its applications: %s", error)
        finally:
            self._looked, self._looking = time.monotonic(), None

    async def _cards(self, application: str) -> list[dict[str, Any]]:
        """Of all rewards of an application, soon."""
        try:
            async with asyncio.timeout(_SOON_S):
                cards: list[dict[str, Any]] = await self._called(application, "cards")
        except TimeoutError as error:
            raise _not_up(f"{application} does not say what it is") from error
        return [card | {"application": application} for card in cards]

    async def _called(self, application: str, method: str, *arguments: Any) -> Any:
        """One call by handle, cancelled at the replica as well when it is given up."""
        try:
            if application not in self._handles:
                self._handles[application] = await asyncio.to_thread(serve.get_app_handle, application)
            response = getattr(self._handles[application], method).remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
        except (RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            log.warning("reward %s did not answer: %r", application, cause)
            if isinstance(cause, BackPressureError):
                raise Refusal(429, f"{application} has no room", Retry_After="1") from error
            if isinstance(cause, RayError | RayServeException):
                self._handles.pop(application, None)
                raise _not_up(f"{application} was lost on the way") from error
            raise Refusal(500, f"{application} failed; its log says why") from error


def open_door(door: Door) -> None:
    """Open it, or tell one that is open its token, and wait for nothing: what keeps it shut costs no job anything.

    One that is open is changed by a door with a token alone, so nothing that asks for one ever ceases to.
    """
    there = serve.status().applications.get(APPLICATION)
    if there is not None and there.status != "DEPLOY_FAILED" and not door.token:
        return
    if there is not None and there.status == "DEPLOY_FAILED":
        log.warning("the HTTP door of the rewards could not be opened, and is tried again: %s", there.message)
    deployment: Any = serve.deployment(HttpDoor)
    application = deployment.options(
        name="HttpDoor",
        version=repr(sorted(door.place.items())),  # the same again restarts nothing
        _internal=True,
        user_config={"token_digest": token_digest(door.token) if door.token else ""},
        ray_actor_options={"num_cpus": 0, "resources": _HEAD},
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=5.0,
        max_constructor_retry_count=2,
    ).bind(door.place)
    serve.run_many(
        [serve.RunTarget(application, APPLICATION, None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _of(name: str, served: Mapping[str, Served]) -> tuple[str, str]:
    return one_of(name, {application: entry.rewards for application, entry in served.items()})


def _not_up(why: str) -> Refusal:
    return Refusal(503, f"{why}; ask again soon", "reward", Retry_After="2")
