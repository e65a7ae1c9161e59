"""Wall time of a training step through the whole service ÷ the same arithmetic in one bare process.

Both run the job of examples/tiny_omninft.toml, interleaved in rounds on this machine: a service round is one job of
`--steps` steps over REST (store, Ray, Serve, DeepSpeed ranks); a bare round is the same groups, rewards and updates in
one process with as many threads as the service has compute processes. Medians of the steps, the first of a round left
out. Prints the ratio and where the difference goes; absolute seconds mean nothing beyond this machine.

    .venv/bin/python benchmarks/step.py --rounds 3 --steps 4
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import httpx
import torch

from accord.config.job import JobSpec
from accord.config.settings import Settings
from accord.events import StepCompleted
from learner.assembly import make_rank
from learner.run import policy_state
from services.cli.client import ApiClient
from services.runner.local import LocalSource

Phases = dict[str, list[float]]


class Bare:
    """The arithmetic of a step and nothing else, in one process."""

    def __init__(self, job: JobSpec, threads: int) -> None:
        self.job = job
        self.source = LocalSource(self.job)
        self.rank = make_rank(self.job)
        self.source.publish(policy_state(self.rank.engine, 0))
        torch.set_num_threads(threads)

    def step(self, step: int) -> dict[str, float]:
        """One training step; returns seconds per phase."""
        began = time.perf_counter()
        found = self.source.take(step)
        groups, taken = found.groups, time.perf_counter()
        credit = self.rank.algorithm.credit(groups, self.job.rewards, self.rank.modalities)
        self.rank.update(step, groups, credit, self.source.fetch)
        learned = time.perf_counter()
        self.source.publish(policy_state(self.rank.engine, step))
        done = time.perf_counter()
        return {
            "rollout": found.sampling_s, "reward": found.scoring_s, "learn": learned - taken, "publish": done - learned,
            "step": done - began,
        }  # fmt: skip


@contextmanager
def running_service(root: Path) -> Iterator[ApiClient]:
    """`accord up` in a folder of its own, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = Settings(data_dir=root / "data", runs_dir=root / "runs", port=probe.getsockname()[1])
    places = {"ACCORD_DATA_DIR": str(settings.data_dir), "ACCORD_RUNS_DIR": str(settings.runs_dir)}
    environment = os.environ | places | {"ACCORD_PORT": str(settings.port), "ACCORD_INPUT_ROOTS": str(Path.cwd())}
    log = root / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", "up"], env=environment, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{settings.port}"
    try:
        for _ in range(900):
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200:
                    break
            time.sleep(0.1)
        else:
            sys.exit(f"the service was not ready in time:\n{log.read_text()}")
        yield ApiClient.of(settings, url)
    finally:
        process.terminate()
        process.wait(60)


def service_round(service: ApiClient, job: JobSpec, steps: int, into: Phases) -> None:
    """Run one job and collect the time between its steps, and within them."""
    job_id = service.submit(json.loads(job.model_copy(update={"steps": steps}).model_dump_json())).id
    events = [event for event in service.follow(job_id) if isinstance(event, StepCompleted)]
    if len(events) < steps:
        sys.exit(f"{job_id} ended early: {service.job(job_id).message}")
    for before, event in pairwise(events):
        into["step"].append(event.at - before.at)
        for phase, seconds in event.phase_seconds.items():
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
    parser.add_argument("--out", type=Path, help="directory for step.md")
    arguments = parser.parse_args()
    from services.cli.job_file import read_job

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the service must not outlive this process
    overrides = ["evaluate.samples_per_prompt=2", "evaluate.clips=0"]
    job = JobSpec.parse(json.dumps(read_job(arguments.job, overrides)))
    here = read_job(arguments.job, [*overrides, "cluster.engine=torch", "cluster.learner_ranks=1"])
    cores = os.cpu_count() or 1
    bare = Bare(
        JobSpec.parse(json.dumps(here)),
        min(cores, max(job.cluster.rollout_workers, job.cluster.learner_ranks) * job.cluster.torch_threads),
    )
    service_seconds: Phases = defaultdict(list)
    bare_seconds: Phases = defaultdict(list)
    with tempfile.TemporaryDirectory() as root, running_service(Path(root)) as service:
        for index in range(arguments.rounds):
            print(f"round {index + 1} of {arguments.rounds}: service ...", flush=True)
            service_round(service, job, arguments.steps, service_seconds)
            print(f"round {index + 1} of {arguments.rounds}: bare ...", flush=True)
            bare_round(bare, arguments.steps, 1 + index * arguments.steps, bare_seconds)
    text = table(service_seconds, bare_seconds)
    print(text)
    if arguments.out:
        head = (
            "# A step through the service against the same arithmetic in one process\n\n"
            f"Made by `benchmarks/step.py --rounds {arguments.rounds} --steps {arguments.steps}` on {cores} cores, "
            "rounds interleaved. The bare process has as many threads as the service has compute processes. Seconds "
            "mean nothing beyond the machine; the ratio does.\n\n"
        )
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "step.md").write_text(f"{head}```\n{text}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
