"""A run that plays prompt-blind rewards, with the guard and without: what the rewards say, and what is lost meanwhile.

The built-in model is trained on `picture` and `sound` alone, which do not know the prompt, without a reference penalty
and at a high learning rate. Measured beside them, and trained on by neither run: whether sound and picture are still
those that the prompt names. Writes curves as PNG and numbers as JSON.

    .venv/bin/python benchmarks/guard.py --steps 24 --out docs/results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from accord.config.job import JobSpec
from accord.errors import GuardError
from accord.events import Event, StepCompleted
from accord.run_folder import RunFolder
from services.runner.local import LocalSource, train_here

PROMPTS = Path(__file__).parent.parent / "examples" / "prompts"
SHOWN = {"picture": "trained", "sound": "trained", "text_video": "measured", "clap": "measured"}


def hacked(action: str, steps: int, **changes: Any) -> JobSpec:
    """The job: every step of it is allowed, and none of it is wise."""
    tree = {
        "name": f"prompt-blind-{action}", "steps": steps, "seed": 1, "backbone": {"name": "ltx2"},
        "sampling": {"frames": 25, "height": 32, "width": 32, "fps": 12.0, "num_steps": 8},
        "prompts": {
            "train": str(PROMPTS / "world_train.jsonl"), "held_out": str(PROMPTS / "world_heldout.jsonl"),
            "per_step": 4, "group_size": 8,
        },
        "rewards": [
            {"name": "picture"}, {"name": "sound"}, {"name": "text_video", "weight": 0.0},
            {"name": "clap", "weight": 0.0},
        ],
        "algorithm": {"name": "omninft", "preset": "accord", "loss": {"reference_penalty": 0.0}},
        "optimizer": {"learning_rate": 5e-3}, "cluster": {"engine": "torch", "learner_ranks": 1},
        "evaluate": {"samples_per_prompt": 2, "clips": 0},
        "guards": {"allow_prompt_blind": True, "controls": False, "divergence": {"action": action}},
    }  # fmt: skip
    return JobSpec.parse(json.dumps(tree | changes))


class Curves:
    """An event sink that keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[StepCompleted] = []

    def emit(self, event: Event) -> None:
        """Tell and keep a step."""
        if isinstance(event, StepCompleted):
            self.steps.append(event)
            told = {name: event.metrics.get(f"reward/{name}/mean") for name in SHOWN}
            print(
                f"  step {event.step}: {', '.join(f'{name} {value:.3f}' for name, value in told.items() if value)}",
                flush=True,
            )


def run(job: JobSpec, folder: Path) -> tuple[list[StepCompleted], str]:
    """Train; what was seen, and what the guard said."""
    curves = Curves()
    try:
        train_here(job, RunFolder(folder), LocalSource(job), curves)
    except GuardError as error:
        return curves.steps, str(error)
    return curves.steps, ""


def draw(found: dict[str, list[StepCompleted]], path: Path) -> None:
    """One panel for each run, the same axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), sharex=True, sharey=True)
    for axis, (title, steps) in zip(axes, found.items(), strict=True):
        for name, kind in SHOWN.items():
            values = [step.metrics.get(f"reward/{name}/mean") for step in steps]
            axis.plot(
                [step.step for step in steps], values, "-" if kind == "trained" else "--", label=f"{name} ({kind})"
            )
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean score")
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run both, write both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[StepCompleted]] = {}
    told = {}
    with tempfile.TemporaryDirectory(prefix="accord-guard-") as place:
        for action, title in (("off", "without the guard"), ("stop", "with the guard")):
            print(title, flush=True)
            started = time.monotonic()
            found[title], told[title] = run(hacked(action, options.steps), Path(place) / action)
            print(f"  {told[title] or 'ran to its end'} ({time.monotonic() - started:.0f} s)", flush=True)
    draw(found, options.out / "guard.png")
    numbers = {
        title: {"guard": told[title]}
        | {name: [step.metrics.get(f"reward/{name}/mean") for step in steps] for name in SHOWN}
        for title, steps in found.items()
    }
    (options.out / "guard.json").write_text(json.dumps(numbers, indent=1) + "\n")
    return 0 if told["with the guard"] and not told["without the guard"] else 1


if __name__ == "__main__":
    sys.exit(main())
