"""How beautiful single frames are, by LAION's two heads on CLIP L/14.

Measures: a rating of 1 to 10 that a head gives for the unit image feature of OpenAI's CLIP ViT-L/14, over 10, averaged
over evenly spaced frames (Schuhmann et al. 2022, "LAION-5B", arXiv 2210.08402).
* `laion_aesthetic`: the second predictor, linear layers of 768-1024-128-64-16-1 without anything between them.
* `aesthetic_quality`: the first, one linear layer; this is VBench's dimension of that name (arXiv 2311.17982). VBench
  looks at every frame (`frames = 4096`) and shrinks without smoothing, so its number differs in the third digit.
Range: no hard bounds; 0.3 to 0.7 on real pictures. Higher is better.
Limits: blind to prompt, motion and sound; sees the middle square of a frame at 224 x 224.
Known hacks: painterly, glossy, over-saturated stills; a blurred ground. Train it beside a reward that reads the prompt
and one of motion.

Files: `sac+logos+ava1-l14-linearMSE.pth` or `sa_0_4_vit_l_14_linear.pth`, and a transformers directory of
clip-vit-large-patch14, of which the image tower alone is read: 1.2 GB.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from accord.config.clip_dir import CONFIG, inspect_clip_image
from accord.config.rewards.picture import AestheticQualityReward, LaionAestheticReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.clip import ImageTower, State, read_clip
from reward_servers.models.frames import evenly, mean_of
from reward_servers.weight_files import digest, load_tensors

LINEAR_LAYERS = r"layers\.(\d+)\.weight"
"""Names of weights that stand in a sequence."""


class LaionAestheticModel(RewardModel):
    """Mean rating of frames. Raises ModelError at construction, when files are missing, torn, or unlike."""

    pattern = LINEAR_LAYERS
    """Names of the head's weights."""

    def __init__(self, spec: LaionAestheticReward | AestheticQualityReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._frames = spec.frames
        device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        weights = read_clip(inspect_clip_image(spec.base_root))
        self.head = linear_head(
            spec.weights, load_tensors(spec.weights), self.pattern, int(weights.config.projection_dim)
        )
        self.head.to(device)
        self.images = ImageTower(weights, device)
        self.weights_digest = digest([spec.weights, weights.file, spec.base_root / CONFIG])

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The mean over frames; lowest and highest are its components."""
        chosen = [clip.video_FHWC[place] for place in evenly(len(clip.video_FHWC), self._frames)]
        rated_F: np.ndarray = self.head(self.images.embed(chosen))[:, 0].double().cpu().numpy()
        return mean_of(rated_F / 10.0)


class AestheticQualityModel(LaionAestheticModel):
    """The same with one linear layer."""

    pattern = r"()weight"


def linear_head(file: Path, state: State, pattern: str, wide: int) -> nn.Sequential:
    """Linear layers one after another, from `wide` numbers to one. Raises ModelError for anything else."""
    found = {int(match[1] or 0): name for name in state if (match := re.fullmatch(pattern, name))}
    layers: list[nn.Module] = []
    for _, name in sorted(found.items()):
        weight, bias = state[name], state.get(f"{name.removesuffix('weight')}bias")
        if weight.ndim != 2 or weight.shape[1] != wide or bias is None or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} with a bias of {None if bias is None else tuple(bias.shape)}"
            raise ModelError(f"{file}: {name} is {shapes} and gets {wide} numbers; is it for this model?")
        wide = int(weight.shape[0])
        linear = nn.Linear(weight.shape[1], wide)
        linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(linear)
    if not layers or wide != 1 or len(state) != 2 * len(layers):
        raise ModelError(f"{file}: holds no head that ends in one number, but {', '.join(sorted(state)[:3])}; "
                         "take the published file")  # fmt: skip
    return nn.Sequential(*layers).requires_grad_(False)
