"""What every request passes first: its id, the key, the size of its body, and the clock.

Plain ASGI, so that a body is refused before it is read and a stream is never buffered.
"""

from __future__ import annotations

import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.auth import Keeper
from services.api.metrics import Metrics
from services.api.problems import problem

log = logging.getLogger("accord.api")

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics", "/", "/session"})
PUBLIC_PREFIXES = ("/static/", "/jobs/")
"""Pages check the cookie themselves, to ask for the key instead of refusing."""


class _TooLarge(Exception):
    """The body went over the limit while it was read."""


class Edge:
    """Outermost middleware of the API."""

    def __init__(self, app: ASGIApp, keeper: Keeper, metrics: Metrics, max_body_bytes: int) -> None:
        self._app, self._keeper, self._metrics, self._limit = app, keeper, metrics, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = _Call(scope, receive, send, self._limit)
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                status, detail, headers = refusal
                await call.answer(status, detail, headers)
            else:
                await self._app(scope, call.receive, call.send)
        except _TooLarge:
            await call.answer(413, f"The body is larger than {self._limit} bytes.")
        except Exception:
            log.exception("request %s failed", call.id)
            await call.answer(500, "Something failed inside the service; its log has this request id.")
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.histogram("accord_http_request_duration_seconds").labels(
                route=route, method=scope["method"] if route != "unmatched" else "any", status=str(call.status)
            ).observe(time.perf_counter() - call.started)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        path, headers = scope["path"], Headers(scope=scope)
        public = path in PUBLIC or path.startswith(PUBLIC_PREFIXES)
        if not public and not self._keeper.admits(scope["method"], headers):
            detail = "Send the API key as `Authorization: Bearer KEY`; it is in the service's data directory."
            return 401, detail, {"WWW-Authenticate": "Bearer"}
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "Content-Length is not a number.", {}
        if int(length) > self._limit:
            return 413, f"The body has {length} bytes; the limit is {self._limit}.", {"Connection": "close"}
        return None


class _Call:
    """One request with its counters."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self.id = secrets.token_hex(8)
        self.started = time.perf_counter()
        self.status = 0
        self._scope, self._receive, self._send = scope, receive, send
        self._left = limit
        scope["accord_request_id"] = self.id

    async def receive(self) -> Message:
        """Count the body, however it is sent."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _TooLarge
        return message

    async def send(self, message: Message) -> None:
        """Add the headers every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            headers.setdefault("Cache-Control", "no-store")
        await self._send(message)

    async def answer(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer with a problem, unless an answer is under way already."""
        if self.status:
            return
        response = problem(status, detail, context=(self.id, self._scope["path"]), headers=headers)
        await response(self._scope, self._receive, self.send)
