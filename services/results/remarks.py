"""What `accord validate` and the report say beside a job: what it departs from, what its surgery means, and what
drifted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from accord.config.departures import departures
from accord.config.job import JobSpec
from accord.config.panels import missing
from accord.events import StepCompleted
from accord.metrics import METRICS


def remarks(job: JobSpec) -> list[str]:
    """A sentence each. Raises ModelError for a model directory that cannot be read."""
    if not job.trains:
        return [told] if job.panel and (told := missing(job.panel, {reward.name for reward in job.rewards})) else []
    found = [f"Departs from its preset: {line}." for line in departures(job)]
    surgery, facts = job.algorithm.active_surgery, job.backbone.facts()
    if surgery is not None and facts is not None and facts.depth:
        means = kept(surgery.factors(facts.depth))
        found.append(f"Gradient surgery on the {facts.depth} blocks of this model: {means}.")
    return found


def drifted(steps: Sequence[StepCompleted]) -> list[str]:
    """A sentence for each reward that was beyond its tolerance in some step: its scores do not mean one thing."""
    degraded, distance = METRICS["accord_train_reward_degraded"], METRICS["accord_train_reward_drift"]
    found: dict[str, list[StepCompleted]] = {}
    for step in steps:
        for name, value in step.metrics.items():
            labels = degraded.labels_in(name)
            if labels and value:
                found.setdefault(labels[0], []).append(step)
    told = []
    for reward, of in found.items():
        worst = max(step.metrics.get(distance.named(reward=reward)) or 0.0 for step in of)
        when = f"step {of[0].step}" if len(of) == 1 else f"{len(of)} steps from step {of[0].step} to {of[-1].step}"
        told.append(
            f"Reward {reward} drifted: in {when} it judged a canary up to {worst:.3g} standard deviations from its "
            "first score. Its curves and changes compare two judges."
        )
    return told


def kept(factors: Sequence[float]) -> str:
    """Name what is left at each block and on average: `block 0 keeps 0 %, blocks 1-3 keep 100 %; 75 % on average`."""
    parts, first = [], 0
    for factor, run in groupby(factors):
        last = first + len(list(run)) - 1
        blocks = f"block {first} keeps" if first == last else f"blocks {first}-{last} keep"
        parts.append(f"{blocks} {100 * factor:.3g} %")
        first = last + 1
    mean = sum(factors) / len(factors)
    return f"{', '.join(parts)} of what video sends into the sound; {100 * mean:.3g} % on average"
