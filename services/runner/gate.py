"""What a runner needs before it may claim a job: a runs volume that takes writes, and a Ray that answers.

consumes: the settings, and where an attempt would find Ray; waits for: one probe of Ray, bounded; produces: what
is missing, for the log, `/readyz`, the metrics and the jobs that wait.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from accord.config.settings import Settings
from accord.disk import no_room
from accord.errors import AccordError, ServiceError, Unreachable
from services.registry import Metrics

PROBE_S = 2.0
"""Longest wait for Ray's answer."""
_FRESH_S = 1.0
"""So long an answer of Ray's counts, however many ask."""
_WRITTEN_S = 5.0
"""So long a write that succeeded counts; free room is looked at each time."""
_DYING_S = 1.5
"""So long after the end of an attempt its Ray may still be found to have died."""
_NO_PROBE = frozenset({"", "auto", "local"})
_PROBE_BYTES = 4096


class Gate:
    """Open while a claimed job could run. Thread-safe: the supervisor and the readiness probe ask."""

    def __init__(self, settings: Settings, environment: Callable[[], Mapping[str, str]], metrics: Metrics) -> None:
        """`environment` says where an attempt finds store and Ray; it raises AccordError while that is not known."""
        self._settings, self._environment, self._metrics = settings, environment, metrics
        self._lock = threading.Lock()
        self._asked = ("", -_FRESH_S, "")
        self._written = -_WRITTEN_S
        self.checks: Mapping[str, Callable[[], object]] = {"ray": self.ray, "runs": self.volume}

    def missing(self) -> str:
        """What keeps a job from running here, "" when nothing does; also told to the metrics."""
        found = []
        for name, check in self.checks.items():
            why = ""
            try:
                check()
            except AccordError as error:
                why = str(error)
                found.append(why)
            self._metrics.gauge("accord_runner_can_claim").labels(check=name).set(0 if why else 1)
        return "; ".join(found)

    def ray(self) -> None:
        """Raises AccordError when no Ray answers."""
        self.reach(self._environment())

    def outlived(self, environment: Mapping[str, str]) -> str:
        """What an attempt with this environment needed that is not there any more; "" when all of it is.

        The parts of a Ray do not die at once, and the attempt may be the first to notice: it is asked more than once.
        """
        deadline = time.monotonic() + _DYING_S
        try:
            self.volume(fresh=True)
            while environment.get("RAY_ADDRESS", "") not in _NO_PROBE and time.monotonic() < deadline:
                self.reach(environment, fresh=True)
                time.sleep(_DYING_S / 4)
        except AccordError as error:
            return str(error)
        return ""

    def reach(self, environment: Mapping[str, str], *, fresh: bool = False) -> None:
        """Ask the Ray of an environment whether it is there. Raises Unreachable."""
        address = environment.get("RAY_ADDRESS", "")
        if address in _NO_PROBE:
            return
        with self._lock:
            known, at, why = self._asked
            if fresh or known != address or time.monotonic() - at > _FRESH_S:
                why = probe_ray(address, min(PROBE_S, self._settings.lease_s / 6))
                self._asked = (address, time.monotonic(), why)
        if why:
            raise Unreachable(f"no Ray answers at {address}: {why}")

    def volume(self, *, fresh: bool = False) -> None:
        """Raises ServiceError when the runs directory takes no writes or has less room than `min_free_bytes`."""
        directory = self._settings.runs_dir.resolve()
        try:
            free = shutil.disk_usage(directory).free
            self._metrics.gauge("accord_runs_volume_free_bytes").set(free)
            if free >= self._settings.min_free_bytes:
                if fresh or time.monotonic() - self._written > _WRITTEN_S:
                    _write_something(directory)
                    self._written = time.monotonic()
                return
        except OSError as error:
            why = no_room(error) or error.strerror or str(error)
            raise ServiceError(f"the runs directory {directory} takes no writes: {why}") from error
        raise ServiceError(
            f"the runs directory {directory} has {free} bytes free, less than ACCORD_MIN_FREE_BYTES = "
            f"{self._settings.min_free_bytes}"
        )


def _write_something(directory: Path) -> None:
    """Quotas and read-only mounts show only when somebody writes. Raises OSError."""
    probe = directory / f".writable.{socket.gethostname()}.{os.getpid()}"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def probe_ray(address: str, timeout_s: float) -> str:
    """Ask Ray's control service for its health; "" when it serves, else what was wrong. Never through a proxy."""
    if address.startswith("ray://") or os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
        return _probe_port(address.removeprefix("ray://"), timeout_s)
    import grpc  # comes with Ray, and loads without it

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        try:
            return "" if check(b"", timeout=timeout_s) == b"\x08\x01" else "it is not serving"
        except grpc.RpcError as error:
            code = error.code()
            return "" if code == grpc.StatusCode.UNIMPLEMENTED else f"{code.name.lower()}: {error.details()}"


def _probe_port(address: str, timeout_s: float) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, ValueError) as error:
        return str(error)
    return ""
