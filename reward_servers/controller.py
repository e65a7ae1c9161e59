"""What Serve's controller knows and `serve.status()` does not tell. The one file that reads Serve's private parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.context import _get_global_client

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas of one deployment."""

    running: int
    target: int
    """How many there are to be."""
    max_ongoing: int
    """Requests that one takes in."""
    rewards: tuple[str, ...]
    """Who is in it."""
    env: dict[str, Any] | None
    """Ray's runtime environment of each."""
    pids: tuple[int, ...]
    """Of those that run."""
    loads: tuple[int, ...]
    """Requests at each one that runs and answers within a second."""


@dataclass(frozen=True, slots=True)
class Served:
    """One application as its callers see it."""

    status: str
    """Serve's word."""
    running: int
    """Replicas that run."""
    rewards: tuple[str, ...]


def is_up() -> bool:
    """Whether Serve runs on the connected cluster, with applications or without."""
    return _get_global_client(raise_if_no_controller_running=False) is not None


def served(deployment: str) -> dict[str, Served]:
    """The applications that have such a deployment, as they are at this moment."""
    client = _get_global_client(raise_if_no_controller_running=False)
    known = client.get_serve_details()["applications"] if client is not None else {}
    return {
        name: Served(
            application["status"],
            sum(replica["state"] == "RUNNING" for replica in details["replicas"]),
            _inside(details),
        )
        for name, application in known.items()
        if (details := application["deployments"].get(deployment)) is not None
    }


def _inside(details: dict[str, Any]) -> tuple[str, ...]:
    return tuple((details["deployment_config"].get("user_config") or {}).get("rewards", ()))


def replicas(applications: Iterable[str], deployment: str) -> dict[str, Replicas]:
    """The replicas behind those of `applications` that have such a deployment, as they are at this moment."""
    client = _get_global_client(raise_if_no_controller_running=False)
    known = client.get_serve_details()["applications"] if client is not None else {}
    found = {}
    for name in applications:
        details = known[name]["deployments"].get(deployment) if name in known else None
        if details is not None:
            alive = [replica for replica in details["replicas"] if replica["state"] == "RUNNING"]
            running = [replica["actor_name"] for replica in alive]
            config = details["deployment_config"]
            found[name] = Replicas(
                running=len(running),
                target=details["target_num_replicas"],
                max_ongoing=config["max_ongoing_requests"],
                rewards=_inside(details),
                env=(config.get("ray_actor_options") or {}).get("runtime_env"),
                pids=tuple(replica["pid"] for replica in alive),
                loads=tuple(_loads(running)),
            )
    return found


def _loads(actors: list[str]) -> list[int]:
    calls: list[Any] = []
    for actor in actors:
        try:
            calls.append(ray.get_actor(actor, namespace=SERVE_NAMESPACE).get_num_ongoing_requests.remote())
        except ValueError:  # it ended between the listing and this line
            continue
    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=1.0) if calls else ([], [])
    loads = []
    for call in ready:
        try:
            loads.append(int(ray.get(call)))
        except ray.exceptions.RayError as error:
            log.info("a replica ended while its load was asked for: %s", error)
    return loads
