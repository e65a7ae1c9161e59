"""Frame preference by HPSv3.

Measures: how much people prefer a frame for `prompt_v`, as a normal distribution that a rank head on Qwen2-VL-7B gives:
(mu, sigma) at a reward token behind picture and text (Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference
Score", arXiv 2508.03789). A clip's value is the mean of the highest ceil(`best_share` * n) of min(mu, `cap`) over n
evenly spaced frames; with the defaults, 5 frames, 0.3 and 15, that is OmniNFT's.
Range: no bounds from below, `cap` from above; 0 to 15 on pictures of today's models. Higher is better.
Limits: it sees single frames, so it knows nothing of motion and of sound; a frame is scaled to about 256 visual tokens,
so fine detail is lost. bfloat16 moves a value by about 1e-2 with the company in a batch.
Known hacks: a still, poster-like, over-saturated picture. Train it beside a reward of motion, and hold VideoAlign's VQ
or the aesthetics out.

Files: `HPSv3.safetensors`, a Qwen2-VL-7B-Instruct directory for config, tokenizer and chat template, and the words that
the authors put around the prompt (`template`). Needs about 17 GB in bfloat16; the language head is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from typing_extensions import override

from accord.config.preference_dir import HPSv3Files
from accord.config.qwen_dir import HEAD, LM_HEAD, renamed
from accord.config.rewards.preference import HPSv3Reward
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.frames import evenly
from reward_servers.models.qwen import Look, QwenReader, in_chunks
from reward_servers.weight_files import digest


class HPSv3Model(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when a file is missing, torn, or does not fit the others.
    """

    def __init__(self, spec: HPSv3Reward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._spec = spec
        files = spec.fits(spec.below(), spec.words())
        self._template = files.template
        state = load_file(files.weights)
        self.head = rank_head(files, state)
        backbone = {
            renamed(name, old=files.old_names): tensor
            for name, tensor in state.items()
            if not name.startswith((HEAD, LM_HEAD))
        }
        device = spec.device if spec.device != "auto" else "cuda" if spec.num_gpus > 0 else "cpu"
        self.reader = QwenReader(files.base, backbone, spec.tokens, getattr(torch, spec.dtype), device)
        self.head.to(device)
        self.weights_digest = digest([files.weights, *files.base.files], files.template)

    @override
    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Score clips; frames of all of them share forwards, at most `max_visual_tokens` in each."""
        looks: list[Look] = []
        owners: list[int] = []
        for owner, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
            text = self.reader.ask(self._template, prompt.prompt_v, "image")
            for index in evenly(len(clip.video_FHWC), self._spec.frames):
                looks.append(self.reader.picture(clip.video_FHWC[index], text, self._spec.pixels))
                owners.append(owner)
        rated_N2 = np.empty((len(looks), 2))
        for chunk in in_chunks(looks, self._spec.max_visual_tokens):
            rated_N2[chunk] = self._rate([looks[place] for place in chunk])
        return [self._clip(rated_N2[[owned == owner for owned in owners]]) for owner in range(len(clips))]

    @torch.no_grad()
    def _rate(self, looks: Sequence[Look]) -> np.ndarray:
        """(mu, sigma) of pictures [B, 2]."""
        rated: np.ndarray = self.head(self.reader.read(looks)[:, 0]).double().cpu().numpy()
        return rated

    def _clip(self, rated_N2: np.ndarray) -> Score:
        best = np.sort(np.minimum(rated_N2[:, 0], self._spec.cap))[::-1]
        kept = best[: math.ceil(self._spec.best_share * len(best) - 1e-9)]
        mu, sigma = rated_N2.mean(axis=0)
        return Score(float(kept.mean()), {"mu": float(mu), "sigma": float(sigma), "frames": float(len(best))})


def rank_head(files: HPSv3Files, state: dict[str, torch.Tensor]) -> nn.Sequential:
    """Linear layers with a ReLU between any two, float32: hidden to (mu, sigma). Dropout is of the training alone."""
    parts: list[nn.Module] = []
    for place in files.head:
        weight, bias = state[f"{HEAD}{place}.weight"].float(), state[f"{HEAD}{place}.bias"].float()
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1]).requires_grad_(False)
