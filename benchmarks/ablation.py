"""What does each technique of OmniNFT do on the built-in world? Six arms, several seeds, equal numbers of clips.

Each run is the whole page (`learner/train.py`) in one process, with real sampling, rewards and held-out evaluation; the
job is examples/tiny_omninft.toml with fewer clips per step. Runs that are on disk already are not repeated, so the
script can be stopped and started again.

    .venv/bin/python benchmarks/ablation.py --seeds 5 --steps 12 --out docs/results

Writes ablation.md (tables: mean over seeds with its 95 % interval), ablation.json (every run) and ablation.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scipy import stats

from accord.config.job import JobSpec
from accord.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
BASE = "base"
SURGERY = {"schedule": [{"start": 0.0, "stop": 0.5, "keep": 0.1}]}
"""That of the demo: of four blocks the default scales one edge, through which hardly any gradient comes."""
ARMS: dict[str, dict[str, Any]] = {
    "+GDPO": {"name": "diffusion_nft", "credit": {"mode": "gdpo"}},
    "+routing": {"name": "diffusion_nft", "credit": {"mode": "routed"}},
    "+surgery": {"name": "omninft", "region": {"enabled": False}, "surgery": SURGERY},
    "+region": {"name": "omninft", "surgery": SURGERY},
    "Flow-GRPO": {"name": "flow_grpo"},
}
"""Each arm of the first four adds one technique to the arm before it; `+region` is OmniNFT whole."""
NFT_LOSS = {"reference_penalty": 0.3}
PER_STEP, GROUP = 4, 8
REWARDS = ("sync", "clap", "sound", "text_video", "picture")
HELD_OUT = ("sync_gap", "sync_offset_ms_median", "video_distance", "audio_distance", "video_diversity",
            "audio_diversity")  # fmt: skip

Result = dict[str, Any]
"""{"arm", "seed", "seconds", "before": {metric: mean}, "after": {metric: mean}, "curve": [mean reward per step]}"""


def job_of(arm: str, seed: int, steps: int) -> JobSpec:
    """The job of one run."""
    from services.cli.job_file import read_job

    source = "tiny_flow_grpo.toml" if arm == "Flow-GRPO" else "tiny_omninft.toml"
    document = read_job(ROOT / "examples" / source, [])
    document["rewards"] = [reward for reward in document["rewards"] if reward["name"] in REWARDS]
    if arm != "Flow-GRPO":
        document["algorithm"] = {**ARMS[arm], "loss": NFT_LOSS}
    document["cluster"] |= {"engine": "torch", "learner_ranks": 1}
    document |= {"seed": seed, "steps": steps, "checkpoint": {"every": steps, "keep": 1}}
    document["prompts"] |= {"per_step": PER_STEP, "group_size": GROUP}
    document["evaluate"] = {"samples_per_prompt": 4, "clips": 0}
    return JobSpec.parse(json.dumps(document))


def run_one(arm: str, seed: int, steps: int, work: Path) -> Result:
    """Train one arm with one seed in this process, unless its result is in `work` already."""
    folder = work / f"{steps}-steps" / f"{arm.strip('+').lower()}-{seed}"
    known = folder / "result.json"
    if not known.exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        curve = _train(job_of(arm, seed, steps), folder, work / f"base-{seed}.json")
        result = {"arm": arm, "seed": seed, "seconds": round(time.monotonic() - began, 1), "curve": curve}
        result |= {"before": _evaluated(folder, 0), "after": _evaluated(folder, steps)}
        known.write_text(json.dumps(result))
    return dict(json.loads(known.read_text()))


def _train(job: JobSpec, folder: Path, base: Path) -> list[float]:
    """Run the page and return the weighted training reward per step.

    The evaluation of the base model is the same for all arms of a seed, so the first arm leaves it for the others.
    """
    from services.runner.local import LocalSource, train_here

    run, first = RunFolder(folder), RunFolder.evaluation(0)
    if base.exists() and not run.exists(first):
        run.write_whole(first, base.read_bytes())
    train_here(job, run, LocalSource(job))
    base.write_bytes(run.read(first))
    rows = [step.metrics for step in run.steps()]
    return [sum(reward.weight * row[f"reward/{reward.name}/mean"] for reward in job.rewards) for row in rows]


def _evaluated(folder: Path, step: int) -> dict[str, float]:
    found = next(one for one in RunFolder(folder).evaluations() if one.step == step)
    return {name: summary.mean for name, summary in {**found.rewards, **found.held_out}.items()}


def run_all(seeds: Sequence[int], steps: int, jobs: int, work: Path) -> list[Result]:
    """Run what is missing, `jobs` processes of one thread at a time; seeds outermost, so that all arms grow alike."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_one, arm, seed, steps, work) for seed in seeds for arm in ARMS]
        for _ in progress.track(as_completed(runs), total=len(runs), description="runs"):
            pass
        return [run.result() for run in runs]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t over seeds)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), float("nan")
    return float(array.mean()), float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))


def rewards_in(results: Sequence[Result]) -> list[str]:
    """The rewards that the runs were scored by, in their order."""
    return [name for name in results[0]["before"] if name not in HELD_OUT and not name.endswith("_shuffled")]


def table(results: Sequence[Result]) -> dict[str, dict[str, tuple[float, float]]]:
    """{arm: {metric: (mean, half width)}} after training, with the base model as the first arm."""
    arms: dict[str, dict[str, tuple[float, float]]] = {BASE: {}}
    first = [result for result in results if result["arm"] == next(iter(ARMS))]
    for metric in (*rewards_in(results), *HELD_OUT):
        arms[BASE][metric] = interval([result["before"][metric] for result in first])
        for arm in ARMS:
            values = [result["after"][metric] for result in results if result["arm"] == arm]
            arms.setdefault(arm, {})[metric] = interval(values)
    return arms


def effects(results: Sequence[Result]) -> dict[str, dict[str, tuple[float, float]]]:
    """{technique: {metric: (mean, half width)}}: what an arm adds to the arm before it, seed by seed."""
    by_seed = {(result["arm"], result["seed"]): result["after"] for result in results}
    by_seed |= {(BASE, r["seed"]): r["before"] for r in results if r["arm"] == next(iter(ARMS))}
    seeds = sorted({result["seed"] for result in results})
    ladder = [BASE, *(arm for arm in ARMS if arm.startswith("+"))]
    pairs = [*zip(ladder[1:], ladder, strict=False), ("Flow-GRPO", BASE)]
    return {
        f"{arm} against {before}": {
            metric: interval([by_seed[arm, seed][metric] - by_seed[before, seed][metric] for seed in seeds])
            for metric in (*rewards_in(results), *HELD_OUT)
        }
        for arm, before in pairs
    }


def _cells(rows: Mapping[str, Mapping[str, tuple[float, float]]], metrics: Sequence[str], *, mark: bool) -> list[str]:
    lines = [f"| | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in rows.items():
        cells = []
        for metric in metrics:
            mean, half = row[metric]
            digits = 1 if metric.endswith(("_median", "_distance", "_diversity")) else 3
            text = f"{mean:+.{digits}f}" if mark else f"{mean:.{digits}f}"
            text += f" ± {half:.{digits}f}"
            cells.append(f"**{text}**" if mark and abs(mean) > half else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def document(results: Sequence[Result], steps: int) -> str:
    """The page for people."""
    seeds = sorted({result["seed"] for result in results})
    clips = steps * PER_STEP * GROUP
    return "\n".join(
        [
            "# Ablation on the built-in world",
            "",
            f"Made by `benchmarks/ablation.py --seeds {len(seeds)} --steps {steps}`: seeds "
            f"{', '.join(map(str, seeds))}; every run trains {steps} steps on {PER_STEP} prompts x {GROUP} clips "
            f"({clips} clips), guidance off, and is measured on 8 held-out prompts x 4 clips with its seed's noise. "
            "Mean over seeds ± half of its 95 % interval (Student's t). `+GDPO` to `+region` add one technique each to "
            "the arm above; `+region` is OmniNFT whole. `Flow-GRPO` is examples/tiny_flow_grpo.toml.",
            "",
            "## After training: what was trained on",
            "",
            *_cells(table(results), rewards_in(results), mark=False),
            "",
            "## After training: what was not",
            "",
            *_cells(table(results), HELD_OUT, mark=False),
            "",
            "Distances and the offset are better when lower; a diversity that falls means collapse.",
            "",
            "## What each technique adds",
            "",
            "Differences seed by seed; **bold** where the 95 % interval excludes 0. No correction for the number of "
            "comparisons: about one bold cell in twenty means nothing.",
            "",
            *_cells(effects(results), rewards_in(results), mark=True),
            "",
            *_cells(effects(results), HELD_OUT, mark=True),
            "",
            "![Training reward per step, mean over seeds with its 95 % interval](ablation.svg)",
            "",
        ]
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """Weighted training reward per step, mean over seeds with a band."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ablation"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for arm in ARMS:
        curves = np.array([result["curve"] for result in results if result["arm"] == arm])
        steps = np.arange(1, curves.shape[1] + 1)
        middle = np.array([interval(column) for column in curves.T])
        (line,) = axes.plot(steps, middle[:, 0], label=arm)
        low, high = middle[:, 0] - middle[:, 1], middle[:, 0] + middle[:, 1]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("weighted sum of the trained rewards")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run, write, tell where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ablation", help="where runs are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    results = run_all(range(arguments.seeds), arguments.steps, arguments.jobs, arguments.work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ablation.md").write_text(document(results, arguments.steps), encoding="utf-8")
    (arguments.out / "ablation.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, arguments.out / "ablation.svg")
    print(f"written to {arguments.out}: ablation.md, ablation.json, ablation.svg")


if __name__ == "__main__":
    main()
