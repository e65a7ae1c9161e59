"""What a job spec cannot know by itself: does it fit its model directory and its prompt files?

Light: runs in the control plane, before any process is started for the job.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container

from accord.backbones.ltx2.lora_file import lora_misfits, read_lora_file
from accord.backbones.ltx2.model_dir import ModelFacts
from accord.backbones.ltx2.schedule import ScheduleConfig, sigma_schedule, trained_sigmas
from accord.config.algorithms import BlockScale, RegionSpec, SigmaSpec, SurgerySpec
from accord.config.departures import preset_sampling
from accord.config.files import Roots, Seen, files_below, open_file, reading, remembered
from accord.config.job import JobSpec
from accord.config.paths import NamedPath, input_paths
from accord.config.prompts import load_prompts
from accord.config.rewards import MIN_AUDIO_S, MIN_FRAMES
from accord.errors import InputError, ModelError, PromptError, SpecError, UserError
from accord.plugins import resolve
from accord.types import Prompt

MAX_CLIP_S = 3600.0
"""Longest clip that is sampled, in seconds."""
Problem = tuple[str, str]
"""JSON pointer, and what is wrong and what would be right."""


def preflight(job: JobSpec, roots: Roots | None = None) -> Seen:
    """Check a valid spec against the files it names, which must lie within `roots` (default: anywhere).

    Returns what was looked at. Raises SpecError with every problem found.
    """
    with reading(Roots() if roots is None else roots) as seen:
        barred = dict(_path_problems(job))
        problems = [*barred.items(), *_prompt_problems(job, barred), *_reward_problems(job, barred)]
        inspect = getattr(type(job.backbone), "inspect", "")
        if inspect and "/backbone/path" not in barred:
            try:
                problems += _model_problems(job, remembered(resolve(inspect), job.backbone.path), barred)
            except UserError as error:
                problems.append(("/backbone/path", str(error)))
            except (TypeError, ValueError, LookupError, ArithmeticError) as error:
                why = f"the model's configs hold values that no schedule or clip can be made of ({error})"
                problems.append(("/backbone/path", why))
    if problems:
        raise SpecError(problems)
    return seen


def _path_problems(job: JobSpec) -> list[Problem]:
    """Every path field of every spec: is it there, allowed, of its kind and within its size?"""
    problems = []
    for named in input_paths(JobSpec, job):
        try:
            _look_at(named)
        except InputError as error:
            problems.append((named.pointer, str(error)))
    return problems


def _look_at(named: NamedPath) -> None:
    if named.mark.kind == "file":
        open_file(named.path, named.mark.max_bytes).close()
    else:
        remembered(files_below, named.path)


def _reward_problems(job: JobSpec, barred: Container[str]) -> list[Problem]:
    """What a reward's spec says about its own files (its class names the check in `inspect`)."""
    problems = []
    for index, reward in enumerate(job.rewards):
        inspect = type(reward).inspect
        if inspect and f"/rewards/{index}/path" not in barred:
            try:
                remembered(resolve(inspect), getattr(reward, "path", ""))
            except UserError as error:
                problems.append((f"/rewards/{index}/path", str(error)))
    return problems


def _model_problems(job: JobSpec, facts: ModelFacts, barred: Container[str]) -> list[Problem]:
    return [
        *_size_problems(job, facts),
        *_length_problems(job, facts),
        *_guidance_problems(job, facts),
        *_target_problems(job, facts),
        *([] if "/backbone/init_lora" in barred else _start_problems(job, facts)),
        *_surgery_problems(job, facts),
        *_region_problems(job, facts),
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


def _length_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    """A clip has an audio token at least, and is long enough for what its rewards look at."""
    frames, fps = job.sampling.frames, job.sampling.fps
    if frames / fps > MAX_CLIP_S:
        why = f"{frames} frames at {fps:g} a second last {frames / fps:.3g} s, and sound is made for all of it"
        return [("/sampling/fps", f"{why}; use at most {MAX_CLIP_S:g} s")]
    tokens, rate = facts.audio_tokens(frames, fps), facts.audio_tokens_per_second
    sound = max(0.0, tokens - 0.75) / rate  # a causal decoder makes less of the first token
    made = f"{frames} frame{'s' if frames > 1 else ''} at {fps:g} a second"
    if tokens < 1:
        return [("/sampling/frames", f"{made} make no audio token; use more frames, or a lower sampling.fps")]
    problems = []
    seeing, hearing = (
        [reward.name for reward in job.rewards if modality in reward.needs] for modality in ("video", "audio")
    )  # fmt: skip
    if seeing and frames < MIN_FRAMES:
        why = f"{made} are too few to be scored by {', '.join(seeing)}; use {MIN_FRAMES} or more"
        problems.append(("/sampling/frames", why))
    if hearing and sound < MIN_AUDIO_S:
        why = f"{made} make {sound:.2f} s of sound; {', '.join(hearing)} need {MIN_AUDIO_S:g} s"
        problems.append(("/sampling/frames", f"{why}: use more frames, or a lower sampling.fps"))
    return problems


def _guidance_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    beyond = [index for index in job.sampling.stg_blocks if index >= facts.depth]
    carried = preset_sampling(job.algorithm).get("stg_blocks") == job.sampling.stg_blocks
    off = max(job.sampling.scales("stg_scale").values()) == 0
    if not beyond or (carried and off):
        return []
    named = ", ".join(map(str, beyond))
    why = f"{named}: beyond the model's {facts.depth} blocks; use 0 to {facts.depth - 1}"
    if carried:
        why += f"; this is the sampling of preset {job.algorithm.preset!r}, made for a deeper model"
    return [("/sampling/stg_blocks", why)]


def _target_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    unknown = [name for name in job.backbone.lora.targets if name not in facts.block_parts]
    if not unknown:
        return []
    known = ", ".join(sorted(part for part in facts.block_parts if "attn" in part or part.endswith("ff")))
    return [("/backbone/lora/targets", f"{', '.join(unknown)}: no such part of a block; the model has {known}")]


def _start_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    path = getattr(job.backbone, "init_lora", "")
    if not path:
        return []
    try:
        found = remembered(read_lora_file, path)
        return [("/backbone/init_lora", why) for why in lora_misfits(found, job.backbone.lora, facts)]
    except ModelError as error:
        return [("/backbone/init_lora", str(error))]


def _surgery_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    surgery = getattr(job.algorithm, "surgery", None)
    if not isinstance(surgery, SurgerySpec) or not surgery.enabled:
        return []
    if not facts.audio_to_video:
        why = "true, but the model has no audio-to-video attention to operate on; set it to false"
        return [("/algorithm/surgery/enabled", why)]
    origin = _origin(job, surgery)
    return [
        (pointer, message + origin)
        for index, run in enumerate(surgery.schedule)
        for pointer, message in _run_problems(f"/algorithm/surgery/schedule/{index}", run, facts.depth)
    ]


def _origin(job: JobSpec, surgery: SurgerySpec) -> str:
    """Where a schedule that the user did not write comes from."""
    preset = getattr(job.algorithm, "preset", None)
    table = getattr(type(job.algorithm), "presets", {}).get(preset, {}).get("surgery", {})
    if surgery.schedule != tuple(BlockScale.model_validate(run) for run in table.get("schedule", ())):
        return ""
    return f"; this is the schedule of preset {preset!r}, made for a deeper model: give surgery.schedule beside it"


def _region_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    region = getattr(job.algorithm, "region", None)
    if not isinstance(region, RegionSpec) or not region.enabled or facts.video_to_audio:
        return []
    why = "true, but the model has no video-to-audio attention to read; set it to false"
    return [("/algorithm/region/enabled", why)]


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
    try:
        schedule = sigma_schedule(config, job.sampling.num_steps, tokens, job.sampling.shift)
    except ArithmeticError:
        return [_overflow(job, tokens)]
    if not isinstance(sigmas, SigmaSpec) or trained_sigmas(schedule, sigmas.low, sigmas.high):
        return []
    values = ", ".join(f"{sigma:.3f}" for sigma in schedule[:-1][:12])
    return [
        ("/algorithm/sigmas/low", f"no sigma of the schedule lies in [{sigmas.low}, {sigmas.high}]; it has {values}")
    ]


def _overflow(job: JobSpec, tokens: int) -> Problem:
    """A shift, given or grown with the clip, that leaves no sigma but 1."""
    sampling = job.sampling
    if sampling.shift is not None:
        return "/sampling/shift", f"{sampling.shift:g} leaves no schedule; the scheduler's own is about 1 to 2"
    clip = f"{sampling.frames} frames of {sampling.width} x {sampling.height} are {tokens} tokens"
    return (
        "/sampling/height",
        f"{clip}, for which the scheduler's shift leaves no schedule; use a smaller clip, or a shift",
    )


def _prompt_problems(job: JobSpec, barred: Container[str]) -> list[Problem]:
    problems: list[Problem] = []
    loaded: dict[str, list[Prompt]] = {}
    for name, path in (("train", job.prompts.train), ("held_out", job.prompts.held_out)):
        if f"/prompts/{name}" in barred:
            continue
        try:
            loaded[name] = remembered(load_prompts, path)
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
    """Of a text, whatever its case, its spaces and the way its letters are composed."""
    return tuple(unicodedata.normalize("NFKC", prompt.prompt_av).casefold().split())
