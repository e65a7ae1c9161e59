"""What every view does: it lists the items of a rank's share of a step, and makes one forward of the model of some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accord.backbones.base import Conditions
from accord.config.job import JobSpec
from accord.types import GroupData, Modality, RolloutRequest, ScoredGroup
from learner.algorithms.base import Algorithm, Credit, LossBatch

Item = tuple[int, int, int]
"""Place of the group in the share, sample, and which draw (forward view) or stochastic step (transition view)."""


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One forward of the model: what goes in, and what the loss needs to judge what comes out."""

    latents: dict[Modality, Tensor]
    """[B, T, C] per modality."""
    sigmas: dict[Modality, Tensor]
    """[B] per modality."""
    conditions: Conditions
    batch: LossBatch
    anchored: Mapping[Modality, Tensor] = field(default_factory=dict)
    """bool [B] per modality: the samples that are held to the reference; a modality that is missing: all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """One rank's part of a step; everything goes by place of the group in it."""

    step: int
    requests: Sequence[RolloutRequest]
    data: Sequence[GroupData]
    conditions: Conditions
    """A row per group."""
    advantages: Mapping[Modality, Tensor]
    """float32 [P, G] per modality, or [P, G, K] as in `Credit`."""
    anchored: Mapping[Modality, Tensor] = field(default_factory=dict)
    """bool [P, G] per modality, as in `Credit`."""

    @classmethod
    def of(
        cls, step: int, groups: Sequence[ScoredGroup], credit: Credit, places: range, fetch: Callable[[Any], GroupData]
    ) -> Share:
        """`places`: which of the step's `groups`. `fetch`: from a group's handle to its data."""
        mine = [groups[place].group for place in places]
        data = [fetch(group.data) for group in mine]
        advantages = {modality: value[list(places)].float() for modality, value in credit.advantages.items()}
        conditions = Conditions.joined([part.conditions for part in data])
        anchored = {modality: value[list(places)] for modality, value in credit.anchored.items()}
        return cls(step, [group.request for group in mine], data, conditions, advantages, anchored)


class ShareView(ABC):
    """How shares become micro-batches; made once for a run."""

    def __init__(self, job: JobSpec, algorithm: Algorithm[Any], schedule: Tensor, device: str = "cpu") -> None:
        """`schedule`: the sampler's sigmas [N + 1]."""
        self.job, self.algorithm, self.schedule, self.device = job, algorithm, schedule, device

    @abstractmethod
    def items(self, share: Share) -> list[Item]:
        """All items, in the order in which they are evaluated."""

    @abstractmethod
    def micro_batch(self, share: Share, items: Sequence[Item]) -> MicroBatch:
        """One forward over `items`."""

    def conditions_of(self, share: Share, items: Sequence[Item]) -> Conditions:
        """The prompts' conditions, a row per item."""
        return share.conditions.select(torch.tensor([place for place, _, _ in items])).to(self.device)

    def anchored_of(self, share: Share, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """[B] per modality: whether the sample is held to the reference."""
        places, samples, _ = (torch.tensor(part) for part in zip(*items, strict=True))
        return {modality: value[places, samples].to(self.device) for modality, value in share.anchored.items()}

    def advantages_of(self, share: Share, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """[B] per modality: the sample's advantage, or that of its step where there is one per step."""
        places, samples, steps = (torch.tensor(part) for part in zip(*items, strict=True))
        return {
            modality: (value[places, samples, steps] if value.ndim == 3 else value[places, samples]).to(self.device)
            for modality, value in share.advantages.items()
        }
