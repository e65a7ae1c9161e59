"""report.html: one page that shows what a job did, with nothing to load and nothing to run.

The page holds its styles, drawings, pictures and clips itself, has no script, and its own Content-Security-Policy
forbids every request. It is made from the run folder alone, so a job that failed half-way has one, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from accord.config.backbones import SamplingSpec
from accord.config.base import problems_of
from accord.config.departures import departures
from accord.config.job import JobSpec
from accord.errors import MediaError, SpecError, UserError
from accord.events import PHASES, StepCompleted
from accord.metrics import METRICS
from accord.run_folder import REPORT, SPEC, SUMMARY, Evaluation, RunFolder
from accord.types import MODALITIES
from services.results.comparison import Row, headline, summary_rows
from services.results.remarks import kept
from services.results.report_charts import Point, Series, line_chart, phase_chart
from services.results.report_clips import embed
from services.results.summary import (
    ClipPair,
    Summary,
    build_summary,
)

TEMPLATES = Path(__file__).parent / "templates"
EMBED_LIMIT_BYTES = 24 * 2**20
"""Clips are embedded up to this size in all; what is beyond it is named with its file instead."""
UNFINISHED = "unfinished"
"""State shown when the run folder has no summary."""
ARRIVED = "gradient/audio_from_video/"
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


@dataclass(frozen=True, slots=True)
class ShownPair:
    """Base and tuned clip of one prompt and seed."""

    prompt: str
    seed: int
    sides: tuple[Side, Side]


def write_report(folder: RunFolder) -> None:
    """Render `report.html` from the run folder, whole or not at all.

    Raises:
        UserError: the folder has neither `summary.json` nor a readable `spec.json`.
    """
    summary, spec = _summary_of(folder)
    steps, evaluations = folder.steps(), folder.evaluations()  # the summary's warnings name what is left out
    rows = summary_rows(summary)
    page = _template().render(
        summary=summary,
        spec=spec,
        facts=[*_facts(spec), *_surgery(spec, steps)],
        departures=_departures(spec),
        tiles=_tiles(summary, rows),
        headline=headline(summary, rows),
        reward_rows=[(row, _interval(row)) for row in rows if row.kind == "reward"],
        held_out_rows=[(row, _interval(row)) for row in rows if row.kind == "held_out"],
        pairs=_pairs(folder, summary.clips),
        reward_figures=_reward_figures(summary, steps, evaluations),
        training_figures=_training_figures(steps),
        resolved=json.dumps(spec, indent=2, ensure_ascii=False),
    )
    folder.write_whole(REPORT, page)


def _summary_of(folder: RunFolder) -> tuple[Summary, dict[str, Any]]:
    """Read summary.json and spec.json; without a summary one is built from the other files."""
    spec, recorded = folder.read_object(SPEC), folder.read_object(SUMMARY)
    try:
        if recorded:
            return Summary.model_validate(recorded), spec
        job = JobSpec.parse(json.dumps(spec))
    except ValidationError as error:
        pointer, message = problems_of(error)[0]
        raise UserError(f"{folder.root}/{SUMMARY} is not a summary: {pointer}: {message}") from error
    except SpecError as error:
        raise UserError(f"{folder.root} is no run folder: it has no {SUMMARY}, and its {SPEC}: {error}") from error
    summary = build_summary(folder, job, job_id=folder.job_id, state=UNFINISHED, wall_seconds=0.0)
    return summary.model_copy(update={"wall_seconds": sum(summary.phase_seconds.values())}), spec


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, duration=duration, signed=signed)
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


def _tiles(summary: Summary, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The figures at the top: (value, what it is)."""
    trained = [row for row in rows if row.kind == "reward" and row.trained]
    better = sum(row.verdict == "better" for row in trained)
    worse = sum(row.verdict == "worse" for row in rows)
    compared = any(row.delta is not None for row in rows)
    return [
        (f"{better} / {len(trained)}" if compared else "–", "trained rewards better"),
        (f"{worse} / {len(rows)}" if compared else "–", "of all metrics worse"),
        (f"{summary.steps} / {summary.steps_wanted}", "optimizer steps"),
        (f"{summary.samples_generated:,}".replace(",", "\u202f"), "clips sampled"),
        (duration(summary.wall_seconds), "wall time"),
        (f"{summary.guidance:g}" if summary.guidance > 1 else "on" if summary.guided_by else "off", "guidance"),
        (str(summary.seed), "seed"),
    ]


def _job(spec: Mapping[str, Any]) -> JobSpec | None:
    """The resolved spec as a job; None where it is not one to this release."""
    try:
        return JobSpec.parse(json.dumps(spec))
    except SpecError:
        return None


def _departures(spec: Mapping[str, Any]) -> list[str]:
    job = _job(spec)
    return departures(job) if job else []


def _surgery(spec: Mapping[str, Any], steps: Sequence[StepCompleted]) -> list[tuple[str, str]]:
    """What the schedule means for this model, and what was measured in the first step, where block norms were."""
    job = _job(spec)
    surgery = job.algorithm.active_surgery if job else None
    found = {key: value for key, value in (steps[0].metrics if steps else {}).items() if key.startswith(ARRIVED)}
    norms = [value or 0.0 for _, value in sorted(found.items())]
    if surgery is None or not norms:
        return []
    factors = surgery.factors(len(norms))
    text = kept(factors)
    before = math.hypot(*(norm / factor for norm, factor in zip(norms, factors, strict=True) if factor > 0))
    if before > 0:
        open_blocks = "" if all(factors) else " at the blocks that keep any"
        text += (
            f"; in step {steps[0].step} {100 * math.hypot(*norms) / before:.3g} % of its norm came through{open_blocks}"
        )
    return [("Surgery", text)]


def _facts(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained and how, in a few lines, from the resolved spec; a part the spec lacks is left out."""

    def part(name: str) -> Mapping[str, Any]:
        value = spec.get(name)
        return value if isinstance(value, Mapping) else {}

    backbone, algorithm, sampling = part("backbone"), part("algorithm"), part("sampling")
    prompts, optimizer, cluster = part("prompts"), part("optimizer"), part("cluster")
    facts = [
        ("Model", _joined(backbone, "{name} from {path}, {dtype}")),
        ("Adapter", _joined(backbone.get("lora") or {}, "LoRA of rank {rank}, alpha {alpha:g}")),
        ("Algorithm", _algorithm(algorithm)),
        ("Clips", _joined(sampling, "{frames} frames of {height} × {width} at {fps:g} per second, {num_steps} steps")),
        ("Guidance", _guidance(sampling)),
        ("Each step", _joined(prompts, "{per_step} prompts × {group_size} samples")),
        ("Optimizer", _joined(optimizer, "AdamW, learning rate {learning_rate:g}, gradient norm ≤ {max_grad_norm:g}")),
        ("Cluster", _cluster(cluster)),
    ]
    return [(name, text) for name, text in facts if text]


def _joined(values: Mapping[str, Any], pattern: str) -> str:
    """Fill the pattern, or return nothing when a value is missing or of another type."""
    try:
        return pattern.format(**values)
    except (KeyError, ValueError, TypeError):
        return ""


def _algorithm(algorithm: Mapping[str, Any]) -> str:
    if not algorithm.get("name"):
        return ""
    credit = algorithm.get("credit") or {}
    parts = [f"{algorithm['name']}, preset {algorithm.get('preset', '–')}", f"{credit.get('mode', 'default')} credit"]
    for key, words in (("surgery", "gradient surgery"), ("region", "region weights")):
        if isinstance(algorithm.get(key), Mapping):
            parts.append(f"{words} {'on' if algorithm[key].get('enabled') else 'off'}")
    return ", ".join(parts)


def _guidance(sampling: Mapping[str, Any]) -> str:
    try:
        spec = SamplingSpec.parse(json.dumps(sampling))
    except SpecError:
        return ""
    kind = spec.guidance_text or "off (scale 1, conditional passes only)"
    return f"{kind}; the same in training and in both evaluations" if "guidance" in sampling else ""


def _cluster(cluster: Mapping[str, Any]) -> str:
    text = _joined(cluster, "{rollout_workers} rollout worker(s), {learner_ranks} learner rank(s), {engine}")
    if text and cluster.get("engine") == "deepspeed":
        text += f" ZeRO {cluster.get('zero_stage')}"
    return text + _joined(cluster, ", policy lag {policy_lag}") if text else ""


def _interval(row: Row) -> Markup:
    """Draw before (hollow) and after (filled) with two standard errors each, on a scale of their own."""
    ends = [(one.mean, 2 * (one.sem or 0.0)) for one in (row.before, row.after) if one and one.mean is not None]
    if len(ends) < 2:
        return Markup("")
    low, high = min(mean - half for mean, half in ends), max(mean + half for mean, half in ends)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return round(8 + (value - low) / span * 104, 1)

    marks = [
        Markup('<path class="{}" d="M{} {}H{}"/><circle class="{}" cx="{}" cy="{}" r="4"/>').format(
            f"whisker {kind}", x(mean - half), y, x(mean + half), f"dot {kind}", x(mean), y
        )
        for (mean, half), kind, y in zip(ends, ("before", "after"), (8, 20), strict=True)
    ]
    label = f"{row.name}: before {number(ends[0][0])}, after {number(ends[1][0])}"
    return Markup('<svg class="interval" viewBox="0 0 120 28" role="img" aria-label="{}">{}</svg>').format(
        label, Markup("").join(marks)
    )


def _pairs(folder: RunFolder, clips: Sequence[ClipPair]) -> list[ShownPair]:
    """Read and embed the clips in order until the limit is reached."""
    left = EMBED_LIMIT_BYTES
    shown = []
    for pair in clips:
        sides = []
        for title, file in (("Base model", pair.base), ("Tuned model", pair.tuned)):
            side, used = _side(folder, title, file, left)
            left -= used
            sides.append(side)
        shown.append(ShownPair(pair.prompt, pair.seed, (sides[0], sides[1])))
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
