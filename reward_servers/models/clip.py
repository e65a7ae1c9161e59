"""The two towers of a CLIP, from a transformers directory or from open_clip's names; embeddings are unit vectors.

Each clip's frames go through forwards of their own on one thread, so a score has the same bits in any company.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
from transformers.initialization import no_init_weights

from accord.config.clip_dir import DERIVED, SCALE, TEXT, VISION, ClipFiles
from accord.errors import ModelError
from reward_servers.models.frames import Picture, cropped, pixels
from reward_servers.models.tokens import read_tokenizer
from reward_servers.weight_files import fill, load_tensors

_TEXTS_KEPT = 4096
_AT_ONCE = 32
"""Most frames in a forward."""
_VISION_HEAD, _TEXT_HEAD = 80, 64
"""Width of a head in open_clip's ViT-H-14; no weight tells."""
_LAST_TOKEN = 2
"""As `eos_token_id` it tells transformers to read a text at its highest token, which is CLIP's end of text."""

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class ClipWeights:
    """A CLIP's config and weights by transformers' names, and the file that they are from."""

    file: Path
    config: Any
    """A `CLIPConfig`."""
    state: State

    def of(self, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The weights of a tower."""
        return {
            name: tensor.float()
            for name, tensor in self.state.items()
            if name.startswith(prefixes) and name not in DERIVED
        }


def read_clip(files: ClipFiles) -> ClipWeights:
    """Read what `accord.config.clip_dir` found. Raises ModelError."""
    state = load_file(files.weights) if files.weights.suffix == ".safetensors" else load_tensors(files.weights)
    try:
        config: Any = CLIPConfig.from_dict(dict(files.config))
    except Exception as error:  # whatever a config of other types leads to
        raise ModelError(f"{files.root / 'config.json'}: no config of a CLIP ({error}); copy it again") from error
    for part in (config.vision_config, config.text_config):
        part.projection_dim = config.projection_dim
    config.text_config.eos_token_id = _LAST_TOKEN
    return ClipWeights(files.weights, config, state)


class ImageTower:
    """Frames to unit vectors."""

    def __init__(self, weights: ClipWeights, device: torch.device) -> None:
        self._model: Any = _built(CLIPVisionModelWithProjection, weights.config.vision_config, weights, VISION)
        self._model.to(device)
        self.side = int(weights.config.vision_config.image_size)
        self.wide = int(weights.config.projection_dim)
        self._device = device

    @torch.no_grad()
    def embed(self, frames: Sequence[Picture], fit: Callable[[Picture, int], Picture] = cropped) -> torch.Tensor:
        """Unit embeddings [F, D] of the frames of one clip."""
        found = torch.cat([
            self._model(pixel_values=pixels(frames[at : at + _AT_ONCE], fit, self.side).to(self._device)).image_embeds
            for at in range(0, len(frames), _AT_ONCE)
        ])  # fmt: skip
        return functional.normalize(found, dim=-1)


class TextTower:
    """Texts to unit vectors; what was asked before is remembered."""

    def __init__(self, weights: ClipWeights, tokenizer: Path, device: torch.device) -> None:
        config: Any = weights.config.text_config
        self._model: Any = _built(CLIPTextModelWithProjection, config, weights, TEXT)
        self._model.to(device)
        self._tokenizer = clip_tokenizer(tokenizer, int(config.vocab_size), int(config.max_position_embeddings))
        self._device = device
        self._texts: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def embed(self, text: str) -> torch.Tensor:
        """Unit embedding [D]. A text is cut at the checkpoint's length, 77 tokens with start and end."""
        if text not in self._texts:
            if len(self._texts) >= _TEXTS_KEPT:
                self._texts.clear()
            ids = torch.tensor([self._tokenizer.encode(text).ids], device=self._device)
            self._texts[text] = functional.normalize(self._model(input_ids=ids).text_embeds[0], dim=0)
        return self._texts[text]


def _built(kind: Any, config: Any, weights: ClipWeights, prefixes: tuple[str, ...]) -> nn.Module:
    """A tower with its weights. Raises ModelError."""
    try:
        with no_init_weights():  # every weight comes from the file; drawing a billion first takes half a minute
            model: nn.Module = kind(config)
    except Exception as error:  # sizes that do not go together
        raise ModelError(f"{weights.file}: its config describes no CLIP ({error}); copy both again") from error
    fill(weights.file, model, weights.of(prefixes))
    return model


def clip_tokenizer(file: Path, rows: int, limit: int) -> Tokenizer:
    """As `read_tokenizer`; raises ModelError besides when the end of text is not the highest token, as in all CLIPs."""
    tokenizer = read_tokenizer(file, rows, limit)
    end = tokenizer.encode("").ids[-1]
    if end != tokenizer.get_vocab_size() - 1:
        raise ModelError(f"{file}: ends texts with {end} and not with its last token; is it the tokenizer of a CLIP?")
    return tokenizer


def read_open_clip(file: Path, state: State) -> ClipWeights:
    """A CLIP by open_clip's names, of the kind of ViT-H-14. Raises ModelError when it is none."""
    renamed = dict(_renamed(state))
    if unknown := sorted(name for name in renamed if not name.startswith((*VISION, *TEXT, SCALE))):
        raise ModelError(f"{file}: holds the unknown {unknown[0]} ({len(unknown)} such); take the published file")
    try:
        config: Any = _open_clip_config(renamed)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{file}: does not hold open_clip's ViT-H-14 ({error!r}); take the published file") from error
    return ClipWeights(file, config, renamed)


def _open_clip_config(state: State) -> CLIPConfig:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def tower(at: str, head: int) -> dict[str, Any]:
        inner, wide = shapes[f"{at}encoder.layers.0.mlp.fc1.weight"]
        layers = sum(name.startswith(f"{at}encoder.") and name.endswith(".mlp.fc1.weight") for name in shapes)
        if wide % head:
            raise ValueError(f"{wide} wide with heads of {head}")
        return {"hidden_size": wide, "intermediate_size": inner, "num_hidden_layers": layers,
                "num_attention_heads": wide // head, "hidden_act": "gelu", "projection_dim": out}  # fmt: skip

    out = shapes["visual_projection.weight"][0]
    rows = shapes["text_model.embeddings.token_embedding.weight"][0]
    patch = shapes["vision_model.embeddings.patch_embedding.weight"][-1]
    places = shapes["vision_model.embeddings.position_embedding.weight"][0]
    text = tower("text_model.", _TEXT_HEAD) | {
        "vocab_size": rows, "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "bos_token_id": rows - 2, "eos_token_id": _LAST_TOKEN,
    }  # fmt: skip
    vision = tower("vision_model.", _VISION_HEAD) | {
        "image_size": round((places - 1) ** 0.5) * patch, "patch_size": patch,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=out)


_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.", "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
}  # fmt: skip
"""Names, or beginnings of names that end with a dot, in open_clip and in transformers."""
_IN_LAYER = {".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".attn.out_proj.": ".self_attn.out_proj.",
             ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2."}  # fmt: skip
_TRANSPOSED = {"visual.proj", "text_projection"}
_FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")


def _renamed(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by transformers' names; what is not known keeps its own."""
    for old, tensor in state.items():
        name = next((new + old.removeprefix(start) for start, new in _NAMES.items()
                     if old == start or (start.endswith(".") and old.startswith(start))), old)  # fmt: skip
        for inner, new in _IN_LAYER.items():
            name = name.replace(inner, new)
        if fused := _FUSED.fullmatch(name):
            for part, third in zip("qkv", tensor.chunk(3), strict=False):
                yield f"{fused[1]}.self_attn.{part}_proj.{fused[2]}", third
        else:
            yield name, tensor.T if old in _TRANSPOSED else tensor
