"""Credit without the directions that a reward is known to prefer, after D2-Align's directional decoupling.

For one modality, with N samples that have credit (A != 0) and the D named features of what the modality makes:

    x[n, d] = (feature - its mean over the samples with credit of the prompt) / s_d
              s_d = max(root mean square of the numerator over the step, least); 0 where a clip has no such feature
    beta    = argmin_b  sum_n (A[n] - sum_d x[n, d] b[d])^2 + ridge N |b|^2
    A'[n]   = A[n] - strength sum_d keep_d beta[d] x[n, d]

keep_d is 1; with `only_moved` it is min(|m_d| / sigmas, 1) where beta[d] and m_d have the same sign, else 0. m_d is how
far the feature's mean is from where the run began, in standard deviations of the first samples (`Watch.moves`).

A sample without credit keeps none, and what is taken out adds up to 0 within a prompt. Credit that is weights, as
`flow_rwr` has it (no A is negative), is cut at 0: nothing becomes a sample to be pushed away from.

D2-Align finds the preferred direction in the embedding space of the reward model and corrects the reward's gradient
there. A reward behind a port shows neither: here the directions are named in the job, and what the advantages owe to
them is estimated from the step's samples. What a reward prefers and no named feature shows is not corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.config.guards import FEATURES, FEATURES_OF, DirectionCorrectionSpec
from accord.types import Modality, ScoredGroup
from learner.diversity import feature_table


def corrected(
    advantage: Tensor,
    groups: Sequence[ScoredGroup],
    modality: Modality,
    spec: DirectionCorrectionSpec,
    moves: Mapping[str, float],
    sigmas: float,
) -> tuple[Tensor, dict[str, float | None]]:
    """The advantages of a modality, [P, G] or [P, G, K] with a regression for each k, by the equation above.

    `moves`: m_d by feature; one that is missing has not moved. `sigmas`: half the width of a band.

    Metric: `corrected/<modality>`, 1 - |A'|^2 / |A|^2, the share of the credit's variance that is gone; None without
    credit.
    """
    names = [name for name in FEATURES_OF[modality] if name in spec.features]
    had = advantage.square().sum()
    if not names or not had > 0:
        return advantage, {f"corrected/{modality}": 0.0 if had > 0 else None}
    table = feature_table(groups, names)
    least = torch.tensor([FEATURES[name] for name in names], dtype=torch.float64)
    moved = torch.tensor([moves.get(name, 0.0) for name in names], dtype=torch.float64)
    columns = advantage.reshape(*table.shape[:2], -1)
    parts = [_explained(column, table, least, moved / sigmas, spec) for column in columns.unbind(2)]
    kept = advantage - spec.strength * torch.stack(parts, 2).reshape(advantage.shape)
    if not (advantage < 0).any():
        kept = kept.clamp(min=0)
    return kept, {f"corrected/{modality}": float(1 - kept.square().sum() / had)}


def _explained(
    advantage_PG: Tensor, features_PGD: Tensor, least_D: Tensor, moved_D: Tensor, spec: DirectionCorrectionSpec
) -> Tensor:
    """What the features explain of one column of advantages, [P, G]; `moved_D` in half bands."""
    credited = advantage_PG != 0
    known = credited.unsqueeze(2) & features_PGD.isfinite()
    values = torch.where(known, features_PGD, 0.0)
    means = values.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(known, values - means, 0.0)
    count = credited.sum().clamp(min=1)
    x_ND = (centred / torch.maximum((centred.square().sum((0, 1)) / count).sqrt(), least_D)).flatten(0, 1)
    gram = x_ND.T @ x_ND + spec.ridge * count * torch.eye(len(least_D), dtype=torch.float64)
    beta_D = torch.linalg.solve(gram, x_ND.T @ advantage_PG.flatten())
    if spec.only_moved:
        beta_D = torch.where(beta_D * moved_D > 0, beta_D * moved_D.abs().clamp(max=1), 0.0)
    return (x_ND @ beta_D).reshape(advantage_PG.shape)
