"""What the algorithms that ship have in common, whatever their view."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor

from accord.config.contract import RewardSpec
from accord.config.forward import ForwardSpec
from accord.config.grpo import FlowGRPOSpec
from accord.types import Modality, ScoredGroup
from learner.algorithms.base import Credit
from learner.algorithms.credit import assign_credit, tabulate


class Recipe(ABC):
    """An algorithm but for its loss."""

    spec: ForwardSpec | FlowGRPOSpec
    """A recipe narrows it to its own."""

    def __init__(self, spec: ForwardSpec | FlowGRPOSpec) -> None:
        self.spec, self.surgery = spec, spec.active_surgery

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Scores to advantages, see `learner.algorithms.credit`. Raises RewardError when a required reward is down."""
        return assign_credit(tabulate(groups, rewards), self.spec.credit, modalities)

    def reduced(self, losses: list[Tensor]) -> Tensor:
        """The modalities' losses [B] as one: their mean or sum."""
        stacked = torch.stack(losses)
        return stacked.sum(0) if self.spec.loss.reduction == "sum" else stacked.mean(0)

    def eta(self, step: int) -> float:
        """The share of itself that the old policy keeps after `step`."""
        return self.spec.old_policy.share(step)
