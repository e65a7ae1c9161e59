"""What a job spec cannot know by itself: does it fit its model directory and its prompt files?

Light: runs in the control plane, before any process is started for the job.
"""

from __future__ import annotations

from accord.config.algorithms import BlockScale, SigmaSpec, SurgerySpec
from accord.config.job import JobSpec
from accord.config.model_dir import ModelFacts
from accord.config.prompts import load_prompts
from accord.diffusion.schedule import ScheduleConfig, sigma_schedule, trained_sigmas
from accord.errors import ModelError, PromptError, SpecError
from accord.plugins import resolve
from accord.types import Prompt

Problem = tuple[str, str]
"""JSON pointer, and what is wrong and what would be right."""


def preflight(job: JobSpec) -> None:
    """Check a valid spec against the files it names. Raises SpecError with every problem found."""
    problems = _prompt_problems(job)
    inspect = getattr(type(job.backbone), "inspect", "")
    if inspect:
        try:
            problems += _model_problems(job, resolve(inspect)(job.backbone.path))
        except ModelError as error:
            problems.append(("/backbone/path", str(error)))
    if problems:
        raise SpecError(problems)


def _model_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    return [
        *_size_problems(job, facts),
        *_target_problems(job, facts),
        *_surgery_problems(job, facts),
        *_sigma_problems(job, facts),
    ]


def _size_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    problems = []
    sampling, step = job.sampling, facts.temporal_compression * facts.patch_size_t
    if (sampling.frames - 1) % step:
        low = (sampling.frames - 1) // step * step + 1
        problems.append(
            (
                "/sampling/frames",
                f"{sampling.frames} frames do not fit the VAE: use {step} k + 1, as {low} or {low + step}",
            )
        )
    side = facts.spatial_compression * facts.patch_size
    for name, pixels in (("height", sampling.height), ("width", sampling.width)):
        if pixels % side:
            near = max(1, round(pixels / side)) * side
            problems.append(
                (f"/sampling/{name}", f"{pixels} pixels do not fit the VAE: use a multiple of {side}, as {near}")
            )
    return problems


def _target_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    unknown = [name for name in job.backbone.lora.targets if name not in facts.block_parts]
    if not unknown:
        return []
    known = ", ".join(sorted(part for part in facts.block_parts if "attn" in part or part.endswith("ff")))
    return [("/backbone/lora/targets", f"{', '.join(unknown)}: no such part of a block; the model has {known}")]


def _surgery_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    surgery = getattr(job.algorithm, "surgery", None)
    if not isinstance(surgery, SurgerySpec) or not surgery.enabled:
        return []
    return [
        problem
        for index, run in enumerate(surgery.schedule)
        for problem in _run_problems(f"/algorithm/surgery/schedule/{index}", run, facts.depth)
    ]


def _run_problems(where: str, run: BlockScale, depth: int) -> list[Problem]:
    if run.unit != "block":
        return []
    problems = []
    for name, value, highest in (("start", run.start, depth - 1), ("stop", run.stop, depth)):
        if value != int(value):
            problems.append((f"{where}/{name}", f"{value} is not a whole block number"))
        elif value > highest:
            message = f"{int(value)} is beyond the model's {depth} blocks: use at most {highest}, or unit = 'depth'"
            problems.append((f"{where}/{name}", message))
    return problems


def _sigma_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    sigmas = getattr(job.algorithm, "sigmas", None)
    grid = facts.video_grid(job.sampling.frames, job.sampling.height, job.sampling.width)
    tokens = grid[0] * grid[1] * grid[2]
    config = ScheduleConfig.parse(facts.scheduler)
    schedule = sigma_schedule(config, job.sampling.num_steps, tokens, job.sampling.shift)
    if not isinstance(sigmas, SigmaSpec) or trained_sigmas(schedule, sigmas.low, sigmas.high):
        return []
    values = ", ".join(f"{sigma:.3f}" for sigma in schedule[:-1][:12])
    return [
        ("/algorithm/sigmas/low", f"no sigma of the schedule lies in [{sigmas.low}, {sigmas.high}]; it has {values}")
    ]


def _prompt_problems(job: JobSpec) -> list[Problem]:
    problems: list[Problem] = []
    loaded: dict[str, list[Prompt]] = {}
    for name, path in (("train", job.prompts.train), ("held_out", job.prompts.held_out)):
        try:
            loaded[name] = load_prompts(path)
        except PromptError as error:
            problems.append((f"/prompts/{name}", str(error)))
    if len(loaded) == 2:
        trained = {_words(prompt) for prompt in loaded["train"]}
        shared = [prompt.id for prompt in loaded["held_out"] if _words(prompt) in trained]
        if shared:
            some = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
            problems.append(
                ("/prompts/held_out", f"{some}: also in the training prompts; held-out means never trained on")
            )
    return problems


def _words(prompt: Prompt) -> tuple[str, ...]:
    return tuple(prompt.prompt_av.casefold().split())
