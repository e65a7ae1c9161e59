"""Draws the curves that scores came from: a panel each, one below the other, over the clip's seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reward_servers.base import Curve


def draw(curves: Mapping[str, Sequence[Curve]], title: str, target: Path) -> None:
    """Write a picture of curves by reward; the suffix of `target` says which kind.

    Raises OSError where it cannot be written, ValueError for a kind of picture that matplotlib does not know.
    """
    from matplotlib.figure import Figure

    panels = [(reward, curve) for reward, found in curves.items() for curve in found]
    figure = Figure(figsize=(9.0, 0.6 + 1.5 * len(panels)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for place, ((reward, curve), panel) in enumerate(zip(panels, axes, strict=True)):
        panel.plot(curve.times_s, curve.values, linewidth=1.0, color=f"C{list(curves).index(reward) % 10}")
        panel.set_title(f"{reward}: {curve.label}", loc="left", fontsize="small")
        panel.set_ylabel(curve.unit, fontsize="small")
        panel.grid(alpha=0.3)
        if place == len(panels) - 1:
            panel.set_xlabel("seconds")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)
