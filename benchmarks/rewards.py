"""What serving costs: scores per second of rewards packed and apart, with one replica and with two, one group after the
other and many at once, by reference and by value; and what a call over HTTP takes longer than one by handle.

    python benchmarks/rewards.py [--groups 16] [--size 4] [--rewards sync,sound,…] [--frames 25 --side 64]
    python benchmarks/rewards.py --http 300 [--size 1] [--rewards temporal_flicker]     # the calls alone, in a minute

Prints tables in Markdown. One score is one clip seen by one reward. Clips are of the built-in world or, with `--side`
above its own, noise of that size: what it costs to score, not what comes out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from ray import serve

from accord.config.contract import RewardSpec
from accord.plugins import spec_class
from accord.types import Clip, Prompt
from accord.world.scene import IMPERFECT, make_clips
from reward_servers import app
from reward_servers.controller import replicas
from reward_servers.door import Door
from reward_servers.serve_handles import ServeScorer
from reward_servers.wire import write_body

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


async def seconds_of(scorer: ServeScorer, name: str, prompt: Prompt, clips: Any, count: int) -> float:
    """Seconds of one call by handle."""
    began = time.perf_counter()
    scores = await scorer.score(name, prompt, clips, count)
    assert all(scores.valid), scores.reasons
    return time.perf_counter() - began


def posted(http: httpx.Client, name: str, body: bytes) -> float:
    """Seconds of one call over HTTP."""
    began = time.perf_counter()
    answer = http.post("/v1/score", params={"reward": name}, content=body).raise_for_status()
    assert all(answer.json()["valid"]), answer.text
    return time.perf_counter() - began


def compared(name: str, groups: Sequence[Group], calls: int) -> list[str]:
    """Rows: one call after the other, each way in turn, so that all meet the same machine."""
    spec = spec_class("rewards", name)(remember=0, batch_wait_s=0.0, min_replicas=1, max_replicas=1)  # type: ignore[call-arg]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app.deploy([spec], door=Door(port=port), idle_s=0.0)
    scorer = ServeScorer([spec])
    took: dict[str, list[float]] = {"by reference": [], "by value": [], "over HTTP": []}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Content-Type": "application/octet-stream"}, timeout=60
    ) as http, asyncio.Runner() as runner:  # fmt: skip
        deadline = time.monotonic() + 60
        while not _is_open(http):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for index in range(calls + 20):
            prompt, clips = groups[index % len(groups)]
            shared, body = ray.put(clips), write_body(prompt, clips)
            found = {
                "by reference": runner.run(seconds_of(scorer, name, prompt, shared, len(clips))),
                "by value": runner.run(seconds_of(scorer, name, prompt, clips, len(clips))),
                "over HTTP": posted(http, name, body),
            }
            if index >= 20:  # the first ones find their way
                for way, seconds in found.items():
                    took[way].append(1000 * seconds)
    rows = []
    for way, found_ms in took.items():
        more = [one - other for one, other in zip(found_ms, took["by reference"], strict=True)]
        low, middle, high = (float(np.percentile(found_ms, share)) for share in (10, 50, 90))
        rows.append(f"| {way} | {middle:.2f} | {low:.2f} … {high:.2f} | {float(np.median(more)):+.2f} |")
    return rows


def _is_open(http: httpx.Client) -> bool:
    try:
        return http.get("/v1/rewards").is_success
    except httpx.TransportError:
        return False


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--size", type=int, default=4, help="Clips of a group.")
    parser.add_argument("--rewards", default=PANEL)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--side", type=int, default=0, help="Height of clips of noise; 0 = the built-in world's clips.")
    parser.add_argument("--http", type=int, default=0, help="Only compare so many calls of the first reward.")
    parser.add_argument("--case", default="", help="Only rows whose name holds this.")
    arguments = parser.parse_args()
    names, groups = (
        arguments.rewards.split(","),
        clips_of(arguments.groups, arguments.size, arguments.frames, arguments.side),
    )
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="error")
    if arguments.http:
        print("| call | median ms | 10 … 90 % | more than by reference, median ms |\n|---|---|---|---|", flush=True)
        try:
            print(*compared(names[0], groups, arguments.http), sep="\n")
        finally:
            serve.shutdown()
            ray.shutdown()
        return
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
