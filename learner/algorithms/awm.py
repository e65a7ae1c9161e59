"""Advantage-weighted matching (AWM): a clipped policy gradient without trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.forward import AWMLossSpec, AWMSpec
from accord.config.rewards import RewardSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit, ForwardBatch, LossTerms, Noised, Predictions, View
from learner.algorithms.credit import assign_credit, tabulate
from learner.algorithms.forward import (
    anchors_of,
    clipped,
    combined,
    matching_error,
    mean_square,
    old_share,
    region_of,
    surgery_of,
)


def awm_loss(
    spec: AWMLossSpec,
    noised: Noised,
    policy_BTC: Tensor,
    old_BTC: Tensor,
    advantage_B: Tensor,
    weights_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """One modality's `loss` per sample [B], its `ratio` [B] and whether that was `clipped` [B].

    With e(v) the token-weighted error of a velocity (`matching_error`), log p(x0 | v) = -e(v) up to a constant:

        rho  = p_theta / p_old = exp(e(v_old) - e(v_theta))
        A'   = clip(A, -advantage_clip, advantage_clip)
        loss = max(-A' rho, -A' clip(rho, 1 - clip_range, 1 + clip_range)) + old_penalty mean_TC (v_theta - v_old)^2

    At v_theta = v_old the gradient is A' times that of e. A sample with A = 0 adds nothing but the penalties.
    """
    error_B = matching_error(noised, policy_BTC, spec.space, weights_BT)
    old_error_B = matching_error(noised, old_BTC, spec.space, weights_BT)
    ratio_B = torch.exp(old_error_B - error_B)
    bounded_B = ratio_B.clamp(1 - spec.clip_range, 1 + spec.clip_range)
    advantage = clipped(advantage_B, spec.advantage_clip, error_B)
    loss_B = torch.maximum(-advantage * ratio_B, -advantage * bounded_B)
    outside_B = (-advantage * bounded_B > -advantage * ratio_B).to(error_B.dtype)
    if spec.old_penalty > 0:
        loss_B = loss_B + spec.old_penalty * mean_square(policy_BTC, old_BTC)
    return {"loss": loss_B, "ratio": ratio_B, "clipped": outside_B}


class AWM:
    """The algorithm of `AWMSpec`."""

    view: View = "forward"

    def __init__(self, spec: AWMSpec) -> None:
        self.spec = spec
        self.sigmas = spec.sigmas
        self.surgery, self.region = surgery_of(spec), region_of(spec)
        self.anchors = anchors_of(spec.loss, "old")

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages, see `learner.algorithms.credit`. Raises RewardError when a required reward is down."""
        return assign_credit(tabulate(groups, rewards), self.spec.credit, modalities)

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """`awm_loss` of each modality, see `combined`. Metrics besides: `ratio/<m>`, `clipped/<m>` (share)."""
        policy, old = predictions["policy"], predictions["old"]

        def loss_of(modality: Modality) -> dict[str, Tensor]:
            advantage, weights = batch.advantages[modality], batch.token_weights.get(modality)
            return awm_loss(self.spec.loss, batch.noised[modality], policy[modality], old[modality], advantage, weights)

        return combined(self.spec.loss, batch, predictions, loss_of)

    def eta(self, step: int) -> float:
        """The share of itself that the old policy keeps after `step`, see `old_share`."""
        return old_share(self.spec.old_policy, step)
