"""Direct group preference optimisation (DGPO): push and pull by advantage until a group is told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.config.forward import DGPOLossSpec, DGPOSpec
from learner.algorithms.base import Noised
from learner.algorithms.forward import ForwardRecipe, Part, clipped, group_mean, matching_error


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


class DGPO(ForwardRecipe):
    """The algorithm of `DGPOSpec`. It measures from the base model; `old` samples only.

    Metric besides those of `loss`: `undecided/<m>`.
    """

    spec: DGPOSpec
    reads = ("ref",)

    def modality_loss(self, part: Part) -> dict[str, Tensor]:
        """`dgpo_loss`."""
        policy, ref = part.velocity["policy"], part.velocity["ref"]
        return dgpo_loss(self.spec.loss, part.noised, policy, ref, part.advantage_B, part.group_size, part.weights_BT)
