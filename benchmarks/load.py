"""A light load generator: raw HTTP/1.1 over asyncio, in a process of its own, so that it is not what is measured.

`requests` sends one prepared request again and again on each connection and times the answers; `streams` holds event
streams open and times how long an event took from its `at` to here. Both print one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_EVENT = re.compile(rb'data: \{"at":([0-9.]+),"type":"step"')


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass
class Tally:
    """What came back. Times in seconds; only what began after `since` counts."""

    since: float
    times: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    """Connections that ended before they should."""

    def summary(self, seconds: float) -> dict[str, object]:
        """Rate, percentiles in milliseconds, and what was not a success."""
        return {
            "count": len(self.times),
            "rate": len(self.times) / seconds,
            "p50": percentile(self.times, 0.5) * 1e3,
            "p99": percentile(self.times, 0.99) * 1e3,
            "refused": {str(status): n for status, n in self.statuses.items() if status >= 300},
            "lost": self.lost,
        }


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request, self._tally, self._got = request, tally, b""
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._got, self._began = b"", time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if found else None
        if length is None or len(body) < int(length[1]):
            return
        if self._began >= self._tally.since:
            self._tally.times.append(time.perf_counter() - self._began)
            self._tally.statuses[int(head[9:12])] += 1
        if self.open:
            self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        if self.open:
            self._tally.lost += 1


class Listener(asyncio.Protocol):
    """One event stream, to its end."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self._request, self._tally, self._got = request, tally, b""
        self.opened, self.ended = asyncio.Event(), asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if not self.opened.is_set():
            self.opened.set()
            self._tally.statuses[int(data[9:12])] += 1
        whole, found, rest = (self._got + data).rpartition(b"\n\n")
        self._got = rest
        if found:
            sent = [float(found[1]) for found in _EVENT.finditer(whole)]
            self._tally.times += [now - at for at in sent if at >= self._tally.since]

    def connection_lost(self, _: Exception | None) -> None:
        self.ended.set()

    def close(self) -> None:
        self._transport.close()


async def requests(port: int, request: bytes, connections: int, seconds: float, warm_s: float) -> dict[str, object]:
    """Send `request` on each of the connections for `seconds` after a warm-up."""
    loop = asyncio.get_running_loop()
    tally = Tally(time.perf_counter() + warm_s)
    made = [await loop.create_connection(lambda: Asker(request, tally), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.sleep(max(0.0, tally.since - time.perf_counter()) + seconds)
    summary = tally.summary(seconds)
    for transport, asker in made:
        asker.open = False
        transport.close()
    return summary


async def streams(port: int, heads: list[bytes], clients: int, seconds: float, warm_s: float) -> dict[str, object]:
    """Hold `clients` streams open, the heads in turn; until all have ended, at most `seconds` after the warm-up.

    Prints `open` once all are connected, so that a caller knows when to begin.
    """
    loop = asyncio.get_running_loop()
    tally = Tally(time.time() + 1e9)
    made: list[Listener] = []
    for index in range(clients):
        made.append(Listener(heads[index % len(heads)], tally))
        await loop.create_connection(partial(made.__getitem__, index), "127.0.0.1", port)
    async with asyncio.timeout(60):
        await asyncio.gather(*(listener.opened.wait() for listener in made))
    tally.since = time.time() + warm_s
    print("open", flush=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(warm_s + seconds):
            await asyncio.gather(*(listener.ended.wait() for listener in made))
    summary = {**tally.summary(seconds), "ended": sum(listener.ended.is_set() for listener in made)}
    for listener in made:
        listener.close()
    return summary


def main() -> None:
    """Read what to send from a file (heads separated by a line of `--`), load, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["requests", "streams"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--send", type=Path, required=True)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--warm", type=float, default=0.5)
    given = parser.parse_args()
    sent = given.send.read_bytes().split(b"\n--\n")
    try:
        from uvloop import run
    except ImportError:
        run = asyncio.run
    if given.what == "requests":
        work = requests(given.port, sent[0], given.connections, given.seconds, given.warm)
    else:
        work = streams(given.port, sent, given.connections, given.seconds, given.warm)
    json.dump(run(work), sys.stdout)


if __name__ == "__main__":
    main()
