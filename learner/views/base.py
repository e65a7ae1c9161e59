"""What every view hands to a rank: the items of its share of a step as micro-batches, one forward of the model each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accord.config.job import JobSpec
from accord.types import GroupData, Modality, ScoredGroup
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
    conditions: Any
    batch: LossBatch


class Batches(ABC):
    """A view's micro-batches over one rank's share of a step.

    A view lists the items and makes a micro-batch of some.
    """

    def __init__(
        self,
        job: JobSpec,
        algorithm: Algorithm,
        backbone: Any,
        step: int,
        groups: Sequence[ScoredGroup],
        credit: Credit,
        share: range,
        fetch: Callable[[Any], GroupData],
        device: str = "cpu",
    ) -> None:
        """`share`: places in `groups` of this rank's. `fetch`: from a group's handle to its data."""
        self.job, self.algorithm, self.step, self.device = job, algorithm, step, device
        self.groups = [groups[position] for position in share]
        self.data = [fetch(group.group.data) for group in self.groups]
        self.advantages = {modality: value[list(share)].float() for modality, value in credit.advantages.items()}
        self.conditions = backbone.encode([group.group.request.prompt.prompt_av for group in self.groups])
        self.schedule: Tensor = backbone.sigmas(job.sampling.num_steps)
        self.items = self.list_items()

    @abstractmethod
    def list_items(self) -> list[Item]:
        """All items of the share, in the order in which they are evaluated."""

    @abstractmethod
    def micro_batch(self, items: Sequence[Item]) -> MicroBatch:
        """One forward over `items`."""

    def count(self) -> int:
        """Items of the whole step on this rank, the divisor of the mean loss."""
        return len(self.items)

    def __iter__(self) -> Iterator[MicroBatch]:
        size = self.job.optimizer.micro_batch
        for start in range(0, len(self.items), size):
            yield self.micro_batch(self.items[start : start + size])

    def conditions_of(self, items: Sequence[Item]) -> Any:
        """The prompts' conditions, a row per item."""
        return self.conditions.select(torch.tensor([place for place, _, _ in items])).to(self.device)

    def advantages_of(self, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """[B] per modality."""
        places, samples = (torch.tensor([item[part] for item in items]) for part in (0, 1))
        return {modality: value[places, samples].to(self.device) for modality, value in self.advantages.items()}
