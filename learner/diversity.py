"""Credit for being unlike the others: good samples by distance to their nearest neighbour (GARDO, arXiv 2512.24138).

    z[p, i]  = features of the sample, each divided by max(its standard deviation over the step, least)
    d[p, i]  = min over j of |z[p, i] - z[p, j]|, j the others of the group
    A'[p, i] = A[p, i] min(d[p, i] / mean_i d[p, i], cap)   where A[p, i] is positive and above its group's mean

Others keep their A. The mean of a group is over its samples with credit (A != 0): 0 for advantages, 1 for weights, as
`flow_rwr` has them. A group whose distances are all 0, and a sample without features or without a mate that has them,
keep theirs, too: there is nothing to compare. The normalisation of the credit stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.guards import FEATURES, FEATURES_OF, DiversitySpec, Feature
from accord.types import Modality, ScoredGroup


def feature_table(groups: Sequence[ScoredGroup], names: Sequence[Feature]) -> Tensor:
    """Features of a step's clips, float64 [P, G, D] in the order of `names`; NaN where a clip has none."""
    nothing = [(float("nan"),) * len(group.group.request.seeds) for group in groups]
    rows = [
        [group.group.features.get(name, nothing[place]) for name in names] for place, group in enumerate(groups)
    ]  # [P, D, G]
    return torch.tensor(rows, dtype=torch.float64).transpose(1, 2)


def nearest(features_PGD: Tensor, least_D: Tensor) -> Tensor:
    """Distance of each sample to its nearest neighbour in the group [P, G]; NaN where there is nothing to compare."""
    known = features_PGD.isfinite().all(2)
    if not known.any():
        return torch.full(known.shape, torch.nan, dtype=torch.float64)
    spread = features_PGD[known].std(0, unbiased=False)
    z = torch.where(known.unsqueeze(2), features_PGD / torch.maximum(spread, least_D), torch.nan)
    apart = (z.unsqueeze(2) - z.unsqueeze(1)).square().sum(3).sqrt()
    itself = torch.eye(known.shape[1], dtype=torch.bool)
    found = apart.masked_fill(itself | apart.isnan(), torch.inf).amin(2)
    return torch.where(found.isfinite(), found, torch.nan)


def spread_out(
    advantage: Tensor, groups: Sequence[ScoredGroup], modality: Modality, spec: DiversitySpec
) -> tuple[Tensor, dict[str, float | None]]:
    """The advantages of a modality, [P, G] or [P, G, K], by the equation above.

    Metrics: `diversity/<modality>/distance`, the mean of d over the step, None where there is none; and
    `diversity/<modality>/capped`, the share of samples whose distance is `cap` times their group's mean or more.
    """
    names = FEATURES_OF[modality]
    distances = nearest(feature_table(groups, names), torch.tensor([FEATURES[name] for name in names]).double())
    factors = (distances / distances.nanmean(1, keepdim=True)).nan_to_num(1.0).clamp(max=spec.cap)
    whole = factors if advantage.ndim == 2 else factors.unsqueeze(2)
    credited = (advantage != 0).sum(1, keepdim=True).clamp(min=1)
    good = (advantage > 0) & (advantage > advantage.sum(1, keepdim=True) / credited)
    mean = distances.nanmean()
    metrics = {
        f"diversity/{modality}/distance": float(mean) if mean.isfinite() else None,
        f"diversity/{modality}/capped": float((factors >= spec.cap).double().mean()),
    }
    return torch.where(good, advantage * whole, advantage), metrics
