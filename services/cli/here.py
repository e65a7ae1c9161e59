"""`accord run`: a job on this machine without the service, shown as `accord watch` shows one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console

from accord.config.job import JobSpec
from accord.config.preflight import preflight
from accord.config.settings import Settings
from accord.errors import UserError
from accord.events import Event, JobEvent
from accord.run_folder import RunFolder
from services.cli.demo import show_result
from services.cli.job_file import read_job, shown
from services.cli.watch import JobPicture, showing


class Shown:
    """An event sink that shows what it is given."""

    def __init__(self, show: Callable[[JobEvent], None]) -> None:
        self._show = show

    def emit(self, event: Event) -> None:
        """Show one event."""
        self._show(cast(JobEvent, event))


def run(
    job_file: Path,
    overrides: Sequence[str],
    settings: Settings,
    console: Console,
    out: Path | None,
    save: Path | None,
    replay: Path | None,
) -> None:
    """Train, conclude, show the result.

    Raises what training raises; UserError for options that do not go together, and folders that cannot be written.
    """
    if save and replay:
        raise UserError(
            "--save-groups and --replay-groups: groups that are replayed are saved already; give one of them"
        )
    job = JobSpec.parse(shown(read_job(job_file, overrides)))
    preflight(job)
    folder = RunFolder((out or _fresh(settings.runs_dir, job_file.stem)).resolve())
    _require_room("--out", folder.path())
    if save:
        _require_room("--save-groups", save)
    console.print(f"Run folder {folder.path()}", highlight=False, soft_wrap=True)
    from services.runner.local import run_here  # loads torch

    picture = JobPicture(folder.job_id, job.steps, job.name, state="running", began=time.time())
    try:
        with showing(picture, console) as show:
            run_here(settings, job, folder, Shown(show), save=save, replay=replay)
    except KeyboardInterrupt:
        again = f"the same command with --out {folder.path()} goes on from its last checkpoint"
        console.print(f"Stopped before the end; {again}.", markup=False, highlight=False, soft_wrap=True)
        raise
    show_result(folder, console)


def _require_room(option: str, folder: Path) -> None:
    """Make the folder. Raises UserError when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}; name a folder that can be written") from error


def _fresh(runs: Path, stem: str) -> Path:
    """The first of stem, stem-2, stem-3, … that is not there."""
    found, number = runs / stem, 1
    while found.exists():
        number += 1
        found = runs / f"{stem}-{number}"
    return found
