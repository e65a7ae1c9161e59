"""What each technique costs: time as ratios of paired runs in one process, forwards per sample, and peak memory.

Each pair runs the same work with the technique off and on, by turns in this order and the other; a row is the median of
its pairs with its 95 % interval. What is promised to stay within a few per cent gets more pairs, because a single run
is off by ten. Time is CPU time of this process, one thread. Memory is the peak of live tensors, counted as they are
made and freed.

    .venv/bin/python benchmarks/cost.py [--pairs 120] [--out docs/results]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track

from accord.backbones.sizes import peak_bytes
from accord.config.job import JobSpec
from accord.requests import step_requests
from learner.assembly import make_rank
from learner.rank import Rank
from learner.run import policy_state
from services.runner.local import LocalSource

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One technique, one kind of work."""

    technique: str
    work: str
    ratios: list[float]
    """Seconds with it ÷ seconds without it, pair by pair."""
    forwards: tuple[float, float]
    """Forwards of the model per sample, without and with it."""
    peak: tuple[float, float]
    """MiB of live tensors at the peak of one run, without and with it."""


def paired(technique: str, work: str, off: Callable[[], int], on: Callable[[], int], pairs: int, model: Any) -> Row:
    """Time `off` and `on` in turn; both return how many samples they worked on. The first pair warms up."""
    ratios = []
    for index in track(range(pairs + 1), f"{technique}, {work}", console=Console(stderr=True)):
        order = (off, on) if index % 2 else (on, off)
        seconds = {call: _seconds(call) for call in order}
        ratios.append(seconds[on] / seconds[off])
    del ratios[0]
    forwards, peaks = [], []
    for call in (off, on):
        with _counted(model) as rows:
            samples = call()
        forwards.append(sum(rows) / samples)
        peaks.append(peak_bytes(call, fused=False, grad=True) / MIB)
    return Row(technique, work, ratios, (forwards[0], forwards[1]), (peaks[0], peaks[1]))


def _seconds(call: Callable[[], int]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@contextmanager
def _counted(model: Any) -> Iterator[list[int]]:
    """Rows of every forward inside the block."""
    rows: list[int] = []
    handle = model.register_forward_pre_hook(lambda _module, args: rows.append(args[0]["video"].shape[0]))
    try:
        yield rows
    finally:
        handle.remove()


class Bench:
    """One process with sampler, rewards and learner of a job."""

    def __init__(self, job: JobSpec) -> None:
        self.job = job
        self.source = LocalSource(self.job)
        self.rank: Rank = make_rank(self.job)
        self.source.publish(policy_state(self.rank.engine, 0))
        self.groups = self.source.take(1).groups
        self.requests = step_requests(self.job, self.source.prompts, 1)
        torch.set_num_threads(1)

    def update(self, **switches: Any) -> Callable[[], int]:
        """Credit and an update, with attributes of the algorithm replaced.

        Weights move, which costs the same every time.
        """
        algorithm = copy.copy(self.rank.algorithm)
        vars(algorithm).update(switches)
        view = copy.copy(self.rank.view)
        view.algorithm = algorithm

        def call() -> int:
            with mock.patch.multiple(self.rank, algorithm=algorithm, view=view):
                credit = algorithm.credit(self.groups, self.job.rewards, self.rank.modalities)
                self.rank.update(1, self.groups, credit, self.source.fetch)
            return sum(len(group.group.request.seeds) for group in self.groups)

        return call

    def rollout(self, capture: bool) -> Callable[[], int]:
        """Sample one group, with or without watching attention."""
        request = self.requests[0]
        if not capture:
            request = replace(request, plan=replace(request.plan, capture=None))

        def call() -> int:
            self.source.worker.sample(request)
            return len(request.seeds)

        return call


def measure(job: JobSpec, pairs: int) -> list[Row]:
    """All rows."""
    bench = Bench(job)
    sampler, learner = bench.source.worker.backbone.velocity_model, bench.rank.engine.module
    whole, spec = bench.update(), bench.job.algorithm
    shared = spec.model_copy(update={"credit": spec.credit.model_copy(update={"mode": "gdpo"})})

    def no_norms() -> int:
        with mock.patch.object(bench.rank, "norms", None):
            return whole()

    return [
        paired("modality-routed advantages", "update", bench.update(spec=shared), whole, pairs, learner),
        paired("gradient surgery", "update", bench.update(surgery=None), whole, 8 * pairs, learner),
        paired("region weights in the loss", "update", bench.update(region=None), whole, pairs, learner),
        paired("region capture", "rollout", bench.rollout(False), bench.rollout(True), 3 * pairs, sampler),
        paired("reference penalty", "update", bench.update(anchors=("old",)), bench.update(anchors=("old", "ref")),
               pairs, learner),
        paired("gradient norms by block", "update", no_norms, whole, pairs, learner),
        paired("nothing (control)", "update", bench.update(), whole, pairs, learner),
        paired("nothing (control)", "rollout", bench.rollout(False), bench.rollout(False), pairs, sampler),
    ]  # fmt: skip


def median_interval(values: list[float]) -> tuple[float, float]:
    """The values between which the median of all possible pairs lies with 95 %, by the sign test."""
    ranked, count = sorted(values), len(values)
    beyond = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ranked[beyond], ranked[-1 - beyond]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| technique | work | time with ÷ without (95 % interval) | pairs | forwards per sample | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = median_interval(row.ratios)
        before, after = row.forwards
        small, large = row.peak
        lines.append(
            f"| {row.technique} | {row.work} | {statistics.median(row.ratios):.3f} ({low:.3f} to {high:.3f}) | "
            f"{len(row.ratios)} | {before:g} → {after:g} | {small:.2f} → {large:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write cost.md if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=120)
    parser.add_argument("--job", type=Path, default=Path("examples/tiny_omninft.toml"))
    parser.add_argument("--out", type=Path, help="directory for cost.md")
    arguments = parser.parse_args()
    from services.cli.job_file import read_job

    document = read_job(
        arguments.job,
        ["prompts.per_step=1", "cluster.learner_ranks=1", "cluster.engine=torch", "algorithm.sigmas.per_sample=1"],
    )
    document["rewards"] = [reward for reward in document["rewards"] if reward.get("weight", 1) > 0]
    job = JobSpec.parse(json.dumps(document))
    text = table(measure(job, arguments.pairs))
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        head = (
            "# What each technique costs\n\n"
            f"Made by `benchmarks/cost.py --pairs {arguments.pairs}` on the tiny model, seed {job.seed}: one "
            f"group of {job.prompts.group_size} clips, sampled in {job.sampling.num_steps} denoising steps and trained "
            "on at one noise level. CPU time of one thread, medians over the pairs. The control has the same work on "
            "both sides: so far from 1.000 chance alone leads.\n\n"
        )
        (arguments.out / "cost.md").write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
