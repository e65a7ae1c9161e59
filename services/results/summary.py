"""What came of a job, in numbers: summary.json.

Everything is read from the run folder (steps, evaluations, adapter, clips), so that a summary can be made of a job that
failed half-way, too. What the numbers say is in `comparison.py`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from accord.config.job import JobSpec
from accord.config.panels import missing
from accord.config.prompts import load_prompts
from accord.errors import PromptError
from accord.events import PHASES, ChangeSummary, RewardSummary, StepCompleted
from accord.run_folder import ADAPTER, Evaluation, Label, RunFolder
from accord.types import Route


class Document(BaseModel):
    """Base of what is written: NaN becomes null, docstrings are the schema's descriptions."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="null")


class Change(Document):
    """A metric at the first and at the last evaluation, with the same prompts and seeds."""

    before: RewardSummary | None
    after: RewardSummary | None
    difference: ChangeSummary | None = None
    """After minus before, sample by sample, where the metric has one value per sample."""


class RewardChange(Change):
    """A reward of the job."""

    route: Route
    weight: float
    """0 = measured but not trained on, as all are in an evaluation."""
    about: str = ""
    smallest_effect: float = 0.0
    """A change below this counts as none that matters, however certain it is."""
    highest: float | None = None
    """Top of the reward's range, where it has one."""


class ClipPair(Document):
    """One prompt and seed, sampled by the base and by the tuned model. Paths are relative to the run folder."""

    prompt_id: str
    prompt: str
    seed: int
    base: str | None
    tuned: str | None


class Summary(Document):
    """The outcome of a job in numbers: `summary.json`."""

    job_id: str
    name: str
    kind: Literal["train", "evaluate"] = "train"
    subject: str = ""
    """What an evaluation judged: a path."""
    panel: str = ""
    """What an evaluation's panel left unmeasured, in words."""
    state: str
    reason: str = ""
    """Why the job is in that state, where there is something to say."""
    steps: int
    """Optimizer steps done."""
    steps_wanted: int
    seed: int
    guidance: float
    """Classifier-free guidance of the video that training and both evaluations sampled with; 1 = off."""
    guided_by: str = ""
    """Every kind of guidance that was on, in words; empty = none."""
    wall_seconds: float
    phase_seconds: dict[str, float]
    """Seconds per phase, summed over the steps of the final lineage and its evaluations."""
    rewards: dict[str, RewardChange]
    """On held-out prompts."""
    held_out: dict[str, Change]
    """Metrics that nothing was trained on."""
    adapter_sha256: str | None
    policy_version: int
    samples_generated: int
    """Clips sampled for training and for the evaluations."""
    components: dict[str, str | int | None]
    environment: dict[str, str]
    clips: list[ClipPair]
    warnings: list[str] = Field(default_factory=list)
    """What could not be read while this was put together."""


def build_summary(
    folder: RunFolder,
    job: JobSpec,
    *,
    job_id: str,
    state: str,
    wall_seconds: float,
    components: Mapping[str, str | int | None] | None = None,
    reason: str = "",
) -> Summary:
    """Put the run folder's files together. What is missing or unreadable is left out and named in `warnings`."""
    warnings: list[str] = []
    steps = folder.steps(warnings)
    evaluations = folder.evaluations(warnings)
    return Summary(
        job_id=job_id,
        name=job.name,
        kind=job.kind,
        subject=job.subject.path if job.subject else "",
        panel=missing(job.panel, {reward.name for reward in job.rewards}) if job.panel else "",
        state=state,
        reason=reason,
        steps=steps[-1].step if steps else 0,
        steps_wanted=job.steps if job.trains else 0,
        seed=job.seed,
        guidance=job.sampling.guidance,
        guided_by=job.sampling.guidance_text,
        wall_seconds=round(wall_seconds, 3),
        phase_seconds=_phase_seconds(steps, evaluations),
        rewards=_reward_changes(job, evaluations),
        held_out=_held_out_changes(evaluations),
        adapter_sha256=folder.sha256(ADAPTER) if folder.exists(ADAPTER) else None,
        policy_version=steps[-1].policy_version if steps else 0,
        samples_generated=(
            sum(step.samples for step in steps) + sum(len(one.samples) for one in evaluations) if job.samples else 0
        ),
        components=dict(components) if components is not None else component_versions(job),
        environment=environment(),
        clips=_clip_pairs(folder, job, evaluations, warnings),
        warnings=warnings,
    )


def _phase_seconds(steps: list[StepCompleted], evaluations: list[Evaluation]) -> dict[str, float]:
    seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    spent: list[tuple[str, float]] = [("evaluate", one.seconds) for one in evaluations]
    for step in steps:
        spent.extend(step.phase_seconds.items())
    for phase, value in spent:
        seconds[phase] = seconds.get(phase, 0.0) + value
    return {phase: round(value, 3) for phase, value in seconds.items()}


_NOT_MADE = Evaluation(step=0, rewards={}, held_out={})


def _ends(evaluations: list[Evaluation]) -> tuple[Evaluation, Evaluation]:
    """The first and the last evaluation; a single one is `before` when no step had been done, else `after`."""
    if len(evaluations) > 1:
        return evaluations[0], evaluations[-1]
    only = evaluations[0] if evaluations else _NOT_MADE
    return (only, _NOT_MADE) if only.step == 0 else (_NOT_MADE, only)


def _reward_changes(job: JobSpec, evaluations: list[Evaluation]) -> dict[str, RewardChange]:
    before, after = _ends(evaluations)
    return {
        spec.name: RewardChange(
            route=spec.route,
            weight=spec.weight if job.trains else 0.0,
            about=spec.about,
            smallest_effect=spec.smallest_effect,
            highest=spec.highest,
            before=before.rewards.get(spec.name),
            after=after.rewards.get(spec.name),
            difference=after.change.get(spec.name),
        )
        for spec in job.rewards
    }


def _held_out_changes(evaluations: list[Evaluation]) -> dict[str, Change]:
    before, after = _ends(evaluations)
    return {
        name: Change(
            before=before.held_out.get(name), after=after.held_out.get(name), difference=after.change.get(name)
        )
        for name in (*before.held_out, *after.held_out)
    }


def _clip_pairs(folder: RunFolder, job: JobSpec, evaluations: list[Evaluation], warnings: list[str]) -> list[ClipPair]:
    """Pair the clips by seed, in the order of the evaluation's samples."""
    files: dict[int, dict[Label, str]] = {}
    for clip in folder.clips():
        files.setdefault(clip.seed, {})[clip.label] = clip.name
    samples = {sample.seed: sample.prompt for one in evaluations for sample in one.samples if sample.seed in files}
    texts = _prompt_texts(job, warnings) if samples else {}
    return [
        ClipPair(
            prompt_id=prompt, prompt=texts.get(prompt, prompt), seed=seed, base=files[seed].get("base"),
            tuned=files[seed].get("tuned"),
        )
        for seed, prompt in samples.items()
    ]  # fmt: skip


def _prompt_texts(job: JobSpec, warnings: list[str]) -> dict[str, str]:
    """Prompt id to text; without the file, clips go by their prompt's id."""
    try:
        return {prompt.id: prompt.prompt_av for prompt in load_prompts(job.prompts.held_out)}
    except PromptError as error:
        warnings.append(f"texts of the held-out prompts: {error}")
        return {}


def component_versions(
    job: JobSpec, *, store: str | None = "unknown", ray: str | None = "local"
) -> dict[str, str | int | None]:
    """Name the parts that were at work; `store` and `ray` say which it was, in words without secrets. None: no such."""
    deepspeed = job.cluster.engine == "deepspeed"
    return {
        "store": store,
        "ray": f"{_version('ray')} ({ray})" if ray else None,
        "serve": _version("ray") if ray else None,
        "deepspeed": _version("deepspeed") if deepspeed else None,
        "zero_stage": job.cluster.zero_stage if deepspeed else None,
        "torch": _version("torch"),
        "diffusers": _version("diffusers"),
    }


def environment() -> dict[str, str]:
    """The machine and the libraries of this process, for the record."""
    packages = ("accord-rl", "transformers", "peft", "numpy", "av")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return {"python": platform.python_version(), "system": system} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
