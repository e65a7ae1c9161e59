"""`accord export`: a checkpoint of a run as files that other programs load.

consumes: a run folder; produces: a directory, written aside and renamed into place, with a note of what it was made
from. A directory that carries no such note is never replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from accord.config.job import JobSpec
from accord.disk import swap_in
from accord.errors import UserError
from accord.run_folder import EXPORTS, LORA_FILE, RunFolder
from accord.types import PolicyState

Form = Literal["lora", "merged"]
NOTE = "accord_export.json"


def export(
    runs_dir: Path,
    job_id: str,
    form: Form,
    *,
    step: int | None = None,
    out: Path | None = None,
    force: bool = False,
    link: bool = False,
) -> Path:
    """Write version `step` (default: the last that has a checkpoint) of a job's policy. Returns the directory.

    `lora`: the file that diffusers' `load_lora_weights` takes. `merged`: the base's pipeline directory with the adapter
    in its transformer. The default place is `exports/` in the run folder.

    Raises:
        UserError: no such job or step, a base directory that cannot be used, or a place that is taken.
        CheckpointError: the checkpoint is torn.
    """
    folder = RunFolder(runs_dir / job_id)
    step = _choose(folder, step)
    target = (out or folder.path(EXPORTS) / f"step-{step:06d}-{form}").resolve()
    _refuse_taken(target, force)
    from learner.checkpoint import read_policy

    job, state = read_policy(folder, step)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write(job, state, form, draft, link)
        note = {"job": job_id, "step": step, "form": form, "base": job.backbone.path}
        (draft / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        swap_in(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _choose(folder: RunFolder, step: int | None) -> int:
    """The step to export. Raises UserError that lists what there is."""
    job_id = folder.job_id
    if not folder.exists():
        raise UserError(
            f"no job {job_id!r}: there is no {folder.root} (`accord jobs` lists jobs, ACCORD_RUNS_DIR is where)"
        )
    steps = [found.step for found in folder.checkpoints()]
    if not steps:
        raise UserError(f"job {job_id} has no checkpoint yet; the first comes after checkpoint.every steps")
    if step is not None and step not in steps:
        raise UserError(f"job {job_id} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def _refuse_taken(target: Path, force: bool) -> None:
    """Raise UserError when something stands where the export goes, unless it is an older export and `force`."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise UserError(f"{target} exists; choose another --out, or --force to replace it")
    if not (target / NOTE).is_file():
        raise UserError(f"{target} is not an export of Accord, so --force does not replace it; choose another --out")


def _write(job: JobSpec, state: PolicyState, form: Form, directory: Path, link: bool) -> None:
    from accord.backbones.adapters import export_lora
    from accord.backbones.export import write_merged

    adapter, backbone = state.adapters["policy"], job.backbone
    if form == "lora":
        directory.mkdir(parents=True)
        export_lora(adapter, backbone, directory / LORA_FILE)
        return
    facts = backbone.facts()  # raises ModelError when the base is gone or damaged
    if facts is None or not backbone.component:
        raise UserError(f"backbone {backbone.name} is no pipeline directory to merge into; use --to lora")
    write_merged(facts.path, backbone, adapter, directory, link=link)
    backbone.model_copy(update={"path": str(directory)}).facts()
