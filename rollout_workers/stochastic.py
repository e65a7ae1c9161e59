"""Stochastic denoising steps: drawn from a Gaussian (its moments: accord/diffusion/solver.py), and recorded.

What is recorded with a step is its log-density under the velocity that was used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.diffusion.noise import group_noise
from accord.diffusion.solver import log_density, sde_moments
from accord.seeds import Purpose
from accord.types import Modality, StochasticSteps, Transitions


class StochasticDraws:
    """The stochastic steps of one group: draws them and remembers them."""

    def __init__(self, plan: StochasticSteps) -> None:
        self.plan = plan
        self._seen: dict[Modality, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def draw(
        self,
        step: int,
        latents: Mapping[Modality, Tensor],
        velocity: Mapping[Modality, Tensor],
        sigma: Tensor,
        sigma_next: Tensor,
        seeds: Sequence[int],
    ) -> dict[Modality, Tensor]:
        """Draw the next state of every modality [G, T, C], sample g from noise of seeds[g] and `step` alone."""
        after = {}
        for modality, x in latents.items():
            levels = [level.expand(len(seeds)).to(x.device) for level in (sigma, sigma_next)]
            mean, std = sde_moments(self.plan.kind, self.plan.eta, x, velocity[modality], *levels)
            noise = group_noise(seeds, Purpose.STEP_NOISE.at(modality, step), x.shape[1:]).to(x.device)
            after[modality] = mean + std * noise
            seen = (x, after[modality], log_density(after[modality], mean, std))
            self._seen.setdefault(modality, []).append(seen)
        return after

    def fork(self, rows: Sequence[int]) -> None:
        """Sample g goes on as a copy of sample rows[g], whose steps so far become its own."""
        self._seen = {
            modality: [(before[rows], after[rows], log_prob[rows]) for before, after, log_prob in seen]
            for modality, seen in self._seen.items()
        }

    def recorded(self) -> dict[Modality, Transitions]:
        """What was drawn, per modality, stacked in the order of the steps."""
        return {
            modality: Transitions(*(torch.stack(part).cpu().numpy() for part in zip(*seen, strict=True)))
            for modality, seen in self._seen.items()
        }
