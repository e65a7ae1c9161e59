"""A server that judges clips as another organisation's would, on a port of its own; a test says what it answers."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, score_groups
from reward_servers.wire import read_body
from tests.unit.reward_servers.bad_servers import Handler, QuietServer


class ScoreServer(QuietServer):
    """Keeps what it was asked. `answer` and `tell` get the handler and what it would say, and write what they like."""

    daemon_threads = True

    def __init__(self, model: RewardModel) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.asked: list[tuple[Prompt, list[Clip]]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[_Handler, dict[str, Any]], None] = lambda handler, tree: handler.give(tree)
        self.tell: Callable[[_Handler, dict[str, Any]], None] = lambda handler, tree: handler.give(tree)

    @property
    def url(self) -> str:
        """Base of the API."""
        scheme = "https" if hasattr(self.socket, "context") else "http"
        return f"{scheme}://127.0.0.1:{self.server_address[1]}/v1"

    def fields(self, **card: Any) -> dict[str, Any]:
        """What a job says of its reward."""
        spec = self.model.spec
        low, high = (value if math.isfinite(value) else None for value in spec.range)
        told = {
            "version": spec.version, "weights_digest": self.model.weights_digest, "needs": spec.needs, "low": low,
            "high": high, "floor": spec.floor, "prompt_anchored": spec.prompt_anchored,
            "component_names": tuple(spec.components), "batch_tolerance": spec.batch_tolerance,
        }  # fmt: skip
        return {"url": self.url, "reward": spec.name, "route": spec.route, "card": told | card}


class _Handler(Handler):
    server: ScoreServer
    prompt: Prompt

    def do_GET(self) -> None:
        self._note()
        spec = self.server.model.spec
        self.server.tell(self, {
            "name": spec.name, "about": spec.about, "version": spec.version, "needs": list(spec.needs),
            "weights_digest": self.server.model.weights_digest, "route": spec.route, "scope": spec.scope,
            "range": plain(spec.range), "floor": spec.floor, "prompt_anchored": spec.prompt_anchored,
            "licence": spec.licence, "components": {},
        })  # fmt: skip

    def do_POST(self) -> None:
        self._note()
        prompt, clips = read_body(self.rfile.read(int(self.headers["Content-Length"])), self.server.model.spec.needs)
        self.prompt = prompt
        self.server.asked.append((prompt, clips))
        (scores,) = score_groups(self.server.model, [prompt], [clips])
        self.server.answer(self, {
            "reward": parse_qs(urlsplit(self.path).query)["reward"][0], "version": scores.version,
            "weights_digest": self.server.model.weights_digest, "values": plain(scores.values),
            "valid": list(scores.valid), "reasons": list(scores.reasons), "seconds": scores.seconds,
            "components": {name: plain(values) for name, values in scores.components.items()},
        })  # fmt: skip

    def _note(self) -> None:
        self.server.paths.append(self.path)
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})


def plain(values: Any) -> list[float | None]:
    """JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in values]


@contextmanager
def running(model: RewardModel) -> Iterator[ScoreServer]:
    """A server while the block runs."""
    with ScoreServer(model) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
