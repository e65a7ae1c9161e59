"""Groups on disk, to debug the halves of a job apart: learn again without sampling, look at groups without learning.

    step-000003.pt              what the source gave for step 3
    evaluation-000000-000008.pt held-out groups of version 0, from the ninth prompt on
    rescored-000000-1b2c….pt    clips of version 0 that were put together for a control, scored again

The files are torch's and are read by its weights-only loader: data of the types in accord/types.py, no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from accord import types
from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.errors import UserError
from accord.requests import step_requests
from accord.types import Clip, GroupSource, PolicyState, Prompt, RewardScores, RolloutRequest, ScoredGroup, StepGroups

_Found = TypeVar("_Found")

_READABLE: list[Any] = [
    *(kind for kind in vars(types).values() if isinstance(kind, type) and is_dataclass(kind)),
    np.empty(0).__reduce__()[0], np.ndarray, np.dtype,
    *(type(np.dtype(kind)) for kind in (np.uint8, np.float32, np.float64)),
]  # fmt: skip


class _Folder:
    """Names, and reading and writing by name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def evaluation(requests: Sequence[RolloutRequest]) -> str:
        return f"evaluation-{requests[0].policy_version:06d}-{requests[0].prompt_index:06d}"

    @staticmethod
    def rescored(version: int, prompt: Prompt, rewards: Sequence[str]) -> str:
        digest = hashlib.blake2b("\x1f".join((prompt.id, *rewards)).encode(), digest_size=8).hexdigest()
        return f"rescored-{version:06d}-{digest}"

    def write(self, name: str, found: Any) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f"{name}.tmp"
        torch.save(found, draft)
        draft.replace(self.path / f"{name}.pt")

    def read(self, name: str) -> Any:
        path = self.path / f"{name}.pt"
        try:
            with torch.serialization.safe_globals(_READABLE):
                return torch.load(path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            why = "is not there; the job that saved the groups did not come so far, or was another"
        except Exception as error:  # whatever torch makes of a file that is not its own
            why = f"does not hold saved groups: {str(error).splitlines()[0]}"
        raise UserError(f"{path} {why}; save them with `accord run … --save-groups {self.path}`")


class SavingSource:
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
        """The source's scores."""
        name = _Folder.rescored(self._version, prompt, rewards)
        return self._kept(name, self.source.rescore(prompt, clips, rewards))

    def fetch(self, handle: Any) -> Any:
        """As the source."""
        return self.source.fetch(handle)

    def _kept(self, name: str, found: _Found) -> _Found:
        self.folder.write(name, found)
        return found


class ReplayedSource:
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
        """The scores of a control, whose clips nobody puts together again. Raises UserError when they are missing."""
        del clips
        scores: Mapping[str, RewardScores] = self.folder.read(_Folder.rescored(self._version, prompt, rewards))
        return scores

    def fetch(self, handle: Any) -> Any:
        """Handles are the things themselves."""
        return handle

    def _check(
        self, name: str, requests: Sequence[RolloutRequest], groups: Sequence[ScoredGroup], rewards: Sequence[str]
    ) -> None:
        where = self.folder.path / f"{name}.pt"
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
