"""Stochastic steps against loops over the printed equations, torch's normal density, and the ODE's marginals."""

import math
from itertools import pairwise

import pytest
import torch

from accord.config.grpo import DynamicsSpec
from accord.diffusion.solver import clean_estimate, log_density, noised, sde_moments

B, T, C = 3, 4, 2
FLOW, DANCE = DynamicsSpec(kind="flow", eta=0.7), DynamicsSpec(kind="dance", eta=0.25)


def printed(dynamics: DynamicsSpec, x: float, v: float, s: float, s_next: float) -> tuple[float, float]:
    """Mean and standard deviation of one element, each paper's own way of writing it."""
    dt = s_next - s
    if dynamics.kind == "flow":
        std = dynamics.eta * math.sqrt(s / (1 - (s if s < 1 else s_next)))
        mean = x * (1 + std**2 / (2 * s) * dt) + v * (1 + std**2 * (1 - s) / (2 * s)) * dt
        return mean, std * math.sqrt(-dt)
    clean = x - s * v
    score = -(x - (1 - s) * clean) / s**2
    return x + dt * v - 0.5 * dynamics.eta**2 * score * dt, dynamics.eta * math.sqrt(-dt)


def drawn(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x, v, noise = (torch.randn(B, T, C, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    return x, v, noise, torch.tensor([1.0, 0.6, 0.2], dtype=dtype), torch.tensor([0.9, 0.5, 0.1], dtype=dtype)


@pytest.mark.parametrize("dynamics", [FLOW, DANCE], ids=lambda spec: spec.kind)
def test_moments_are_as_printed(dynamics):
    x, v, _, sigma, sigma_next = drawn()
    mean, std = sde_moments(dynamics.kind, dynamics.eta, x, v, sigma, sigma_next)
    for b in range(B):
        for t in range(T):
            for c in range(C):
                expected = printed(
                    dynamics, float(x[b, t, c]), float(v[b, t, c]), float(sigma[b]), float(sigma_next[b])
                )
                assert (float(mean[b, t, c]), float(std[b])) == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("dynamics", [FLOW, DANCE], ids=lambda spec: spec.kind)
def test_density_is_torchs(dynamics):
    x, v, noise, sigma, sigma_next = drawn()
    mean, std = sde_moments(dynamics.kind, dynamics.eta, x, v, sigma, sigma_next)
    after = mean + std * noise
    expected = torch.distributions.Normal(mean, std.expand_as(mean)).log_prob(after).mean((1, 2))
    torch.testing.assert_close(log_density(after, mean, std), expected, rtol=1e-12, atol=1e-12)


def test_a_row_does_not_depend_on_its_batch():
    x, v, noise, sigma, sigma_next = drawn(torch.float32)
    mean, std = sde_moments(FLOW.kind, FLOW.eta, x, v, sigma, sigma_next)
    whole = log_density(mean + std * noise, mean, std)
    assert whole.dtype == torch.float32
    for b in range(B):
        row = slice(b, b + 1)
        alone = sde_moments(FLOW.kind, FLOW.eta, x[row], v[row], sigma[row], sigma_next[row])
        assert torch.equal(alone[0], mean[row]) and torch.equal(alone[1], std[row])
        torch.testing.assert_close(log_density((mean + std * noise)[row], *alone), whole[row], rtol=1e-6, atol=0)


DATA_STD = 0.5


def variance(s: float) -> float:
    """Of x_s when the clean samples are N(0, DATA_STD^2)."""
    return (1 - s) ** 2 * DATA_STD**2 + s**2


def simulated(dynamics: DynamicsSpec, steps: int) -> float:
    """Variance at sigma 0.1 of the stochastic chain that starts right at sigma 0.9, with the exact velocity."""
    levels = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    found, one = variance(0.9), torch.ones(1, 1, 1, dtype=torch.float64)
    for s, s_next in pairwise(levels):
        slope = (s - (1 - s) * DATA_STD**2) / variance(float(s))  # E[eps - x0 | x] = slope x
        mean, std = sde_moments(dynamics.kind, dynamics.eta, one, slope * one, s.view(1), s_next.view(1))
        found = float(mean) ** 2 * found + float(std) ** 2
    return found


@pytest.mark.parametrize("dynamics", [FLOW, DynamicsSpec(kind="dance", eta=0.8)], ids=lambda spec: spec.kind)
def test_noise_keeps_the_marginals_of_the_ode(dynamics):
    coarse, fine = (abs(simulated(dynamics, steps) / variance(0.1) - 1) for steps in (150, 300))
    assert fine < 0.02
    assert fine / coarse == pytest.approx(0.5, abs=0.05)  # what is left is the step's length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_order_of_operations_is_fixed(dtype):
    """Trained bits hang on it: each line is the arithmetic as the paper writes it, from left to right."""
    x, other, _, sigma, _ = drawn(dtype)
    level = sigma.view(-1, 1, 1)
    assert torch.equal(noised(x, other, sigma), (1 - level) * x + level * other)
    assert torch.equal(clean_estimate(x, other, sigma), x - level * other)
