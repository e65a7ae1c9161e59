"""Wall time of a training step through the whole service ÷ the same arithmetic in one bare process.

Both run the job of examples/tiny_omninft.toml, interleaved in rounds on this machine: a service round is one job of
`--steps` steps over REST (store, Ray, Serve, DeepSpeed ranks); a bare round is the same groups, rewards and updates in
one process with as many threads as the service has compute processes. Medians of the steps, the first of a round left
out. Prints the ratio and where the difference goes; absolute seconds mean nothing beyond this machine.

    .venv/bin/python benchmarks/step.py --rounds 3 --steps 4
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accord.config.job import JobSpec
from accord.config.prompts import load_prompts
from accord.ids import PolicyVersion
from accord.plugins import load_impl
from accord.requests import step_requests
from accord.types import GroupData, SampleGroup, ScoredGroup
from learner.engine import make_engine
from learner.publish import policy_state
from learner.rank import Rank
from learner.ranks import Ranks
from reward_servers.client import LocalScorer
from rollout_workers.worker import RolloutWorker
from tests.integration.service import Service, running_service

Phases = dict[str, list[float]]


class Bare:
    """The arithmetic of a step and nothing else: no store, no Ray, no Serve, no DeepSpeed, one process."""

    def __init__(self, job: JobSpec, threads: int) -> None:
        self.job = job.model_copy(
            update={"cluster": job.cluster.model_copy(update={"engine": "torch", "learner_ranks": 1})}
        )
        self.prompts = load_prompts(Path(job.prompts.train))
        self.worker = RolloutWorker(self.job)
        backbone = load_impl(job.backbone).load(job.backbone, job.sampling, decoders=False, seed=job.seed)
        self.engine = make_engine(self.job, backbone.velocity_model)
        self.rank = Rank(self.job, backbone, self.engine, load_impl(job.algorithm)(job.algorithm), Ranks())
        self.scorer = LocalScorer(job.rewards)
        torch.set_num_threads(threads)

    def step(self, step: int) -> dict[str, float]:
        """One training step; returns seconds per phase."""
        began = time.perf_counter()
        groups = [self.worker.sample(request) for request in step_requests(self.job, self.prompts, step)]
        sampled = time.perf_counter()
        scored = asyncio.run(self._score(groups))
        rewarded = time.perf_counter()
        credit = self.rank.algorithm.credit(scored, self.job.rewards, self.rank.modalities)
        self.rank.update(step, scored, credit, _same)
        learned = time.perf_counter()
        self.worker.load(policy_state(self.engine, PolicyVersion(step)))
        done = time.perf_counter()
        return {
            "rollout": sampled - began, "reward": rewarded - sampled, "learn": learned - rewarded,
            "publish": done - learned, "step": done - began,
        }  # fmt: skip

    async def _score(self, groups: list[SampleGroup]) -> list[ScoredGroup]:
        scored = []
        for group in groups:
            scores = {
                reward.name: await self.scorer.score(
                    reward.name, group.request.prompt, group.clips, len(group.request.seeds)
                )
                for reward in self.job.rewards
            }
            scored.append(ScoredGroup(group, scores))
        return scored


def _same(handle: GroupData) -> GroupData:
    return handle


def service_round(service: Service, job: JobSpec, steps: int, into: Phases) -> None:
    """Run one job and collect the time between its steps, and within them."""
    spec = json.loads(job.model_copy(update={"steps": steps}).model_dump_json())
    job_id = service.submit(spec)
    service.finish(job_id, timeout_s=900)
    events = [event for event in service.events(job_id) if event["type"] == "step"]
    for before, event in pairwise(events):
        into["step"].append(event["at"] - before["at"])
        for phase, seconds in event["phase_seconds"].items():
            into[phase].append(seconds)


def bare_round(bare: Bare, steps: int, start: int, into: Phases) -> None:
    """Run as many steps in this process."""
    for index in range(steps):
        seconds = bare.step(start + index)
        if index:
            for phase, value in seconds.items():
                into[phase].append(value)


def table(service: Phases, bare: Phases) -> str:
    """The ratio, and per phase what the service takes beyond the bare process."""
    whole = {phase: statistics.median(values) for phase, values in bare.items()}
    lines = [f"{'phase':<12}{'service s':>11}{'bare s':>9}{'difference':>12}"]
    named = 0.0
    for phase in ("rollout", "reward", "learn", "publish"):
        ours = statistics.median(service.get(phase) or [0.0])
        named += ours
        lines.append(f"{phase:<12}{ours:>11.3f}{whole[phase]:>9.3f}{ours - whole[phase]:>+12.3f}")
    step = statistics.median(service["step"])
    lines.append(f"{'the rest':<12}{step - named:>11.3f}{0.0:>9.3f}{step - named:>+12.3f}")
    lines.append(f"{'step':<12}{step:>11.3f}{whole['step']:>9.3f}{step - whole['step']:>+12.3f}")
    lines.append(
        f"\nservice ÷ bare = {step / whole['step']:.3f}  "
        f"(medians of {len(service['step'])} and {len(bare['step'])} steps)"
    )
    return "\n".join(lines)


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="steps per round, the first is not counted")
    parser.add_argument("--job", type=Path, default=Path("examples/tiny_omninft.toml"))
    arguments = parser.parse_args()
    from services.runner.job_file import read_job

    job = JobSpec.parse(json.dumps(read_job(arguments.job, ["evaluate.samples_per_prompt=2", "evaluate.clips=0"])))
    cores = os.cpu_count() or 1
    bare = Bare(
        job, min(cores, max(job.cluster.rollout_workers, job.cluster.learner_ranks) * job.cluster.torch_threads)
    )
    service_seconds: Phases = defaultdict(list)
    bare_seconds: Phases = defaultdict(list)
    with tempfile.TemporaryDirectory() as root, running_service(Path(root)) as service:
        for index in range(arguments.rounds):
            print(f"round {index + 1} of {arguments.rounds}: service ...", flush=True)
            service_round(service, job, arguments.steps, service_seconds)
            print(f"round {index + 1} of {arguments.rounds}: bare ...", flush=True)
            bare_round(bare, arguments.steps, 1 + index * arguments.steps, bare_seconds)
    print(table(service_seconds, bare_seconds))


if __name__ == "__main__":
    main()
