"""How well single frames fit a text: CLIP score, PickScore, HPSv2.1.

Measures: the cosine c of a frame and `prompt_v` under a CLIP, averaged over evenly spaced frames.
* `clip_score`: c under any CLIP, as OpenAI's ViT-B/32 (Hessel et al. 2021, "CLIPScore", arXiv 2104.08718; without its
  factor of 2.5). 0.2 to 0.35 where text and frame fit.
* `pickscore`: exp(logit_scale) * c under a CLIP-H tuned on choices of people (Kirstain et al. 2023, "Pick-a-Pic",
  arXiv 2305.01569), 100 c as published. 18 to 24 on today's pictures.
* `hpsv2`: c under another, HPSv2.1 (Wu et al. 2023, arXiv 2306.09341), without scale. 0.2 to 0.35.
Range: -1 to 1, for PickScore -100 to 100. Higher is better.
Limits: frames are seen at 224 x 224 and alone: nothing of motion, sound, fine detail. CLIP score and PickScore see the
middle square of a frame only, HPSv2 the whole with black bars. 77 tokens of a text are read, the rest is cut off.
Known hacks: written words of the prompt in the picture (CLIP reads); a still, poster-like picture (PickScore, HPSv2).
Train them beside a reward of motion, hold one of the three out.

Files: a transformers `CLIPModel` directory, or `HPS_v2.1_compressed.pt` (open_clip's names below `state_dict`), and a
CLIP's `tokenizer.json`; PickScore's and HPSv2's is that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K. CLIP-H in float32
takes 4 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from typing_extensions import override

from accord.config.clip_dir import CONFIG, SCALE, TOKENIZER, inspect_clip
from accord.config.rewards.picture import ClipScoreReward, HPSv2Reward, PickScoreReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.clip import ClipWeights, ImageTower, TextTower, read_clip, read_open_clip
from reward_servers.models.frames import Picture, cropped, evenly, mean_of, padded
from reward_servers.weight_files import digest, load_tree, tensors_of

TextFramesReward = ClipScoreReward | PickScoreReward | HPSv2Reward


class ClipScoreModel(RewardModel):
    """Mean cosine of frames and text. Raises ModelError at construction, when files are missing, torn, or unlike."""

    fit: Callable[[Picture, int], Picture] = staticmethod(cropped)

    def __init__(self, spec: TextFramesReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._frames = spec.frames
        device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        weights = self.read(spec)
        tokenizer = spec.tokenizer_root / TOKENIZER
        self.texts = TextTower(weights, tokenizer, device)
        self.images = ImageTower(weights, device)
        self._scale = self.scale(weights)
        config = [] if spec.weight_files else [spec.weights / CONFIG]
        self.weights_digest = digest([weights.file, *config, tokenizer])

    def read(self, spec: TextFramesReward) -> ClipWeights:
        """Config and weights."""
        return read_clip(inspect_clip(spec.weights))

    def scale(self, weights: ClipWeights) -> float:
        """What cosines are multiplied by."""
        del weights
        return 1.0

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The mean over frames; lowest and highest are its components."""
        text_D = self.texts.embed(prompt.prompt_v)
        chosen = [clip.video_FHWC[place] for place in evenly(len(clip.video_FHWC), self._frames)]
        cosines_F: np.ndarray = (self.images.embed(chosen, self.fit) @ text_D).double().cpu().numpy()
        return mean_of(self._scale * np.clip(cosines_F, -1.0, 1.0))


class PickScoreModel(ClipScoreModel):
    """Mean scaled cosine under PickScore's CLIP."""

    @override
    def scale(self, weights: ClipWeights) -> float:
        """exp(logit_scale), as trained."""
        tensor = weights.state.get(SCALE)
        if tensor is None or tensor.numel() != 1 or not 0.0 < float(tensor.float().exp()) <= 100.5:
            raise ModelError(
                f"{weights.file}: has no {SCALE} up to ln 100, which PickScore multiplies by; copy it again"
            )
        return float(tensor.double().exp())


class HPSv2Model(ClipScoreModel):
    """Mean cosine under HPSv2.1's CLIP, on whole frames with bars."""

    fit = staticmethod(padded)

    @override
    def read(self, spec: TextFramesReward) -> ClipWeights:
        """Weights by open_clip's names, below `state_dict`."""
        tree = load_tree(spec.weights)
        return read_open_clip(spec.weights, tensors_of(spec.weights, tree.get("state_dict")))
