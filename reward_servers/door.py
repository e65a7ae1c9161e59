"""The HTTP door as a Serve application of its own: where it stands, who opens it, and how it reaches the rewards.

Whoever starts Serve says where it listens; that stays as long as Serve does. No job ever asks through it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.requests import Request
from starlette.responses import JSONResponse

from accord.config.settings import Settings, is_loopback
from accord.types import Clip, Modality, Prompt
from reward_servers import controller
from reward_servers.controller import Served
from reward_servers.gateway import MAX_CALLS, Gateway, Refusal, one_of, token_digest
from reward_servers.placement import SERVERS

log = logging.getLogger(__name__)

APPLICATION = "rewards-door"
ROUTE = "/v1"
_LOOK_S = 2.0
"""How old what is known of the applications may be."""
_LOOK_AGAIN_S = 0.25
"""The same, where a reward is not among them."""
_CARD_S = 5.0
_UP = frozenset({"RUNNING", "UNHEALTHY"})


@dataclass(frozen=True, slots=True)
class Door:
    """Where rewards are served over HTTP, and to whom."""

    host: str = "127.0.0.1"
    port: int = 8421
    token: str = field(default="", repr=False)
    """For callers to send; "" = anybody is served."""
    certificate: Path | None = None
    key: Path | None = None

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
    def http_options(self) -> dict[str, Any]:
        """For Serve."""
        options: dict[str, Any] = {"host": self.host, "port": self.port, "request_timeout_s": 660.0}
        if self.certificate and self.key:
            options |= {"ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}
        return options


class HttpDoor:
    """The deployment: the gateway before the rewards of the cluster."""

    def __init__(self, token_digest: str) -> None:
        self._gateway = Gateway(ClusterRewards(), token_digest)

    async def __call__(self, request: Request) -> JSONResponse:
        """Any request below the route."""
        return await self._gateway.answer(request)


class ClusterRewards:
    """The rewards of the cluster that this process is in, asked by handle."""

    def __init__(self) -> None:
        self._served: dict[str, Served] = {}
        self._looked = -math.inf
        self._looking = asyncio.Lock()
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
        reference = await asyncio.to_thread(ray.put, clips)
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
        """Those of the cluster, as they were lately. Where nobody tells, as they were last seen."""
        async with self._looking:
            if time.monotonic() - self._looked > age_s:
                try:
                    self._served = await asyncio.to_thread(controller.served, SERVERS)
                except (RayError, RayServeException) as error:
                    log.info("Serve does not tell its applications: %s", error)
                self._looked = time.monotonic()
            return self._served

    async def _cards(self, application: str) -> list[dict[str, Any]]:
        """Of all rewards of an application, soon."""
        try:
            async with asyncio.timeout(_CARD_S):
                cards: list[dict[str, Any]] = await self._called(application, "cards")
        except TimeoutError as error:
            raise _not_up(f"{application} does not say what it is") from error
        return cards

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
    """Start the door, or tell a running one its token, and wait for nothing. Serve is up.

    A door without a token is opened to this machine alone, and never in the place of one that has one.
    """
    options = controller.http_options()
    if options is None:
        return
    if (options.host, options.port) != (door.host, door.port):
        log.warning("rewards are served on %s:%s until Serve ends, not on %s:%s", options.host, options.port,
                    door.host, door.port)  # fmt: skip
    if not door.token:
        if APPLICATION in serve.status().applications:
            return
        if not is_loopback(options.host or ""):
            log.warning("rewards are not served over HTTP: %s is beyond loopback, and there is no token", options.host)
            return
    digest = token_digest(door.token) if door.token else ""
    deployment: Any = serve.deployment(HttpDoor)
    application = deployment.options(
        name="HttpDoor",
        version=digest or "open",  # the same again restarts nothing
        _internal=True,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=MAX_CALLS + 64,  # those that it refuses, too
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=5.0,
    )  # fmt: skip
    serve.run_many(
        [serve.RunTarget(application.bind(digest), APPLICATION, ROUTE)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _of(name: str, served: Mapping[str, Served]) -> tuple[str, str]:
    return one_of(name, {application: entry.rewards for application, entry in served.items()})


def _not_up(why: str) -> Refusal:
    return Refusal(503, f"{why}; ask again soon", "reward", Retry_After="2")
