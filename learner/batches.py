"""What every view hands to a rank: micro-batches, one forward of the model each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from accord.types import Modality
from learner.algorithms.base import LossBatch


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One forward of the model: what goes in, and what the loss needs to judge what comes out."""

    latents: dict[Modality, Tensor]
    """[B, T, C] per modality."""
    sigmas: dict[Modality, Tensor]
    """[B] per modality."""
    conditions: Any
    batch: LossBatch


class Batches(Protocol):
    """A view's micro-batches over one rank's share of a step."""

    def count(self) -> int:
        """Items of the whole step on this rank, the divisor of the mean loss."""
        ...

    def __iter__(self) -> Iterator[MicroBatch]: ...
