"""The control plane's speed beside its floors, in one run: an app that does nothing, and one that writes one key per
request to the same kind of store, bare and as a route of FastAPI. With `--against DIR`, the API of another checkout as
well, so that before and after are one run.

All are served by uvicorn with one worker; each that stores has a store of its own, synced on every write. Rounds are
interleaved, each after a warm-up; the table has medians of the rounds, and ratios within a round with their spread.
Absolute numbers mean nothing beyond the machine.

    .venv/bin/python benchmarks/api.py --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from services import processes
from services.cli.job_file import read_job
from services.node.embedded import EmbeddedStore

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
NOTHING, KEY, ROUTE, OURS, OTHER = "nothing", "one key", "key, FastAPI", "accord", "against"
LIMITS = {
    f"ACCORD_MAX_{what}": "5000" for what in ("CONNECTIONS", "CONNECTIONS_PER_CLIENT", "STREAMS", "STREAMS_PER_CLIENT")
}
"""One address holds all connections here, which the defaults refuse."""
Measured = dict[str, dict[str, list[float]]]
"""Row → arm → one value per round."""


@dataclass
class Plan:
    """How much is measured."""

    rounds: int = 5
    seconds: float = 2.0
    connections: int = 16
    clients: int = 200
    jobs: int = 10
    rate: float = 50.0
    streams: int = 0
    spec: dict[str, Any] = field(default_factory=dict)

    @property
    def times(self) -> tuple[float, float]:
        """Seconds of warm-up and of load in a round."""
        return min(1.0, self.seconds / 3), self.seconds


@dataclass
class Arm:
    """A server under load."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    store: str = ""
    checkout: Path = ROOT
    key: str = ""

    @property
    def is_accord(self) -> bool:
        """It is the API, not a floor."""
        return bool(self.key)

    def head(self, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
        """One request as it goes over the wire."""
        fields = {"Host": "127.0.0.1", "Authorization": f"Bearer {self.key}", **headers}
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def memory(self) -> float:
        """Resident memory in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextlib.contextmanager
def served(command: list[str], port: int, log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; yields once it answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command} does not answer:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)
        yield process
    finally:
        processes.stop(process, 15)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def floor(stack: contextlib.ExitStack, name: str, root: Path, plan: Plan) -> Arm:
    """Start one of the reference apps."""
    port, store = free_port(), ""
    command = [sys.executable, str(HERE / "floors.py"), "--port", str(port)]
    command += ["--jobs", str(plan.jobs), "--rate", str(plan.rate)]
    if name != NOTHING:
        store = stack.enter_context(EmbeddedStore(root / name.replace(", ", "-"))).url
        command += ["--store", store, *(["--framework"] if name == ROUTE else [])]
    return Arm(name, port, stack.enter_context(served(command, port, root / f"{name}.log")), store)


def accord(stack: contextlib.ExitStack, name: str, root: Path, checkout: Path) -> Arm:
    """Start the API of a checkout, as `accord api` does."""
    port, key = free_port(), secrets.token_urlsafe(32)
    store = stack.enter_context(EmbeddedStore(root / name)).url
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "REDIS_URL": store, "ACCORD_PORT": str(port),
        "ACCORD_API_KEY": key, "ACCORD_DATA_DIR": str(root / name / "data"),
        "ACCORD_RUNS_DIR": str(root / name / "runs"), **LIMITS, "ACCORD_INPUT_ROOTS": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "services.cli.main", "api"]
    process = stack.enter_context(served(command, port, root / f"{name}.log", cwd=checkout, env=environment))
    return Arm(name, port, process, store, checkout, key)


def load(arm: Arm, what: str, sent: list[bytes], connections: int, times: tuple[float, float]) -> subprocess.Popen[str]:
    """Start the load generator; `times` are seconds of warm-up and of load."""
    warm_s, seconds = times
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"\n--\n".join(sent))
    command = [sys.executable, str(HERE / "load.py"), what, "--port", str(arm.port), "--send", file.name]
    command += ["--connections", str(connections), "--seconds", str(seconds), "--warm", str(warm_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def listening(arm: Arm, heads: list[bytes], clients: int, times: tuple[float, float]) -> subprocess.Popen[str]:
    """Start `clients` listeners; returns once all streams are open."""
    listeners = load(arm, "streams", heads, clients, times)
    assert listeners.stdout is not None
    listeners.stdout.readline()
    return listeners


def result(process: subprocess.Popen[str], arm: Arm) -> dict[str, Any]:
    """Wait for the load generator and read what it counted. Refused requests make numbers worthless: it stops."""
    text, _ = process.communicate(timeout=180)
    found = dict(json.loads(text.splitlines()[-1]))
    if found["refused"] or found["lost"] or not found["count"]:
        raise SystemExit(f"{arm.name}: {found}")
    return found


def ask(arm: Arm, row: str, request: bytes, plan: Plan, into: Measured) -> None:
    """One round of one request."""
    found = result(load(arm, "requests", [request], plan.connections, plan.times), arm)
    for name in ("rate", "p50", "p99"):
        into[f"{row} {name}"][arm.name].append(found[name])


def follow(arm: Arm, plan: Plan, into: Measured) -> None:
    """One round of event streams."""
    feed, ids = None, [str(index) for index in range(plan.jobs)]
    if arm.is_accord:
        feed, ids = feeder(arm, plan.jobs, plan)
    heads = [stream_head(arm, job) for job in ids]
    longest = plan.seconds * 2 + (30 if feed else 0)  # what is fed ends by itself
    listeners = listening(arm, heads, plan.clients, (plan.times[0], longest))
    if feed is not None:
        feed.communicate("go\n", timeout=120)
    found = result(listeners, arm)
    into["SSE p50"][arm.name].append(found["p50"])
    into["SSE p99"][arm.name].append(found["p99"])
    if feed is not None and found["ended"] < plan.clients:
        raise SystemExit(f"{arm.name}: {plan.clients - found['ended']} streams were not told the end")


def warm(arms: list[Arm], plan: Plan) -> None:
    """Submit once: the first look at a job's files takes a while."""
    for arm in arms:
        headers = {"Authorization": f"Bearer {arm.key}", "Content-Type": "application/json"}
        url, body = f"http://127.0.0.1:{arm.port}/v1/jobs", json.dumps(plan.spec).encode()
        urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60).close()


def stream_head(arm: Arm, job: str) -> bytes:
    """The request for a job's event stream."""
    return arm.head("GET", f"/v1/jobs/{job}/events", Accept="text/event-stream", Connection="close")


def feeder(arm: Arm, jobs: int, plan: Plan) -> tuple[subprocess.Popen[str], list[str]]:
    """Start what plays the attempts of `jobs` jobs; it waits for a word before it begins."""
    command = [sys.executable, str(HERE / "feed.py"), "--store", arm.store, "--spec", json.dumps(plan.spec)]
    command += ["--jobs", str(jobs), "--rate", str(plan.rate), "--seconds", str(plan.seconds * 2)]
    environment = {**os.environ, "PYTHONPATH": str(arm.checkout)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def idle(arm: Arm, plan: Plan, post: bytes, into: Measured) -> None:
    """POST while many streams are open and nothing happens on them."""
    feed, (job,) = feeder(arm, 1, plan)
    feed.communicate(timeout=60)
    listeners = listening(arm, [stream_head(arm, job)], plan.streams, (0.0, plan.seconds + 60))
    warm([arm], plan)
    ask(arm, f"POST beside {plan.streams} streams", post, plan, into)
    if listeners.poll() is not None:
        raise SystemExit(f"{arm.name}: the streams ended while POST was timed")
    listeners.terminate()
    listeners.wait(30)


def measure(arms: list[Arm], plan: Plan) -> Measured:
    """All rounds. Streams come first: the feeder needs an empty queue."""
    into: Measured = defaultdict(lambda: defaultdict(list))
    post = {arm.name: arm.head("POST", "/v1/jobs", json.dumps(plan.spec).encode()) for arm in arms}
    for _ in range(max(1, plan.rounds // 2)):
        for arm in arms:
            if arm.name not in {KEY, ROUTE}:
                follow(arm, plan, into)
    apis = [arm for arm in arms if arm.is_accord]
    if plan.streams:
        for arm in apis:
            idle(arm, plan, post[arm.name], into)
    warm(arms, plan)
    for index in range(plan.rounds):
        for arm in arms if index % 2 else arms[::-1]:
            ask(arm, "POST", post[arm.name], plan, into)
        for arm in apis:
            ask(arm, "list of 100", arm.head("GET", "/v1/jobs?limit=100"), plan, into)
    for arm in apis:
        into["RSS MiB"][arm.name].append(arm.memory())
        ask(arm, "/metrics", arm.head("GET", "/metrics"), Plan(seconds=plan.seconds, connections=1), into)
    return into


def table(measured: Measured, arms: list[str]) -> str:
    """Medians by row and arm, then the ratios of POST with their spread over the rounds."""
    lines = [f"{'':<28}" + "".join(f"{arm:>13}" for arm in arms)]
    for row, by_arm in measured.items():
        unit = {"rate": "/s", "p50": "ms", "p99": "ms"}.get(row.rsplit(" ", 1)[-1], "")
        cells = (f"{statistics.median(by_arm[arm]):>13.1f}" if by_arm.get(arm) else f"{'':>13}" for arm in arms)
        lines.append(f"{row + (f' {unit}' if unit else ''):<28}" + "".join(cells))
    lines.append("")
    for row, over, under in _pairs(arms):
        pairs = zip(measured[row][over], measured[row][under], strict=True)
        ratios = [above / below for above, below in pairs if below]
        lines.append(
            f"{row}: {over} ÷ {under} = {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f}, "
            f"{len(ratios)} rounds)"
        )
    return "\n".join(lines)


def _pairs(arms: list[str]) -> list[tuple[str, str, str]]:
    pairs = [("POST rate", OURS, floor) for floor in (NOTHING, KEY, ROUTE)] + [("SSE p99", OURS, NOTHING)]
    if OTHER in arms:
        pairs += [(row, OURS, OTHER) for row in ("POST rate", "list of 100 rate", "SSE p99")]
    return pairs


def compare(plan: Plan, against: Path | None) -> tuple[Measured, list[str]]:
    """Start all arms, measure, stop them."""
    with tempfile.TemporaryDirectory(prefix="accord-api-") as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        arms = [floor(stack, name, root, plan) for name in (NOTHING, KEY, ROUTE)]
        arms.append(accord(stack, OURS, root, ROOT))
        if against is not None:
            arms.append(accord(stack, OTHER, root, against.resolve()))
        return measure(arms, plan), [arm.name for arm in arms]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each request's round; streams take twice that")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--clients", type=int, default=200, help="event streams that are followed")
    parser.add_argument("--streams", type=int, default=0, help="idle event streams beside which POST is timed")
    parser.add_argument("--rate", type=float, default=50.0, help="events a second over all jobs")
    parser.add_argument("--job", type=Path, default=ROOT / "examples" / "tiny_omninft.toml")
    parser.add_argument("--against", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--out", type=Path, help="directory for api.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers must not outlive this process
    plan = Plan(
        given.rounds, given.seconds, given.connections, given.clients, rate=given.rate, streams=given.streams,
        spec=read_job(given.job, []),
    )  # fmt: skip
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring, not after
    text = table(*compare(plan, given.against))
    print(text)
    if given.out:
        told = " ".join(f"--{name} {getattr(given, name)}" for name in ("rounds", "connections", "clients", "streams"))
        (given.out / "api.md").write_text(page(text, told), encoding="utf-8")


def page(text: str, told: str) -> str:
    """The page of results."""
    return (
        f"# The control plane beside its floors\n\nMade by `benchmarks/api.py {told}` on {os.cpu_count()} cores, "
        "rounds interleaved; a store of its own for each arm that stores, synced on every write; one uvicorn worker "
        "each. `nothing` answers without reading a job, `one key` writes each body to one key, `key, FastAPI` does "
        "so in a route of the framework that the API uses. Absolute numbers mean "
        f"nothing beyond the machine; ratios do.\n\n```\n{text}\n```\n"
    )


if __name__ == "__main__":
    main()
