"""How near picture, sound and text lie in the space of PE-AV: what ImageBind measures, by a permissive model.

Measures: the cosine of two embeddings of Meta's Perception Encoder Audio-Visual (arXiv 2512.19687; Apache-2.0), in a
transformers directory as facebook/pe-av-small, -base, -large and their `-16-frame` variants.
* `pe_av`: picture and sound. * `pe_tv`: `prompt_v` and picture. * `pe_ta`: `prompt_a` and sound.
Range -1 to 1, higher is better. Nobody has published what is usual: measure on clips of your own first.
* Picture: `frames` frames, evenly spaced from the first to the last, squeezed to the checkpoint's square (bilinear),
  each value less 0.5 over 0.5; PE-Core, then a transformer over the frames.
* Sound: mono, 48 kHz, mirrored at its end up to a whole step of 40 ms; DAC's encoder, then a transformer over steps.
* Text: ModernBERT with the directory's own `tokenizer.json`, 512 tokens.

PE-Core is a module of Accord's own (`pe_core.py`), the rest are transformers' classes; so timm is not needed, and the
parts are loaded one by one, because `PeAudioVideoModel.from_pretrained` fails on the rotary table of timm's.

Limits: `pe_av` is blind to the prompt, and says whether, not when. Known hack: as ImageBind's, coloured noise; never
train `pe_av` without rewards that read the prompt. Sound of more than 60 s is `too_long`. Each clip's forwards are its
own, on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoModel, PeAudioEncoder, PeAudioVideoConfig, PeVideoEncoder, PeVideoEncoderConfig, ViTConfig
from typing_extensions import override

from accord.config.pe_av_dir import CONFIG, TOKENIZER, PeAvFiles, inspect_pe_av
from accord.config.rewards.imagebind import Sense
from accord.config.rewards.pe_av import PeAvReward
from accord.errors import ModelError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.models.pe_core import PeCore
from reward_servers.models.tokens import read_tokenizer
from reward_servers.signals import mono, resampled
from reward_servers.weight_files import digest, fill

RATE, STEP = 48_000, 1920
_TEXT_LIMIT = 512
_TEXTS_KEPT = 4096
_SIGHT = "embedder.vision_model.timm_model."
_ENCODERS: Mapping[Sense, tuple[str, str]] = {
    "audio": ("audio_model.audio_encoder.", "audio_video_encoder.embedder.audio_encoder."),
    "vision": ("video_model.video_encoder.", "audio_video_encoder.embedder.video_encoder."),
    "text": ("text_model.", "audio_model.text_model."),
}
"""Where the weights of an encoder stand in the file, in one of two places, for they are tied."""

State = Mapping[str, torch.Tensor]


class PeAvModel(RewardModel):
    """The checkpoint at `spec.path`, as far as the reward needs it.

    Raises:
        ModelError: at construction, when the directory is missing, torn, or holds another model.
    """

    def __init__(self, spec: PeAvReward) -> None:
        super().__init__(spec)
        torch.set_num_threads(1)
        self._device = torch.device("cuda" if spec.num_gpus > 0 else "cpu")
        self._spec = spec
        self._texts: dict[str, torch.Tensor] = {}
        files = inspect_pe_av(spec.weights)
        state = {name: tensor for file in files.weights for name, tensor in load_file(file).items()}
        self.encoders = encoders(files, state, spec.senses)
        self.heads: dict[Sense, nn.Module] = {}
        for sense in spec.senses:
            self.encoders[sense].to(self._device)
            self.heads[sense] = head(files, state, _HEADS[spec.senses][sense]).to(self._device)
        read = [files.root / CONFIG, *files.weights]
        if "text" in spec.senses:
            rows = self.encoders["text"].config.vocab_size
            read.append(files.root / TOKENIZER)
            self._tokenizer = read_tokenizer(read[-1], int(rows), _TEXT_LIMIT)
        self.weights_digest = digest(read)

    @override
    def score_clip(self, prompt: Prompt, clip: Clip) -> Score:
        """The cosine of the two; no components."""
        first, second = (self.embed(sense, prompt, clip) for sense in self._spec.senses)
        return Score(float(functional.cosine_similarity(first, second, dim=0)))

    @torch.no_grad()
    def embed(self, sense: Sense, prompt: Prompt, clip: Clip) -> torch.Tensor:
        """What one sense has of a clip or its prompt [D], of any length."""
        if sense == "text":
            return self._read(self._spec.asked(prompt))
        given = self._picture(clip) if sense == "vision" else sound(clip)
        pooled = self.encoders[sense](given[None].to(self._device)).pooler_output
        return self.heads[sense](pooled)[0].double()

    def _picture(self, clip: Clip) -> torch.Tensor:
        """Frames as the model sees them [F, 3, side, side]."""
        side, last = self.encoders["vision"].embedder.vision_model.side, len(clip.video_FHWC) - 1
        places = [int(place * last / (self._spec.frames - 1)) for place in range(self._spec.frames)]
        made = {place: _squeezed(clip.video_FHWC[place], side) for place in set(places)}
        return torch.stack([made[place] for place in places])

    def _read(self, text: str) -> torch.Tensor:
        if text not in self._texts:
            if len(self._texts) >= _TEXTS_KEPT:
                self._texts.clear()
            ids = torch.tensor([self._tokenizer.encode(text).ids], device=self._device)
            states = self.encoders["text"](input_ids=ids, output_hidden_states=True).hidden_states[-1]
            self._texts[text] = self.heads["text"](states[:, 0])[0].double()
        return self._texts[text]


_HEADS: Mapping[tuple[Sense, Sense], Mapping[Sense, str]] = {
    ("vision", "audio"): {"vision": "video_model.video_head.", "audio": "audio_model.audio_head."},
    ("text", "vision"): {"text": "video_model.text_video_head.", "vision": "video_model.video_head."},
    ("text", "audio"): {"text": "audio_model.text_audio_head.", "audio": "audio_model.audio_head."},
}


def _squeezed(frame_HWC: Any, side: int) -> torch.Tensor:
    image = Image.fromarray(frame_HWC).resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0


def sound(clip: Clip) -> torch.Tensor:
    """A clip's sound as the model hears it [1, S], S in whole steps."""
    sound_S = resampled(mono(clip.audio_CS), clip.sample_rate, RATE)
    return torch.from_numpy(np.pad(sound_S, (0, -len(sound_S) % STEP), "reflect")).float()[None]


def encoders(files: PeAvFiles, state: State, senses: tuple[Sense, ...]) -> dict[Sense, Any]:
    """The encoders of some senses with their weights. Raises ModelError."""
    found: dict[Sense, Any] = {}
    try:
        config = _config(files.config, _own(state, "vision"))
        for sense in senses:
            found[sense] = _encoder(config, sense, _own(state, sense))
    except ModelError:
        raise
    except Exception as error:  # whatever a config of other types leads to
        raise ModelError(f"{files.root} is no PE-AV that transformers can build: {error!r}; copy it again") from error
    for sense, encoder in found.items():
        fill(files.root, encoder, _own(state, sense))
    return found


def _own(state: State, sense: Sense) -> dict[str, torch.Tensor]:
    """The weights of one encoder, by the names that it has here."""
    own: dict[str, torch.Tensor] = {}
    for prefix in reversed(_ENCODERS[sense]):
        own |= {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
    return {name.replace(_SIGHT, "embedder.vision_model."): tensor for name, tensor in own.items()}


def _config(said: Mapping[str, Any], sight: State) -> Any:
    """The config with another sight in the place of timm's, which is replaced in turn."""
    both = dict(said["audio_video_config"])
    video = {name: value for name, value in both["video_config"].items() if name != "vision_config"}
    out = len(sight["embedder.vision_model.head.weight"])
    stand_in = ViTConfig(hidden_size=2, num_hidden_layers=0, num_attention_heads=1, intermediate_size=2)
    stand_in.num_labels = out
    both["video_config"] = PeVideoEncoderConfig(**video, vision_config=stand_in)
    return PeAudioVideoConfig(text_config=dict(said["text_config"]), audio_video_config=both)


def _encoder(config: Any, sense: Sense, own: State) -> nn.Module:
    if sense == "text":
        read: nn.Module = AutoModel.from_config(config.text_config)
        return read
    if sense == "audio":
        return PeAudioEncoder(config.audio_video_config.audio_config)
    encoder: Any = PeVideoEncoder(config.audio_video_config.video_config)
    prefix = "embedder.vision_model."
    sight = {name.removeprefix(prefix): tensor for name, tensor in own.items() if name.startswith(prefix)}
    encoder.embedder.vision_model = PeCore(sight)
    watched: nn.Module = encoder
    return watched


def head(files: PeAvFiles, state: State, prefix: str) -> nn.Module:
    """A norm and a linear map into the shared space. Raises ModelError."""
    own = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
    out, width = own["proj.weight"].shape
    made = _Head(width, out)
    fill(files.root, made, own)
    return made


class _Head(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)
        self.proj = nn.Linear(width, out, bias=False)

    @override
    def forward(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.proj(self.layer_norm(pooled_BD))
        return projected
