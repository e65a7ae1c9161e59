"""`accord demo`: the service, one whole job over REST, its result as a table, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from accord.config.settings import Settings
from accord.errors import Unreachable
from services.api.auth import KEY_FILE
from services.runner import guard, processes
from services.runner.client import ApiClient
from services.runner.job_file import read_job
from services.runner.watch import JobPicture, watch

READY_S = 120.0


class Stopped(Exception):
    """A signal asked the demo to end."""


def demo(job_file: Path, overrides: list[str], settings: Settings, console: Console, stop: threading.Event) -> int:
    """Run the demo. Returns 0 when the job succeeded, 1 when not, 130 when a signal ended it early."""
    spec = read_job(job_file, overrides)
    data_dir = (settings.data_dir / "demo").absolute()
    with _service(settings, data_dir, console) as (process, url):
        try:
            client = _await_ready(process, url, data_dir, stop)
            job = client.submit(spec)
            console.print(f"Submitted [bold]{job['id']}[/bold] from {job_file}")
            picture = JobPicture(job["id"], job["steps"], job["name"])
            watch(client.follow(job["id"]), picture, console, stop.is_set)
            if stop.is_set():
                raise Stopped
            job = client.job(job["id"])
        except Stopped:
            console.print("Stopping.")
            return 130
        run_dir = (settings.runs_dir / str(job["id"])).absolute()
    link_latest(run_dir, settings.runs_dir / "demo")
    if job["state"] != "succeeded":
        console.print(
            f"[red]The job {job['state']}[/red] ({job['reason']}): {job['message']}\nLogs: {run_dir / 'logs'}"
        )
        return 1
    show_result(run_dir, console)
    return 0


@contextlib.contextmanager
def _service(settings: Settings, data_dir: Path, console: Console) -> Iterator[tuple[guard.Child, str]]:
    """`accord up` as a child on a free port, with its own data directory; gone afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    data_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ACCORD_DATA_DIR": str(data_dir),
        "ACCORD_RUNS_DIR": str(settings.runs_dir.absolute()),
        "ACCORD_PORT": str(port),
        "ACCORD_HOST": "127.0.0.1",
    }
    for name in ("ACCORD_URL", "ACCORD_API_KEY"):
        environment.pop(name, None)
    log = data_dir / "service.log"
    console.print(f"Starting the service (log: {log}) ...")
    with log.open("wb") as output:
        process = guard.spawn(
            [sys.executable, "-m", "services.runner.cli", "up"], env=environment, when_orphaned=signal.SIGTERM,
            stdout=output,
        )  # fmt: skip
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        console.print("Shutting the service down ...")
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(settings.grace_s + 40)
        except subprocess.TimeoutExpired:
            processes.end(processes.marked("ACCORD_DATA_DIR", str(data_dir)), 2.0)
        processes.stop(process, 5.0)


def _await_ready(process: guard.Child, url: str, data_dir: Path, stop: threading.Event) -> ApiClient:
    began = time.monotonic()
    while time.monotonic() - began < READY_S:
        if stop.is_set():
            raise Stopped
        if process.poll() is not None:
            tail = (data_dir / "service.log").read_text(errors="replace").strip().splitlines()[-5:]
            raise Unreachable("the service did not start: " + " / ".join(tail))
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url + "/readyz", timeout=5).status_code == 200:
                return ApiClient(url, (data_dir / KEY_FILE).read_text(encoding="utf-8").strip())
        time.sleep(0.1)
    raise Unreachable(f"the service was not ready within {READY_S:.0f} s; see {data_dir / 'service.log'}")


def link_latest(run_dir: Path, link: Path) -> None:
    """Point `runs/demo` at a run folder. A real folder of that name is left alone."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.symlink_to(run_dir.name)
    temporary.replace(link)


def show_result(run_dir: Path, console: Console) -> None:
    """Print before → after of every reward and held-out metric of summary.json, and where the files are."""
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    table = Table(title="Held-out prompts: before → after", title_justify="left")
    for column in ("", "route", "before", "after", "change"):
        table.add_column(column, justify="left" if column in {"", "route"} else "right")
    for name, entry in summary["rewards"].items():
        trained = entry.get("weight", 1.0) > 0
        table.add_row(name if trained else f"{name} (not trained)", entry.get("route", ""), *_change(entry))
    table.add_section()
    for name, entry in summary["held_out"].items():
        table.add_row(name, "held out", *_change(entry))
    console.print(table)
    console.print("mean ± standard error; change in brackets: in standard errors of the difference", style="dim")
    guidance = summary.get("guidance")
    if guidance is not None:
        off = " (off)" if guidance == 1 else ""
        console.print(f"Classifier-free guidance {guidance:g}{off}, before and after alike.", style="dim")
    shown = Path(os.path.relpath(run_dir))
    console.print(f"\nReport   {shown / 'report.html'}\nClips    {shown / 'clips'}\nAdapter  {shown / 'adapter'}")
    console.print(f"Numbers  {shown / 'summary.json'}   (all of it is also at {shown.parent / 'demo'})")


def _change(entry: dict[str, Any]) -> tuple[str, str, str]:
    before, after = _numbers(entry.get("before")), _numbers(entry.get("after"))
    change = ""
    if before[0] is not None and after[0] is not None:
        difference = after[0] - before[0]
        error = ((before[1] or 0.0) ** 2 + (after[1] or 0.0) ** 2) ** 0.5
        change = f"{difference:+.3f}" + (f" ({difference / error:+.1f})" if error else "")
    return _value(*before), _value(*after), change


def _numbers(side: Any) -> tuple[float | None, float | None]:
    if isinstance(side, dict):
        return side.get("mean"), side.get("sem")
    return (float(side), None) if isinstance(side, int | float) else (None, None)


def _value(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.3f}" + (f" ± {error:.3f}" if error is not None else "")
