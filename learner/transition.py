"""The transition view: every sample's stochastic denoising steps, as the sampler recorded them. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accord.config.job import JobSpec
from accord.errors import RolloutError
from accord.types import GroupData, Modality, ScoredGroup, Transitions
from learner.algorithms.base import Algorithm, Credit, Transition, TransitionBatch
from learner.batches import MicroBatch

Item = tuple[int, int, int]
"""Place of the group in the share, place of the step among the stochastic ones, sample."""


class TransitionBatches:
    """Items in (prompt, step, sample) order, so a micro-batch of `group_size` is a whole group at one step.

    That is the batch which the sampler computed, so on a CPU an unchanged policy finds the stored log-densities again
    bit for bit; another size differs by rounding.
    """

    def __init__(
        self,
        job: JobSpec,
        _algorithm: Algorithm,
        backbone: Any,
        _step: int,
        groups: Sequence[ScoredGroup],
        credit: Credit,
        share: range,
        fetch: Callable[[Any], GroupData],
        device: str = "cpu",
    ) -> None:
        """Raises RolloutError when a group carries no recorded steps."""
        self.job, self.device = job, device
        self.groups = [groups[position] for position in share]
        self.data = [_recorded(group, fetch) for group in self.groups]
        self.advantages = {modality: value[list(share)].float() for modality, value in credit.advantages.items()}
        self.conditions = backbone.encode([group.group.request.prompt.prompt_av for group in self.groups])
        self.schedule = backbone.sigmas(job.sampling.num_steps)
        self.items: list[Item] = [
            (place, step, sample)
            for place, group in enumerate(self.groups)
            for step in range(len(group.group.request.sde_steps))
            for sample in range(len(group.group.request.seeds))
        ]

    def count(self) -> int:
        """Samples x stochastic steps of this rank."""
        return len(self.items)

    def __iter__(self) -> Iterator[MicroBatch]:
        size = self.job.optimizer.micro_batch
        for start in range(0, len(self.items), size):
            yield self._micro_batch(self.items[start : start + size])

    def _micro_batch(self, items: Sequence[Item]) -> MicroBatch:
        steps = torch.tensor([self.groups[place].group.request.sde_steps[step] for place, step, _ in items])
        sigma_B, sigma_next_B = (self.schedule[index].to(self.device) for index in (steps, steps + 1))
        transitions = {m: self._transition(m, items, sigma_B, sigma_next_B) for m in self.data[0]}
        places, samples = (torch.tensor([item[part] for item in items]) for part in (0, 2))
        advantages = {modality: value[places, samples].to(self.device) for modality, value in self.advantages.items()}
        return MicroBatch(
            latents={modality: part.before_BTC for modality, part in transitions.items()},
            sigmas=dict.fromkeys(transitions, sigma_B),
            conditions=self.conditions.select(places).to(self.device),
            batch=TransitionBatch(transitions, advantages),
        )

    def _transition(
        self, modality: Modality, items: Sequence[Item], sigma_B: Tensor, sigma_next_B: Tensor
    ) -> Transition:
        recorded = [(self.data[place][modality], step, sample) for place, step, sample in items]
        return Transition(
            self._stacked(steps.before_KGTC[step, sample] for steps, step, sample in recorded),
            self._stacked(steps.after_KGTC[step, sample] for steps, step, sample in recorded),
            self._stacked(steps.log_prob_KG[step, sample] for steps, step, sample in recorded),
            sigma_B,
            sigma_next_B,
        )

    def _stacked(self, rows: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(list(rows))).to(self.device)


def _recorded(group: ScoredGroup, fetch: Callable[[Any], GroupData]) -> Mapping[Modality, Transitions]:
    found = fetch(group.group.data).transitions
    if not found:
        request = group.group.request
        raise RolloutError(
            f"group {request.prompt.id!r} of step {request.step} followed the ODE and has no stochastic steps to train "
            "on; the algorithm's spec needs `window` (which steps) and `dynamics` (what noise)"
        )
    return found
