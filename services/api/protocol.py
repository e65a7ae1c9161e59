"""HTTP/1.1 connections with an end: bounded in number and size, and with a deadline for all that a client must do.

Uvicorn parses and serves; it has no deadline for a request that never becomes whole, no bound on headers, and one limit
for all clients together.
"""

from __future__ import annotations

import logging
from asyncio import TimerHandle, Transport
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from accord.config.settings import Settings
from services.api.limits import Refusal, Slots
from services.api.problems import problem

_LINGER_S = 0.5
"""A refused client gets so long to read why."""
PROBES = 16
"""Connections beyond the limit of all that may ask whether the service lives, and nothing else."""
_PROBED = frozenset({b"/healthz", b"/readyz", b"/metrics"})
_PROBE_S = 1.0
"""Time for such a connection to ask."""
PIPELINED = 100
"""Most requests that may wait on one connection: they are parsed as they come, far faster than they are served."""


def bounded_protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol class for one server; its connections share one count.

    What strangers send is not logged line by line: it would fill a disk.
    """
    logging.getLogger("uvicorn.error").addFilter(_is_ours)
    slots = Slots(settings.max_connections, settings.max_connections_per_client)
    return type("BoundedProtocol", (_Bounded,), {"settings": settings, "slots": slots, "probes": Slots(PROBES, 2)})


def _is_ours(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(("Invalid HTTP request", "Unsupported upgrade", "No supported WebSocket"))


class _Bounded(HttpToolsProtocol):
    settings: ClassVar[Settings]
    slots: ClassVar[Slots]
    probes: ClassVar[Slots]

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        super().__init__(config, server_state, app_state, **more)
        self._slot: tuple[Slots, str] | None = None
        self._closing = False
        self._in_head, self._head_bytes = False, 0
        self._head_timer: TimerHandle | None = None
        self._stall_timer: TimerHandle | None = None
        self._cycles: list[RequestResponseCycle] = []

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Take a slot or refuse."""
        super().connection_made(transport)
        client = self.client[0] if self.client else ""
        full = self.slots.take(client)
        if full is None:
            self._slot = self.slots, client
            self._await_head(self.settings.header_timeout_s)
        elif full is Refusal.CLIENT:
            self._refuse(429, f"This address has {self.slots.per_client} open connections, which is the limit.")
        elif self.probes.take(client) is None:
            self._slot = self.probes, client
            self._await_head(_PROBE_S)
        else:
            self._refuse_for_all()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the slot back, and tell every request that waits, not only the last one, that its client is gone."""
        if self._slot is not None:
            slots, client = self._slot
            slots.free(client)
            self._slot = None
        self._stop(self._head_timer, self._stall_timer)
        self._leave_cycles()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, with an eye on how much and how long the head of a request is."""
        if self._closing:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._closing:
            return
        if self._in_head and self._head_bytes > self.settings.max_header_bytes:
            self._refuse(431, f"Request line and headers have more than {self.settings.max_header_bytes} bytes.")
        elif self._in_head or self.cycle is None or self.cycle.response_complete:
            self._await_head(self.settings.header_timeout_s)
        else:
            self._stop(self._head_timer)
            self._head_timer = None

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        if len(self.pipeline) >= PIPELINED:
            self._reject(429, f"{PIPELINED} requests wait on this connection already; wait for answers before more.")
        if self._only_probes and self.url.partition(b"?")[0] not in _PROBED:
            self._refuse_for_all()
        if self._closing or self.transport.is_closing():
            return
        super().on_headers_complete()
        self.cycle.keep_alive = self.cycle.keep_alive and not self._only_probes
        self._in_head, self._head_bytes = False, 0
        self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
        self._cycles.append(self.cycle)

    def on_message_complete(self) -> None:
        """What comes next is another head."""
        super().on_message_complete()
        self._head_bytes = 0

    def pause_writing(self) -> None:
        """The client does not read: it gets a while to go on."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.settings.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        self._stop(self._stall_timer)

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed is told so, unless an answer is already on its way."""
        self._reject(400, f"This is not HTTP/1.1 that can be read. {msg}")

    def _reject(self, status: int, detail: str) -> None:
        """Refuse, unless this would run into an answer that is on its way: then just close."""
        if any(cycle.response_started and not cycle.response_complete for cycle in self._cycles):
            self.transport.close()
        else:
            self._refuse(status, detail)

    def _leave_cycles(self) -> None:
        """Tell every request under way, the queued ones too, that nobody listens."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    @property
    def _only_probes(self) -> bool:
        return self._slot is not None and self._slot[0] is self.probes

    def _await_head(self, seconds: float) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._only_probes:
            self._refuse_for_all()
        elif self._in_head or self.cycle is None:
            self._refuse(408, f"No whole request came within {self.settings.header_timeout_s:g} s.")
        else:
            self.transport.close()

    def _refuse_for_all(self) -> None:
        self._refuse(503, f"The service has {self.slots.in_all} open connections, which is the limit.")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer without the app, and close."""
        if self._closing or self.transport.is_closing():
            return
        self._closing = True
        self._leave_cycles()
        headers = {"Retry-After": "5"} if status in {429, 503} else {}
        answer = problem(status, detail, headers={**headers, "Connection": "close", "Cache-Control": "no-store"})
        lines = [STATUS_LINE[status], *(name + b": " + value + b"\r\n" for name, value in answer.raw_headers), b"\r\n"]
        self.transport.write(b"".join([*lines, bytes(answer.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # To close on what the client still sends would take the answer away from it.
        self.loop.call_later(_LINGER_S, self.transport.close)

    @staticmethod
    def _stop(*timers: TimerHandle | None) -> None:
        for timer in timers:
            if timer is not None:
                timer.cancel()
