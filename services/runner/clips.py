"""Clips from folders as a GroupSource: nothing is sampled. Of version 0 are those of the base, of version 1 the others.

A clip is read when it is looked at, so that of a folder only one prompt's clips are in memory, or those of one batch
where a reward compares them. Picklable: files and specs travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.config.subject import clip_files
from accord.errors import MediaError, RolloutError, UserError
from accord.media import read_mp4
from accord.requests import held_out_seeds
from accord.types import (
    Clip,
    GroupData,
    GroupSource,
    PolicyState,
    Prompt,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
    StepGroups,
)
from reward_servers.scorer import Scorer

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class ClipFiles:
    """Handle of a group's clips."""

    paths: tuple[Path, ...]


class ClipsSource(GroupSource):
    """The clips of a job's subject, scored."""

    def __init__(self, job: JobSpec, scorer: Scorer, put: Callable[[list[Clip]], Any] | None = None) -> None:
        """`put` makes the handle by which servers get clips; None: `scorer` is of this process.

        Raises InputError as `clip_files` does.
        """
        assert job.subject is not None, "the job's validation requires it"
        self.job, self.scorer, self.put = job, scorer, put
        self._runner: asyncio.Runner | None = None
        self.by_step = {reward.name for reward in job.rewards if reward.scope == "step"}
        prompts, folders = load_prompts(job.prompts.held_out), (job.subject.clips_base, job.subject.clips)
        self.files = [clip_files(folder, prompts) if folder else {} for folder in folders]

    def publish(self, state: PolicyState) -> None:
        """Clips wait for no weights."""

    def take(self, step: int) -> StepGroups:
        """There are none to train on."""
        raise RolloutError(f"step {step}: an evaluation of clips samples nothing to train on")

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        """The clips of the requests' prompts, each with a seed by its number. Raises UserError for a broken file."""
        from accord.backbones.base import Conditions  # loads torch, which who starts the learner does without

        groups = []
        for request in requests:
            paths = self.files[request.policy_version][request.prompt.id]
            seeds = held_out_seeds(self.job, request.prompt_index, len(paths))
            data = GroupData({}, Conditions({}))
            groups.append(SampleGroup(replace(request, seeds=seeds), request.policy_version, data, ClipFiles(paths)))
        together = self._together(groups, [name for name in rewards if name in self.by_step])
        alone = [name for name in rewards if name not in self.by_step]
        return [
            ScoredGroup(group, {**self.rescore(group.request.prompt, self.fetch(group.clips), alone), **others})
            for group, others in zip(groups, together, strict=True)
        ]

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """Score clips: on servers with all rewards at once, in this process with one after the other."""

        async def scored() -> list[RewardScores]:
            handle = self._handle(clips)
            answers = [self.scorer.score(name, prompt, handle, len(clips)) for name in rewards]
            return await asyncio.gather(*answers) if self.put else [await answer for answer in answers]

        return dict(zip(rewards, self._wait(scored()), strict=True))

    def fetch(self, handle: Any) -> Any:
        """Clips are read from their files. Raises UserError for one that is torn."""
        if not isinstance(handle, ClipFiles):
            return handle
        try:
            return [read_mp4(path) for path in handle.paths]
        except MediaError as error:
            raise UserError(f"/subject: {error}") from error

    def _together(self, groups: Sequence[SampleGroup], names: Sequence[str]) -> list[dict[str, RewardScores]]:
        """Scores by the rewards that compare all clips of a batch, for each group."""
        if not names:
            return [{} for _ in groups]
        prompts, counts = [group.request.prompt for group in groups], [len(group.request.seeds) for group in groups]
        handles = [self._handle(self.fetch(group.clips)) for group in groups]
        found = {name: self._wait(self.scorer.score_step(name, prompts, handles, counts)) for name in names}
        return [{name: scores[place] for name, scores in found.items()} for place in range(len(groups))]

    def _handle(self, clips: Sequence[Clip]) -> Any:
        return self.put(list(clips)) if self.put else list(clips)

    def _wait(self, answer: Coroutine[Any, Any, _Found]) -> _Found:
        """One loop for all calls of this process: a scorer keeps locks that belong to it."""
        self._runner = self._runner or asyncio.Runner()
        return self._runner.run(answer)
