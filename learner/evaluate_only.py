"""An evaluation as a job: the base, then what is judged, on the same prompts and seeds; nothing is trained.

Version 0 is what the job's model is by itself, version 1 is the subject. Both are evaluated as a training job evaluates
its first and its last version, so that all that reads a run folder reads this one, too. What is done is not done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from accord.config.job import JobSpec
from accord.config.subject import SubjectSpec
from accord.disk import WAIT_S, patiently
from accord.events import Event, EventSink, Warned
from accord.ids import PolicyVersion
from accord.plugins import resolve
from accord.run_folder import RunFolder
from accord.types import GroupSource, PolicyState, Prompt
from learner.checkpoint import read_policy
from learner.evaluate import Evaluator
from learner.outcome import TrainResult

SUBJECT = PolicyVersion(1)


def evaluate_only(
    job: JobSpec,
    folder: RunFolder,
    source: GroupSource,
    events: EventSink | None,
    held_out: Sequence[Prompt],
    *,
    disk_wait_s: float = WAIT_S,
) -> TrainResult:
    """Evaluate the base, unless the subject are clips that stand alone, and the subject.

    A write to a run folder without room waits up to `disk_wait_s`. Raises what the source raises; ModelError,
    CheckpointError for an adapter that cannot be read.
    """
    assert job.subject is not None, "the job's validation requires it"

    def emit(event: Event) -> None:
        if events is not None:
            events.emit(event)

    write = partial(patiently, warn=lambda code, message: emit(Warned(code=code, message=message)), wait_s=disk_wait_s)
    evaluator = Evaluator(job, folder, source, held_out, emit, write)
    if (job.samples or job.subject.clips_base) and not evaluator.done(0):
        emit(evaluator.evaluate(0))
    if not evaluator.done(SUBJECT):
        if job.samples:
            source.publish(subject_state(job, job.subject))
        emit(evaluator.evaluate(SUBJECT))
    return TrainResult(SUBJECT, "", 0)


def subject_state(job: JobSpec, subject: SubjectSpec) -> PolicyState:
    """The adapter or the checkpoint of a job as version 1, in both roles. Raises ModelError, CheckpointError."""
    if subject.checkpoint:
        step = Path(subject.checkpoint)
        adapter: Mapping[str, np.ndarray] = read_policy(
            RunFolder(step.parent.parent), int(step.name.removeprefix("step-"))
        )[1].adapters["policy"]
    else:
        adapter = resolve(job.backbone.read_adapter)(job.backbone, subject.adapter)
    return PolicyState(SUBJECT, {"policy": adapter, "old": adapter})
