"""Reward-weighted regression on flow matching (Flow-RWR): fine-tuning on the model's own better samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.contract import RewardSpec
from accord.config.forward import FlowRWRSpec, MatchingSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit, Noised
from learner.algorithms.forward import ForwardRecipe, Part, matching_error


def group_weights(advantage_PG: Tensor, earned_PG: Tensor, temperature: float) -> Tensor:
    """Softmax over each group's samples that earned credit, times their number: mean 1 over them, 0 for the others.

        W_i = n exp(A_i / temperature) / sum_j exp(A_j / temperature)         float64 [P, G]

    A group in which nobody earned credit has weight 0 throughout: equal weights would fit the model to noise.
    """
    logits = (advantage_PG / temperature).masked_fill(~earned_PG, -torch.inf)
    shares = torch.softmax(logits, dim=1).nan_to_num(0.0)
    return shares * earned_PG.sum(1, keepdim=True)


def rwr_loss(
    spec: MatchingSpec,
    noised: Noised,
    policy_BTC: Tensor,
    weight_B: Tensor,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """One modality's loss per sample [B].

        loss = W e(v_theta)          e: `matching_error`, W: `group_weights`, both the same at every noise level

    A sample with W = 0, one that earned no credit, adds nothing. One with A = 0 that did earn it is average, not
    absent: it is matched too, with a weight below 1. Worse samples are matched less, never pushed away.
    """
    error_B = matching_error(noised, policy_BTC, spec.space, weights_BT)
    return weight_B.to(error_B.dtype) * error_B


class FlowRWR(ForwardRecipe):
    """The algorithm of `FlowRWRSpec`. It reads no old policy; `old` samples only."""

    spec: FlowRWRSpec
    reads = ()

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages to weights; `Credit.advantages` holds the weights W.

        Metrics besides: `weight/<m>/max`, the largest W of the step. Raises RewardError when a required reward is down.
        """
        credit = super().credit(groups, rewards, modalities)
        weights = {
            modality: group_weights(advantage, credit.earned[modality], self.spec.temperature)
            for modality, advantage in credit.advantages.items()
        }
        largest = {f"weight/{modality}/max": float(weight.max()) for modality, weight in weights.items()}
        return Credit(weights, {**credit.metrics, **largest}, credit.earned)

    def modality_loss(self, part: Part) -> dict[str, Tensor]:
        """`rwr_loss`."""
        policy = part.velocity["policy"]
        return {"loss": rwr_loss(self.spec.loss, part.noised, policy, part.advantage_B, part.weights_BT)}
