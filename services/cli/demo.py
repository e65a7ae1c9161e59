"""`accord demo`: the service, one whole job over REST, its result as a table, and nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from accord.config.settings import Settings
from accord.disk import aside
from accord.errors import AccordError, Unreachable
from accord.events import RewardSummary
from accord.run_folder import CLIPS, LOGS, REPORT, SUMMARY, RunFolder
from services import guard, processes
from services.api.auth import KEY_FILE
from services.api.views import JobDetail
from services.cli.client import ApiClient
from services.cli.job_file import read_job
from services.cli.watch import JobPicture, watch
from services.node.service import prepare_directories, sole_user
from services.results.comparison import Row, headline, summary_rows
from services.results.summary import Summary
from services.signals import Signals

READY_S = 240.0


class Interrupts(Signals):
    """The first signal raises KeyboardInterrupt; a later one is passed on, to hurry the service."""

    service: guard.Child | None = None

    def _arrived(self, _number: int, _frame: FrameType | None) -> None:
        if not self.stop.is_set():
            self.stop.set()
            raise KeyboardInterrupt
        if self.service is not None and self.service.poll() is None:
            self.service.terminate()


def demo(job_file: Path, overrides: list[str], settings: Settings, console: Console) -> int:
    """Run the demo. Returns 0 when the job succeeded, 1 when not, 130 when a signal ended it early."""
    spec = read_job(job_file, overrides)
    interrupts = Interrupts().install()
    try:
        with (
            _own_directory(settings) as data_dir,
            _service(settings, (data_dir, job_file.absolute().parent), console, interrupts) as (process, url),
        ):
            client = _await_ready(process, url, data_dir, console)
            job = _run_job(client, spec, console)
    except KeyboardInterrupt:
        console.print("Stopped before the end.")
        return 130
    folder = settings.run_folder(job.id)
    link_latest(folder.path(), settings.runs_dir / "demo")
    if job.state != "succeeded":
        console.print(f"The job {job.state} ({job.reason}): {job.message}\nLogs: {folder.path(LOGS)}", markup=False)
        return 1
    show_result(folder, console)
    console.print(
        f"All of it is also at {os.path.relpath(settings.runs_dir / 'demo')}.", highlight=False, soft_wrap=True
    )
    return 0


def _run_job(client: ApiClient, spec: dict[str, Any], console: Console) -> JobDetail:
    """Submit, follow to the end, return the job. Interrupted: cancel it."""
    job = client.submit(spec)
    console.print(f"Submitted {job.id} ({job.name}, {job.steps} steps)", highlight=False, markup=False)
    try:
        watch(client.follow(job.id), JobPicture(job.id, job.steps, job.name), console)
    except KeyboardInterrupt:
        with contextlib.suppress(AccordError):
            client.cancel(job.id)
        raise
    return client.job(job.id)


@contextlib.contextmanager
def _own_directory(settings: Settings) -> Iterator[Path]:
    """A fresh data directory, so that a demo neither meets an older one's jobs nor another service's."""
    prepare_directories(settings)
    taken = f"another demo runs on {settings.data_dir.absolute()}; wait for it or stop it"
    with sole_user(settings.data_dir / "demo.lock", taken):
        path = (settings.data_dir / "demo").absolute()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        yield path


@contextlib.contextmanager
def _service(
    settings: Settings, folders: tuple[Path, Path], console: Console, interrupts: Interrupts
) -> Iterator[tuple[guard.Child, str]]:
    """`accord up` as a child on a free port, with its data and the job's files in two folders; gone afterwards."""
    data_dir, job_dir = folders
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        **os.environ,
        "ACCORD_DATA_DIR": str(data_dir),
        "ACCORD_RUNS_DIR": str(settings.runs_dir.absolute()),
        "ACCORD_PORT": str(port),
        "ACCORD_HOST": "127.0.0.1",
        "ACCORD_INPUT_ROOTS": json.dumps([*settings.roots.allowed, str(job_dir)]),
    }
    for name in ("ACCORD_URL", "ACCORD_API_KEY"):
        environment.pop(name, None)
    with (data_dir / "service.log").open("wb") as output:
        process = guard.spawn(
            [sys.executable, "-m", "services.cli.main", "up"], env=environment, when_orphaned=signal.SIGTERM,
            stdout=output,
        )  # fmt: skip
    interrupts.service = process
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        console.print("Shutting the service down ...")
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(settings.grace_s + 40)
        processes.end(processes.marked("ACCORD_DATA_DIR", str(data_dir)), 2.0)
        processes.stop(process, 5.0)


def _await_ready(process: guard.Child, url: str, data_dir: Path, console: Console) -> ApiClient:
    began = time.monotonic()
    log = data_dir / "service.log"
    with console.status(f"Starting job store, API and Ray (log: {log})"):
        while time.monotonic() - began < READY_S:
            if process.poll() is not None:
                tail = log.read_text(errors="replace").strip().splitlines()[-5:]
                raise Unreachable("the service did not start: " + " / ".join(tail))
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url + "/readyz", timeout=5, trust_env=False).status_code == 200:
                    console.print(f"The service is up after {time.monotonic() - began:.1f} s.", highlight=False)
                    return ApiClient(url, (data_dir / KEY_FILE).read_text(encoding="utf-8").strip())
            time.sleep(0.1)
    raise Unreachable(f"the service was not ready within {READY_S:.0f} s; see {log}")


def link_latest(run_dir: Path, link: Path) -> None:
    """Point `runs/demo` at a run folder. A real folder of that name is left alone."""
    if link.exists() and not link.is_symlink():
        return
    with aside(link) as draft:
        draft.symlink_to(run_dir.name)


def show_result(folder: RunFolder, console: Console) -> None:
    """Print before → after of every reward and held-out metric of a summary, and where the files are."""
    summary = Summary.model_validate_json(folder.read(SUMMARY))
    rows = summary_rows(summary)
    rewards = [row for row in rows if row.kind == "reward"]
    training = summary.kind == "train"
    console.print(_table("Rewards on held-out prompts", rewards, starred=training))
    if training and not all(row.trained for row in rewards):
        console.print("* measured, not trained on", style="dim")
    others = [row for row in rows if row.kind == "held_out"]
    if others:
        console.print(_table("Held-out metrics, never trained on" if training else "Controls", others, starred=False))
    console.print(headline(summary, rows), highlight=False, markup=False)
    guidance = f"{summary.guided_by} guidance" if summary.guided_by else f"guidance {summary.guidance:g} (off)"
    console.print(
        f"mean ± standard error; change with its distance from 0 in standard errors of the difference; slightly = "
        f"certain, and too small to matter\n"
        f"{guidance}, before and after alike; {f'{summary.steps} steps in ' if training else ''}"
        f"{summary.wall_seconds:.0f} s, {summary.samples_generated} clips sampled",
        style="dim", highlight=False,
    )  # fmt: skip
    shown = Path(os.path.relpath(folder.path()))
    adapter = [("Adapter", "adapter")] if training else []
    for name, file in (("Report", REPORT), ("Clips", CLIPS), *adapter, ("Numbers", SUMMARY)):
        console.print(f"{name:8} {shown / file}", highlight=False, soft_wrap=True)


def _table(title: str, rows: Sequence[Row], *, starred: bool) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("", "route", "before", "after", "change", ""):
        numbers = column in {"before", "after", "change"}
        # On a narrow terminal numbers wrap, names and verdicts do not.
        table.add_column(column, justify="right" if numbers else "left", no_wrap=not numbers)
    for row in rows:
        name = f"{row.name}*" if starred and not row.trained else row.name
        change = "" if row.delta is None else f"{row.delta:+.3f}" + ("" if row.z is None else f" ({row.z:+.1f})")
        style = {"better": "green", "worse": "red"}.get(row.verdict, "")
        verdict = row.verdict + (", saturated" if row.saturated and row.verdict != "saturated" else "")
        table.add_row(
            name,
            row.route or "",
            _value(row.before),
            _value(row.after),
            change,
            f"[{style}]{verdict}[/]" if style else verdict,
        )
    return table


def _value(side: RewardSummary | None) -> str:
    if side is None or side.mean is None:
        return "-"
    return f"{side.mean:.3f}" + (f" ± {side.sem:.3f}" if side.sem is not None else "")
