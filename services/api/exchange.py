"""One request and its answer: the body is counted and timed, and every answer leaves in the same dress."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.problems import problem

_HASHED = "application/json"
"""Answers of this type get an ETag of their text; files bring their own."""


class Stop(Exception):
    """The request cannot be read to its end. Carries what to answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class Exchange:
    """Wraps `receive` and `send` of one request. HEAD is served as GET, and the server leaves the body out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limit: int, body_s: float, root: str) -> None:
        self.id = secrets.token_hex(8)
        self.started = time.perf_counter()
        self.status = 0
        self.is_stream = False
        self.scope = scope
        self._receive, self._send, self._root = receive, send, root
        self._limit, self._left, self._body_s = limit, limit, body_s
        self._deadline: float | None = None
        self._body_done = False
        self._seen = Headers(scope=scope).get("if-none-match", "") if scope["method"] in {"GET", "HEAD"} else ""
        self._head = scope["method"] == "HEAD"
        self._held: Message | None = None
        self._text = b""
        self._over = False
        self._task: asyncio.Future[Any] | None = None

    async def run(self, app: ASGIApp) -> None:
        """Let the app answer. It is stopped once nothing more of its answer is wanted."""
        if not (self._head or self._seen):
            await app(self.scope, self.receive, self.send)
            return
        if self._head:
            self.scope["method"] = "GET"
        self._task = asyncio.ensure_future(app(self.scope, self.receive, self.send))
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._over:
                self._task.cancel()
                raise

    async def receive(self) -> Message:
        """Count the body, however it is sent, and give it one deadline."""
        if self._body_done:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + self._body_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Stop(408, f"The body did not arrive within {self._body_s:g} s.") from None
        self._body_done = not message.get("more_body", False)
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise Stop(413, f"The body is larger than {self._limit} bytes.")
        return message

    async def send(self, message: Message) -> None:
        """Dress the answer."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            await self._begin(message)
        elif self._held is not None:
            await self._flush(message)
        else:
            await self._send(message)

    async def _begin(self, message: Message) -> None:
        self.status = message["status"]
        headers = MutableHeaders(scope=message)
        headers["X-Request-Id"] = self.id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        if headers.get("location", "").startswith("/"):
            headers["Location"] = self._root + headers["location"]
        media = headers.get("content-type", "").partition(";")[0]
        self.is_stream = media == "text/event-stream"
        ours = self._may_be_kept and media == _HASHED
        if ours or (self.status >= 400 and media == "text/plain"):
            self._held = message
        else:
            await self._pass_on(message)

    @property
    def _may_be_kept(self) -> bool:
        """The answer is what GET reads, so that a client may keep it and ask whether it still is right."""
        return self.scope["method"] in {"GET", "HEAD"} and self.status == 200

    async def _pass_on(self, start: Message, *body: Message) -> None:
        """Send an answer on as far as it is wanted: a client that has it, or asks for its head, gets no body."""
        headers = MutableHeaders(scope=start)
        tag = headers.get("etag", "") if self._may_be_kept else ""
        headers.setdefault("Cache-Control", "private, no-cache" if tag else "no-store")
        if self._knows(tag):
            await self._not_modified(start)
        elif self._head:
            await self._close(start)
        else:
            for message in (start, *body):
                await self._send(message)

    async def _flush(self, message: Message) -> None:
        """The text of a held answer is there, or a part of it: JSON gets its ETag, plain words become a problem."""
        start = self._held
        assert start is not None
        if self.status >= 400:
            self._text += message.get("body", b"")[:600]
            if not message.get("more_body", False):
                self._held = None
                await self._reword(start)
            return
        self._held = None
        if not message.get("more_body", False):
            tag = hashlib.sha256(message.get("body", b"")).hexdigest()[:32]
            MutableHeaders(scope=start)["ETag"] = f'"{tag}"'
        await self._pass_on(start, message)

    async def _reword(self, start: Message) -> None:
        kept = dict(Headers(raw=start["headers"]))
        for name in ("content-type", "content-length"):
            kept.pop(name, None)
        detail = self._text.decode("utf-8", "replace") or HTTPStatus(self.status).description
        self.status, status = 0, self.status
        await self.answer(status, detail, kept)

    def _knows(self, tag: str) -> bool:
        seen = [word.strip().removeprefix("W/") for word in self._seen.split(",")]
        return bool(tag) and (tag.removeprefix("W/") in seen or seen == ["*"])

    async def _not_modified(self, message: Message) -> None:
        self.status = message["status"] = 304
        headers = MutableHeaders(scope=message)
        for name in ("content-length", "content-type", "content-disposition"):
            del headers[name]
        await self._close(message)

    async def _close(self, message: Message) -> None:
        """Send the head of the answer alone, and stop whoever makes the rest."""
        self._over = True
        await self._send(message)
        await self._send({"type": "http.response.body", "body": b""})
        if self._task is not None:
            self._task.cancel()

    async def answer(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer with a problem, unless an answer is under way already."""
        if self.status:
            return
        response = problem(status, detail, context=(self.id, self.scope["path"]), headers=headers)
        await response(self.scope, self._receive, self.send)
