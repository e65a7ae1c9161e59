"""Which samples are held to the reference: those whose reward is doubtful (GARDO, arXiv 2512.24138)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.contract import RewardSpec
from accord.config.guards import GatedReferenceSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit


def doubtful(
    groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], credit: Credit, spec: GatedReferenceSpec
) -> dict[Modality, Tensor]:
    """Bool [P, G] per modality that some auxiliary speaks for: the `share` of the step's samples that is doubted most.

    u[p, i] = rank(advantage) - mean over auxiliaries of rank(score - mean score of the prompt), ranks in 0..1 over the
    samples of the step: advantages are relative to the prompt, and so must be what they are held against, or a prompt
    that an auxiliary likes little would be doubted whole. Only u > 0 is doubt: the trained rewards like the sample
    better than the others do. A sample that an auxiliary has no
    score for is doubted by the others alone, and one without any is not.
    """
    found: dict[Modality, Tensor] = {}
    for modality, advantage in credit.advantages.items():
        named = [reward for reward in rewards if reward.name in spec.auxiliaries]
        speaking = [reward.name for reward in named if reward.route in (modality, "both")]
        if not speaking:
            continue
        values = [[group.scores[name].values for group in groups] for name in speaking]
        others = torch.stack([_ranks(_centred(torch.tensor(rows, dtype=torch.float64))) for rows in values])
        whole = advantage if advantage.ndim == 2 else advantage.mean(2)
        doubt = (_ranks(whole) - others.nanmean(0)).nan_to_num(-math.inf)
        count = math.ceil(spec.share * doubt.numel())
        least = doubt.flatten().sort(descending=True).values[count - 1]
        found[modality] = (doubt >= least) & (doubt > 0)
    return found


def _centred(values_PG: Tensor) -> Tensor:
    known = torch.where(values_PG.isfinite(), values_PG, torch.nan)
    return known - known.nanmean(1, keepdim=True)


def _ranks(values_PG: Tensor) -> Tensor:
    """Share of the other valid values that lie below, ties counting half; NaN where there is no value."""
    flat = values_PG.flatten()
    known = flat[flat.isfinite()]
    below = (known < flat.unsqueeze(1)).sum(1) + (known == flat.unsqueeze(1)).sum(1) / 2 - 0.5
    ranks = below / max(known.numel() - 1, 1)
    return torch.where(flat.isfinite(), ranks, torch.nan).reshape(values_PG.shape)
