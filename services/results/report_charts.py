"""The report's charts as inline SVG whose colours are CSS variables, so that one drawing reads in light and dark.

Matplotlib draws with placeholder colours; `_inline` turns them into `var(--name)`, drops what a page does not need
(prologue, ids, fixed size) and leaves an `<svg>` that scales with its column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from accord.events import PHASES, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = ("soft", "line", "surface", "video", "audio", "both", *PHASES)
COLOURS = {name: f"#0{index:x}0{index:x}0{index:x}" for index, name in enumerate(_NAMES, start=1)}
"""CSS variable to the placeholder that stands for it while matplotlib draws."""

_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": COLOURS["soft"],
    "text.color": COLOURS["soft"],
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: `values[i]` at `steps[i]`, None where undefined."""

    label: str
    colour: str
    """A key of COLOURS."""
    steps: Sequence[int]
    values: Sequence[float | None]
    spread: Sequence[float | None] = ()
    """Half width of the band around the line, if it has one."""


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation drawn over a curve."""

    step: int
    mean: float
    sem: float


def line_chart(title: str, lines: Sequence[Series], points: Sequence[Point] = (), *, zero: bool = False) -> Markup:
    """Draw lines over steps with their bands, evaluations as diamonds with two standard errors; `zero` shows 0."""

    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, line)
        if points:
            axes.errorbar(
                [point.step for point in points],
                [point.mean for point in points],
                [2 * point.sem for point in points],
                fmt="D", markersize=4.5, color=COLOURS[lines[0].colour], markerfacecolor=COLOURS["surface"],
                markeredgewidth=1.4, elinewidth=1.2, capsize=2.5, zorder=5,
            )  # fmt: skip
        if zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if len(lines) > 1:
            axes.legend(loc="best", handlelength=1.2)

    return _chart(title, (3.5, 2.05), draw)


def _draw_line(axes: Axes, line: Series) -> None:
    values, colour = np.array(line.values, float), COLOURS[line.colour]  # None becomes NaN
    if line.spread:
        half = np.nan_to_num(np.array(line.spread, float))
        axes.fill_between(line.steps, values - half, values + half, color=colour, alpha=0.16, linewidth=0)
    alone = np.count_nonzero(~np.isnan(values)) == 1
    axes.plot(line.steps, values, color=colour, label=line.label, marker="o" if alone else "", markersize=4)


def phase_chart(title: str, steps: Sequence[int], phases: Mapping[Phase, Sequence[float]]) -> Markup:
    """Stack the seconds of each phase over the steps."""

    def draw(axes: Axes) -> None:
        bottom = np.zeros(len(steps))
        for name, seconds in phases.items():
            axes.bar(steps, seconds, bottom=bottom, width=0.78, color=COLOURS[name], label=name, linewidth=0)
            bottom = bottom + seconds
        axes.set_ylabel("seconds")
        axes.legend(
            loc="upper center", ncols=len(phases), bbox_to_anchor=(0.5, 1.16), handlelength=0.9, handleheight=0.9
        )

    return _chart(title, (7.2, 2.3), draw)


def _chart(title: str, size: tuple[float, float], draw: Any) -> Markup:
    """Run `draw` on axes in the report's style. Works on a Figure alone: no window system, no global state."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": title}
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_xlabel("step")
        return _inline(figure, title)


def _inline(figure: Figure, title: str) -> Markup:
    """Turn a figure into an `<svg>` for the middle of a page."""
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--sans)", svg)
    for name, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None  # matplotlib always writes one
    body = svg[svg.index(">") + 1 :]
    return Markup(
        f'<svg {view[0]} role="img" aria-label="{escape(title)}" xmlns:xlink="http://www.w3.org/1999/xlink">{body}'
    )
