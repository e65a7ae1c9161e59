"""The learner ranks as a group: who am I, how many are we, and the two collectives that the page needs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among the learner ranks. Alone when no process group is initialised.

    Every collective ends at the process group's timeout with an error of torch.distributed.
    """

    def __init__(self, device: str = "cpu") -> None:
        together = dist.is_available() and dist.is_initialized()
        self.index = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        self.device = device

    @property
    def first(self) -> bool:
        """True on the one rank that publishes, writes and emits."""
        return self.index == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of everybody's `tensor`, the same bits on every rank."""
        if self.count == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def barrier(self) -> None:
        """Wait for everybody."""
        self.sum(torch.zeros(1))

    def from_first(self, number: int) -> int:
        """Return rank 0's `number` on every rank."""
        return int(self.sum(torch.tensor([number if self.first else 0], dtype=torch.int64))[0])

    def share(self, count: int) -> range:
        """Return this rank's contiguous part of `count` things. Raises ValueError when they do not divide."""
        if count % self.count:
            raise ValueError(f"{count} prompts do not divide among {self.count} learner ranks")
        size = count // self.count
        return range(self.index * size, (self.index + 1) * size)
