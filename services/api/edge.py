"""What every request passes first: its id, the key, the size and the time of its body, and the clock.

Plain ASGI, so that a body is refused before it is read and a stream is never buffered.
"""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from accord.config.settings import Settings
from accord.errors import StoreUnavailable
from services.api import prefix
from services.api.auth import Sessions
from services.api.exchange import Exchange, Stop
from services.api.limits import Slots
from services.registry import Metrics

log = logging.getLogger("accord.api")

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics", "/", "/session", "/session/end"})
PUBLIC_PREFIXES = ("/static/", "/jobs/")
"""Pages check the cookie themselves, to ask for the key instead of refusing."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_EVENTS = re.compile(r"/v1/jobs/[^/]+/events")
_FORM_BYTES = 4096
"""Largest body of a form; it holds one key."""
_GONE = 499
"""In metrics: the client left before its answer."""


class Edge:
    """Outermost middleware of the API."""

    def __init__(self, app: ASGIApp, sessions: Sessions, metrics: Metrics, settings: Settings) -> None:
        self._app, self._sessions, self._metrics, self._settings = app, sessions, metrics, settings
        self._streams = Slots(settings.max_streams, settings.max_streams_per_client)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = prefix.split(scope, self._settings.root_path or "")
        prefix.ROOT.set(root)
        scope = {**scope, "path": path, "root_path": ""}
        call = Exchange(
            scope, receive, send, limit=self._body_limit(path), body_s=self._settings.body_timeout_s, root=root
        )  # fmt: skip
        scope["accord_request_id"] = call.id
        method = scope["method"]
        try:
            await self._serve(call)
        except Stop as stop:
            await call.answer(stop.status, stop.detail, {"Connection": "close"})
        except StoreUnavailable as error:
            await call.answer(503, str(error), {"Retry-After": "2"})
        except ClientDisconnect:
            call.status = call.status or _GONE
        except Exception:
            log.exception("request %s failed", call.id)
            await call.answer(500, "Something failed inside the service; its log has this request id.")
        finally:
            self._observe(call, method if method in _METHODS else "other")

    async def _serve(self, call: Exchange) -> None:
        refusal = await self._refusal(call.scope)
        if refusal is not None:
            await call.answer(*refusal)
            return
        headers = Headers(scope=call.scope)
        follows = _EVENTS.fullmatch(call.scope["path"]) and "application/json" not in headers.get("accept", "")
        if not follows or call.scope["method"] != "GET":
            await call.run(self._app)
            return
        client = (call.scope.get("client") or ("",))[0]
        full = self._streams.take(client)
        if full is not None:
            most = self._streams.per_client if full.name == "CLIENT" else self._streams.in_all
            detail = (
                f"There are {most} open event streams of {full.value}, which is the limit; close some, or read pages "
                "with `Accept: application/json`."
            )
            await call.answer(429, detail, {"Retry-After": "10"})
            return
        try:
            await call.run(self._app)
        finally:
            self._streams.free(client)

    async def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        path, headers = scope["path"], Headers(scope=scope)
        public = path in PUBLIC or path.startswith(PUBLIC_PREFIXES)
        if not public and not await self._sessions.admits(headers, reads=scope["method"] in {"GET", "HEAD"}):
            detail = "Send the API key as `Authorization: Bearer KEY`; it is in the service's data directory."
            return 401, detail, {"WWW-Authenticate": "Bearer"}
        length, limit = headers.get("content-length", "0"), self._body_limit(path)
        if not (length.isascii() and length.isdecimal() and len(length) < 20):
            return 400, "Content-Length is not a number that can be; send the body's length in bytes.", {}
        if int(length) > limit:
            return 413, f"The body has {length} bytes; the limit is {limit}.", {"Connection": "close"}
        return None

    def _body_limit(self, path: str) -> int:
        return _FORM_BYTES if path.startswith("/session") else self._settings.max_body_bytes

    def _observe(self, call: Exchange, method: str) -> None:
        """A stream's time is how long somebody watched, which is no latency."""
        if call.is_stream:
            return
        route = getattr(call.scope.get("route"), "path", "unmatched")
        self._metrics.histogram("accord_http_request_duration_seconds").labels(
            route=route, method=method if route != "unmatched" else "any", status=str(call.status)
        ).observe(time.perf_counter() - call.started)
