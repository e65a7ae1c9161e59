"""What a job spec cannot know by itself: does it fit its model directory and its prompt files?

Light: runs in the control plane, before any process is started for the job.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container

from accord.backbones.ltx2.lora_file import lora_misfits, read_lora_file
from accord.backbones.ltx2.model_dir import ModelFacts
from accord.config import contract
from accord.config.contract import Problem
from accord.config.files import Roots, Seen, files_below, open_file, reading, remembered
from accord.config.job import JobSpec
from accord.config.paths import NamedPath
from accord.config.prompts import load_prompts
from accord.errors import InputError, ModelError, PromptError, SpecError, UserError
from accord.types import Prompt

MAX_CLIP_S = 3600.0
"""Longest clip that is sampled, in seconds."""


def preflight(job: JobSpec, roots: Roots | None = None) -> Seen:
    """Check a valid spec against the files it names, which must lie within `roots` (default: anywhere).

    Returns what was looked at. Raises SpecError with every problem found.
    """
    with reading(Roots() if roots is None else roots) as seen:
        barred = dict(_path_problems(job))
        problems = [*barred.items(), *_prompt_problems(job, barred)]
        facts: contract.ModelFacts | None = None
        if "/backbone/path" not in barred:
            try:
                facts = job.backbone.facts()
                if isinstance(facts, ModelFacts):
                    problems += _model_problems(job, facts, barred)
            except UserError as error:
                problems.append(("/backbone/path", str(error)))
            except (TypeError, ValueError, LookupError, ArithmeticError) as error:
                why = f"the model's configs hold values that no schedule or clip can be made of ({error})"
                problems.append(("/backbone/path", why))
        found = job.problems(contract.ModelFacts() if facts is None else facts)
        problems += [(pointer, message) for pointer, message in found if pointer not in barred]
    if problems:
        raise SpecError(problems)
    return seen


def _path_problems(job: JobSpec) -> list[Problem]:
    """Every path field of every spec: is it there, allowed, of its kind and within its size?"""
    problems = []
    for named in job.files():
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


def _model_problems(job: JobSpec, facts: ModelFacts, barred: Container[str]) -> list[Problem]:
    return [
        *_size_problems(job, facts),
        *_length_problems(job, facts),
        *_guidance_problems(job, facts),
        *_target_problems(job, facts),
        *([] if "/backbone/init_lora" in barred else _start_problems(job, facts)),
        *_schedule_problems(job, facts),
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
    blind = {reward.name: reward.min_frames for reward in job.rewards if "video" in reward.needs}
    blind = {name: fewest for name, fewest in blind.items() if frames < fewest}
    if blind:
        why = f"{made} are too few to be scored by {', '.join(blind)}; use {max(blind.values())} or more"
        problems.append(("/sampling/frames", why))
    deaf = {reward.name: reward.min_audio_s for reward in job.rewards if "audio" in reward.needs}
    deaf = {name: shortest for name, shortest in deaf.items() if sound < shortest}
    if deaf:
        why = f"{made} make {sound:.2f} s of sound; {', '.join(deaf)} need {max(deaf.values()):g} s"
        problems.append(("/sampling/frames", f"{why}: use more frames, or a lower sampling.fps"))
    return problems


def _guidance_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    beyond = [index for index in job.sampling.stg_blocks if index >= facts.depth]
    carried = job.algorithm.chosen_sampling.get("stg_blocks") == job.sampling.stg_blocks
    off = max(job.sampling.scales("stg_scale").values()) == 0
    if not beyond or (carried and off):
        return []
    named = ", ".join(map(str, beyond))
    why = f"{named}: beyond the model's {facts.depth} blocks; use 0 to {facts.depth - 1}"
    if carried:
        why += f"; this is the sampling of preset {job.algorithm.chosen_preset!r}, made for a deeper model"
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


def _schedule_problems(job: JobSpec, facts: ModelFacts) -> list[Problem]:
    """A shift, given or grown with the clip, that leaves no sigma but 1."""
    sampling = job.sampling
    try:
        facts.schedule(sampling)
        return []
    except ArithmeticError:
        pass
    if sampling.shift is not None:
        return [("/sampling/shift", f"{sampling.shift:g} leaves no schedule; the scheduler's own is about 1 to 2")]
    grid = facts.video_grid(sampling.frames, sampling.height, sampling.width)
    clip = f"{sampling.frames} frames of {sampling.width} x {sampling.height} are {grid[0] * grid[1] * grid[2]} tokens"
    why = f"{clip}, for which the scheduler's shift leaves no schedule; use a smaller clip, or a shift"
    return [("/sampling/height", why)]


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
