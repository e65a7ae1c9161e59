"""The transition view: every sample's stochastic denoising steps, as the sampler recorded them. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from accord.errors import RolloutError
from accord.types import GroupData, Modality, ScoredGroup, Transitions
from learner.algorithms.base import Transition, TransitionBatch
from learner.views.base import Batches, Item, MicroBatch


class TransitionBatches(Batches):
    """Items in (prompt, step, sample) order, so a micro-batch of `group_size` is a whole group at one step.

    That is the batch which the sampler computed, so on a CPU an unchanged policy finds the stored log-densities again
    bit for bit; another size differs by rounding.
    """

    @override
    def list_items(self) -> list[Item]:
        """Raises RolloutError when a group carries no recorded steps."""
        self.transitions = [_recorded(group, data) for group, data in zip(self.groups, self.data, strict=True)]
        return [
            (place, sample, step)
            for place, group in enumerate(self.groups)
            for step in range(len(_stochastic(group)))
            for sample in range(len(group.group.request.seeds))
        ]

    def micro_batch(self, items: Sequence[Item]) -> MicroBatch:
        """Recorded steps, to be evaluated again."""
        steps = torch.tensor([_stochastic(self.groups[place])[step] for place, _, step in items])
        sigma_B, sigma_next_B = (self.schedule[index].to(self.device) for index in (steps, steps + 1))
        transitions = {m: self._transition(m, items, sigma_B, sigma_next_B) for m in self.transitions[0]}
        return MicroBatch(
            latents={modality: part.before_BTC for modality, part in transitions.items()},
            sigmas=dict.fromkeys(transitions, sigma_B),
            conditions=self.conditions_of(items),
            batch=TransitionBatch(transitions, self.advantages_of(items)),
        )

    def advantages_of(self, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """[B] per modality: the sample's advantage, or that of its step where there is one per step."""
        places, samples, steps = (torch.tensor(part) for part in zip(*items, strict=True))
        return {
            modality: (value[places, samples, steps] if value.ndim == 3 else value[places, samples]).to(self.device)
            for modality, value in self.advantages.items()
        }

    def _transition(
        self, modality: Modality, items: Sequence[Item], sigma_B: Tensor, sigma_next_B: Tensor
    ) -> Transition:
        recorded = [(self.transitions[place][modality], step, sample) for place, sample, step in items]
        return Transition(
            self._stacked(steps.before_KGTC[step, sample] for steps, step, sample in recorded),
            self._stacked(steps.after_KGTC[step, sample] for steps, step, sample in recorded),
            self._stacked(steps.log_prob_KG[step, sample] for steps, step, sample in recorded),
            sigma_B,
            sigma_next_B,
        )

    def _stacked(self, rows: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(list(rows))).to(self.device)


def _stochastic(group: ScoredGroup) -> tuple[int, ...]:
    stochastic = group.group.request.plan.stochastic
    return stochastic.steps if stochastic is not None else ()


def _recorded(group: ScoredGroup, data: GroupData) -> Mapping[Modality, Transitions]:
    found = data.transitions
    if not found:
        request = group.group.request
        raise RolloutError(
            f"group {request.prompt.id!r} of step {request.step} followed the ODE and has no stochastic steps to train "
            "on; the algorithm's spec needs `window` (which steps) and `dynamics` (what noise)"
        )
    return found
