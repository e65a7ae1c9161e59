"""The port of a runner that is its own process: `/metrics`, and `/readyz`, which says whether it claims jobs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from accord.config.settings import Settings
from accord.errors import ServiceError
from services.registry import Metrics
from services.runner.gate import Gate


class _Quiet(WSGIRequestHandler):
    timeout = 10.0
    """Seconds for a request to arrive."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about probes and scrapes."""


@contextlib.contextmanager
def watched_at(settings: Settings, metrics: Metrics, gate: Gate) -> Iterator[None]:
    """Serve on `metrics_port` meanwhile; nothing when that is 0. Raises ServiceError when the port is taken."""
    if not settings.metrics_port:
        yield
        return
    try:
        server = make_server(settings.host, settings.metrics_port, _app(metrics, gate), ThreadingWSGIServer, _Quiet)
    except OSError as error:
        raise ServiceError(
            f"port {settings.metrics_port} of {settings.host} cannot be used: {error.strerror}; "
            "choose another ACCORD_METRICS_PORT"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="accord-runner-port", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _app(metrics: Metrics, gate: Gate) -> Callable[..., Iterable[bytes]]:
    exposition = make_wsgi_app(metrics.registry)

    def serve(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/readyz":
            answer: Iterable[bytes] = exposition(environ, start)
            return answer
        missing = gate.missing()
        start("503 Service Unavailable" if missing else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [(missing or "ready").encode() + b"\n"]

    return serve
