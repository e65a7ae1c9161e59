"""Guidance: one velocity from the conditional pass and up to three weaker ones, per modality.

    v_g = v + (text - 1)(v - v_empty) + stg (v - v_perturbed) + (modality - 1)(v - v_isolated)

v_empty answers the empty prompt (classifier-free guidance), v_perturbed comes from a pass whose self-attention is
skipped in some blocks (spatio-temporal guidance, arXiv 2411.18664), v_isolated from one in which the modalities do not
see each other. Guiding velocities is guiding clean estimates, x0 = x - sigma v, since both are linear; rescaling
(arXiv 2305.08891, section 3.4) is not, and happens on clean estimates. A term that is off for both modalities costs no
forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from accord.backbones.base import Backbone, Conditions, IsolatesModalities, Latents, SkipsSelfAttention, demanded
from accord.diffusion.solver import clean_estimate
from accord.types import Guidance, Modality, Scales


def guided_velocity(
    backbone: Backbone,
    guidance: Guidance,
    latents: Latents,
    sigmas: Mapping[Modality, Tensor],
    conditions: Conditions,
    empty: Conditions | None,
    watching: AbstractContextManager[None] | None = None,
) -> dict[Modality, Tensor]:
    """Return the velocity to step along, float32 [G, T, C] per modality.

    Args:
        backbone: the model with the role that samples.
        guidance: which terms, and how strong.
        latents: [G, T, C] per modality.
        sigmas: [G] per modality, above 0.
        conditions: G rows.
        empty: G rows of the empty prompt; None = no classifier-free guidance.
        watching: entered around the conditional pass alone.

    Raises SpecError for a term whose weaker pass the model cannot compute.
    """
    with watching or nullcontext():
        conditional = backbone.velocity(latents, sigmas, conditions)
    velocity = conditional
    if empty is not None and guidance.reads_empty_prompt:
        velocity = _away(velocity, conditional, backbone.velocity(latents, sigmas, empty), guidance.text, off=1.0)
    if any(scale > 0.0 for scale in guidance.stg.values()):
        model = demanded(backbone.velocity_model, SkipsSelfAttention, "/sampling/stg_scale")
        with model.skipping_self_attention(guidance.blocks):
            weaker = backbone.velocity(latents, sigmas, conditions)
        velocity = _away(velocity, conditional, weaker, guidance.stg, off=0.0)
    if any(scale > 1.0 for scale in guidance.modality.values()):
        with demanded(backbone.velocity_model, IsolatesModalities, "/sampling/modality_scale").isolating_modalities():
            weaker = backbone.velocity(latents, sigmas, conditions)
        velocity = _away(velocity, conditional, weaker, guidance.modality, off=1.0)
    if velocity is conditional:
        return conditional
    return {
        m: _rescaled(v, conditional[m], latents[m], sigmas[m], guidance.rescale.get(m, 0.0))
        for m, v in velocity.items()
    }


def _away(
    velocity: Mapping[Modality, Tensor],
    conditional: Mapping[Modality, Tensor],
    weaker: Mapping[Modality, Tensor],
    scales: Scales,
    off: float,
) -> dict[Modality, Tensor]:
    """Add the step from the weaker prediction to the conditional one, (scale - off) times as long."""
    return {m: v + (scales.get(m, off) - off) * (conditional[m] - weaker[m]) for m, v in velocity.items()}


def _rescaled(guided: Tensor, conditional: Tensor, x: Tensor, sigma: Tensor, share: float) -> Tensor:
    """Mix `share` of the guided clean estimate at the conditional one's standard deviation into it, as a velocity.

    Shapes: [G, T, C], sigma [G]; the deviation is that of all elements of a sample.
    """
    if share == 0.0:
        return guided
    clean, target = clean_estimate(x, guided, sigma), clean_estimate(x, conditional, sigma)
    ratio = target.std(dim=(1, 2), keepdim=True) / clean.std(dim=(1, 2), keepdim=True)
    return (x - (share * clean * ratio + (1.0 - share) * clean)) / sigma.view(-1, 1, 1)
