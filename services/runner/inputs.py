"""The files that a spec names belong to the job: they may not change between its attempts."""

from __future__ import annotations

import json
from pathlib import Path

from accord.config.job import JobSpec
from accord.config.paths import input_paths
from accord.errors import SpecError
from accord.ids import file_sha256
from services.runner.summary import write_whole

NOTE = "inputs.json"


def pin_inputs(job: JobSpec, run_dir: Path) -> None:
    """Note the digests of the job's files in its run folder at the first attempt; compare them at any later one.

    Prompt files and `init_lora`; what a model directory holds is not read for this. Raises SpecError that names every
    file that changed.
    """
    found = {pointer: file_sha256(path) for pointer, path in _files(job).items()}
    note = run_dir / NOTE
    if not note.exists():
        write_whole(note, json.dumps(found, indent=2) + "\n")
        return
    pinned = json.loads(note.read_text(encoding="utf-8"))
    problems = [
        (pointer, f"{path} changed since the job began; put the old file back, or submit a new job")
        for pointer, path in _files(job).items()
        if found[pointer] != pinned.get(pointer)
    ]
    if problems:
        raise SpecError(problems)


def _files(job: JobSpec) -> dict[str, Path]:
    """By JSON pointer."""
    return {named.pointer: Path(named.path) for named in input_paths(JobSpec, job) if named.mark.kind == "file"}
