"""What guards make of a step's credit, whatever the algorithm, in an order that is part of the result.

1. The gate reads the advantages as the rewards gave them: doubt is about rewards, and no other guard moves it.
2. The correction takes named directions out.
3. Diversity multiplies what is left. Before the correction it would be taken out again: it is a function of the same
   features.

Without guards the credit is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from accord.config.job import JobSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit
from learner.direction import corrected
from learner.diversity import spread_out
from learner.doubt import doubtful
from learner.guards import Watch, feature_metrics

Change = Callable[[Modality, Tensor], tuple[Tensor, dict[str, float | None]]]


def guarded(groups: Sequence[ScoredGroup], job: JobSpec, credit: Credit, watch: Watch) -> Credit:
    """The credit of a step after the job's guards, with their metrics; the same object where there are none.

    `watch` has seen the steps before. Pure: every rank computes the same.
    """
    guards = job.guards
    gate, correction, diversity = guards.gated_reference, guards.direction_correction, guards.diversity
    if gate is not None:
        anchored = doubtful(groups, job.rewards, credit, gate)
        shares = {f"doubt/{modality}": float(held.double().mean()) for modality, held in anchored.items()}
        credit = replace(credit, anchored=anchored, metrics={**credit.metrics, **shares})
    if correction is not None:
        moves, sigmas = watch.moves(feature_metrics(groups)), guards.divergence.sigmas
        credit = _changed(credit, lambda name, value: corrected(value, groups, name, correction, moves, sigmas))
    if diversity is not None:
        credit = _changed(credit, lambda name, value: spread_out(value, groups, name, diversity))
    return credit


def _changed(credit: Credit, change: Change) -> Credit:
    """Every modality's advantages changed, and what was seen on the way."""
    found = {modality: change(modality, value) for modality, value in credit.advantages.items()}
    metrics = dict(credit.metrics)
    for _, seen in found.values():
        metrics |= seen
    return replace(credit, advantages={modality: value for modality, (value, _) in found.items()}, metrics=metrics)
