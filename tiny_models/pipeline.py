"""The tiny but complete `LTX2Pipeline`: every component of the official pipeline at a size that trains on a CPU.

`build_pipeline` puts the closed-form codecs together with an untrained transformer, untrained connectors, a random
frozen text encoder and a word tokenizer; `save_pipeline` writes the directory that `LTX2Pipeline.from_pretrained`
loads, and `load_backbone` reads it as the backbone that jobs sample and train. The text encoder is random on purpose:
its features tell the 18 words of the world apart, which is enough.

Shapes: 25 frames of 32x32 give 7 x 2 x 2 = 28 video tokens of 40 channels and 52 audio tokens of 16 channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import PreTokenizer, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from accord.backbones.ltx2.model import LTX2Backbone
from accord.backbones.ltx2.model_dir import inspect_model_dir
from accord.backbones.ltx2.spec import LTX2Spec
from accord.config.sampling import SamplingSpec
from accord.types import Clip, Modality
from accord.world.scene import ALL_PROMPTS, FPS, FRAMES, SIZE
from tiny_models.codecs import AUDIO_LATENTS, MEL_BANDS, VIDEO_LATENTS, VIDEO_PATCH, log_mel, video_to_tensor

TEXT_TOKENS = 16
TEXT_WIDTH = 64
TEXT_LAYERS = 2
HEADS = 4
VIDEO_HEAD_DIM = 32
AUDIO_HEAD_DIM = 24
LAYERS = 4
AUDIO_CHANNELS = AUDIO_LATENTS * MEL_BANDS // 4
CLIP = SamplingSpec(frames=FRAMES, height=SIZE, width=SIZE, fps=FPS)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer for the captions. It pads on the left and always starts with `<bos>`, so an empty prompt has
    one token: the connectors divide by the number of tokens."""
    return word_tokenizer(
        [prompt.prompt_av for prompt in ALL_PROMPTS],
        ("<pad>", "<eos>", "<bos>", "<unk>"),
        "<bos> $A",
        WhitespaceSplit(),
        model_max_length=TEXT_TOKENS,
        padding_side="left",
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
    )


def word_tokenizer(
    texts: Iterable[str], special: Sequence[str], template: str, split: PreTokenizer, **settings: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of `texts`, behind the special ones, `<unk>` among them."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = Lowercase(), split
    framing = [(word, vocabulary[word]) for word in special if word in template.split()]
    core.post_processor = TemplateProcessing(single=template, special_tokens=framing)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", **settings)


def build_text_encoder(vocabulary_size: int) -> Gemma3ForConditionalGeneration:
    """A two-layer Gemma 3 with random frozen weights, four times the usual scale so that words stay distinct."""
    text = Gemma3TextConfig(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=28,
        patch_size=14,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=3,
        boi_token_index=3,
        eoi_token_index=3,
    )
    encoder = Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in encoder.model.language_model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    encoder.requires_grad_(False)
    return encoder


def build_connectors() -> Any:
    """The text connectors, one layer and 16 registers for each modality."""
    return LTX2TextConnectors(
        caption_channels=TEXT_WIDTH,
        text_proj_in_factor=TEXT_LAYERS + 1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=TEXT_WIDTH // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=TEXT_TOKENS,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=TEXT_WIDTH // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=TEXT_TOKENS,
        connector_rope_base_seq_len=TEXT_TOKENS,
        rope_type="split",
    )


def build_transformer() -> Any:
    """The audio-video transformer. Rotary positions span 2 s and 32 px so that short clips use their frequencies."""
    return LTX2VideoTransformer3DModel(
        in_channels=VIDEO_LATENTS,
        out_channels=VIDEO_LATENTS,
        num_attention_heads=HEADS,
        attention_head_dim=VIDEO_HEAD_DIM,
        cross_attention_dim=HEADS * VIDEO_HEAD_DIM,
        vae_scale_factors=(4, VIDEO_PATCH, VIDEO_PATCH),
        pos_embed_max_pos=2,
        base_height=32,
        base_width=32,
        audio_in_channels=AUDIO_CHANNELS,
        audio_out_channels=AUDIO_CHANNELS,
        audio_num_attention_heads=HEADS,
        audio_attention_head_dim=AUDIO_HEAD_DIM,
        audio_cross_attention_dim=HEADS * AUDIO_HEAD_DIM,
        audio_pos_embed_max_pos=2,
        num_layers=LAYERS,
        caption_channels=TEXT_WIDTH,
        rope_theta=100.0,
        rope_type="split",
    )


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler with the constants LTX-2 ships with: dynamic exponential shift and a terminal sigma of 0.1."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
        time_shift_type="exponential",
    )


def build_pipeline(vae: Any, audio_vae: Any, vocoder: Any, seed: int) -> Any:
    """Put the codecs together with freshly initialised (seeded) text and transformer parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        pipeline: Any = LTX2Pipeline(
            scheduler=build_scheduler(),
            vae=vae,
            audio_vae=audio_vae,
            text_encoder=build_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            connectors=build_connectors(),
            transformer=build_transformer(),
            vocoder=vocoder,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(pipeline: Any, directory: Path) -> None:
    """Write the pipeline directory with weights in bfloat16 (safetensors). The pipeline itself keeps its precision."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    rounded = {name: deepcopy(part).to(torch.bfloat16) for name, part in parts.items()}
    copy: Any = LTX2Pipeline(**{**pipeline.components, **rounded})
    copy.save_pretrained(directory, safe_serialization=True)
    _forget_origin(directory)


def _forget_origin(directory: Path) -> None:
    """Drop the path a part was loaded from out of the saved configurations: it means nothing elsewhere."""
    for path in [directory / "model_index.json", *directory.glob("*/config.json")]:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_backbone(directory: Path) -> LTX2Backbone:
    """Load a pipeline directory in float32 for the CPU: every weight may train, and no adapter lies over it."""
    pipeline: Any = LTX2Pipeline.from_pretrained(directory, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    path = str(directory)
    return LTX2Backbone(pipeline, LTX2Spec(path=path), inspect_model_dir(path), CLIP, "cpu")


@torch.no_grad()
def encode_text(pipeline: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Frozen text features [B, 16, 192] and attention mask [B, 16], the input of the connectors."""
    embeds, mask, _, _ = pipeline.encode_prompt(
        texts, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS
    )
    return embeds, mask


@torch.no_grad()
def encode_clips(pipeline: Any, clips: Iterable[Clip]) -> dict[Modality, Tensor]:
    """Latents of clips as the transformer sees them, by modality: [N, 28, 40] and [N, 52, 16]."""
    videos: list[Tensor] = []
    audios: list[Tensor] = []
    waiting = iter(clips)
    while part := list(islice(waiting, 64)):
        frames = video_to_tensor(np.stack([clip.video_FHWC for clip in part]))
        mel = log_mel(torch.from_numpy(np.stack([clip.audio_CS[0] for clip in part])))
        video = pipeline.vae.encode(frames).latent_dist.mode()
        audio = pipeline.audio_vae.encode(mel).latent_dist.mode()
        packed = normalise_latents(pipeline, video, audio)
        videos.append(packed["video"])
        audios.append(packed["audio"])
    return {"video": torch.cat(videos), "audio": torch.cat(audios)}


def normalise_latents(pipeline: Any, video: Tensor, audio: Tensor) -> dict[Modality, Tensor]:
    """Raw latents [B, 40, 7, 2, 2] and [B, 4, 52, 4] as the transformer sees them: [B, 28, 40] and [B, 52, 16]."""
    vae, audio_vae = pipeline.vae, pipeline.audio_vae
    normal = pipeline._normalize_latents(video, vae.latents_mean, vae.latents_std)
    packed = pipeline._pack_audio_latents(audio)
    return {
        "video": pipeline._pack_latents(normal),
        "audio": pipeline._normalize_audio_latents(packed, audio_vae.latents_mean, audio_vae.latents_std),
    }
