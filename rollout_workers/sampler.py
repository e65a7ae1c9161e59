"""The denoising loop: one prompt's whole group as one batch, from each sample's own noise. No Ray, no files.

What is stepped along is the guided velocity (`guidance.py`). Attention is captured in the conditional pass only.

Every step is an Euler step of the ODE unless the plan names it as stochastic; those are drawn from a Gaussian and
recorded with their log-density, of the velocity that was used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.backbones.base import Backbone, Conditions
from accord.backbones.shaping import RegionCapture
from accord.diffusion.noise import group_noise
from accord.diffusion.steps import euler_step, log_density, sde_moments
from accord.errors import NonFiniteError
from accord.seeds import Purpose
from accord.types import Modality, RolloutPlan, StochasticSteps, Transitions
from rollout_workers.guidance import guided_velocity


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """A group after its last step."""

    latents: Mapping[Modality, Tensor]
    """Clean, float32 [G, T, C]."""
    transitions: Mapping[Modality, Transitions] | None
    """What was drawn, stacked in the order of the stochastic steps; None where the ODE was followed throughout."""


class _Drawn:
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


@torch.no_grad()
def denoise(
    backbone: Backbone,
    prompt: Conditions,
    empty_prompt: Conditions | None,
    seeds: Sequence[int],
    plan: RolloutPlan,
    *,
    start_seed: int = 0,
    region: RegionCapture | None = None,
) -> Denoised:
    """Sample a group from noise with the role that is active in the backbone.

    Args:
        backbone: the model; its active adapter samples.
        prompt: one row.
        empty_prompt: one row, read only by classifier-free guidance.
        seeds: one per sample [G]; all noise of sample g is derived from seeds[g] alone.
        plan: steps, guidance, what is drawn and who forks.
        start_seed: all samples start from the noise of this seed if the plan says `shared`.
        region: collects attention on the steps it asks for.

    Raises:
        NonFiniteError: a latent became NaN or infinite.
    """
    sigmas = backbone.sigmas(plan.num_steps)
    device = backbone.device
    count = len(seeds)
    conditions = prompt.repeat(count)
    unconditions = empty_prompt.repeat(count) if empty_prompt is not None else None
    drawn = _Drawn(plan.stochastic) if plan.stochastic is not None else None
    starts = [start_seed] * count if plan.initial_noise == "shared" else seeds
    latents = {
        modality: group_noise(starts, Purpose.START_NOISE.at(modality), shape).to(device)
        for modality, shape in backbone.latent_shapes().items()
    }
    for step in range(plan.num_steps):
        parents = {fork.sample: fork.parent for fork in plan.forks if fork.step == step}
        if parents:
            rows = [parents.get(sample, sample) for sample in range(count)]
            latents = {modality: x[rows] for modality, x in latents.items()}
            if drawn is not None:
                drawn.fork(rows)
            if region is not None:
                region.fork(rows)
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        levels = {modality: sigma.expand(count).to(device) for modality in latents}
        watching = region.during(step) if region else None
        velocity = guided_velocity(backbone, plan.guidance, latents, levels, conditions, unconditions, watching)
        if drawn is not None and step in drawn.plan.steps:
            latents = drawn.draw(step, latents, velocity, sigma, sigma_next, seeds)
        else:
            latents = {m: euler_step(x, velocity[m], sigma, sigma_next) for m, x in latents.items()}
    _check_finite(latents, plan.num_steps)
    return Denoised(latents, drawn.recorded() if drawn is not None else None)


def _check_finite(latents: Mapping[Modality, Tensor], num_steps: int) -> None:
    for modality, latent in latents.items():
        bad = [index for index, sample in enumerate(latent) if not torch.isfinite(sample).all()]
        if bad:
            raise NonFiniteError(f"{modality} latents of samples {bad} are not finite after {num_steps} steps")
