"""What serving costs: scores per second of rewards packed and apart, with one replica and with two, one group after the
other and many at once, by reference and by value.

    python benchmarks/rewards.py [--groups 16] [--size 4] [--rewards sync,sound,…] [--frames 25 --side 64]

Prints a table in Markdown. One score is one clip seen by one reward. Clips are of the built-in world or, with `--side`
above its own, noise of that size: what it costs to score, not what comes out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve

from accord.config.contract import RewardSpec
from accord.plugins import spec_class
from accord.types import Clip, Prompt
from accord.world.scene import IMPERFECT, make_clips
from reward_servers import app
from reward_servers.controller import replicas
from reward_servers.serve_handles import ServeScorer

PANEL = "sync,sound,picture,motion,text_video,temporal_flicker,motion_smoothness,dynamic_degree"
Group = tuple[Prompt, list[Clip]]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    name: str
    pack: str = ""
    replicas: int = 1
    at_once: int = 16
    by_value: bool = False


CASES = (
    Case("apart, one group after the other", at_once=1),
    Case("apart, batched"),
    Case("apart, batched, by value", by_value=True),
    Case("packed, one group after the other", pack="bench", at_once=1),
    Case("packed, batched", pack="bench"),
    Case("packed, batched, by value", pack="bench", by_value=True),
    Case("packed, batched, 2 replicas", pack="bench", replicas=2),
)


def clips_of(groups: int, size: int, frames: int, side: int) -> list[Group]:
    """Groups of clips of the built-in world, or of noise where that is too small."""
    made = []
    for index in range(groups):
        clips = list(make_clips(size, index, IMPERFECT))
        asked = clips[0].prompt
        prompt = Prompt(asked.id, asked.prompt_av, asked.prompt_v, asked.prompt_a)
        made.append((prompt, [clip.clip if not side else _noise(frames, side, index * size + place)
                              for place, clip in enumerate(clips)]))  # fmt: skip
    return made


def _noise(frames: int, side: int, seed: int) -> Clip:
    generator = np.random.default_rng(seed)
    video = generator.integers(0, 256, (frames, side, side * 3 // 2, 3), dtype=np.uint8)
    sound = generator.standard_normal((2, int(frames / 24 * 48_000)), dtype=np.float32) * 0.1
    return Clip(video, 24.0, sound, 48_000)


async def score_all(scorer: ServeScorer, names: Sequence[str], groups: Sequence[Group], case: Case) -> None:
    """Score every group with every reward, `at_once` groups under way."""
    gate = asyncio.Semaphore(case.at_once)

    async def one(prompt: Prompt, clips: list[Clip], shared: Any) -> None:
        async with gate:
            found = await asyncio.gather(*(scorer.score(name, prompt, shared, len(clips)) for name in names))
        down = [scores.reward for scores in found if {"timeout", "unreachable", "backpressure"} & set(scores.reasons)]
        assert not down, down

    await asyncio.gather(*(one(prompt, clips, clips if case.by_value else ray.put(clips)) for prompt, clips in groups))


def started(specs: Sequence[RewardSpec]) -> tuple[float, list[int]]:
    """Start the servers. Returns the seconds that took, and their process ids."""
    began = time.perf_counter()
    names = app.deploy(specs, idle_s=0.0)
    seconds = time.perf_counter() - began
    return seconds, [pid for found in replicas(set(names), "RewardServer").values() for pid in found.pids]


def _memory(pids: Sequence[int]) -> float:
    """MiB that these processes hold."""
    return (
        sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


def _worked(pids: Sequence[int]) -> float:
    """CPU seconds of these processes so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(of[11]) + int(of[12]) for of in fields) / os.sysconf("SC_CLK_TCK")


def measured(case: Case, names: Sequence[str], groups: Sequence[Group]) -> str:
    """One row."""
    sizes: dict[str, Any] = {"pack": case.pack, "min_replicas": case.replicas, "max_replicas": case.replicas}
    sizes |= {"deadline_s": 600.0, "remember": 0}
    specs = [spec_class("rewards", name)(**sizes) for name in names]  # type: ignore[call-arg]
    seconds, pids = started(specs)
    scorer = ServeScorer(specs)
    asyncio.run(score_all(scorer, names, groups[:2], case))  # handles, first calls
    began, before = time.perf_counter(), _worked(pids)
    asyncio.run(score_all(scorer, names, groups, case))
    took, worked, memory = time.perf_counter() - began, _worked(pids) - before, _memory(pids)
    for name in {status.name for status in app.status()}:
        serve.delete(name)
    scores = len(names) * sum(len(clips) for _, clips in groups)
    each = f"{scores / took:.1f} | {took / len(groups):.3f} | {1000 * worked / scores:.1f}"
    return f"| {case.name} | {each} | {seconds:.1f} | {memory:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--size", type=int, default=4, help="Clips of a group.")
    parser.add_argument("--rewards", default=PANEL)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--side", type=int, default=0, help="Height of clips of noise; 0 = the built-in world's clips.")
    parser.add_argument("--case", default="", help="Only rows whose name holds this.")
    arguments = parser.parse_args()
    names, groups = (
        arguments.rewards.split(","),
        clips_of(arguments.groups, arguments.size, arguments.frames, arguments.side),
    )
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    heads = ("case", "scores/s", "s per group", "CPU ms per score", "start-up s", "memory MiB")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
    try:
        for case in (case for case in CASES if arguments.case in case.name):
            print(measured(case, names, groups), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
