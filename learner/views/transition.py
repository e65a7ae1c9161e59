"""The transition view: every sample's stochastic denoising steps, as the sampler recorded them. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from accord.errors import RolloutError
from accord.types import RolloutRequest, Transitions
from learner.algorithms.base import Transition, TransitionBatch
from learner.views.base import Item, MicroBatch, Share, ShareView


class TransitionView(ShareView):
    """Items in (prompt, step, sample) order, so a micro-batch of `group_size` is a whole group at one step.

    That is the batch which the sampler computed, so on a CPU an unchanged policy finds the stored log-densities again
    bit for bit; another size differs by rounding.
    """

    @override
    def items(self, share: Share) -> list[Item]:
        """Raises RolloutError when a group carries no recorded steps."""
        for request, data in zip(share.requests, share.data, strict=True):
            if not data.transitions:
                raise RolloutError(
                    f"group {request.prompt.id!r} of step {request.step} followed the ODE and has no stochastic steps "
                    "to train on; the algorithm's spec needs `window` (which steps) and `dynamics` (what noise)"
                )
        return [
            (place, sample, step)
            for place, request in enumerate(share.requests)
            for step in range(len(_stochastic(request)))
            for sample in range(len(request.seeds))
        ]

    def micro_batch(self, share: Share, items: Sequence[Item]) -> MicroBatch:
        """Recorded steps, to be evaluated again."""
        steps = torch.tensor([_stochastic(share.requests[place])[step] for place, _, step in items])
        sigma_B, sigma_next_B = (self.schedule[index].to(self.device) for index in (steps, steps + 1))
        recorded = [data.transitions or {} for data in share.data]
        transitions = {
            modality: self._transition([part[modality] for part in recorded], items, sigma_B, sigma_next_B)
            for modality in recorded[0]
        }
        return MicroBatch(
            latents={modality: part.before_BTC for modality, part in transitions.items()},
            sigmas=dict.fromkeys(transitions, sigma_B),
            conditions=self.conditions_of(share, items),
            batch=TransitionBatch(transitions, self.advantages_of(share, items)),
            anchored=self.anchored_of(share, items),
        )

    def _transition(
        self, recorded: Sequence[Transitions], items: Sequence[Item], sigma_B: Tensor, sigma_next_B: Tensor
    ) -> Transition:
        """One modality; `recorded` by place."""
        return Transition(
            self._stacked(recorded[place].before_KGTC[step, sample] for place, sample, step in items),
            self._stacked(recorded[place].after_KGTC[step, sample] for place, sample, step in items),
            self._stacked(recorded[place].log_prob_KG[step, sample] for place, sample, step in items),
            sigma_B,
            sigma_next_B,
        )

    def _stacked(self, rows: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(list(rows))).to(self.device)


def _stochastic(request: RolloutRequest) -> tuple[int, ...]:
    stochastic = request.plan.stochastic
    return stochastic.steps if stochastic is not None else ()
