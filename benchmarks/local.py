"""A whole job in one process: no store, no Ray, no Serve, no DeepSpeed. What benchmarks compare with, and run on.

`LocalSource` is a GroupSource that samples and scores when it is asked; `local_run` puts the learner's page on it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.events import EventSink
from accord.ids import PolicyVersion
from accord.requests import sampling_version, step_requests
from accord.run_folder import RunFolder
from accord.types import Clip, PolicyState, Prompt, RewardScores, RolloutRequest, ScoredGroup, StepGroups
from learner.assembly import make_run
from learner.run import Run
from reward_servers.scorer import LocalScorer
from rollout_workers.worker import RolloutWorker


class LocalSource:
    """Samples a step's groups one after the other, with the versions that the stream would use."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job
        self.prompts = load_prompts(Path(job.prompts.train))
        self.worker = RolloutWorker(job.backbone, job.sampling, seed=job.seed, threads=job.cluster.torch_threads)
        self.scorer = LocalScorer(job.rewards)
        self.states: dict[PolicyVersion, PolicyState] = {}

    def publish(self, state: PolicyState) -> None:
        """Keep the version for the steps that need it."""
        self.states[state.version] = state
        for old in [kept for kept in self.states if kept < state.version - self.job.cluster.policy_lag]:
            del self.states[old]

    def take(self, step: int) -> StepGroups:
        """Sample and score the groups of a step."""
        self.worker.load(self.states[sampling_version(step, self.job.cluster.policy_lag)])
        return self._groups(step_requests(self.job, self.prompts, step), [reward.name for reward in self.job.rewards])

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """Sample and score held-out requests."""
        self.worker.load(self.states[requests[0].policy_version])
        return self._groups(requests, rewards).groups

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """Score clips that were put together elsewhere."""
        return asyncio.run(self._scores(prompt, clips, rewards))

    def fetch(self, handle: Any) -> Any:
        """Handles are the things themselves."""
        return handle

    def _groups(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> StepGroups:
        began = time.perf_counter()
        groups = [self.worker.sample(request) for request in requests]
        sampled = time.perf_counter()
        scored = [
            ScoredGroup(group, asyncio.run(self._scores(group.request.prompt, group.clips, rewards)))
            for group in groups
        ]
        return StepGroups(scored, sampled - began, time.perf_counter() - sampled)

    async def _scores(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> dict[str, RewardScores]:
        return {name: await self.scorer.score(name, prompt, clips, len(clips)) for name in rewards}


def alone(job: JobSpec) -> JobSpec:
    """The same job for one process: the plain engine with one rank."""
    return job.model_copy(update={"cluster": job.cluster.model_copy(update={"engine": "torch", "learner_ranks": 1})})


def local_run(job: JobSpec, directory: Path, events: EventSink | None = None) -> Run:
    """The learner's page on one process; `train(local_run(...))` does the whole job with one thread."""
    job = alone(job)
    return make_run(job, RunFolder(directory), LocalSource(job), events, load_prompts(Path(job.prompts.held_out)))
