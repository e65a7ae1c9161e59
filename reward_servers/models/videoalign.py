"""Visual quality, motion quality and text alignment by VideoAlign's VideoReward.

Measures: three ratings that people gave to generated videos, by three rows on Qwen2-VL-2B, each read at a token of its
own behind the frames and `prompt_v` (Liu et al. 2025, "Improving Video Generation with Human Feedback",
arXiv 2501.13918). They are normalised by the constants in the checkpoint's config. The value is (VQ + TA) / 2 as in
OmniNFT, or what `aggregate` names.
Range: none; mostly -3 to 3 after normalising. Higher is better.
Limits: it sees 2 frames a second (`fps`), 4 at least, so fast motion passes it by; two frames share a patch; no sound.
It was trained at 2 frames a second: a higher `fps` is another score, not a better one. bfloat16 moves a value by about
1e-2 with the company in a batch.
Known hacks: MQ likes little motion, VQ what HPSv3 likes; train MQ beside a reward of dynamics.

Files: see `accord.config.video_reward_dir`; the base is Qwen2-VL-2B-Instruct, whose weights are read for a LoRA alone.
Needs about 4.5 GB in bfloat16; the language head is not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from typing_extensions import override

from accord.config.preference_dir import refuse_other_backbone
from accord.config.qwen_dir import EMBEDDING, HEAD, LM_HEAD, has_old_names, renamed
from accord.config.rewards.preference import VideoAlignReward
from accord.config.video_reward_dir import ADAPTER, AXES, BESIDES, MERGED, VideoRewardFiles, refuse_other_heads
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.qwen import FACTOR, Look, QwenReader, in_chunks
from reward_servers.weight_files import digest, load_tensors

LEAST_PIXELS = 128 * FACTOR**2
LEAST_FRAMES = 4
_WRAPPED = "base_model.model."


class VideoAlignModel(RewardModel):
    """The checkpoint at `spec.path`.

    Raises:
        ModelError: at construction, when a file is missing, torn, or does not fit the others.
    """

    def __init__(self, spec: VideoAlignReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._spec = spec
        files = spec.fits(spec.below(), spec.words())
        self._template, self._norms = files.template, files.norms if spec.normalise else {}
        state = whole(files)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        refuse_other_heads(files.checkpoint, shapes, int(files.base.text["hidden_size"]))
        del shapes[f"{HEAD}weight"]
        refuse_other_backbone(files.checkpoint, shapes, files.base)
        device = spec.device if spec.device != "auto" else "cuda" if spec.num_gpus > 0 else "cpu"
        self.heads_3D = state.pop(f"{HEAD}weight").float().to(device)
        self.reader = QwenReader(files.base, state, spec.tokens, getattr(torch, spec.dtype), device)
        self.weights_digest = digest([*files.weights, *files.base.files], files.template)

    @override
    def score_batch(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> list[Score]:
        """Score clips, those of like size together, at most `max_visual_tokens` in a forward."""
        looks = [self._look(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]
        rated_B3 = np.empty((len(looks), 3))
        for chunk in in_chunks(looks, self._spec.max_visual_tokens):
            rated_B3[chunk] = self._rate([looks[place] for place in chunk])
        return [self._score(rated, 2 * look.grid[0]) for rated, look in zip(rated_B3, looks, strict=True)]

    def _look(self, prompt: Prompt, clip: Clip) -> Look:
        places = looked_at(len(clip.video_FHWC), clip.fps, self._spec.fps, self._spec.max_looked_at)
        text = self.reader.ask(self._template, prompt.prompt_v, "video")
        size = (min(LEAST_PIXELS, self._spec.pixels), self._spec.pixels)
        return self.reader.video(clip.video_FHWC[places], text, size)

    @torch.no_grad()
    def _rate(self, looks: Sequence[Look]) -> np.ndarray:
        """Raw values [B, 3]: each head at its own token."""
        rated: np.ndarray = (self.reader.read(looks) * self.heads_3D).sum(-1).double().cpu().numpy()
        return rated

    def _score(self, rated_3: np.ndarray, frames: int) -> Score:
        parts = {axis: float(value) for axis, value in zip(AXES, rated_3, strict=True)}
        for axis, (mean, spread) in self._norms.items():
            parts[axis] = (parts[axis] - mean) / spread
        values = parts | {"vq_ta": (parts["vq"] + parts["ta"]) / 2, "overall": parts["vq"] + parts["mq"] + parts["ta"]}
        return Score(values[self._spec.aggregate], parts | {"frames": float(frames)})


def looked_at(total: int, clip_fps: float, fps: float, most: int) -> list[int]:
    """Indices of an even number of frames from the first to the last, about `fps` for each second.

    Four at least where the clip has them, and no more than `most`.
    """
    ceiling = min(most, total) // 2 * 2
    count = round(min(max(total / clip_fps * fps, LEAST_FRAMES), ceiling) / 2) * 2
    return [int(place) for place in torch.linspace(0, total - 1, count).round()]


def whole(files: VideoRewardFiles) -> dict[str, torch.Tensor]:
    """All tensors by the later names, a LoRA merged in; without the language head.

    Raises:
        ModelError: a LoRA beside weights that it does not fit, or without the embeddings of its own tokens.
    """
    if not files.adapted:
        return _merged(files.checkpoint / MERGED, _named(load_tensors(files.checkpoint / MERGED)), files.lora_scale)
    state: dict[str, torch.Tensor] = {}
    for file in files.base_weights:
        state |= _named(load_file(file))
    besides = _named(load_tensors(files.checkpoint / BESIDES))
    if EMBEDDING not in besides:
        raise ModelError(f"{files.checkpoint / BESIDES}: lacks the embeddings, in which the reward's tokens are")
    unknown = sorted(name for name in besides.keys() - state.keys() if not name.startswith(HEAD))
    if unknown:
        raise ModelError(f"{files.checkpoint / BESIDES}: holds {unknown[0]}, which the base has not")
    adapter = _named(load_file(files.checkpoint / ADAPTER))
    return _merged(files.checkpoint / ADAPTER, state | besides | adapter, files.lora_scale)


def _named(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The later names, without what peft wraps around a layer, and without the language head."""
    bare = {name.removeprefix(_WRAPPED).replace(".base_layer.", "."): tensor for name, tensor in state.items()}
    bare = {name.replace(".default.", "."): tensor for name, tensor in bare.items()}
    old = has_old_names(bare)
    return {renamed(name, old=old): tensor for name, tensor in bare.items() if not name.startswith(LM_HEAD)}


def _merged(where: Path, state: dict[str, torch.Tensor], scale: float | None) -> dict[str, torch.Tensor]:
    """Each layer's weight plus scale * B A, summed in float32; names of a LoRA's own are gone."""
    kept = {name: tensor for name, tensor in state.items() if ".lora_" not in name}
    layers = {name.partition(".lora_")[0] for name in state.keys() - kept.keys()}
    if layers and scale is None:
        raise ModelError(f"{where}: holds a LoRA, and no config says its rank and alpha; merge it")
    for layer in sorted(layers):
        down_RI, up_OR = state.get(f"{layer}.lora_A.weight"), state.get(f"{layer}.lora_B.weight")
        weight_OI = kept.get(f"{layer}.weight")
        if up_OR is None or down_RI is None or weight_OI is None or not _fits(up_OR, down_RI, weight_OI):
            raise ModelError(f"{where}: its LoRA of {layer} does not fit the weights below; take the base it is for")
        added = (scale or 0.0) * (up_OR.float() @ down_RI.float())
        kept[f"{layer}.weight"] = (weight_OI.float() + added).to(weight_OI.dtype)
    return kept


def _fits(up_OR: torch.Tensor, down_RI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    matrices = up_OR.ndim == down_RI.ndim == 2
    return matrices and up_OR.shape[1] == down_RI.shape[0] and (up_OR.shape[0], down_RI.shape[1]) == weight_OI.shape
