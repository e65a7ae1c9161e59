"""Direct group preference optimisation (DGPO): push and pull by advantage until a group is told apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.forward import DGPOLossSpec, DGPOSpec
from accord.config.rewards import RewardSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit, ForwardBatch, LossTerms, Noised, Predictions, View
from learner.algorithms.credit import assign_credit, tabulate
from learner.algorithms.forward import (
    anchors_of,
    clipped,
    combined,
    group_mean,
    matching_error,
    old_share,
    region_of,
    surgery_of,
)


def dgpo_loss(
    spec: DGPOLossSpec,
    noised: Noised,
    policy_BTC: Tensor,
    ref_BTC: Tensor,
    advantage_B: Tensor,
    group_size: int,
    weights_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """One modality's `loss` per sample [B] and the `undecided` share of its group [B].

    Over the G samples of one prompt at one noise level, with e(v) the token-weighted error (`matching_error`):

        A'   = clip(A, -advantage_clip, advantage_clip)
        g    = sigmoid(beta / G sum_i A'_i (e(v_theta)_i - e(v_ref)_i))       without gradient
        loss = g A' e(v_theta)

    With z the argument of g, the gradient of a group's mean loss is 1 / beta times that of -log sigmoid(-z). g is one
    half where the policy is the reference and goes to 0 as better samples are matched better and worse ones worse. A
    sample with A = 0 adds nothing, to the loss or to z.
    """
    error_B = matching_error(noised, policy_BTC, spec.space, weights_BT)
    with torch.no_grad():
        advantage = clipped(advantage_B, spec.advantage_clip, error_B)
        gain_B = error_B - matching_error(noised, ref_BTC, spec.space, weights_BT)
        undecided_B = torch.sigmoid(spec.beta * group_mean(advantage * gain_B, group_size))
    return {"loss": undecided_B * advantage * error_B, "undecided": undecided_B}


class DGPO:
    """The algorithm of `DGPOSpec`. It measures from the base model; `old` samples only."""

    view: View = "forward"

    def __init__(self, spec: DGPOSpec) -> None:
        self.spec = spec
        self.sigmas = spec.sigmas
        self.surgery, self.region = surgery_of(spec), region_of(spec)
        self.anchors = anchors_of(spec.loss, "ref")

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages, see `learner.algorithms.credit`. Raises RewardError when a required reward is down."""
        return assign_credit(tabulate(groups, rewards), self.spec.credit, modalities)

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """`dgpo_loss` of each modality, see `combined`. Metric besides: `undecided/<m>`."""
        policy, ref = predictions["policy"], predictions["ref"]

        def loss_of(modality: Modality) -> dict[str, Tensor]:
            advantage, weights = batch.advantages[modality], batch.token_weights.get(modality)
            return dgpo_loss(
                self.spec.loss, batch.noised[modality], policy[modality], ref[modality], advantage, batch.group_size,
                weights,
            )  # fmt: skip

        return combined(self.spec.loss, batch, predictions, loss_of)

    def eta(self, step: int) -> float:
        """The share of itself that the old policy keeps after `step`, see `old_share`."""
        return old_share(self.spec.old_policy, step)
