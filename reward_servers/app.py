"""The rewards of a cluster: start them, look at them, scale one. One Serve application per reward.

An application is called like its reward, or like its reward with a short digest when options of its model differ from
the defaults (another CLAP checkpoint, say), so jobs that want different models never replace each other's. Fields that
only concern a job (weight, route, required, deadline) do not make a different server.

An application lives while an attempt uses it, and an idle time longer, so that the next job finds it; see owners.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

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

log = logging.getLogger(__name__)

HTTP_HOST = "127.0.0.1"
HTTP_PORT = 8421
_DEPLOYMENT = "RewardServer"
_POLL_S = 0.25
_CONTROLLER_ENV = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # a proxy that takes 5 s to import is killed otherwise
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # ten looks a second cost a twelfth of a core
}
_BATCHES_HELD = 4
"""Batches that a replica takes in: one being scored, the others waiting."""


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
    route: str
    """HTTP path, empty when HTTP is off."""
    message: str = ""


def app_name(spec: RewardSpec) -> str:
    """The application that serves a spec."""
    own = set(type(spec).model_fields) - set(RewardSpec.model_fields)
    options = {field: value for field, value in sorted(spec) if field in own}
    if options == {field: type(spec).model_fields[field].default for field in options}:
        return spec.name
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return f"{spec.name}-{digest}"


def deploy(
    specs: Sequence[RewardSpec],
    *,
    http_port: int | None = HTTP_PORT,
    timeout_s: float = 300.0,
    idle_s: float = owners.IDLE_S,
) -> list[str]:
    """Start the servers of `specs` on the connected cluster and wait until all of them answer.

    This process is an owner of them until it ends, and they stay `idle_s` after their last one. What runs already is
    left alone, scaled or not. `http_port=None` starts no HTTP proxy, nor does a port in use; a Serve instance that is
    up keeps the port it has. Returns the application names, in the order of `specs`.

    Raises:
        SpecError: a model refuses its options (a wrong path, say); the pointer is the reward's place in `specs`.
        RewardError: a server cannot be built for another reason (its own words are in the message).
        DeadlineExceeded: the servers were not up within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    _start(http_port)
    wanted = {app_name(spec): spec for spec in specs}
    pointers = {app_name(spec): f"/rewards/{index}" for index, spec in enumerate(specs)}
    held = owners.hold(wanted, idle_s)
    _retire_leftovers(wanted)
    _run(
        {
            name: _application(spec, spec.min_replicas, spec.max_replicas)
            for name, spec in _missing(wanted, deadline).items()
        }
    )
    try:
        _wait(set(wanted), max(0.0, deadline - time.monotonic()), pointers=pointers)
    except AccordError:
        for name in held:
            owners.let_go(name)
        _retire_leftovers(())
        raise
    return [app_name(spec) for spec in specs]


def _missing(wanted: Mapping[str, RewardSpec], deadline: float) -> dict[str, RewardSpec]:
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
    return {name: spec for name, spec in wanted.items() if current.get(name) not in {"RUNNING", "DEPLOYING"}}


def _run(applications: Mapping[str, serve.Application]) -> None:
    """Start or change them, and wait for nothing."""
    if applications:
        serve.run_many(
            [serve.RunTarget(application, name, f"/rewards/{name}") for name, application in applications.items()],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )


def _retire_leftovers(wanted: Collection[str]) -> None:
    """Take down what nobody uses and no replica watches: applications that failed, or were scaled to none."""
    for entry in status():
        if entry.name in wanted or entry.replicas_ready:
            continue
        if entry.status == "DEPLOY_FAILED" or (entry.status == "RUNNING" and not entry.replicas_target):
            retire(entry.name)


def scale(name: str, replicas: int, *, timeout_s: float = 120.0) -> None:
    """Give one reward exactly so many replicas and wait until it has them. Others, and calls under way, go on.

    Raises:
        RewardError: no such reward is running, or `replicas` is below 1.
        DeadlineExceeded: the replicas were not there within `timeout_s`.
    """
    if replicas < 1:
        raise RewardError(f"cannot scale {name} to {replicas} replicas; give 1 or more")
    running = {status.name for status in status()}
    if name not in running:
        raise RewardError(f"no reward {name!r} is running; running: {', '.join(sorted(running)) or 'none'}")
    text = serve.get_app_handle(name).spec_json.remote().result(timeout_s=timeout_s)
    spec = spec_class("rewards", json.loads(text)["name"]).model_validate_json(text)
    _run({name: _application(spec, replicas, replicas)})
    _wait({name}, timeout_s, replicas)


def status() -> list[RewardStatus]:
    """All reward servers of the cluster, by name; an empty list when Serve is not running."""
    seen = serve.status()
    known = {
        name: seen.applications[name] for name in sorted(seen.applications) if name.split("-")[0] in names("rewards")
    }
    behind = controller.replicas(known, _DEPLOYMENT)
    return [_status_of(name, found, behind.get(name), bool(seen.proxies)) for name, found in known.items()]


def _start(http_port: int | None) -> None:
    """Start Serve unless it is up. A port that somebody else has costs the HTTP route, never the job."""
    if controller.is_up():
        return
    if http_port is not None and not _free(http_port):
        log.warning("port %s:%d is in use: rewards are served to jobs but not over HTTP", HTTP_HOST, http_port)
        http_port = None
    location = ProxyLocation.Disabled if http_port is None else ProxyLocation.HeadOnly
    options = {"host": HTTP_HOST, "port": http_port or HTTP_PORT, "request_timeout_s": 600}
    try:
        serve.start(
            proxy_location=location,
            http_options=options,
            controller_options={"runtime_env": {"env_vars": _CONTROLLER_ENV}},
        )
    except (ray.exceptions.RayError, TimeoutError) as error:
        if not controller.is_up():
            raise RewardError(f"Ray Serve did not start: {error}") from error
        # Only the proxy is late. The controller tries it again, and jobs do not need it.
        log.warning("the HTTP proxy of the rewards is not up yet: %s", str(error).splitlines()[0])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HTTP_HOST, port))
        except OSError:
            return False
    return True


def _application(spec: RewardSpec, low: int, high: int) -> serve.Application:
    """The Serve application of a spec with bounds on its replicas."""
    batch = spec.max_batch_groups
    application: serve.Application = DEPLOYMENT.options(
        name=_DEPLOYMENT,
        # Same version, other bounds: Serve then changes the number of replicas and restarts none of them.
        version=f"{app_name(spec)}-{spec.max_batch_groups}-{spec.batch_wait_s}",
        _internal=True,
        ray_actor_options={"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus},
        max_ongoing_requests=_BATCHES_HELD * batch,
        max_queued_requests=spec.queue_bound,
        autoscaling_config={
            "min_replicas": low,
            "max_replicas": max(low, high),
            "initial_replicas": low,
            "target_ongoing_requests": 2 * batch,
            "upscale_delay_s": 10.0,
            "downscale_delay_s": 120.0,
            "look_back_period_s": 20.0,
        },
        health_check_period_s=5.0,
        health_check_timeout_s=60.0,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=min(spec.deadline_s, 60.0),
        max_constructor_retry_count=2,
    ).bind(spec.name, spec.model_dump_json())
    return application


def _wait(
    wanted: set[str], timeout_s: float, replicas: int | None = None, pointers: Mapping[str, str] | None = None
) -> None:
    """Wait until the applications run (with exactly `replicas`, if given). `pointers`: their places in the job."""
    deadline = time.monotonic() + timeout_s
    while True:
        current = {entry.name: entry for entry in status() if entry.name in wanted}
        for entry in current.values():
            if entry.status == "DEPLOY_FAILED":
                raise _refusal(entry, (pointers or {}).get(entry.name, ""))
        waiting = sorted(name for name in wanted if not _there(current.get(name), replicas))
        if not waiting:
            return
        if time.monotonic() > deadline:
            seen = ", ".join(f"{name}: {current[name].status if name in current else 'absent'}" for name in waiting)
            raise DeadlineExceeded(f"rewards not ready after {timeout_s:g} s ({seen}); raise the limit or add CPUs")
        time.sleep(_POLL_S)


def _refusal(entry: RewardStatus, pointer: str) -> AccordError:
    """Why an application could not be started. Serve hands on text alone, so the class is found by its name."""
    cause = _cause(entry.message)
    kind = getattr(errors, cause.partition(":")[0].removeprefix(f"{errors.__name__}."), None)
    message = f"reward {entry.name} could not be started: {cause}"
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


def _status_of(name: str, found: ApplicationStatusOverview, behind: Replicas | None, http: bool) -> RewardStatus:
    """Fold what Serve says of one application into one line."""
    deployment = found.deployments.get(_DEPLOYMENT)
    if deployment is None or behind is None:
        return RewardStatus(name, found.status.value, 0, 0, 0, 0, "", found.message)
    batch = behind.max_ongoing // _BATCHES_HELD
    return RewardStatus(
        name=name,
        status=found.status.value,
        replicas_ready=behind.running,
        replicas_target=behind.target,
        ongoing=sum(min(load, batch) for load in behind.loads),
        queued=sum(max(0, load - batch) for load in behind.loads),
        route=f"/rewards/{name}" if http else "",
        message=deployment.message or found.message,
    )
