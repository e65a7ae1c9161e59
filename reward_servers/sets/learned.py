"""Embedders with weights: a model's view of a clip as one row.

* `clap`: unit embeddings of the sound's windows under a CLAP, their mean [D] (512 as published).
* `clip`: unit embeddings of eight evenly spaced frames under a CLIP, their mean [D] (512 for ViT-B/32).
* `ast`: shares of AudioSet's 527 classes of sound, softmax over an AST's logits, mean over windows [L]. AST learned
  each class by itself; as one distribution they are what a KL divergence and an inception score are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from accord.config.ast_dir import inspect_ast
from accord.config.clap_dir import inspect_clap_dir
from accord.config.clip_dir import CONFIG, inspect_clip_image
from accord.types import Clip
from reward_servers.models.audio_tags import AudioTagger, shares
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


class AstEmbedder:
    """Classes of the sound. Raises ModelError at construction."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._tagger = AudioTagger(inspect_ast(directory), device)
        self.digest = self._tagger.digest

    def __call__(self, clip: Clip) -> Floats:
        """[L], sums to 1."""
        return shares(self._tagger.logits(clip))


Learned = ClapEmbedder | ClipEmbedder | AstEmbedder


def load(name: str, directory: Path, device: str) -> Learned:
    """The embedder of that name from its directory. Raises ModelError."""
    kinds: dict[str, Callable[[Path, torch.device], Learned]] = {
        "clap": ClapEmbedder, "clip": ClipEmbedder, "ast": AstEmbedder
    }  # fmt: skip
    return kinds[name](directory, torch.device(device))
