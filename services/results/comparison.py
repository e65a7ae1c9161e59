"""Before against after: the rows that the terminal's table and the report share, and the sentence above them.

A change is called better or worse only when it is certain, two standard errors or more, and large enough to matter, the
metric's smallest effect or more. A certain change below that is "slightly" so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from accord.events import RewardSummary
from accord.types import Route
from services.results.summary import Change, Summary

Better = Literal["higher", "lower", "not lower"]

SURE, LIKELY = 2.0, 1.0
"""Standard errors from which a change counts, and from which it is called "perhaps"."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: a metric before and after."""

    name: str
    kind: Literal["reward", "held_out"]
    route: Route | None
    trained: bool
    better: Better | None
    """The good direction: of `not lower` a fall is bad and a rise is not yet good; None when there is none."""
    before: RewardSummary | None
    after: RewardSummary | None
    delta: float | None
    """after - before"""
    error: float | None
    """Standard error of delta: of the paired differences, else the root of the sum of both squared standard errors."""
    low: float | None
    high: float | None
    """95 % interval of a paired delta."""
    paired: bool
    z: float | None
    """delta / error; infinite when a difference has no error at all"""
    smallest: float
    """The smallest change that matters, in the metric's units."""
    saturated: bool
    """After training the metric is at the top of its range, where it tells clips apart no longer."""
    verdict: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """What a metric tells: its good direction, and the smallest change that matters."""

    better: Better | None
    about: str
    smallest: float = 0.0
    relative: bool = False
    """`smallest` is a share of the value before."""
    highest: float | None = None


CONTROLS: Mapping[str, Control] = {
    "_distance": Control("lower", "Fréchet distance of the latents to those of the clean world", 0.02, relative=True),
    "_diversity": Control(
        "not lower", "spread of the latents: a fall means clips alike, a rise may be noise", 0.02, relative=True
    ),
    "_shuffled": Control(None, "the reward with another clip's sound: what chance gives", 0.01),
    "_gap": Control("higher", "the reward minus its shuffled control: what is more than chance", 0.01),
    "_offset_ms_median": Control("lower", "median distance in time between sound and picture, ms", 5.0),
}
"""By the end of the metric's name; a metric with none of these ends has no good direction."""
NO_CONTROL = Control(None, "")


def summary_rows(summary: Summary) -> list[Row]:
    """Every reward, then every held-out metric, with the difference and how many standard errors it is.

    A reward with a shuffled control counts as better only when the gap to that control is better, too.
    """
    controls = [_row(name, "held_out", change, control_of(name)) for name, change in summary.held_out.items()]
    verdicts = {row.name: row.verdict for row in controls}
    rewards = []
    for name, change in summary.rewards.items():
        told = Control("higher", change.about, change.smallest_effect, highest=change.highest)
        row = replace(_row(name, "reward", change, told), route=change.route, trained=change.weight > 0)
        if row.verdict == "better" and verdicts.get(f"{name}_gap", "better") != "better":
            row = replace(row, verdict="not beyond chance")
        rewards.append(row)
    return rewards + controls


def control_of(name: str) -> Control:
    """Look up what a held-out metric tells by the end of its name."""
    return next((control for end, control in CONTROLS.items() if name.endswith(end)), NO_CONTROL)


def _row(name: str, kind: Literal["reward", "held_out"], change: Change, control: Control) -> Row:
    delta, error = _difference(change)
    z = None
    if delta is not None and error is not None:
        z = delta / error if error > 0 else math.copysign(math.inf, delta) if delta else 0.0
    smallest = control.smallest
    if control.relative and change.before and change.before.mean is not None:
        smallest *= abs(change.before.mean)
    top, verdict = _at_the_top(change, control), verdict_of(delta, z, control.better, smallest)
    return Row(
        name=name,
        kind=kind,
        route=None,
        trained=False,
        better=control.better,
        before=change.before,
        after=change.after,
        delta=delta,
        error=error,
        low=change.difference.low if change.difference else None,
        high=change.difference.high if change.difference else None,
        paired=bool(change.difference and change.difference.mean is not None),
        z=z,
        smallest=smallest,
        saturated=top[1],
        verdict="saturated" if all(top) and not verdict.endswith("worse") else verdict,
        about=control.about,
    )


def _at_the_top(change: Change, control: Control) -> tuple[bool, bool]:
    """Whether the metric stood at its ceiling before and stands there after: no room for half a smallest effect."""

    def at(side: RewardSummary | None) -> bool:
        if control.highest is None or side is None or side.mean is None:
            return False
        return control.highest - side.mean < control.smallest / 2

    return at(change.before), at(change.after)


def _difference(change: Change) -> tuple[float | None, float | None]:
    """The difference and its standard error: paired where samples were paired, else of two independent means."""
    if change.difference and change.difference.mean is not None:
        return change.difference.mean, change.difference.sem
    before, after = change.before, change.after
    if before is None or after is None or before.mean is None or after.mean is None:
        return None, None
    error = None if before.sem is None or after.sem is None else math.hypot(before.sem, after.sem)
    return after.mean - before.mean, error


def verdict_of(delta: float | None, z: float | None, better: Better | None, smallest: float = 0.0) -> str:
    """Say a difference in a word.

    `unchanged` below one standard error, `perhaps …` below two, `slightly …` below the smallest effect, else as it is.
    """
    if delta is None:
        return "not compared"
    if z is None:
        return "no error known"
    if abs(z) < LIKELY:
        return "unchanged"
    if better is None or (better == "not lower" and z > 0):
        word = "different"
    else:
        word = "worse" if (z > 0) == (better == "lower") else "better"
    if abs(z) < SURE:
        return f"perhaps {word}"
    return f"slightly {word}" if abs(delta) < smallest else word


def headline(summary: Summary, rows: Sequence[Row]) -> str:
    """How it came out: what rose, and beside it everything that fell, trained on or not."""
    if summary.state != "succeeded":
        return "This job did not come to its end; the page shows what it left."
    if summary.kind == "evaluate":
        return _judged(rows)
    if all(row.delta is None for row in rows):
        return "Nothing was compared: there are no two evaluations of the same metric."
    trained = [row for row in rows if row.kind == "reward" and row.trained]
    better = sum(row.verdict == "better" for row in trained)
    told = [
        (f"{better} of {len(trained)} trained rewards rose on held-out prompts, by two standard errors or more and by "
         "enough to matter", [""] if trained else []),
        ("Worse: {}", _told(row for row in rows if row.verdict == "worse")),
        ("Perhaps or slightly worse: {}", _told(rows_of(rows, "perhaps worse", "slightly worse"))),
        ("Rose no more than chance would: {}", _told(rows_of(trained, "not beyond chance"))),
        ("Rose too little to count: {}", _told(rows_of(trained, "slightly better", "perhaps better"))),
        ("Saturated, at the top of the range: {}", [row.name for row in rows if row.saturated]),
    ]  # fmt: skip
    sentences = [f"{words.format(', '.join(found))}." for words, found in told if found]
    if not any(row.verdict.endswith("worse") for row in rows):
        sentences.insert(1, "Nothing that was measured got worse.")
    return " ".join(sentences)


def _judged(rows: Sequence[Row]) -> str:
    """How an evaluation came out: its rewards count alike."""
    rewards = [row for row in rows if row.kind == "reward"]
    if all(row.delta is None for row in rows):
        return f"{len(rewards)} rewards were measured, and there is nothing to compare them with."
    counts = [f"{len(rows_of(rewards, word))} {word}" for word in ("better", "worse", "unchanged")]
    certain = ", ".join(row.name for row in rewards if row.verdict in {"better", "worse"})
    told = f"Of {len(rewards)} rewards, the subject against its base: {', '.join(counts)}"
    return f"{told}. Certain and large enough to matter: {certain or 'none'}."


def rows_of(rows: Iterable[Row], *verdicts: str) -> list[Row]:
    """The rows with one of these verdicts."""
    return [row for row in rows if row.verdict in verdicts]


def _told(rows: Iterable[Row]) -> list[str]:
    """Names with the change in standard errors, and whether it is a thing that was not trained on."""
    found = []
    for row in rows:
        z = "" if row.z is None or math.isinf(row.z) else f"{row.z:+.1f} standard errors".replace("-", "−")
        aside = [z] if row.trained else [z, "not trained on"]
        found.append(f"{row.name} ({', '.join(part for part in aside if part)})".replace(" ()", ""))
    return found
