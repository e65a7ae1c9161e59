"""Held-out measures of generated latents against the clean world: how far, and how diverse.

Neither is ever a reward. Both work in a 16-dimensional principal component projection of the normalised, packed latents
that the transformer sees, fitted once on clean, synchronous clips of all captions and shipped as
`pretrained/clean_world.safetensors`.

Shapes: N clips, T tokens, C channels, D = T x C, K = 16 components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.types import MODALITIES, Modality

COMPONENTS = 16
CLEAN_WORLD = Path(__file__).parent / "pretrained" / "clean_world.safetensors"


@dataclass(frozen=True)
class WorldStatistics:
    """Projection and Gaussian of one modality of the clean world.

    `centre` [D] and `basis` [K, D] define the projection; `mean` [K] and `covariance` [K, K] describe the clean clips
    in it. All float32.
    """

    centre: Tensor
    basis: Tensor
    mean: Tensor
    covariance: Tensor

    def project(self, latents: Tensor) -> Tensor:
        """Latents [N, T, C] (or [N, D]) to coordinates [N, K].

        Raises:
            ValueError: if the latents have another size than those the statistics were fitted on.
        """
        flat = latents.flatten(1).float()
        if flat.shape[1] != len(self.centre):
            raise ValueError(f"latents have {flat.shape[1]} values a clip; the clean world has {len(self.centre)}")
        return (flat - self.centre) @ self.basis.T


def fit_statistics(latents: Tensor) -> WorldStatistics:
    """Fit projection and Gaussian on the latents [N, T, C] of clean clips."""
    flat = latents.flatten(1).double()
    centre = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - centre).T @ (flat - centre) / (len(flat) - 1))
    order = torch.argsort(values, descending=True)[:COMPONENTS]
    coordinates = (flat - centre) @ vectors[:, order]
    return WorldStatistics(
        centre.float(),
        vectors[:, order].T.float().contiguous(),
        coordinates.mean(0).float(),
        torch.cov(coordinates.T).float(),
    )


def save_clean_world(statistics: Mapping[Modality, WorldStatistics], path: Path = CLEAN_WORLD) -> None:
    """Write the statistics of both modalities into one safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{name}.{key}": value for name in MODALITIES for key, value in vars(statistics[name]).items()}, path)


def load_clean_world(path: Path = CLEAN_WORLD) -> dict[Modality, WorldStatistics]:
    """The statistics of the clean world by modality, `video` and `audio`."""
    tensors = load_file(path)
    keys = WorldStatistics.__dataclass_fields__
    return {name: WorldStatistics(**{key: tensors[f"{name}.{key}"] for key in keys}) for name in MODALITIES}


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0.0).sqrt()) @ vectors.T


def frechet_distance(latents: Tensor, statistics: WorldStatistics) -> float:
    """Fréchet distance of generated latents [N, T, C] to the clean world, `|m1 - m2|^2 + tr(A + B - 2 (AB)^1/2)`.

    Range [0, inf), lower is better. Limits: it assumes Gaussians, it is biased upwards for small N (use at least 64 and
    the same N in comparisons), and it compares with *all* captions evenly, so the captions should be even too.

    Raises:
        ValueError: for fewer than two clips or latents of the wrong size.
    """
    if len(latents) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 clips, got {len(latents)}")
    coordinates = statistics.project(latents).double()
    mean, covariance = coordinates.mean(0), torch.cov(coordinates.T)
    clean_mean, clean = statistics.mean.double(), statistics.covariance.double()
    root = _root(clean)
    cross = _root(root @ covariance @ root)
    distance = (mean - clean_mean).square().sum() + (covariance + clean - 2.0 * cross).trace()
    return max(0.0, float(distance))


def diversity(latents: Tensor, statistics: WorldStatistics) -> float:
    """Mean distance between pairs of clips [N, T, C] in the projection. Range [0, inf); compare with the value of clean
    clips of the same captions: much less means collapse, much more means noise.

    Raises:
        ValueError: for fewer than two clips or latents of the wrong size.
    """
    if len(latents) < 2:
        raise ValueError(f"diversity needs at least 2 clips, got {len(latents)}")
    return float(torch.pdist(statistics.project(latents)).mean())
