"""Seeded noise: every draw is a function of a seed and a purpose, never of what was drawn before it.

Purposes in use: `init/video`, `init/audio` (where sampling starts), `train/video`, `train/audio` (noise of the loss),
`sde/video/<step>`, `sde/audio/<step>` (stochastic denoising steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accord.requests import derive_seed


def sample_noise(seed: int, purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Return standard normal float32 noise of `shape`, always drawn on the CPU so that devices agree."""
    generator = torch.Generator(device="cpu").manual_seed(derive_seed(seed, purpose))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def group_noise(seeds: Sequence[int], purpose: str, shape: Sequence[int]) -> torch.Tensor:
    """Return one independent draw per seed: float32 [G, *shape]. A sample's noise does not depend on its group."""
    return torch.stack([sample_noise(seed, purpose, shape) for seed in seeds])
