"""What each technique costs: time as ratios of paired runs in one process, forwards per sample, and peak memory.

Each row runs the same work with the technique on and off in turn, many times, and takes the median of the pairs; time
is CPU time of this process, one thread. Memory is the peak of live tensors, counted as they are made and freed.

    .venv/bin/python benchmarks/cost.py --pairs 15 [--out docs/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accord.config.job import JobSpec
from accord.requests import step_requests
from benchmarks.local import LocalSource, alone, local_rank
from learner.publish import policy_state
from learner.rank import Rank

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that come into being inside the block, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


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
    for index in range(pairs + 1):
        order = (off, on) if index % 2 else (on, off)  # whoever comes second finds a warm cache
        seconds = {call: _seconds(call) for call in order}
        if index:
            ratios.append(seconds[on] / seconds[off])
    forwards, peaks = [], []
    for call in (off, on):
        with _counted(model) as calls, LiveBytes() as memory:
            samples = call()
        forwards.append(sum(calls) / samples)
        peaks.append(memory.peak / MIB)
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
        self.job = alone(job)
        self.source = LocalSource(self.job)
        self.rank: Rank = local_rank(self.job)
        self.source.publish(policy_state(self.rank.engine, 0))
        self.groups = self.source.take(1)
        self.credit = self.rank.algorithm.credit(self.groups, self.job.rewards, self.rank.modalities)
        self.requests = step_requests(self.job, self.source.prompts, 1)
        torch.set_num_threads(1)

    def update(self, **switches: Any) -> Callable[[], int]:
        """An update with fields of the algorithm replaced. Weights move, which costs the same every time."""

        def call() -> int:
            kept = {name: getattr(self.rank.algorithm, name) for name in switches}
            for name, value in switches.items():
                setattr(self.rank.algorithm, name, value)
            try:
                self.rank.update(1, self.groups, self.credit, self.source.fetch)
            finally:
                for name, value in kept.items():
                    setattr(self.rank.algorithm, name, value)
            return sum(len(group.group.request.seeds) for group in self.groups)

        return call

    def rollout(self, capture: bool) -> Callable[[], int]:
        """Sample one group, with or without watching attention."""
        import dataclasses

        request = dataclasses.replace(self.requests[0], capture_token_weights=capture)

        def call() -> int:
            self.source.worker.sample(request)
            return len(request.seeds)

        return call


def measure(job: JobSpec, pairs: int) -> list[Row]:
    """All rows."""
    bench = Bench(job)
    sampler, learner = bench.source.worker.backbone.velocity_model, bench.rank.engine.module
    whole = bench.update()
    without_norms = bench.rank.norms

    def no_norms() -> int:
        bench.rank.norms = None
        try:
            return whole()
        finally:
            bench.rank.norms = without_norms

    return [
        paired("gradient surgery", "update", bench.update(surgery=None), whole, pairs, learner),
        paired("reference penalty", "update", bench.update(anchors=("old",)), bench.update(anchors=("old", "ref")),
               pairs, learner),
        paired("gradient norms by block", "update", no_norms, whole, pairs, learner),
        paired("region capture", "rollout", bench.rollout(False), bench.rollout(True), pairs, sampler),
        paired("nothing (control)", "update", bench.update(), whole, pairs, learner),
    ]  # fmt: skip


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| technique | work | time with ÷ without (median; quartiles) | forwards per sample | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        low, middle, high = statistics.quantiles(row.ratios, n=4)
        before, after = row.forwards
        small, large = row.peak
        lines.append(
            f"| {row.technique} | {row.work} | {middle:.3f} ({low:.3f} to {high:.3f}) | "
            f"{before:g} → {after:g} | {small:.2f} → {large:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write cost.md if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--job", type=Path, default=Path("examples/tiny_omninft.toml"))
    parser.add_argument("--out", type=Path, help="directory for cost.md")
    arguments = parser.parse_args()
    from services.runner.job_file import read_job

    document = read_job(arguments.job, ["prompts.per_step=2"])
    document["rewards"] = [reward for reward in document["rewards"] if reward.get("weight", 1) > 0]
    job = JobSpec.parse(json.dumps(document))
    text = table(measure(job, arguments.pairs))
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        head = (
            "# What each technique costs\n\n"
            f"Made by `benchmarks/cost.py --pairs {arguments.pairs}` on the tiny model: {job.prompts.per_step} prompts "
            f"x {job.prompts.group_size} clips, {job.sampling.num_steps} denoising steps, one thread, CPU time. The "
            "control has the same work on both sides: how far it is from 1.000, chance alone leads.\n\n"
        )
        (arguments.out / "cost.md").write_text(head + text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
