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
from accord.backbones.region import RegionCapture
from accord.diffusion.noise import group_noise
from accord.diffusion.solver import euler_step
from accord.errors import NonFiniteError
from accord.seeds import Purpose
from accord.types import Modality, RolloutPlan, Transitions
from rollout_workers.guidance import guided_velocity
from rollout_workers.stochastic import StochasticDraws


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """A group after its last step."""

    latents: Mapping[Modality, Tensor]
    """Clean, float32 [G, T, C]."""
    transitions: Mapping[Modality, Transitions] | None
    """What was drawn, stacked in the order of the stochastic steps; None where the ODE was followed throughout."""


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
    drawn = StochasticDraws(plan.stochastic) if plan.stochastic is not None else None
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
