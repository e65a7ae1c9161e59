"""The denoising loop: one prompt's whole group as one batch, from each sample's own noise. No Ray, no files.

What is stepped along is the guided velocity (`guidance.py`). Attention is captured in the conditional pass only.

Every step is an Euler step of the ODE unless the caller names it as stochastic; those are drawn from a Gaussian and
recorded with their log-density, of the velocity that was used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from accord.backbones.base import Backbone, Conditions
from accord.backbones.shaping import RegionCapture
from accord.config.grpo import DynamicsSpec
from accord.diffusion.noise import group_noise
from accord.diffusion.steps import euler_step, log_density, sde_moments
from accord.errors import NonFiniteError
from accord.seeds import Purpose
from accord.types import Modality, Transitions
from rollout_workers.guidance import OFF, Guidance, guided_velocity


class StochasticSteps:
    """The stochastic steps of one group: draws them and remembers them."""

    def __init__(self, dynamics: DynamicsSpec, steps: Sequence[int]) -> None:
        """`steps`: indices of denoising steps, ascending."""
        self.dynamics = dynamics
        self.steps = tuple(steps)
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
            mean, std = sde_moments(self.dynamics.kind, self.dynamics.eta, x, velocity[modality], *levels)
            noise = group_noise(seeds, Purpose.STEP_NOISE.at(modality, step), x.shape[1:]).to(x.device)
            after[modality] = mean + std * noise
            seen = (x, after[modality], log_density(after[modality], mean, std))
            self._seen.setdefault(modality, []).append(seen)
        return after

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
    *,
    num_steps: int,
    guidance: Guidance = OFF,
    region: RegionCapture | None = None,
    stochastic: StochasticSteps | None = None,
    initial_seed: int | None = None,
) -> dict[Modality, Tensor]:
    """Sample a group from noise with the role that is active in the backbone.

    Args:
        backbone: the model; its active adapter samples.
        prompt: one row.
        empty_prompt: one row, read only by classifier-free guidance.
        seeds: one per sample [G]; all noise of sample g is derived from seeds[g] alone.
        num_steps: Euler steps along the backbone's schedule.
        guidance: what else guides besides the prompt; off = one forward per step.
        region: collects attention on the steps it asks for.
        stochastic: draws and records the steps it names; None = the ODE throughout.
        initial_seed: all samples start from the noise of this seed instead of their own.

    Returns:
        Clean latents per modality, float32 [G, T, C].

    Raises:
        NonFiniteError: a latent became NaN or infinite.
    """
    sigmas = backbone.sigmas(num_steps)
    device = prompt.video_BLC.device
    count = len(seeds)
    conditions = prompt.repeat(count)
    unconditions = empty_prompt.repeat(count) if empty_prompt is not None else None
    starts = seeds if initial_seed is None else [initial_seed] * count
    latents = {
        modality: group_noise(starts, Purpose.START_NOISE.at(modality), shape).to(device)
        for modality, shape in backbone.latent_shapes().items()
    }
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        levels = {modality: sigma.expand(count).to(device) for modality in latents}
        watching = region.during(step) if region else None
        velocity = guided_velocity(backbone, guidance, latents, levels, conditions, unconditions, watching)
        if stochastic is not None and step in stochastic.steps:
            latents = stochastic.draw(step, latents, velocity, sigma, sigma_next, seeds)
        else:
            latents = {m: euler_step(x, velocity[m], sigma, sigma_next) for m, x in latents.items()}
    for modality, latent in latents.items():
        if not torch.isfinite(latent).all():
            bad = [index for index in range(count) if not torch.isfinite(latent[index]).all()]
            raise NonFiniteError(f"{modality} latents of samples {bad} are not finite after {num_steps} steps")
    return latents
