"""A job in the terminal: a bar per stage, reward curves, one line per thing that matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from accord.events import (
    PHASES,
    CheckpointSaved,
    EvaluationDone,
    Failed,
    Gap,
    JobEvent,
    Phase,
    ProcessLost,
    Progress,
    StateChanged,
    StepCompleted,
    Warned,
)
from accord.metrics import METRICS

BEFORE_STEPS: frozenset[Phase] = frozenset({"startup", "evaluate"})
"""Told in words where there are no bars."""
STAGES: list[Phase] = sorted(PHASES, key=lambda phase: phase not in BEFORE_STEPS)
_BLOCKS = "▁▂▃▄▅▆▇█"
_STYLE = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "starting": "cyan"}
_REWARD_MEAN = METRICS["accord_train_reward_mean"]


def sparkline(values: Iterable[float], width: int = 30) -> str:
    """A curve in one line of text; long ones show their last `width` values."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in shown)


@dataclass
class JobPicture:
    """What is known of a job from its events so far."""

    job_id: str
    steps: int
    name: str = ""
    state: str = "queued"
    reason: str = ""
    attempt: int = 0
    step: int = 0
    began: float = field(default_factory=time.time)
    stages: dict[str, Progress] = field(default_factory=dict)
    rewards: dict[str, dict[int, float]] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)

    def apply(self, event: JobEvent) -> str | None:
        """Take an event; return a line of text when it is worth one."""
        if isinstance(event, Progress):
            self.stages[event.phase] = event
            return None
        if isinstance(event, StateChanged):
            self.state, self.reason, self.attempt = event.state, event.reason, event.attempt
            self.stages.clear()
            number = f", attempt {event.attempt}" if event.attempt > 1 else ""
            return f"{event.state}{f' ({event.reason})' if event.reason else ''}{number}"
        if isinstance(event, StepCompleted):
            return self._step(event)
        return _line(event)

    def _step(self, event: StepCompleted) -> str:
        self.step = event.step
        parts = []
        for key, value in event.metrics.items():
            for reward in _REWARD_MEAN.labels_in(key) or ():
                if value is not None:
                    self.rewards.setdefault(reward, {})[event.step] = value
                    parts.append(f"{reward} {value:.3f}")
        loss = event.metrics.get("loss/total")
        if loss is not None:
            self.losses[event.step] = loss
        return f"step {event.step}/{self.steps}  {event.seconds:.1f} s  {'  '.join(parts)}"

    def render(self) -> RenderableType:
        """The live part of the screen."""
        head = Text.assemble(
            (self.job_id, "bold"), f"  {self.name}  ", (self.state, _STYLE.get(self.state, "")),
            f"{f' ({self.reason})' if self.reason else ''}  step {self.step}/{self.steps}"
            f"{f'  attempt {self.attempt}' if self.attempt > 1 else ''}  {time.time() - self.began:.0f} s",
        )  # fmt: skip
        return Group(head, self._bars(), self._curves())

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=10)
        grid.add_column(width=32)
        grid.add_column(min_width=8, justify="right")
        grid.add_column()
        overall = ProgressBar(total=max(1, self.steps), completed=self.step, width=32)
        grid.add_row("steps", overall, f"{self.step}/{self.steps}", "")
        for stage in STAGES:
            at = self.stages.get(stage)
            if at is None or (stage == "startup" and at.done >= at.total):
                continue
            bar = ProgressBar(total=max(1, at.total), completed=at.done, width=32)
            grid.add_row(stage, bar, f"{at.done}/{at.total}", Text(at.detail, style="dim"))
        return grid

    def _curves(self) -> RenderableType:
        if not self.rewards:
            return Text("")
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for column in ("reward", "first", "last", "per step"):
            table.add_column(column, justify="right" if column in {"first", "last"} else "left")
        rows = [*self.rewards.items(), *([("loss", self.losses)] if self.losses else [])]
        for name, points in rows:
            values = [points[step] for step in sorted(points)]
            style = "dim" if name == "loss" else "cyan"
            table.add_row(name, f"{values[0]:.3f}", f"{values[-1]:.3f}", Text(sparkline(values), style=style))
        return table


def _line(event: JobEvent) -> str | None:
    if isinstance(event, CheckpointSaved):
        return f"checkpoint of step {event.step}, {event.bytes / 1e6:.1f} MB in {event.seconds:.1f} s"
    if isinstance(event, EvaluationDone):
        means = "  ".join(f"{name} {value.mean:.3f}" for name, value in event.rewards.items() if value.mean is not None)
        return f"held-out at step {event.step} ({event.role}): {means}"
    if isinstance(event, ProcessLost):
        took = f" in {event.recovery_seconds:.1f} s" if event.recovery_seconds is not None else ""
        return f"{event.process} died: {event.outcome}{took}"
    if isinstance(event, Gap):
        return f"{event.dropped} older steps are not kept here; the report has their curves"
    if isinstance(event, Warned):
        return f"warning: {event.message}"
    if isinstance(event, Failed):
        return f"the attempt failed: {event.message}{' (will be tried again)' if event.retryable else ''}"
    return None


def watch(events: Iterable[JobEvent], picture: JobPicture, console: Console) -> None:
    """Show events until the job ends. Without a terminal: lines only."""
    with showing(picture, console) as show:
        for event in events:
            show(event)


@contextmanager
def showing(picture: JobPicture, console: Console) -> Iterator[Callable[[JobEvent], None]]:
    """While entered, what is called with an event shows it. Without a terminal: lines only."""
    if not console.is_terminal:
        yield _Lines(picture, console).show
        return
    with Live(console=console, get_renderable=picture.render, refresh_per_second=6, transient=False) as live:

        def show(event: JobEvent) -> None:
            line = picture.apply(event)
            if line and not isinstance(event, StepCompleted):
                live.console.print(f"[dim]{time.strftime('%H:%M:%S', time.localtime(event.at))}[/dim] {escape(line)}")

        yield show


@dataclass
class _Lines:
    picture: JobPicture
    console: Console
    said: tuple[str, str] | None = None

    def show(self, event: JobEvent) -> None:
        line = self.picture.apply(event)
        if (
            isinstance(event, Progress)
            and (event.phase, event.detail) != self.said
            and event.phase in {"startup", "evaluate"}
        ):
            self.said = (event.phase, event.detail)
            line = f"{event.phase}: {event.detail}" if event.detail else None
        if line:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
