"""Seeded noise: a draw is a function of a seed and a purpose (`accord.seeds`), never of what was drawn before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.seeds import derive_seed


def sample_noise(seed: int, purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Return standard normal float32 noise of `shape`, always drawn on the CPU so that devices agree."""
    generator = torch.Generator(device="cpu").manual_seed(derive_seed(seed, purpose))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def group_noise(seeds: Sequence[int], purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Return one independent draw per seed: float32 [G, *shape]. A sample's noise does not depend on its group."""
    return torch.stack([sample_noise(seed, purpose, shape) for seed in seeds])
