"""The API as a server: its port, its open files, its thread."""

from __future__ import annotations

import logging
import resource
import socket
import threading
import time
from collections.abc import Callable, Mapping

import uvicorn

from accord.config.settings import Settings
from accord.errors import ServiceError
from services.api.app import create_app
from services.api.protocol import bounded_protocol
from services.jobs.store import JobStore
from services.registry import Metrics

log = logging.getLogger("accord.service")

_OTHER_FILES = 256
"""Files of the process that belong to no connection."""


class Api:
    """The HTTP server in a thread of its own."""

    def __init__(self, settings: Settings, store: JobStore, metrics: Metrics, checks: Mapping[str, Callable[[], None]]):
        self._socket = listen(settings.host, settings.port)
        self._app = create_app(settings, store, metrics=metrics, checks=checks)
        allow_files(settings.max_connections)
        config = uvicorn.Config(
            self._app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=3,
            timeout_keep_alive=30, server_header=False, ws="none", http=bounded_protocol(settings),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._server.run, args=([self._socket],), name="accord-api", daemon=True)

    def start(self, deadline_s: float = 30.0) -> None:
        """Start and wait until it serves. Raises ServiceError."""
        self.thread.start()
        deadline = time.monotonic() + deadline_s
        while not self._server.started:
            if time.monotonic() > deadline or not self.thread.is_alive():
                raise ServiceError(f"the API did not start within {deadline_s:.0f} s")
            time.sleep(0.02)

    def stop(self) -> None:
        """End streams, finish answers, close the port."""
        self._app.state.accord.closing.set()
        self._server.should_exit = True
        if self.thread.ident is not None:
            self.thread.join(10)
        self._socket.close()


def allow_files(connections: int) -> None:
    """Raise this process's own limit on open files to what so many connections need; say so when it cannot be."""
    wanted = 2 * connections + _OTHER_FILES  # a connection may hold a file that it sends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "this process may open %d files, and %d connections may need %d; raise `ulimit -n` or lower "
            "ACCORD_MAX_CONNECTIONS", most, connections, wanted,
        )  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """Take the port now, so that a conflict is told before anything is started. Raises ServiceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ServiceError(
            f"port {port} of {host} cannot be used: {error.strerror}; choose another with --port or ACCORD_PORT"
        ) from error
    sock.listen(2048)
    return sock
