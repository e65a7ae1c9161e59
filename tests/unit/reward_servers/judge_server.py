"""A server that answers chat completions as vLLM does, on a port of its own; a test says what it answers."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.unit.reward_servers.bad_servers import Handler, QuietServer

Shares = Mapping[str, float]
Token = tuple[str, Shares]
"""What was written, and the probability of each text that could have been."""


def completion(tokens: list[Token], model: str = "judge") -> dict[str, Any]:
    """A `chat.completion` with log-probabilities, in the fields that vLLM gives."""
    content = [
        {
            "token": text, "logprob": math.log(shares.get(text, 1.0)), "bytes": list(text.encode()),
            "top_logprobs": [
                {"token": other, "logprob": math.log(share), "bytes": list(other.encode())}
                for other, share in shares.items()
            ],
        }
        for text, shares in tokens
    ]  # fmt: skip
    message = {"role": "assistant", "content": "".join(text for text, _ in tokens), "reasoning_content": None}
    choice = {"index": 0, "message": message, "logprobs": {"content": content}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": len(tokens)}}  # fmt: skip


def by_content(request: Mapping[str, Any]) -> list[Token]:
    """A verdict that depends on every word and pixel of the question."""
    seen = hashlib.sha256(json.dumps(request["messages"]).encode()).digest()
    share = 0.05 + 0.9 * seen[0] / 255
    if request["messages"][0]["content"][0].get("text") == "Video A:":
        return [("A", {"A": share, "B": 0.97 - share})]
    if request["max_tokens"] == 1:
        return [("Yes", {"Yes": share, "No": 0.97 - share, "Maybe": 0.02})]
    axes = ("(1) visual quality: ", "\n(2) text-to-video alignment: ", "\n(3) physical consistency: ")
    told = {"4": share, "2": 0.97 - share, "well": 0.03}
    return [token for axis in axes for token in ((axis, {}), ("4", told))]


class JudgeServer(QuietServer):
    """Keeps what it was asked; `answer` gets the handler and the request, and writes what it likes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[_Handler, dict[str, Any]], None] = lambda handler, asked: handler.give(
            completion(by_content(asked), asked["model"])
        )

    @property
    def url(self) -> str:
        """Base of the API."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def say(self, tokens: list[Token], model: str = "judge") -> None:
        """Answer every question so."""
        self.answer = lambda handler, asked: handler.give(completion(tokens, model))


class _Handler(Handler):
    server: JudgeServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.server.paths.append(self.path)
        self.server.answer(self, asked)


@contextmanager
def running() -> Iterator[JudgeServer]:
    """A server for the block."""
    server = JudgeServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
