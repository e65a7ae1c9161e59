"""Embedders with weights: a model's view of a clip as one row.

* `clap`: unit embeddings of the sound's windows under a CLAP, their mean [D] (512 as published).
* `clip`: unit embeddings of eight evenly spaced frames under a CLIP, their mean [D] (512 for ViT-B/32).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from accord.config.clap_dir import inspect_clap_dir
from accord.config.clip_dir import CONFIG, inspect_clip_image
from accord.types import Clip
from reward_servers.models.clap import ClapTowers
from reward_servers.models.clip import ImageTower, read_clip
from reward_servers.models.frames import evenly
from reward_servers.sets.measures import Floats
from reward_servers.weight_files import digest

FRAMES = 8


class ClapEmbedder:
    """Of the sound. Raises ModelError at construction."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._towers = ClapTowers(inspect_clap_dir(str(directory)), device)
        self.digest = self._towers.digest

    def __call__(self, clip: Clip) -> Floats:
        """[D]."""
        rows = torch.stack(self._towers.sound(clip)).double().cpu().numpy()
        return np.asarray(rows.mean(axis=0))


class ClipEmbedder:
    """Of the picture. Raises ModelError at construction."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        torch.set_num_threads(1)
        weights = read_clip(inspect_clip_image(directory))
        self._images = ImageTower(weights, device)
        self.digest = digest([weights.file, directory / CONFIG])

    def __call__(self, clip: Clip) -> Floats:
        """[D]."""
        frames = [clip.video_FHWC[place] for place in evenly(len(clip.video_FHWC), FRAMES)]
        return np.asarray(self._images.embed(frames).double().cpu().numpy().mean(axis=0))


def load(name: str, directory: Path, device: str) -> ClapEmbedder | ClipEmbedder:
    """The embedder of that name from its directory. Raises ModelError."""
    kinds: dict[str, type[ClapEmbedder] | type[ClipEmbedder]] = {"clap": ClapEmbedder, "clip": ClipEmbedder}
    return kinds[name](directory, torch.device(device))
