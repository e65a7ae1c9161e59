"""Solver steps. Sigma falls from 1 (noise) to 0 (clean); the velocity is v = eps - x0, so dx/dsigma = v."""

from __future__ import annotations

from torch import Tensor


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step x + (sigma_next - sigma) * v in float32, in the order of operations of diffusers' scheduler.

    x and v: [B, T, C]; sigma and sigma_next: float32 scalars of the schedule.
    """
    return x.float() + (sigma_next - sigma) * v


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x_sigma = (1 - sigma) x0 + sigma eps (OmniNFT eq. 1). x0 and noise: [B, T, C]; sigma: [B]."""
    level = sigma.view(-1, *[1] * (x0.ndim - 1))
    return (1.0 - level) * x0 + level * noise


def clean_estimate(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """Return x0hat = x - sigma v. x and v: [B, T, C]; sigma: [B]."""
    return x - sigma.view(-1, *[1] * (x.ndim - 1)) * v
