"""Ways in which a server gives no answer, and the handler that gives whole ones."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers as it is told."""

    protocol_version = "HTTP/1.1"
    poured = 0

    def give(self, tree: Any, status: int = 200, **headers: str) -> None:
        """A whole answer in JSON, or as it is when it is bytes."""
        body = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that leave: here they are told to."""

    def handle_error(self, *args: Any) -> None:
        """Nothing, when the connection is gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*args)


Act = Callable[[Handler, Any], None]


def gives(tree: Any, status: int = 200, **headers: str) -> Act:
    """The same whatever is asked."""
    return lambda handler, _: handler.give(tree, status, **headers)


def cut(handler: Handler, _: Any) -> None:
    """The connection goes."""
    handler.close_connection = True
    handler.connection.close()


def cut_short(handler: Handler, _: Any) -> None:
    """It goes in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"values": [')
    handler.wfile.flush()
    handler.close_connection = True


def no_http(handler: Handler, _: Any) -> None:
    """Bytes of another protocol."""
    handler.wfile.write(b"\x15\x03\x01\x00\x02\x02\x16SSH-2.0\r\n\r\n")
    handler.close_connection = True


def hang(handler: Handler, _: Any) -> None:
    """Nothing for longer than any call lasts."""
    threading.Event().wait(3.0)


def drip(handler: Handler, _: Any) -> None:
    """A byte now and then."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(60):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def endless(handler: Handler, _: Any) -> None:
    """More than anyone should read; `handler.poured` counts the bytes that were taken."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    handler.poured = 0
    try:
        for _ in range(2000):
            handler.wfile.write(b" " * 65_536)
            handler.poured += 65_536
    except OSError:
        return
