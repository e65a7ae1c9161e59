"""Advantage-weighted matching (AWM): a clipped policy gradient without trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

from accord.config.forward import AWMLossSpec, AWMSpec
from learner.algorithms.base import Noised
from learner.algorithms.forward import ForwardRecipe, Part, clipped, matching_error, mean_square


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


class AWM(ForwardRecipe):
    """The algorithm of `AWMSpec`. Metrics besides those of `loss`: `ratio/<m>`, `clipped/<m>` (share)."""

    spec: AWMSpec

    def modality_loss(self, part: Part) -> dict[str, Tensor]:
        """`awm_loss`."""
        policy, old = part.velocity["policy"], part.velocity["old"]
        return awm_loss(self.spec.loss, part.noised, policy, old, part.advantage_B, part.weights_BT)
