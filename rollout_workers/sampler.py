"""The denoising loop: one prompt's whole group as one batch, from each sample's own noise. No Ray, no files.

Guidance is classifier-free, equal in both modalities: v = v_c + (g - 1)(v_c - v_u), which is the same as guiding the
clean estimate. Attention is captured in the conditional pass only.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from accord.backbones.base import Backbone, Conditions
from accord.backbones.shaping import RegionCapture
from accord.diffusion.noise import group_noise
from accord.diffusion.steps import euler_step
from accord.errors import NonFiniteError
from accord.types import Modality


@torch.no_grad()
def denoise(
    backbone: Backbone,
    prompt: Conditions,
    empty_prompt: Conditions | None,
    seeds: Sequence[int],
    *,
    num_steps: int,
    guidance: float = 1.0,
    region: RegionCapture | None = None,
) -> dict[Modality, Tensor]:
    """Sample a group from noise with the role that is active in the backbone.

    Args:
        backbone: the model; its active adapter samples.
        prompt: one row.
        empty_prompt: one row, read only when `guidance` is above 1.
        seeds: one per sample [G]; sample g starts from noise derived from seeds[g] alone.
        num_steps: Euler steps along the backbone's schedule.
        guidance: classifier-free guidance scale; 1 = off, one forward per step.
        region: collects attention on the steps it asks for.

    Returns:
        Clean latents per modality, float32 [G, T, C].

    Raises:
        NonFiniteError: a latent became NaN or infinite.
    """
    sigmas = backbone.sigmas(num_steps)
    device = prompt.video_BLC.device
    count = len(seeds)
    conditions = prompt.repeat(count)
    unconditions = empty_prompt.repeat(count) if empty_prompt is not None and guidance > 1.0 else None
    latents = {
        modality: group_noise(seeds, f"init/{modality}", shape).to(device)
        for modality, shape in backbone.latent_shapes().items()
    }
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        levels = {modality: sigma.expand(count).to(device) for modality in latents}
        with region.during(step) if region else nullcontext():
            velocity = backbone.velocity(latents, levels, conditions)
        if unconditions is not None:
            without = backbone.velocity(latents, levels, unconditions)
            velocity = {m: v + (guidance - 1.0) * (v - without[m]) for m, v in velocity.items()}
        latents = {m: euler_step(x, velocity[m], sigma, sigma_next) for m, x in latents.items()}
    for modality, latent in latents.items():
        if not torch.isfinite(latent).all():
            bad = [index for index in range(count) if not torch.isfinite(latent[index]).all()]
            raise NonFiniteError(f"{modality} latents of samples {bad} are not finite after {num_steps} steps")
    return latents
