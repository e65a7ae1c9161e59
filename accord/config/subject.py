"""What an evaluation judges, and what its job may leave out. Light."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from accord.config.contract import ModelFacts, PartSpec, Problem
from accord.config.files import JSON_BYTES, files_below, kind_of, read_bytes, remembered
from accord.config.panels import with_panel
from accord.config.paths import LORA_BYTES, InputPath
from accord.config.prompts import load_prompts
from accord.errors import InputError
from accord.types import Prompt

if TYPE_CHECKING:
    from accord.config.job import JobSpec

KINDS = ("adapter", "checkpoint", "clips")
CHECKPOINT = re.compile(r"step-(\d{6,})", re.ASCII)
CLIP = ".mp4"


class SubjectSpec(PartSpec):
    """What is judged: one of `adapter`, `checkpoint` and `clips`."""

    adapter: Annotated[str, InputPath("file", LORA_BYTES)] = Field(default="", max_length=4096)
    """A LoRA file (.safetensors), as a run leaves it in `adapter/`; rank and alpha must be those of `backbone.lora`."""
    checkpoint: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """A folder `checkpoints/step-…` of a run, trained with the same `backbone.lora`."""
    clips: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """A folder with `<prompt id>.mp4`, or `<prompt id>-<number>.mp4` for several clips of a prompt; as many of each."""
    clips_base: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """A folder like `clips`, of what they are compared with: number by number. Empty: they stand alone."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"names {', '.join(given) or 'nothing to judge'}; give one of {', '.join(KINDS)}")
        if self.clips_base and not self.clips:
            raise ValueError("/clips_base: only clips are compared with clips; leave it out, the base is sampled")
        return self

    @property
    def path(self) -> str:
        """What is judged."""
        return self.adapter or self.checkpoint or self.clips

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts', where files may be read: a checkpoint of another adapter, and clips that are missing."""
        yield from super().problems(job, facts)
        if facts is None:
            return
        if self.checkpoint:
            yield from (("checkpoint", why) for why in _checkpoint_misfits(self.checkpoint, job))
        try:
            prompts = remembered(load_prompts, job.prompts.held_out)
        except InputError:
            return  # told at the file of prompts
        found = {}
        for field, folder in (("clips", self.clips), ("clips_base", self.clips_base)):
            try:
                found[field] = clip_files(folder, prompts) if folder else {}
            except InputError as error:
                yield field, str(error)
        here, there = (_each(found.get(field, {})) for field in ("clips", "clips_base"))
        if here and there and here != there:
            yield "clips_base", f"{there} clips of each prompt here, {here} in clips; they are compared one by one"


def completed(tree: Any) -> Any:
    """The tree of a job, with what an evaluation may leave out: nothing else is changed, nor any other job.

    One step; no algorithm; no training prompts; one learner rank; rewards of weight 0, and those of its panel; with
    clips, no backbone. What stands there instead is not used.
    """
    if not isinstance(tree, dict) or tree.get("kind") != "evaluate":
        return tree
    made = {"steps": 1, "algorithm": {"name": "awm"}, **tree}
    subject, cluster, prompts = (made.get(name, {}) for name in ("subject", "cluster", "prompts"))
    if isinstance(subject, dict) and subject.get("clips"):
        made = {"backbone": {"name": "ltx2"}, **made}
    if isinstance(cluster, dict):
        made["cluster"] = {"learner_ranks": 1, "engine": "torch", **cluster}
    if isinstance(prompts, dict) and "held_out" in prompts:
        made["prompts"] = {"train": prompts["held_out"], **prompts}
    rewards = with_panel(made.get("panel"), made.get("rewards", []))
    if isinstance(rewards, list) and rewards:
        made["rewards"] = [{"weight": 0.0, **one} if isinstance(one, dict) else one for one in rewards]
    return made


def clip_files(folder: str | Path, prompts: Sequence[Prompt]) -> dict[str, tuple[Path, ...]]:
    """The clips of each prompt by its id, in the order of their numbers; as many of each prompt.

    Raises InputError: the folder cannot be listed, a prompt has no clip, has clips by both ways of naming, or has
    another number of them than the first prompt.
    """
    there = {path.name: path for path in files_below(folder) if path.parent == Path(folder)}
    found = {prompt.id: tuple(_clips_of(prompt.id, there, folder)) for prompt in prompts}
    wanted = _each(found)
    for name, files in found.items():
        if len(files) != wanted:
            first = prompts[0].id
            raise InputError(f"{folder}: prompt {name!r} has {len(files)} clips and {first!r} {wanted}; give as many")
    return found


def _clips_of(prompt: str, there: Mapping[str, Path], folder: str | Path) -> list[Path]:
    number = re.compile(rf"{re.escape(prompt)}-(\d{{1,9}}){re.escape(CLIP)}", re.ASCII)
    several = sorted((int(match[1]), name) for name in there if (match := number.fullmatch(name)))
    single = there.get(f"{prompt}{CLIP}")
    if single and several:
        raise InputError(f"{folder}: holds both {single.name} and {several[0][1]}; name a prompt's clips in one way")
    if not single and not several:
        raise InputError(f"{folder}: holds no {prompt}{CLIP} and no {prompt}-0{CLIP}; every held-out prompt needs one")
    return [single] if single else [there[name] for _, name in several]


def _each(found: Mapping[str, Sequence[Path]]) -> int:
    return len(next(iter(found.values()), ()))


def _checkpoint_misfits(path: str, job: JobSpec) -> Iterator[str]:
    """Why a folder is no checkpoint whose policy the job's adapter can take."""
    match = CHECKPOINT.fullmatch(Path(path).name)
    if match is None or kind_of(Path(path) / f"policy-{int(match[1]):06d}.safetensors") is None:
        yield f"{path}: is no checkpoint; name a folder checkpoints/step-… of a run, which holds policy-….safetensors"
        return
    try:
        trained = json.loads(read_bytes(Path(path) / "job.json", JSON_BYTES))["backbone"]["lora"]
    except (InputError, ValueError, LookupError, TypeError) as error:
        yield f"{path}: its job.json does not tell its adapter ({error}); take another checkpoint"
        return
    here = job.backbone.lora.model_dump(mode="json")
    for name in sorted(here):
        if trained.get(name) != here[name]:
            yield (
                f"{path}: was trained with backbone.lora.{name} = {json.dumps(trained.get(name))}, this job has "
                f"{json.dumps(here[name])}; set it to that"
            )
