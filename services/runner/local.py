"""A whole job without service, store or Ray: the page of the learner on this process, with the same worker and rewards.

What is sampled, scored and learned is what the service would sample, score and learn, bit for bit; it only happens one
after the other. A job of one learner rank is one process; of more, one process per rank, since the sum over ranks is
part of the result.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.config.settings import Settings
from accord.errors import AccordError, UserError
from accord.events import EventSink, Phase, Progress
from accord.ids import PolicyVersion
from accord.requests import sampling_version, step_requests
from accord.run_folder import SPEC, SUMMARY, RunFolder
from accord.types import (
    Clip,
    GroupSource,
    PolicyState,
    Prompt,
    RewardScores,
    RolloutRequest,
    SampleGroup,
    ScoredGroup,
    StepGroups,
)
from learner.checkpoint import differences
from learner.evaluate_only import evaluate_only
from learner.outcome import TrainResult
from learner.run import Run
from learner.train import train
from learner.workers import COLLECTIVE_TIMEOUT_S
from reward_servers.scorer import LocalScorer
from rollout_workers.worker import RolloutWorker
from services.results.conclude import conclude
from services.runner.clips import ClipsSource
from services.runner.inputs import prepare
from services.runner.roster import hold_roster
from services.runner.saved_groups import ReplayedSource, SavingSource

PEER_END_S = 5.0
"""How long after its connection broke the end of a rank may be seen."""


class LocalSource(GroupSource):
    """A GroupSource that samples and scores when it is asked. Handles are the things themselves."""

    def __init__(self, job: JobSpec, events: EventSink | None = None) -> None:
        self.job, self.events = job, events
        self.prompts = load_prompts(job.prompts.train)
        cluster = job.cluster
        self.worker = RolloutWorker(
            job.backbone, job.sampling, seed=job.seed, threads=cluster.torch_threads,
            device="cuda" if cluster.rollout_gpus > 0 else "cpu",
        )  # fmt: skip
        self.scorer = LocalScorer(job.rewards)
        self.states: dict[PolicyVersion, PolicyState] = {}

    def publish(self, state: PolicyState) -> None:
        """Keep the version for the steps that need it."""
        self.states[state.version] = state
        for old in [kept for kept in self.states if kept < state.version - self.job.cluster.policy_lag]:
            del self.states[old]

    def take(self, step: int) -> StepGroups:
        """Sample and score the groups of a step."""
        requests = step_requests(self.job, self.prompts, step)
        began = time.perf_counter()
        self.worker.load(self.states[sampling_version(step, self.job.cluster.policy_lag)])
        groups = []
        for request in requests:
            groups.append(self.worker.sample(request))
            self._progress("rollout", step, len(groups), len(requests))
        sampled = time.perf_counter()
        scored = []
        for group in self._scored(groups, [reward.name for reward in self.job.rewards]):
            scored.append(group)
            self._progress("reward", step, len(scored), len(groups))
        return StepGroups(scored, sampled - began, time.perf_counter() - sampled)

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> list[ScoredGroup]:
        """Sample and score held-out requests."""
        version = requests[0].policy_version
        self.worker.load(self.states[version] if version in self.states or version else None)  # 0 is always there
        return list(self._scored([self.worker.sample(request) for request in requests], rewards))

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> dict[str, RewardScores]:
        """Score clips, one reward after the other."""

        async def scores() -> dict[str, RewardScores]:
            return {name: await self.scorer.score(name, prompt, clips, len(clips)) for name in rewards}

        return asyncio.run(scores())

    def _scored(self, groups: Sequence[SampleGroup], rewards: Sequence[str]) -> Iterator[ScoredGroup]:
        """Each group with its scores: first by the rewards that judge all groups together, then by the others."""
        by_step = [reward.name for reward in self.job.rewards if reward.scope == "step" and reward.name in rewards]
        alone = [name for name in rewards if name not in by_step]
        prompts, clips = [group.request.prompt for group in groups], [group.clips for group in groups]
        counts = [len(group.request.seeds) for group in groups]
        found = {name: asyncio.run(self.scorer.score_step(name, prompts, clips, counts)) for name in by_step}
        for place, group in enumerate(groups):
            together = {name: scores[place] for name, scores in found.items()}
            yield ScoredGroup(group, self.rescore(group.request.prompt, group.clips, alone) | together)

    def _progress(self, phase: Phase, step: int, done: int, total: int) -> None:
        if self.events is not None:
            self.events.emit(Progress(phase=phase, step=step, done=done, total=total))


@dataclass(frozen=True, slots=True)
class _Shared(GroupSource):
    """A rank's view of the one source: rank 0 takes a step's groups and tells the others."""

    source: GroupSource | None

    def take(self, step: int) -> StepGroups:
        """The same groups on every rank."""
        found = self.source.take(step) if self.source is not None else None
        told = [replace(found, groups=[_without_clips(group) for group in found.groups]) if found else None]
        dist.broadcast_object_list(told, src=0)
        assert told[0] is not None
        return found or told[0]

    def publish(self, state: PolicyState) -> None:
        """Rank 0 alone publishes."""
        self._first.publish(state)

    def evaluate(self, requests: Sequence[RolloutRequest], rewards: Sequence[str]) -> Sequence[ScoredGroup]:
        """Rank 0 alone evaluates."""
        return self._first.evaluate(requests, rewards)

    def rescore(self, prompt: Prompt, clips: Sequence[Clip], rewards: Sequence[str]) -> Mapping[str, RewardScores]:
        """Rank 0 alone evaluates."""
        return self._first.rescore(prompt, clips, rewards)

    @property
    def _first(self) -> GroupSource:
        assert self.source is not None
        return self.source


def _without_clips(scored: ScoredGroup) -> ScoredGroup:
    return replace(scored, group=replace(scored.group, clips=None))


def train_here(
    job: JobSpec, folder: RunFolder, source: GroupSource, events: EventSink | None = None, began: float | None = None
) -> TrainResult:
    """Train a job to its end in `folder`, going on from the latest checkpoint there; or do its evaluation.

    `source` gives handles that are the things themselves. Raises what `learner.train.train` raises.
    """
    held_out = load_prompts(job.prompts.held_out)
    if not job.trains:
        return evaluate_only(job, folder, source, events, held_out)
    if job.cluster.learner_ranks == 1 and job.cluster.engine == "torch":
        return train(Run(job, folder, source, events, held_out, began=began))
    with tempfile.TemporaryDirectory(prefix="accord-ranks-") as meeting, _peers(job, folder, meeting):
        shared = _Shared(source)
        return train(Run(job, folder, shared, events, held_out, device=_device(job, 0), began=began))


def run_here(
    settings: Settings,
    job: JobSpec,
    folder: RunFolder,
    events: EventSink,
    *,
    save: Path | None = None,
    replay: Path | None = None,
) -> None:
    """Train or evaluate a job in a run folder and conclude it there: summary, report, list of artifacts.

    `save`: keep all groups in this folder. `replay`: take them from there instead of sampling.

    Raises UserError when the folder holds a finished run or another job's, when another process runs in it, and for
    groups of another job; what training raises.
    """
    if not job.samples and (save or replay):
        raise UserError("--save-groups and --replay-groups: an evaluation of clips samples no groups; leave them out")
    began = time.time()
    with _alone(folder):
        _require_same(job, folder)
        prepare(settings, job, folder).complete_in_background()
        source = ReplayedSource(job, replay) if replay else _fresh_source(job, events)
        if not isinstance(source, ReplayedSource):
            hold_roster(job, folder, asyncio.run(source.scorer.roster()))
        train_here(job, folder, SavingSource(source, save) if save else source, events, began)
        conclude(settings, folder, folder.job_id, job, state="succeeded", wall_seconds=time.time() - began, alone=True)


def _fresh_source(job: JobSpec, events: EventSink) -> LocalSource | ClipsSource:
    return LocalSource(job, events) if job.samples else ClipsSource(job, LocalScorer(job.rewards))


@contextmanager
def _alone(folder: RunFolder) -> Iterator[None]:
    """Hold the folder against a second run. The lock ends with the process, however that ends, and leaves no file."""
    folder.path().mkdir(parents=True, exist_ok=True)
    held = os.open(folder.path(), os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"another run writes to {folder.path()}; wait for its end, or give another folder") from None
    finally:
        os.close(held)


def _require_same(job: JobSpec, folder: RunFolder) -> None:
    """Raises UserError unless what the folder holds, if anything, is an unfinished run of this job."""
    if folder.exists(SUMMARY):
        raise UserError(f"{folder.path()} holds a finished run; give another folder with --out")
    if not folder.exists(SPEC):
        return
    began = JobSpec.parse(folder.read(SPEC))
    found = list(differences(began.model_dump(mode="json"), job.model_dump(mode="json"), "/"))
    if found:
        why = "go on with the job file and --set that it began with, or give another folder with --out"
        raise UserError(f"{folder.path()} holds the run of another job: {'; '.join(found[:5])}; {why}")


@contextmanager
def _peers(job: JobSpec, folder: RunFolder, meeting: str) -> Iterator[None]:
    """Be rank 0 of the job's learner ranks; the others are child processes, gone afterwards."""
    context = processes.spawn(
        _peer, (job, folder, meeting), nprocs=job.cluster.learner_ranks - 1, join=False, daemon=True
    ) if job.cluster.learner_ranks > 1 else None  # fmt: skip
    try:
        _join(job, meeting, 0)
        yield
        if context is not None:
            context.join()
    except RuntimeError as error:  # what torch makes of a peer that is gone
        peers = context.processes if context is not None else ()
        if peers:
            wait([process.sentinel for process in peers], PEER_END_S)
        gone = [process for process in peers if not process.is_alive()]
        if not gone:
            raise
        ended = ", ".join(f"process {process.pid} with {process.exitcode}" for process in gone)
        raise AccordError(f"a learner rank ended before its time ({ended}); what it wrote stands above") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in context.processes if context is not None else ():
            process.kill()


def _peer(place: int, job: JobSpec, folder: RunFolder, meeting: str) -> None:
    rank = place + 1
    _join(job, meeting, rank)
    train(Run(job, folder, _Shared(None), None, (), device=_device(job, rank)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of its process group may still run, and abort an interpreter that is taken down around them


def _join(job: JobSpec, meeting: str, rank: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed reads it, whoever started the ranks
    dist.init_process_group(
        "nccl" if job.cluster.learner_gpus else "gloo",
        init_method=f"file://{meeting}/ranks", rank=rank, world_size=job.cluster.learner_ranks,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
    )  # fmt: skip


def _device(job: JobSpec, rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if job.cluster.learner_gpus else "cpu"
