"""Centred reward distillation (CRD): the policy's gain over the old policy is fitted to the reward, group by group.

The published method keeps three snapshots: one that samples, one that the gain is measured from, and the frozen base,
which its penalty evaluates with guidance. Here the role `old` is both of the first two, one blend that is known to have
drawn the samples it is compared on, and the base is evaluated without guidance, as every forward of the learner is.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from accord.config.forward import CRDLossSpec, CRDSpec
from learner.algorithms.base import Noised
from learner.algorithms.forward import ForwardRecipe, Part, clipped, distance, group_mean, normaliser, token_mean


def crd_loss(
    spec: CRDLossSpec,
    noised: Noised,
    policy_BTC: Tensor,
    old_BTC: Tensor,
    advantage_B: Tensor,
    group_size: int,
    weights_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """One modality's `loss` per sample [B] and the `reference_factor` [B] of its penalty.

    Over the samples of one prompt at one noise level (mean_g); d, e: `distance`, `matching_error`:

        n(v) = max(mean_TC |d(v)|, 1e-5) without gradient, or 1 (normaliser = none)
        r    = e(v_old) / n(v_old) - e(v_theta) / n(v_theta)                  implicit reward
        R    = 1/2 + 1/2 clip(A / advantage_clip, -1, 1)                      external reward
        r~   = r - mean_g r,  R~ = R - mean_g R
        square   loss = (beta r~ - R~)^2 * advantage_clip / beta
        bce      loss = -[R log sigmoid(beta r~) + (1 - R) log sigmoid(-beta r~)] * advantage_clip / beta
        reference_factor = c + R (1 - c),  c = penalty_floor

    At v_theta = v_old the gradient of a group's summed square loss is sum_i (A_i - mean_g A) grad e_i / n_i while
    |A| <= advantage_clip, and half of that for bce. A sample with A = 0 is not left out: it is fitted to the middle of
    the range, so once the policy has moved it is held to the gain of an average sample of its group.
    """
    policy, old = distance(noised, policy_BTC, spec.space), distance(noised, old_BTC, spec.space)

    def error(distance_BTC: Tensor) -> Tensor:
        error_B = token_mean(distance_BTC.square().mean(2), weights_BT)
        return error_B if spec.normaliser == "none" else error_B / normaliser(distance_BTC).detach()

    gain_B = error(old) - error(policy)
    gain_B = spec.beta * (gain_B - group_mean(gain_B, group_size))
    reward_B = 0.5 + 0.5 * clipped(advantage_B / spec.advantage_clip, 1.0, gain_B)
    if spec.regression == "square":
        loss_B = (gain_B - (reward_B - group_mean(reward_B, group_size))).square()
    else:
        loss_B = binary_cross_entropy_with_logits(gain_B, reward_B, reduction="none")
    floor = spec.penalty_floor
    return {"loss": loss_B * (spec.advantage_clip / spec.beta), "reference_factor": floor + reward_B * (1 - floor)}


class CRD(ForwardRecipe):
    """The algorithm of `CRDSpec`."""

    spec: CRDSpec

    def modality_loss(self, part: Part) -> dict[str, Tensor]:
        """`crd_loss`."""
        policy, old = part.velocity["policy"], part.velocity["old"]
        return crd_loss(self.spec.loss, part.noised, policy, old, part.advantage_B, part.group_size, part.weights_BT)
