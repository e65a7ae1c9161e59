"""Groups on disk, to debug the halves of a job apart: learn again without sampling, look at groups without learning.

    step-000003                 what the source gave for step 3
    evaluation-000000-000008    held-out groups of version 0, from the ninth prompt on
    rescored-000000-1b2c…       clips of version 0 that were put together for a control, scored again

Each is a safetensors file: the arrays, and in its metadata everything else as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from accord import types
from accord.backbones.base import Conditions
from accord.canary import is_canary
from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.disk import write_whole
from accord.errors import UserError
from accord.requests import step_requests
from accord.types import Clip, GroupSource, PolicyState, Prompt, RewardScores, RolloutRequest, ScoredGroup, StepGroups

_Found = TypeVar("_Found")

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (*vars(types).values(), Conditions) if isinstance(kind, type) and is_dataclass(kind)
}


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON can say it; what is an array goes into `tensors`, and its name stays in its place."""
    if isinstance(value, np.ndarray | Tensor):
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(value).clone(memory_format=torch.contiguous_format)  # the format knows no views
        return {"array" if isinstance(value, np.ndarray) else "tensor": name}
    if is_dataclass(value):
        return {type(value).__name__: [_packed(getattr(value, field.name), tensors) for field in fields(value)]}
    if isinstance(value, Mapping):
        return {"": [[key, _packed(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, tuple | list):
        return [type(value) is tuple, *(_packed(inner, tensors) for inner in value)]
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_packed`."""
    if isinstance(value, list):
        inner = [_unpacked(one, tensors) for one in value[1:]]
        return tuple(inner) if value[0] else inner
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "":
        return {key: _unpacked(one, tensors) for key, one in inner}
    if kind in _KINDS:
        return _KINDS[kind](*(_unpacked(one, tensors) for one in inner))
    return tensors[inner].numpy() if kind == "array" else tensors[inner]


class _Folder:
    """Names, and reading and writing by name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"

    @staticmethod
    def evaluation(requests: Sequence[RolloutRequest]) -> str:
        return f"evaluation-{requests[0].policy_version:06d}-{requests[0].prompt_index:06d}"

    @staticmethod
    def rescored(version: int, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> str:
        digest = hashlib.blake2b("\x1f".join((prompt.id, *rewards)).encode(), digest_size=8)
        for clip in clips:
            digest.update(clip.video_FHWC.tobytes())
            digest.update(clip.audio_CS.tobytes())
        return f"rescored-{version:06d}-{digest.hexdigest()}"

    def write(self, name: str, found: Any) -> None:
        tensors: dict[str, Tensor] = {}
        tree = json.dumps(_packed(found, tensors))
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.file(name), safetensors.torch.save(tensors, {"groups": tree}))

    def read(self, name: str) -> Any:
        try:
            with safetensors.safe_open(self.file(name), "pt") as file:
                tree = json.loads(file.metadata()["groups"])
                return _unpacked(tree, {key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - no mapping
        except FileNotFoundError:
            why = "is not there; the job that saved the groups did not come so far, or was another"
        except (safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
            why = f"does not hold saved groups: {error}"
        raise UserError(f"{self.file(name)} {why}; save them with `accord run … --save-groups {self.path}`")


class SavingSource(GroupSource):
    """A source whose groups are kept in a folder as they come. Its handles must be the things themselves."""

    def __init__(self, source: GroupSource, folder: Path) -> None:
        self.source, self.folder, self._version = source, _Folder(folder), 0

    def publish(self, state: PolicyState) -> None:
        """Nothing is kept of weights."""
        self.source.publish(state)

    def take(self, step: int) -> StepGroups:
        """The source's groups."""
        return self._kept(f"step-{step:06d}", self.source.take(step))

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """The source's groups."""
        self._version = requests[0].policy_version
        return self._kept(_Folder.evaluation(requests), self.source.evaluate(requests, rewards))

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """The source's scores; those of canaries belong to the run, and are not kept."""
        if is_canary(prompt):
            return self.source.rescore(prompt, clips, rewards)
        name = _Folder.rescored(self._version, prompt, clips, rewards)
        return self._kept(name, self.source.rescore(prompt, clips, rewards))

    def _kept(self, name: str, found: _Found) -> _Found:
        self.folder.write(name, found)
        return found


class ReplayedSource(GroupSource):
    """A source of saved groups: no sampler, no reward model. The groups must be those that the job asks for."""

    def __init__(self, job: JobSpec, folder: Path) -> None:
        self.job, self.folder, self._version = job, _Folder(folder), 0
        self.prompts = load_prompts(job.prompts.train)
        self.rewards = [reward.name for reward in job.rewards]

    def publish(self, state: PolicyState) -> None:
        """Saved groups wait for no weights."""

    def take(self, step: int) -> StepGroups:
        """The groups of a step. Raises UserError when they are missing or were sampled otherwise than the job says."""
        name = f"step-{step:06d}"
        found: StepGroups = self.folder.read(name)
        self._check(name, step_requests(self.job, self.prompts, step), found.groups, self.rewards)
        return found

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """The held-out groups. Raises UserError as `take`."""
        self._version = requests[0].policy_version
        name = _Folder.evaluation(requests)
        found: Sequence[ScoredGroup] = self.folder.read(name)
        self._check(name, requests, found, rewards)
        return found

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """The scores of a control, and none of a canary: nobody judges here. Raises UserError when they are missing."""
        if is_canary(prompt):
            return {}
        scores: Mapping[str, RewardScores] = self.folder.read(_Folder.rescored(self._version, prompt, clips, rewards))
        return scores

    def _check(
        self, name: str, requests: Sequence[RolloutRequest], groups: Sequence[ScoredGroup], rewards: Sequence[str]
    ) -> None:
        where = self.folder.file(name)
        if len(groups) != len(requests):
            raise UserError(f"{where} holds {len(groups)} groups, and the job asks for {len(requests)}")
        for request, group in zip(requests, groups, strict=True):
            for place, saved, wanted in _differences(group.group.request, request, ""):
                why = f"was sampled with {place} = {saved!r}, and the job asks for {wanted!r}"
                raise UserError(f"{where}: prompt {request.prompt.id!r} {why}; replay with the job that saved it")
            missing = sorted(set(rewards) - set(group.scores))
            if missing:
                raise UserError(f"{where} has no scores of {', '.join(missing)}; take the reward out, or save again")


def _differences(saved: Any, wanted: Any, place: str) -> list[tuple[str, Any, Any]]:
    """(field, saved value, wanted value) of what differs, down to the innermost dataclass that both have."""
    if not (is_dataclass(wanted) and type(saved) is type(wanted)):
        return [] if saved == wanted else [(place, saved, wanted)]
    return [
        found
        for field in fields(wanted)
        for found in _differences(
            getattr(saved, field.name), getattr(wanted, field.name), f"{place}.{field.name}".lstrip(".")
        )
    ]
