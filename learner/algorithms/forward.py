"""What the forward-process algorithms share: distances to a sample, means over tokens and groups, and the recipe around
the loss of one modality.

A velocity v lies d(v) = s (v - v*) from a sample, v* = eps - x0. In x0 space s = sigma and d(v) = x0 - x0hat(v), since
x0hat(v) = x_sigma - sigma v; in velocity space s = 1. Everything is at least float32, whatever the model computed in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from accord.config.forward import ForwardSpec
from accord.types import Role
from learner.algorithms.base import ForwardBatch, LossTerms, Noised, Predictions, View
from learner.algorithms.recipe import Recipe

NORMALISER_FLOOR = 1e-5
"""Least value of the adaptive normaliser: predictions closer than this are as good as exact."""

Space = Literal["x0", "velocity"]


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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One modality of a micro-batch, as its loss reads it."""

    noised: Noised
    velocity: Mapping[Role, Tensor]
    """Predictions [B, T, C] of `policy` and of the roles that the recipe reads."""
    advantage_B: Tensor
    weights_BT: Tensor | None
    """Token weights; None = every token counts alike."""
    group_size: int
    """As in `ForwardBatch`."""


class ForwardRecipe(Recipe):
    """An algorithm of the forward view, but for the loss of one modality, which a recipe adds."""

    view: View = "forward"
    reads: ClassVar[tuple[Role, ...]] = ("old",)
    """Roles that the loss of a modality reads besides `policy`."""
    spec: ForwardSpec

    def __init__(self, spec: ForwardSpec) -> None:
        super().__init__(spec)
        self.sigmas, self.region = spec.sigmas, spec.active_region
        penalised: tuple[Role, ...] = ("ref",) if spec.loss.reference_penalty > 0 else ()
        self.anchors = tuple(dict.fromkeys(self.reads + penalised))

    @abstractmethod
    def modality_loss(self, part: Part) -> Mapping[str, Tensor]:
        """Return `loss` [B] of one modality.

        It may return `reference_factor` [B], 1 if left out; what else it returns becomes the metric `<name>/<m>`.
        """

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """Return L = reduce_m (loss_m + reference_penalty * factor_m * ref_m), reduce = mean or sum (OmniNFT eq. 12).

        ref_m = mean_TC (s' (v_theta - v_ref))^2 where `ref` was predicted, s' = sigma in x0 space, else 1.

        Metrics [B]: `loss/<m>`, `loss/reference/<m>` (not weighted), `loss/total`, and where `old` was predicted
        `old_policy/distance` (mean square between trained and old velocity, averaged over modalities), and where video
        tokens are weighted `region/max` and `region/min`.
        """
        spec, losses, metrics, distances = self.spec.loss, [], {}, []
        for modality, noised in batch.noised.items():
            velocity = {name: of_modality[modality] for name, of_modality in predictions.items()}
            weights_BT = batch.token_weights.get(modality)
            part = Part(noised, velocity, batch.advantages[modality], weights_BT, batch.group_size)
            terms = dict(self.modality_loss(part))
            loss_B, factor = terms.pop("loss"), terms.pop("reference_factor", 1.0)
            metrics[f"loss/{modality}"] = loss_B
            if "ref" in velocity:
                away = mean_square(velocity["policy"], velocity["ref"], scale_of(noised, spec.reference_space))
                metrics[f"loss/reference/{modality}"] = away
                loss_B = loss_B + spec.reference_penalty * factor * away
            if "old" in velocity:
                distances.append(mean_square(velocity["policy"].detach(), velocity["old"]))
            if weights_BT is not None:
                metrics["region/max"], metrics["region/min"] = weights_BT.amax(1), weights_BT.amin(1)
            metrics |= {f"{name}/{modality}": value for name, value in terms.items()}
            losses.append(loss_B)
        total_B = self.reduced(losses)
        metrics["loss/total"] = total_B
        if distances:
            metrics["old_policy/distance"] = torch.stack(distances).mean(0)
        return LossTerms(total_B, {name: value.detach() for name, value in metrics.items()})
