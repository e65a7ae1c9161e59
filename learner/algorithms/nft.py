"""OmniNFT and DiffusionNFT: negative-aware fine-tuning on clean samples, per modality (OmniNFT eq. 3-7, 10-12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.config.algorithms import DiffusionNFTSpec, LossSpec
from accord.config.rewards import RewardSpec
from accord.types import Modality, Role, ScoredGroup
from learner.algorithms.base import Credit, ForwardBatch, LossTerms, Noised, Predictions, View
from learner.algorithms.credit import assign_credit, tabulate

NORMALISER_FLOOR = 1e-5
"""Least value of the adaptive normaliser: predictions closer than this are as good as exact."""


def nft_loss(
    spec: LossSpec,
    noised: Noised,
    policy_BTC: Tensor,
    old_BTC: Tensor,
    ref_BTC: Tensor | None,
    advantage_B: Tensor,
    weights_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """One modality's loss per sample, `loss` [B], and its parts.

    With v* = eps - x0 and s = sigma (space x0) or 1 (space velocity), a velocity v lies d(v) = s (v - v*) from the
    sample; in x0 space that is x0 - x0hat(v), because x0hat(v) = x_sigma - sigma v.

        r    = 1/2 + 1/2 clip(A / advantage_clip, -1, 1)                                   (eq. 6)
        v+   = (1 - beta) v_old + beta v_theta                                             (eq. 4)
        v-   = (1 + beta) v_old - beta v_theta                                             (eq. 5)
        l_i  = r mean_C d(v+)_i^2 / n+  +  (1 - r) mean_C d(v-)_i^2 / n-      per token i  (eq. 3)
        n+-  = max(mean_TC |d(v+-)|, 1e-5), without gradient (detached), with it (attached), or 1 (none)
        loss = sum_i q_i l_i / sum_i q_i * (advantage_clip / beta if rescale)              (eq. 11, q = token weights)
        ref  = mean_TC (s' (v_theta - v_ref))^2, s' = sigma in x0 space, else 1

    A sample with A = 0 has r = 1/2. Its gradient vanishes at v_theta = v_old and is a pull towards v_old elsewhere
    (without normaliser l = |d(v_old)|^2 + beta^2 |v_theta - v_old|^2 s^2), so it stays in the batch as a trust region.
    """
    dtype = torch.promote_types(policy_BTC.dtype, torch.float32)
    policy, old, target = policy_BTC.to(dtype), old_BTC.to(dtype), noised.target_BTC.to(dtype)
    sigma = noised.sigma_B.to(dtype).view(-1, 1, 1)
    scale = sigma if spec.space == "x0" else torch.ones_like(sigma)
    r = 0.5 + 0.5 * (advantage_B.to(dtype) / spec.advantage_clip).clamp(-1, 1)

    def matched(velocity: Tensor) -> Tensor:
        residual = scale * (velocity - target)
        square_BT = residual.square().mean(2)
        if spec.normaliser == "none":
            return square_BT
        size_B = residual.abs().mean((1, 2)).clamp(min=NORMALISER_FLOOR)
        return square_BT / (size_B if spec.normaliser == "attached" else size_B.detach()).view(-1, 1)

    beta = spec.beta
    positive_BT = matched((1 - beta) * old + beta * policy)
    negative_BT = matched((1 + beta) * old - beta * policy)
    loss_BT = r.view(-1, 1) * positive_BT + (1 - r).view(-1, 1) * negative_BT
    if weights_BT is None:
        loss_B = loss_BT.mean(1)
    else:
        loss_B = (weights_BT.to(dtype) * loss_BT).sum(1) / weights_BT.to(dtype).sum(1)
    if spec.rescale:
        loss_B = loss_B * (spec.advantage_clip / beta)
    terms = {"loss": loss_B, "old_distance": (policy - old).detach().square().mean((1, 2))}
    if ref_BTC is not None:
        ref_scale = sigma if spec.reference_space == "x0" else torch.ones_like(sigma)
        terms["reference"] = (ref_scale * (policy - ref_BTC.to(dtype))).square().mean((1, 2))
    return terms


class NFT:
    """The algorithm of `OmniNFTSpec` and `DiffusionNFTSpec`: what the spec leaves out is off."""

    view: View = "forward"

    def __init__(self, spec: DiffusionNFTSpec) -> None:
        self.spec = spec
        self.sigmas = spec.sigmas
        surgery, region = getattr(spec, "surgery", None), getattr(spec, "region", None)
        self.surgery = surgery if surgery is not None and surgery.enabled else None
        self.region = region if region is not None and region.enabled else None
        self.anchors: tuple[Role, ...] = ("old", "ref") if spec.loss.reference_penalty > 0 else ("old",)

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages, see `learner.algorithms.credit`. Raises RewardError when a required reward is down."""
        return assign_credit(tabulate(groups, rewards), self.spec.credit, modalities)

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """Combine the modalities: L = reduce_m (loss_m + reference_penalty * ref_m), reduce = mean or sum (eq. 12).

        Metrics [B]: `loss/<m>`, `loss/reference/<m>` (not weighted), `loss/total`, `old_policy/distance` (mean square
        between trained and old velocity, averaged over modalities).
        """
        spec, total, metrics, distances = self.spec.loss, [], {}, []
        for modality, noised in batch.noised.items():
            ref: Mapping[Modality, Tensor] = predictions.get("ref", {})
            terms = nft_loss(
                spec, noised, predictions["policy"][modality], predictions["old"][modality], ref.get(modality),
                batch.advantages[modality], batch.token_weights.get(modality),
            )  # fmt: skip
            part = terms["loss"]
            metrics[f"loss/{modality}"] = terms["loss"].detach()
            if "reference" in terms:
                metrics[f"loss/reference/{modality}"] = terms["reference"].detach()
                part = part + spec.reference_penalty * terms["reference"]
            total.append(part)
            distances.append(terms["old_distance"])
        loss_B = torch.stack(total).sum(0) if spec.reduction == "sum" else torch.stack(total).mean(0)
        metrics["loss/total"] = loss_B.detach()
        metrics["old_policy/distance"] = torch.stack(distances).mean(0)
        return LossTerms(loss_B, metrics)

    def eta(self, step: int) -> float:
        """min(start + rate * step, maximum): the share of itself that the old policy keeps after `step`."""
        schedule = self.spec.old_policy
        return min(schedule.start + schedule.rate * step, schedule.maximum)
