"""Flow-GRPO, DanceGRPO and their windows: clipped policy gradient on stochastic denoising steps, per modality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from accord.config.contract import RewardSpec
from accord.config.grpo import DynamicsSpec, FlowGRPOSpec, GRPOLossSpec
from accord.diffusion.solver import log_density, sde_moments
from accord.types import Modality, Role, ScoredGroup
from learner.algorithms.base import Credit, LossTerms, Predictions, Transition, TransitionBatch, View
from learner.algorithms.recipe import Recipe


def grpo_loss(
    spec: GRPOLossSpec,
    dynamics: DynamicsSpec,
    transition: Transition,
    policy_BTC: Tensor,
    ref_BTC: Tensor | None,
    advantage_B: Tensor,
) -> dict[str, Tensor]:
    """One modality's loss per item, `loss` [B], and its parts.

    With the step's Gaussian N(mean(v), std^2) of `accord.diffusion.solver.sde_moments`, x' the state that was drawn and
    log p the element mean of its log-density:

        rho  = exp(log p(x'; v_theta) - log p_stored)
        A    = clip(advantage, -advantage_clip, advantage_clip)
        loss = max(-A rho, -A clip(rho, 1 - clip_range, 1 + clip_range))
        ref  = mean_TC (mean(v_theta) - mean(v_ref))^2 / (2 std^2)       the steps' KL divergence per element,
               times (sigma - sigma_next) for `kl_variance = "rate"`: divided by g^2 instead of std^2

    Other parts, without gradient: `ratio`, rho; `clipped`, 1 where the clip took the gradient away; `kl`, the second
    order estimate (log rho)^2 / 2 of the divergence from the policy that sampled.
    """
    dtype = torch.promote_types(policy_BTC.dtype, torch.float32)
    x, levels = transition.before_BTC.to(dtype), (transition.sigma_B.to(dtype), transition.sigma_next_B.to(dtype))
    mean, std = sde_moments(dynamics.kind, dynamics.eta, x, policy_BTC.to(dtype), *levels)
    log_ratio = log_density(transition.after_BTC.to(dtype), mean, std) - transition.log_prob_B.to(dtype)
    ratio = torch.exp(log_ratio)
    advantage = advantage_B.to(dtype).clamp(-spec.advantage_clip, spec.advantage_clip)
    free = -advantage * ratio
    bound = -advantage * ratio.clamp(1 - spec.clip_range, 1 + spec.clip_range)
    terms = {
        "loss": torch.maximum(free, bound),
        "ratio": ratio.detach(),
        "clipped": (bound > free).to(dtype),
        "kl": log_ratio.detach().square() / 2,
    }
    if ref_BTC is not None:
        ref_mean, _ = sde_moments(dynamics.kind, dynamics.eta, x, ref_BTC.to(dtype), *levels)
        away = ((mean - ref_mean) / std).square().mean((1, 2)) / 2
        terms["reference"] = away * (levels[0] - levels[1]) if spec.kl_variance == "rate" else away
    return terms


def best_and_worst(advantages_PG: Tensor, share: float) -> Tensor:
    """Keep `share` of each group, half from either end, at least one of each; the advantage of the others becomes 0.

    With G samples, max(1, round(share G / 2)) are kept at each end, halves rounded up; of equals, the earlier sample
    counts as the lower.
    """
    size = advantages_PG.shape[1]
    ends = min(max(1, math.floor(share * size / 2 + 0.5)), (size + 1) // 2)
    order = advantages_PG.argsort(dim=1, stable=True)
    chosen = torch.cat([order[:, :ends], order[:, size - ends :]], dim=1)
    return torch.zeros_like(advantages_PG).scatter(1, chosen, advantages_PG.gather(1, chosen))


class FlowGRPO(Recipe):
    """The algorithm of `FlowGRPOSpec`: every recipe is this with other numbers."""

    spec: FlowGRPOSpec
    view: View = "transition"

    def __init__(self, spec: FlowGRPOSpec) -> None:
        super().__init__(spec)
        self.anchors: tuple[Role, ...] = ("ref",) if spec.loss.kl_weight > 0 else ()

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages, see `learner.algorithms.credit`; those in the middle of a group earn 0.

        Raises RewardError when a required reward is down.
        """
        credit = super().credit(groups, rewards, modalities)
        if self.spec.trained_share == 1.0:
            return credit
        share = self.spec.trained_share
        kept = {modality: best_and_worst(value, share) for modality, value in credit.advantages.items()}
        return replace(credit, advantages=kept)

    def loss(self, batch: TransitionBatch, predictions: Predictions) -> LossTerms:
        """Combine the modalities: L = reduce_m (loss_m + kl_weight * ref_m), reduce = mean or sum.

        Metrics [B]: `loss/<m>`, `loss/reference/<m>` (not weighted), `loss/total`, and `ratio/<m>`, `clipped/<m>`,
        `kl/<m>` as `grpo_loss` has them.
        """
        spec, total = self.spec.loss, []
        metrics: dict[str, Tensor] = {}
        ref: Mapping[Modality, Tensor] = predictions.get("ref", {})
        for modality, transition in batch.transitions.items():
            terms = grpo_loss(
                spec, self.spec.dynamics, transition, predictions["policy"][modality], ref.get(modality),
                batch.advantages[modality],
            )  # fmt: skip
            part = terms["loss"]
            metrics |= {f"{name}/{modality}": terms[name].detach() for name in ("loss", "ratio", "clipped", "kl")}
            if "reference" in terms:
                metrics[f"loss/reference/{modality}"] = terms["reference"].detach()
                part = part + spec.kl_weight * terms["reference"]
            total.append(part)
        loss_B = self.reduced(total)
        metrics["loss/total"] = loss_B.detach()
        return LossTerms(loss_B, metrics)
