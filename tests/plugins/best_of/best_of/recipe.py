"""What the learner runs. Satisfies `learner.algorithms.base.ForwardAlgorithm`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.config.contract import RewardSpec
from accord.types import Modality, ScoredGroup
from best_of.spec import BestOfSpec
from learner.algorithms.base import Credit, ForwardBatch, LossTerms, Predictions


class BestOf:
    """The best samples have advantage 1, all others 0; the loss is the matching error times the advantage."""

    view = "forward"
    anchors = ()
    surgery = None
    region = None

    def __init__(self, spec: BestOfSpec) -> None:
        self.spec, self.sigmas = spec, spec.levels

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Rank by the weighted sum of rewards; an invalid score counts as the worst."""
        total_PG = torch.zeros(len(groups), len(groups[0].group.request.seeds), dtype=torch.float64)
        for place, group in enumerate(groups):
            for reward in rewards:
                scores = torch.tensor(group.scores[reward.name].values, dtype=torch.float64)
                total_PG[place] += reward.weight * torch.nan_to_num(scores, nan=-1e3)
        best = total_PG.topk(self.spec.keep, dim=1).indices
        advantage = torch.zeros_like(total_PG).scatter(1, best, 1.0)
        return Credit(dict.fromkeys(modalities, advantage), {"best_of/mean": float(total_PG.mean())})

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """Mean square between velocity and target, where the advantage is 1."""
        losses = [
            batch.advantages[modality].to(torch.float32)
            * (predictions["policy"][modality] - noised.target_BTC).square().mean((1, 2))
            for modality, noised in batch.noised.items()
        ]
        total_B = torch.stack(losses).mean(0)
        return LossTerms(total_B, {"loss/total": total_B.detach()})

    def eta(self, step: int) -> float:
        """The old policy is a copy."""
        return 0.0
