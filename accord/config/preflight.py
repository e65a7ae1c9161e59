"""What a job spec cannot know by itself: does it fit its model directory and its prompt files?

Light: runs in the control plane, before any process is started for the job.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Mapping

from accord.config.contract import ModelFacts, Problem
from accord.config.files import Roots, Seen, files_below, open_file, reading, remembered
from accord.config.job import JobSpec, with_names
from accord.config.prompts import load_prompts
from accord.errors import InputError, PluginError, PromptError, SpecError, UserError
from accord.plugins import answering, origin
from accord.types import Prompt


def preflight(job: JobSpec, roots: Roots | None = None) -> Seen:
    """Check a valid spec against the files it names, which must lie within `roots` (default: anywhere).

    Returns what was looked at. Raises SpecError with every problem found.
    """
    with reading(Roots() if roots is None else roots) as seen:
        barred = dict(_path_problems(job))
        problems = [*barred.items(), *_prompt_problems(job, barred)]
        facts = ModelFacts()
        if job.samples and "/backbone/path" not in barred:
            try:
                with answering(job.backbone, "facts"):
                    found = job.backbone.facts()
                if not isinstance(found, ModelFacts | None):
                    raise PluginError(f"{origin(job.backbone)}: facts gave {found!r:.200}; give ModelFacts, or None")
                facts = found or facts
            except UserError as error:
                problems.append(("/backbone/path", str(error)))
        problems += [problem for problem in job.problems(facts) if not _told(problem, barred)]
    if problems:
        raise SpecError(with_names(problems, [reward.name for reward in job.rewards]))
    return seen


def _path_problems(job: JobSpec) -> list[Problem]:
    """Every path field of every spec: is it there, allowed, of its kind and within its size?"""
    problems = []
    for named in job.files():
        try:
            if named.mark.kind == "file":
                open_file(named.path, named.mark.max_bytes).close()
            else:
                remembered(files_below, named.path)
        except InputError as error:
            problems.append((named.pointer, str(error)))
    return problems


def _told(problem: Problem, barred: Mapping[str, str]) -> bool:
    """Whether it only says again, of a field or of the plug-in around it, that a path cannot be opened."""
    where, message = problem
    return where in barred or any(place.startswith(f"{where}/") and message == why for place, why in barred.items())


def _prompt_problems(job: JobSpec, barred: Container[str]) -> list[Problem]:
    problems: list[Problem] = []
    loaded: dict[str, list[Prompt]] = {}
    files = {"train": job.prompts.train, "held_out": job.prompts.held_out}
    for name, path in files.items() if job.trains else [("held_out", files["held_out"])]:
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
