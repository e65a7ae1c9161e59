"""The rewards of a cluster: start them, look at them, scale one, change one. What an application is, says placement.py.

An application lives while an attempt uses it, and an idle time longer, so that the next job finds it; see owners.py.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.schema import ApplicationStatusOverview

from accord import errors
from accord.config.contract import RewardSpec
from accord.errors import AccordError, DeadlineExceeded, RewardError, SpecError, UserError
from accord.plugins import names, spec_class
from reward_servers import controller, owners
from reward_servers.controller import Replicas
from reward_servers.deployment import DEPLOYMENT, retire
from reward_servers.door import Door, open_door
from reward_servers.environments import environments
from reward_servers.placement import BATCHES_HELD, LIVE, PACKED, SERVERS, Application, applications, by_reward

log = logging.getLogger(__name__)

_POLL_S = 0.25
_CONTROLLER_ENV = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # ten looks a second cost a twelfth of a core
}


@dataclass(frozen=True, slots=True)
class RewardStatus:
    """One reward server as it is at this moment."""

    name: str
    """Application name."""
    status: str
    """Serve's word: RUNNING, DEPLOYING, UNHEALTHY, DEPLOY_FAILED, DELETING."""
    replicas_ready: int
    replicas_target: int
    ongoing: int
    """Groups being scored."""
    queued: int
    """Groups at a replica that wait for their batch."""
    message: str = ""
    rewards: tuple[str, ...] = ()
    """Who is in it."""


def deploy(
    specs: Sequence[RewardSpec],
    *,
    door: Door | None = None,
    timeout_s: float = 300.0,
    idle_s: float = owners.IDLE_S,
    envs: Path | None = None,
) -> list[str]:
    """Start the servers of `specs` on the connected cluster and wait until all of them answer.

    This process is an owner of them until it ends, and they stay `idle_s` after their last one. What runs already is
    left alone, scaled or not. `door`: where they are served over HTTP, too; it is not waited for. `envs`: folder with
    the environments that rewards may name. Returns the application of each of `specs`.

    Raises:
        SpecError: a model refuses its options (a wrong path, say), or there is no such environment; the pointer is the
            reward's place in `specs`.
        RewardError: a server cannot be built for another reason (its own words are in the message).
        DeadlineExceeded: the servers were not up within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    wanted = {application.name: application for application in applications(specs)}
    known = environments(specs, envs)
    places = {spec.name: f"/rewards/{index}" for index, spec in enumerate(specs)}
    _start()
    held = owners.hold(wanted, idle_s)
    _retire_leftovers(wanted)
    missing = _missing(wanted, deadline)
    _run({name: _application(wanted[name], wanted[name].bounds, known.get(wanted[name].env)) for name in missing})
    try:
        _wait(wanted, max(0.0, deadline - time.monotonic()), places=places)
    except AccordError:
        for name in held:
            owners.let_go(name)
        _retire_leftovers(())
        raise
    if door is not None:
        open_door(door)
    held_by = by_reward(specs)
    return [held_by[spec.name].name for spec in specs]


def _missing(wanted: Collection[str], deadline: float) -> list[str]:
    """Those of `wanted` that are to be started, once none of them is on its way down any more."""
    while True:
        current = {entry.name: entry.status for entry in status()}
        leaving = [name for name in wanted if current.get(name) == "DELETING" or owners.closing(name)]
        leaving = [name for name in leaving if name in current]
        if not leaving or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    for name in wanted:
        owners.clear_closing(name)
    return [name for name in wanted if current.get(name) not in {"RUNNING", "DEPLOYING"}]


def _run(applications: Mapping[str, serve.Application]) -> None:
    """Start or change them, and wait for nothing."""
    if applications:
        serve.run_many(
            [serve.RunTarget(application, name, None) for name, application in applications.items()],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def _retire_leftovers(wanted: Collection[str]) -> None:
    """Take down what nobody uses and no replica watches: what failed, found no room, or was scaled to none."""
    for entry in status():
        if entry.name in wanted or entry.replicas_ready:
            continue
        if entry.status in {"DEPLOY_FAILED", "DEPLOYING"} or (entry.status == "RUNNING" and not entry.replicas_target):
            retire(entry.name)


def scale(name: str, replicas: int, *, timeout_s: float = 120.0) -> list[str]:
    """Give one reward exactly so many replicas and wait until it has them. Others, and calls under way, go on.

    Returns the rewards that were scaled: those that share its replicas go with it.

    Raises:
        RewardError: no such reward is running, or `replicas` is below 1.
        DeadlineExceeded: the replicas were not there within `timeout_s`.
    """
    if replicas < 1:
        raise RewardError(f"cannot scale {name} to {replicas} replicas; give 1 or more")
    running = _running(name, timeout_s)
    _run({running.name: _application(running, (replicas, replicas), _environment_of(running.name))})
    _wait({running.name: running}, timeout_s, replicas)
    return [spec.name for spec in running.specs]


def change(name: str, values: Mapping[str, Any], *, timeout_s: float = 120.0) -> list[str]:
    """Give a running reward other values of fields of its shell (`LIVE`). No replica restarts, and calls go on.

    Returns the rewards that were changed: those that share its replicas go with it.

    Raises:
        RewardError: no such reward is running.
        SpecError: a field is none that can change while it runs, or does not take the value.
    """
    wrong = sorted(values.keys() - LIVE)
    if wrong:
        why = f"cannot change while it runs; these can: {', '.join(sorted(LIVE))}"
        raise SpecError([(f"/{field}", why) for field in wrong])
    running = _running(name, timeout_s)
    specs = tuple(type(spec).parse(json.dumps({**spec.model_dump(mode="json"), **values})) for spec in running.specs)
    changed = Application(running.name, specs)
    _run({changed.name: _application(changed, changed.bounds, _environment_of(changed.name))})
    _wait({changed.name: changed}, timeout_s)
    return [spec.name for spec in specs]


def _environment_of(application: str) -> dict[str, Any] | None:
    behind = controller.replicas([application], SERVERS)
    return behind[application].env if application in behind else None


def _running(name: str, timeout_s: float) -> Application:
    """The application of that name, or the one that holds the reward of that name, as it runs."""
    there = status()
    found = [entry for entry in there if entry.name == name] or [entry for entry in there if name in entry.rewards]
    if not found:
        known = sorted({entry.name for entry in there} | {reward for entry in there for reward in entry.rewards})
        raise RewardError(f"no reward {name!r} is running; running: {', '.join(known) or 'none'}")
    if len(found) > 1:
        several = ", ".join(entry.name for entry in found)
        raise RewardError(f"{name!r} runs in several applications: {several}; name one of them")
    texts = serve.get_app_handle(found[0].name).specs_json.remote().result(timeout_s=timeout_s)
    specs = tuple(spec_class("rewards", reward).model_validate_json(text) for reward, text in texts)
    return Application(found[0].name, specs)


def status() -> list[RewardStatus]:
    """All reward servers of the cluster, by name; an empty list when Serve is not running."""
    seen = serve.status()
    known = {
        name: seen.applications[name]
        for name in sorted(seen.applications)
        if name.split("-")[0] in {PACKED, *names("rewards")}
    }
    behind = controller.replicas(known, SERVERS)
    return [_status_of(name, found, behind.get(name)) for name, found in known.items()]


def _start() -> None:
    """Start Serve unless it is up, without its HTTP proxy: jobs call by handle, and people come through the door."""
    if controller.is_up():
        return
    try:
        serve.start(
            proxy_location=ProxyLocation.Disabled,
            controller_options={"runtime_env": {"env_vars": _CONTROLLER_ENV}},
        )
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise RewardError(f"Ray Serve did not start: {error}") from error


def _application(wanted: Application, bounds: tuple[int, int], env: dict[str, Any] | None) -> serve.Application:
    """The Serve application with bounds on its replicas."""
    application: serve.Application = DEPLOYMENT.options(
        name=SERVERS,
        # Same version, other sizes: Serve then tells the replicas, or changes their number, and restarts none of them.
        version=wanted.name,
        _internal=True,
        user_config=wanted.user_config,
        ray_actor_options=wanted.actor_options(env),
        max_ongoing_requests=BATCHES_HELD * wanted.max_batch_groups,
        max_queued_requests=wanted.queue_bound,
        autoscaling_config=wanted.autoscaling(*bounds),
        health_check_period_s=5.0,
        health_check_timeout_s=60.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=min(max(spec.deadline_s for spec in wanted.specs), 60.0),
        max_constructor_retry_count=2,
    ).bind([(spec.name, spec.model_dump_json()) for spec in wanted.specs])
    return application


def _wait(
    wanted: Mapping[str, Application],
    timeout_s: float,
    replicas: int | None = None,
    places: Mapping[str, str] | None = None,
) -> None:
    """Wait until the applications run (with exactly `replicas`, if given). `places`: of rewards, in the job."""
    deadline = time.monotonic() + timeout_s
    while True:
        current = {entry.name: entry for entry in status() if entry.name in wanted}
        for entry in current.values():
            if entry.status == "DEPLOY_FAILED":
                raise _refusal(entry, places or {})
        waiting = sorted(name for name in wanted if not _there(current.get(name), replicas))
        if not waiting:
            return
        if time.monotonic() > deadline:
            seen = ", ".join(
                f"{name}: {current[name].status if name in current else 'absent'}, each replica wants "
                f"{wanted[name].place}"
                for name in waiting
            )
            raise DeadlineExceeded(f"rewards not ready after {timeout_s:g} s ({seen}); raise the limit or make room")
        time.sleep(_POLL_S)


def _refusal(entry: RewardStatus, places: Mapping[str, str]) -> AccordError:
    """Why an application could not be started. Serve hands on text alone, so the class is found by its name."""
    cause = _cause(entry.message)
    kind = getattr(errors, cause.partition(":")[0].removeprefix(f"{errors.__name__}."), None)
    message = f"reward {entry.name} could not be started: {cause}"
    named = [place for reward, place in places.items() if f": {reward}: " in cause or entry.rewards == (reward,)]
    pointer = named[0] if named else ""
    if isinstance(kind, type) and issubclass(kind, UserError):
        return SpecError([(pointer, message)]) if pointer else UserError(message)
    return RewardError(message)


def _cause(message: str) -> str:
    """The last exception of a traceback in a message of Serve's, else the message."""
    errors = [line.strip() for line in message.splitlines() if re.match(r"\s*[\w.]*(Error|Exception)\b.*: ", line)]
    return errors[-1] if errors else message.strip()


def _there(entry: RewardStatus | None, replicas: int | None) -> bool:
    if entry is None or entry.status != "RUNNING":
        return False
    return replicas is None or entry.replicas_ready == entry.replicas_target == replicas


def _status_of(name: str, found: ApplicationStatusOverview, behind: Replicas | None) -> RewardStatus:
    """Fold what Serve says of one application into one line."""
    deployment = found.deployments.get(SERVERS)
    if deployment is None or behind is None:
        rewards = behind.rewards if behind is not None else ()
        return RewardStatus(name, found.status.value, 0, 0, 0, 0, found.message, rewards)
    batch = behind.max_ongoing // BATCHES_HELD
    return RewardStatus(
        name=name,
        status=found.status.value,
        replicas_ready=behind.running,
        replicas_target=behind.target,
        ongoing=sum(min(load, batch) for load in behind.loads),
        queued=sum(max(0, load - batch) for load in behind.loads),
        rewards=behind.rewards,
        message=deployment.message or found.message,
    )
