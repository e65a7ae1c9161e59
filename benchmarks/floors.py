"""What a server of this kind costs at least: an app that does nothing, and one that writes one key per request, bare or
as a route of FastAPI.

Served as the API is (uvicorn, one worker). `GET …/events` streams events that the app makes itself, `--rate` a second,
to the listeners of `--jobs` jobs in turn, so that delivery has a floor as well.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import defaultdict
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI

ANSWER = b'{"id":"job-0"}'
_METRICS = {f"reward/{index}/mean": index / 7 for index in range(12)}


class Floor:
    """The app; with a store's address it writes the body of each POST to a key of its own."""

    def __init__(self, store: str, jobs: int, rate: float) -> None:
        self._redis = redis.asyncio.Redis.from_url(store) if store else None
        self._jobs, self._rate = jobs, rate
        self._numbers = itertools.count()
        self._listeners: dict[int, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._ticker: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["path"].endswith("/events"):
            await self._stream(int(scope["path"].split("/")[-2]), send)
        else:
            body, more = b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            if self._redis is not None and body:
                await self._redis.set(f"key:{next(self._numbers)}", body)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
            await send({"type": "http.response.start", "status": 202, "headers": headers})
            await send({"type": "http.response.body", "body": ANSWER})

    async def _stream(self, job: int, send: Any) -> None:
        self._ticker = self._ticker or asyncio.create_task(self._tick())
        mine: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners[job].add(mine)
        try:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
            while True:
                await send({"type": "http.response.body", "body": await mine.get(), "more_body": True})
        finally:
            self._listeners[job].discard(mine)

    async def _tick(self) -> None:
        due = time.monotonic()
        for number in itertools.count():
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            data = json.dumps({"at": time.time(), "type": "step", "metrics": _METRICS}, separators=(",", ":"))
            for queue in self._listeners[number % self._jobs]:
                queue.put_nowait(f"event: step\ndata: {data}\nid: {number}-0\n\n".encode())


def framework(store: str) -> FastAPI:
    """The app that writes one key, as one writes it with FastAPI: the body becomes an object, the answer JSON."""
    app, client, numbers = FastAPI(), redis.asyncio.Redis.from_url(store), itertools.count()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    @app.post("/v1/jobs", status_code=202)
    async def submit(body: dict[str, Any]) -> dict[str, str]:
        await client.set(f"key:{next(numbers)}", json.dumps(body))
        return {"id": "job-0"}

    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", default="", help="redis URL to write one key per POST to")
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50.0, help="events a second over all jobs")
    parser.add_argument("--framework", action="store_true", help="the app that writes one key as a route of FastAPI")
    given = parser.parse_args()
    app = framework(given.store) if given.framework else Floor(given.store, given.jobs, given.rate)
    uvicorn.run(
        app, host="127.0.0.1", port=given.port, log_level="warning", lifespan="off",
        access_log=False, server_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip


if __name__ == "__main__":
    main()
