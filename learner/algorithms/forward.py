"""What the forward-process losses share: distances to a sample, means over tokens and groups, how modalities combine.

A velocity v lies d(v) = s (v - v*) from a sample, v* = eps - x0. In x0 space s = sigma and d(v) = x0 - x0hat(v), since
x0hat(v) = x_sigma - sigma v; in velocity space s = 1. Everything is at least float32, whatever the model computed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from accord.config.algorithms import LossSpec, OldPolicySpec, RegionSpec, SurgerySpec
from accord.config.forward import MatchingSpec
from accord.types import Modality, Role
from learner.algorithms.base import ForwardBatch, LossTerms, Noised, Predictions

NORMALISER_FLOOR = 1e-5
"""Least value of the adaptive normaliser: predictions closer than this are as good as exact."""

Space = Literal["x0", "velocity"]
Combination = LossSpec | MatchingSpec
"""Loss specs with the fields that `combined` reads."""


def widened(tensor: Tensor) -> Tensor:
    """The same numbers in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scale_of(noised: Noised, space: Space) -> Tensor:
    """The factor s of a distance, [B, 1, 1]."""
    sigma = widened(noised.sigma_B).view(-1, 1, 1)
    return sigma if space == "x0" else torch.ones_like(sigma)


def distance(noised: Noised, velocity_BTC: Tensor, space: Space) -> Tensor:
    """Return d(v) = s (v - v*), [B, T, C]."""
    return scale_of(noised, space) * (widened(velocity_BTC) - widened(noised.target_BTC))


def token_mean(value_BT: Tensor, weights_BT: Tensor | None) -> Tensor:
    """Return sum_i q_i x_i / sum_i q_i over tokens, [B]; q = 1 without weights."""
    if weights_BT is None:
        return value_BT.mean(1)
    weights = weights_BT.to(value_BT.dtype)
    return (weights * value_BT).sum(1) / weights.sum(1)


def matching_error(noised: Noised, velocity_BTC: Tensor, space: Space, weights_BT: Tensor | None = None) -> Tensor:
    """Return e(v) = sum_i q_i mean_C d(v)_i^2 / sum_i q_i, [B]."""
    return token_mean(distance(noised, velocity_BTC, space).square().mean(2), weights_BT)


def normaliser(distance_BTC: Tensor) -> Tensor:
    """Return n = max(mean_TC |d|, 1e-5), [B], with its gradient."""
    return distance_BTC.abs().mean((1, 2)).clamp(min=NORMALISER_FLOOR)


def group_mean(value_B: Tensor, group_size: int) -> Tensor:
    """Each sample's mean over its own group, [B]. Groups stand together, `group_size` samples each."""
    return value_B.view(-1, group_size).mean(1).repeat_interleave(group_size)


def clipped(advantage_B: Tensor, limit: float, like: Tensor) -> Tensor:
    """Advantages cut to [-limit, limit], in the dtype of `like`."""
    return advantage_B.to(like.dtype).clamp(-limit, limit)


def mean_square(left_BTC: Tensor, right_BTC: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return mean_TC (scale (left - right))^2, [B]."""
    return (scale * (widened(left_BTC) - widened(right_BTC))).square().mean((1, 2))


def combined(
    spec: Combination,
    batch: ForwardBatch,
    predictions: Predictions,
    loss_of: Callable[[Modality], Mapping[str, Tensor]],
) -> LossTerms:
    """Return L = reduce_m (loss_m + reference_penalty * factor_m * ref_m), reduce = mean or sum (OmniNFT eq. 12).

    `loss_of(m)` returns `loss` [B]; it may return `reference_factor` [B], 1 if left out; what else it returns becomes
    the metric `<name>/<m>`. ref_m = mean_TC (s' (v_theta - v_ref))^2 where `ref` was predicted, s' = sigma in x0
    space, else 1.

    Metrics [B]: `loss/<m>`, `loss/reference/<m>` (not weighted), `loss/total`, and where `old` was predicted
    `old_policy/distance` (mean square between trained and old velocity, averaged over modalities).
    """
    parts, metrics, distances = [], {}, []
    for modality, noised in batch.noised.items():
        policy = predictions["policy"][modality]
        terms = dict(loss_of(modality))
        part, factor = terms.pop("loss"), terms.pop("reference_factor", 1.0)
        metrics[f"loss/{modality}"] = part
        if "ref" in predictions:
            away = mean_square(policy, predictions["ref"][modality], scale_of(noised, spec.reference_space))
            metrics[f"loss/reference/{modality}"] = away
            part = part + spec.reference_penalty * factor * away
        if "old" in predictions:
            distances.append(mean_square(policy.detach(), predictions["old"][modality]))
        metrics |= {f"{name}/{modality}": value for name, value in terms.items()}
        parts.append(part)
    loss_B = torch.stack(parts).sum(0) if spec.reduction == "sum" else torch.stack(parts).mean(0)
    metrics["loss/total"] = loss_B
    if distances:
        metrics["old_policy/distance"] = torch.stack(distances).mean(0)
    return LossTerms(loss_B, {name: value.detach() for name, value in metrics.items()})


def anchors_of(spec: Combination, *read: Role) -> tuple[Role, ...]:
    """The roles that a loss reads, and `ref` if its penalty has a weight."""
    return (*read, "ref") if spec.reference_penalty > 0 and "ref" not in read else read


def surgery_of(spec: object) -> SurgerySpec | None:
    """The spec's gradient surgery; None when it has none or it is off."""
    surgery = getattr(spec, "surgery", None)
    return surgery if surgery is not None and surgery.enabled else None


def region_of(spec: object) -> RegionSpec | None:
    """The spec's region weights; None when it has none or they are off."""
    region = getattr(spec, "region", None)
    return region if region is not None and region.enabled else None


def old_share(schedule: OldPolicySpec, step: int) -> float:
    """Return min(start + rate * step, maximum): the share of itself that the old policy keeps after `step`."""
    return min(schedule.start + schedule.rate * step, schedule.maximum)
