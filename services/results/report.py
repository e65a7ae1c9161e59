"""report.html: one page that shows what a job did, with nothing to load and nothing to run.

The page holds its styles, drawings, pictures and clips itself, has no script, and its own Content-Security-Policy
forbids every request. It is made from the run folder alone, so a job that failed half-way has one, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from accord.config.base import problems_of
from accord.config.departures import departures
from accord.config.job import JobSpec
from accord.errors import MediaError, SpecError, UserError
from accord.events import PHASES, StepCompleted
from accord.metrics import METRICS
from accord.run_folder import REPORT, SPEC, SUMMARY, Evaluation, RunFolder
from accord.types import MODALITIES
from services.results.comparison import Row, headline, summary_rows
from services.results.remarks import drifted, kept
from services.results.report_charts import Point, Series, line_chart, phase_chart
from services.results.report_clips import embed
from services.results.summary import ClipPair, Summary, build_summary

TEMPLATES = Path(__file__).parent / "templates"
EMBED_LIMIT_BYTES = 24 * 2**20
"""Clips are embedded up to this size in all; what is beyond it is named with its file instead."""
UNFINISHED = "unfinished"
"""State shown when the run folder has no summary."""
ARRIVED = "gradient/audio_from_video/"
TITLES = ("Base model", "Tuned model")
ROUTE_WORDS = {"video": "video branch", "audio": "audio branch", "both": "both branches"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and what is said under it."""

    title: str
    svg: Markup
    note: str = ""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two clips of a pair; `problem` says why there is nothing to play."""

    title: str
    video: str = ""
    strip: str = ""
    problem: str = ""


def write_report(folder: RunFolder) -> None:
    """Render `report.html` from the run folder, whole or not at all.

    Raises:
        UserError: the folder has neither `summary.json` nor a readable `spec.json`.
    """
    summary, spec, job = _read(folder)
    steps, evaluations = folder.steps(), folder.evaluations()  # the summary's warnings name what is left out
    rows = summary_rows(summary)
    page = _template().render(
        summary=summary,
        job=job,
        surgery=_surgery(job, steps),
        departures=departures(job) if job and job.trains else [],
        drifted=drifted(steps),
        headline=headline(summary, rows),
        rows=rows,
        pairs=_pairs(folder, summary.clips, ("Base", "Judged") if summary.kind == "evaluate" else TITLES),
        reward_figures=_reward_figures(summary, steps, evaluations),
        training_figures=_training_figures(steps),
        resolved=json.dumps(spec, indent=2, ensure_ascii=False),
    )
    folder.write_whole(REPORT, page)


def _read(folder: RunFolder) -> tuple[Summary, dict[str, Any], JobSpec | None]:
    """summary.json, or one built from the other files; spec.json, and the job it is, if it is one to this release."""
    spec, recorded = folder.read_object(SPEC), folder.read_object(SUMMARY)
    job = None
    try:
        job = JobSpec.parse(json.dumps(spec))
    except SpecError as error:
        if not recorded:
            raise UserError(f"{folder.root} is no run folder: it has no {SUMMARY}, and its {SPEC}: {error}") from error
    if job and not recorded:
        summary = build_summary(folder, job, job_id=folder.job_id, state=UNFINISHED, wall_seconds=0.0)
        return summary.model_copy(update={"wall_seconds": sum(summary.phase_seconds.values())}), spec, job
    try:
        return Summary.model_validate(recorded), spec, job
    except ValidationError as error:
        pointer, message = problems_of(error)[0]
        raise UserError(f"{folder.root}/{SUMMARY} is not a summary: {pointer}: {message}") from error


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, duration=duration, signed=signed, interval=interval)
    return environment.get_template(REPORT)


def number(value: float | None, digits: int = 3) -> str:
    """Format for a table: `0.412`, `12.3`, `1 234`; a dash for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size and size < 10**-digits:
        return f"{value:.2g}".replace("-", "−")
    places = digits if size < 10 else 1 if size < 1000 else 0
    return f"{value:,.{places}f}".replace(",", "\u202f").replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Format a difference with its sign."""
    text = number(value, digits)
    return f"+{text}" if value is not None and value > 0 else text


def duration(seconds: float) -> str:
    """Format seconds as `4 min 05 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _surgery(job: JobSpec | None, steps: Sequence[StepCompleted]) -> str:
    """What the schedule means for this model, and what was measured in the first step, where block norms were."""
    surgery = job.algorithm.active_surgery if job and job.trains else None
    found = {key: value for key, value in (steps[0].metrics if steps else {}).items() if key.startswith(ARRIVED)}
    norms = [value or 0.0 for _, value in sorted(found.items())]
    if surgery is None or not norms:
        return ""
    factors = surgery.factors(len(norms))
    before = math.hypot(*(norm / factor for norm, factor in zip(norms, factors, strict=True) if factor > 0))
    if before == 0:
        return kept(factors)
    came = f"in step {steps[0].step} {100 * math.hypot(*norms) / before:.3g} % of its norm came through"
    return f"{kept(factors)}; {came}{'' if all(factors) else ' at the blocks that keep any'}"


def interval(row: Row) -> list[tuple[str, int, float, float, float]]:
    """Before and after as marks on a scale of their own: (name, y, lowest x, middle x, highest x).

    A mark ends at two standard errors each way. Empty where one of the two is missing.
    """
    sides = [(one.mean, 2 * (one.sem or 0.0)) for one in (row.before, row.after) if one and one.mean is not None]
    if len(sides) < 2:
        return []
    low, high = min(mean - half for mean, half in sides), max(mean + half for mean, half in sides)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(8 + (value - low) / span * 104, 1)

    return [
        (name, y, x(mean - half), x(mean), x(mean + half))
        for (mean, half), name, y in zip(sides, ("before", "after"), (8, 20), strict=True)
    ]


def _pairs(folder: RunFolder, clips: Sequence[ClipPair], titles: tuple[str, str]) -> list[tuple[ClipPair, list[Side]]]:
    """Read and embed the clips in order until the limit is reached."""
    left = EMBED_LIMIT_BYTES
    shown = []
    for pair in clips:
        sides = []
        for title, file in zip(titles, (pair.base, pair.tuned), strict=True):
            side, used = _side(folder, title, file, left)
            left -= used
            sides.append(side)
        shown.append((pair, sides))
    return shown


def _side(folder: RunFolder, title: str, file: str | None, left: int) -> tuple[Side, int]:
    """Embed one clip; also return the bytes it takes."""
    if file is None:
        return Side(title, problem="no clip was kept"), 0
    if not folder.inside(file):
        return Side(title, problem=f"{file} lies outside the run folder"), 0
    try:
        size = folder.size(file)
        if size > left:
            return Side(title, problem=f"left out to keep this page small; see {file}"), 0
        with folder.local(file) as path:
            video, strip = embed(path)
    except (OSError, MediaError):
        return Side(title, problem=f"{file} is missing, torn or no MP4"), 0
    return Side(title, video, strip), size


def _reward_figures(
    summary: Summary, steps: Sequence[StepCompleted], evaluations: Sequence[Evaluation]
) -> list[Figure]:
    figures = []
    for name, change in summary.rewards.items():
        means = _series(steps, "accord_train_reward_mean", reward=name)
        points = [
            Point(one.step, found.mean, found.sem or 0.0)
            for one in evaluations
            if (found := one.rewards.get(name)) and found.mean is not None
        ]
        if not points and all(value is None for value in means):
            continue
        spread = _series(steps, "accord_train_reward_std", reward=name)
        line = Series(name, change.route, [s.step for s in steps], means, spread)
        note = ROUTE_WORDS[change.route] if change.weight > 0 else "measured only"
        figures.append(Figure(name, line_chart(name, [line], points), note))
    return figures


def _training_figures(steps: Sequence[StepCompleted]) -> list[Figure]:
    """Losses and distances per modality, gradient norm, time per phase: each only where there is something to see."""
    charts = [
        ("Loss", "accord_train_loss", MODALITIES, "follows the noise levels drawn"),
        ("Distance to base", "accord_train_reference_distance", MODALITIES, "penalty before its weight"),
        ("Gradient norm", "accord_train_grad_norm", ("learn",), "before clipping"),
        ("Advantage spread", "accord_train_advantage_std", MODALITIES, "at 0 nothing is learned"),
    ]
    numbers = [step.step for step in steps]
    figures = []
    for title, metric, colours, note in charts:
        lines = [Series(colour, colour, numbers, _series(steps, metric, modality=colour)) for colour in colours]
        lines = [line for line in lines if any(value is not None for value in line.values)]
        if lines:
            figures.append(Figure(title, line_chart(title, lines, zero=True), note))
    seconds = {name: [step.phase_seconds.get(name, 0.0) for step in steps] for name in PHASES}
    seconds = {name: values for name, values in seconds.items() if any(values)}
    if seconds:
        title = "Time per step"
        figures.append(Figure(title, phase_chart(title, numbers, seconds), "seconds spent in each phase", wide=True))
    return figures


def _series(steps: Sequence[StepCompleted], metric: str, **labels: str) -> list[float | None]:
    """The numbers behind a gauge of `accord.metrics.TABLE`, step by step."""
    name = METRICS[metric].named(**labels)
    return [step.metrics.get(name) for step in steps]
