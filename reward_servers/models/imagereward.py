"""How much people like single frames for a text, by ImageReward.

Measures: a BERT reads `prompt_v` while it looks at the frame through a ViT-L/16 (BLIP); linear layers read its first
token; (x - 0.16717) / 1.03334 has mean 0 and spread 1 on the authors' pictures (Xu et al. 2023, "ImageReward", arXiv
2304.05977). A clip's value is the mean over evenly spaced frames.
Range: no hard bounds, about -2 to 2. Higher is better.
Limits: frames are seen alone, their middle square at 224 x 224: nothing of motion and sound. 35 tokens of a text are
read, the rest is cut off.
Known hacks: over-saturated, high-contrast stills; a large single subject. Train it beside a reward of motion.

Files: `ImageReward.pt` with `med_config.json`, and the `tokenizer.json` of bert-base-uncased; 1.8 GB in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.initialization import no_init_weights
from transformers.models.blip.modeling_blip_text import BlipTextModel
from typing_extensions import override

from accord.config.clip_dir import TOKENIZER
from accord.config.imagereward_files import MED_CONFIG, inspect_imagereward
from accord.config.rewards.picture import ImageRewardReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.aesthetic import LINEAR_LAYERS, linear_head
from reward_servers.models.frames import cropped, evenly, mean_of, pixels
from reward_servers.models.tokens import read_tokenizer
from reward_servers.weight_files import digest, fill, load_tensors

MEAN, STD = 0.16717362830052426, 1.0333394966054072
_TOKENS = 35
_HEAD = 64
"""Width of a head in the ViT; no weight tells."""
_AT_ONCE = 16
"""Most frames in a forward."""
_EYES, _WORDS, _JUDGE = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_DERIVED = f"{_WORDS}embeddings.position_ids"
_NAMES = (
    ("cls_token", "embeddings.class_embedding"), ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."), ("norm.", "post_layernorm."),
)  # fmt: skip
_IN_BLOCK = {".norm1.": ".layer_norm1.", ".norm2.": ".layer_norm2.", ".attn.qkv.": ".self_attn.qkv.",
             ".attn.proj.": ".self_attn.projection."}  # fmt: skip


class ImageRewardModel(RewardModel):
    """The checkpoint at `spec.path`. Raises ModelError at construction, when files are missing, torn, or unlike."""

    def __init__(self, spec: ImageRewardReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._frames = spec.frames
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        med = inspect_imagereward(str(spec.weights))
        state = dict(_renamed(load_tensors(spec.weights)))
        self.eyes, self.words = built(spec.weights, state, med)
        judge = {name.removeprefix(_JUDGE): tensor for name, tensor in state.items() if name.startswith(_JUDGE)}
        self.judge = linear_head(spec.weights, judge, LINEAR_LAYERS, int(med["hidden_size"]))
        for part in (self.eyes, self.words, self.judge):
            part.to(self._device)
        self.side = int(self.eyes.config.image_size)
        tokenizer = spec.tokenizer_root / TOKENIZER
        self._tokenizer = read_tokenizer(tokenizer, int(self.words.config.vocab_size), _TOKENS)
        self.weights_digest = digest([spec.weights, spec.weights.with_name(MED_CONFIG), tokenizer])

    @override
    @torch.no_grad()
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The mean over frames; lowest and highest are its components."""
        ids_T = torch.tensor(self._tokenizer.encode(prompt.prompt_v).ids, device=self._device)
        chosen = [clip.video_FHWC[place] for place in evenly(len(clip.video_FHWC), self._frames)]
        rated = []
        for at in range(0, len(chosen), _AT_ONCE):
            seen = pixels(chosen[at : at + _AT_ONCE], cropped, self.side).to(self._device)
            patches = self.eyes(pixel_values=seen).last_hidden_state
            read = self.words(
                input_ids=ids_T.expand(len(seen), -1), encoder_hidden_states=patches, is_decoder=False, use_cache=False
            )
            rated.append(self.judge(read.last_hidden_state[:, 0])[:, 0])
        rated_F: np.ndarray = torch.cat(rated).double().cpu().numpy()
        return mean_of((rated_F - MEAN) / STD)


def built(file: Path, state: Mapping[str, torch.Tensor], med: Mapping[str, Any]) -> tuple[Any, Any]:
    """ViT and BERT with their weights. Raises ModelError when the file holds others."""
    for name in state:
        if not name.startswith((_EYES, _WORDS, _JUDGE)):
            raise ModelError(f"{file}: holds the unknown {name}; take the published ImageReward.pt")
    eyes, words = (
        {name.removeprefix(at): tensor.float() for name, tensor in state.items() if name.startswith(at)}
        for at in (_EYES, _WORDS)
    )
    try:
        with no_init_weights():
            models = BlipVisionModel(_vision(eyes)), BlipTextModel(_text(words, med), add_pooling_layer=False)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{file}: does not hold ImageReward ({error!r}); take the published ImageReward.pt") from error
    for model, weights in zip(models, (eyes, words), strict=True):
        fill(file, model, weights)
    return models


def _vision(state: Mapping[str, torch.Tensor]) -> BlipVisionConfig:
    inner, wide = state["encoder.layers.0.mlp.fc1.weight"].shape
    patch = state["embeddings.patch_embedding.weight"].shape[-1]
    if wide % _HEAD:
        raise ValueError(f"{wide} wide with heads of {_HEAD}")
    return BlipVisionConfig(
        hidden_size=wide, intermediate_size=inner, num_attention_heads=wide // _HEAD, patch_size=patch,
        num_hidden_layers=sum(name.endswith(".mlp.fc1.weight") for name in state), layer_norm_eps=1e-6,
        image_size=round((state["embeddings.position_embedding"].shape[1] - 1) ** 0.5) * patch,
    )  # fmt: skip


def _text(state: Mapping[str, torch.Tensor], med: Mapping[str, Any]) -> BlipTextConfig:
    rows, wide = state["embeddings.word_embeddings.weight"].shape
    if wide != med["hidden_size"]:
        raise ValueError(f"{wide} wide, and {MED_CONFIG} says {med['hidden_size']}")
    return BlipTextConfig(
        vocab_size=rows, hidden_size=wide, num_attention_heads=med["num_attention_heads"],
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=sum(name.endswith(".intermediate.dense.weight") for name in state),
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=float(med.get("layer_norm_eps", 1e-12)), is_decoder=True,
    )  # fmt: skip


def _renamed(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by transformers' names below their part; what is not known keeps its own."""
    for old, tensor in state.items():
        if old == _DERIVED:
            continue
        if not old.startswith(_EYES):
            yield old, tensor
            continue
        inner = old.removeprefix(_EYES)
        name = next((new + inner.removeprefix(start) for start, new in _NAMES if inner.startswith(start)), inner)
        name = re.sub(r"^blocks\.", "encoder.layers.", name)
        for part, new in _IN_BLOCK.items():
            name = name.replace(part, new)
        yield _EYES + name, tensor
