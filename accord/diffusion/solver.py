"""Solver steps. Sigma falls from 1 (noise) to 0 (clean); the velocity is v = eps - x0, so dx/dsigma = v.

A stochastic step draws the next state from a Gaussian. Its moments and its log-density are written here once, for the
sampler that draws and for the learner that looks again, so that equal inputs give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

NoiseKind = Literal["flow", "dance"]


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


def sde_moments(
    kind: NoiseKind, eta: float, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean [B, T, C] and standard deviation [B, 1, 1] of the next state of a stochastic step.

    With dt = sigma_next - sigma < 0 and the noise rate g of that kind and eta, Euler-Maruyama on the SDE that has the
    marginals of dx/dsigma = v (Flow-GRPO; its score is -(x + (1 - sigma) v) / sigma):

        mean = x (1 + g^2 / (2 sigma) dt) + v (1 + g^2 (1 - sigma) / (2 sigma)) dt        std = g sqrt(-dt)

    x and v: [B, T, C]; sigma and sigma_next: [B], 1 >= sigma > sigma_next >= 0. Computes in the type of its inputs.
    """
    s, s_next = sigma.view(-1, 1, 1), sigma_next.view(-1, 1, 1)
    dt = s_next - s
    rate = _NOISE_RATES[kind](eta, s, s_next)
    pull = rate.square() / (2 * s)
    mean = x * (1 + pull * dt) + v * ((1 + pull * (1 - s)) * dt)
    return mean, rate * torch.sqrt(-dt)


def log_density(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Mean over elements of log N(x; mean, std^2), one number per row [B]; x and mean: [B, T, C], std: [B, 1, 1].

    The mean instead of the sum keeps the number of order 1 for any clip size; a ratio of two is then the geometric mean
    of the elements' ratios.
    """
    each = -((x - mean) / std).square() / 2 - torch.log(std) - math.log(2 * math.pi) / 2
    return each.mean((1, 2))


def _flow_rate(eta: float, s: Tensor, s_next: Tensor) -> Tensor:
    """Rate eta sqrt(s / (1 - s)); at s = 1, where that is infinite, 1 - s is taken at the step's end, as published."""
    return eta * torch.sqrt(s / (1 - torch.where(s < 1, s, s_next)))


def _dance_rate(eta: float, s: Tensor, _s_next: Tensor) -> Tensor:
    return torch.full_like(s, eta)


_NOISE_RATES: Mapping[NoiseKind, Callable[[float, Tensor, Tensor], Tensor]] = {"flow": _flow_rate, "dance": _dance_rate}
