"""Are the weights of a pipeline all there, with the sizes that its configs promise? From file headers alone.

A config beside weights of another model loads until the first layer that does not fit, minutes into a job; and a tensor
that is missing is filled with random numbers, other ones in each process. What a config does not state is not checked
here: loading compares every name and shape with the class itself (`accord/backbones/components.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from accord.backbones.ltx2.streams import BLOCKS, GATES
from accord.config.gaps import refuse_gaps, refuse_odd, unlike
from accord.config.weights import Shapes
from accord.errors import ModelError

_WIDTHS = {
    "video": ("num_attention_heads", "attention_head_dim"),
    "audio": ("audio_num_attention_heads", "audio_attention_head_dim"),
}
"""Width of a stream: heads times their size."""
_ENDS = {
    "proj_in.weight": ("video", "in_channels"),
    "audio_proj_in.weight": ("audio", "audio_in_channels"),
    "proj_out.weight": ("out_channels", "video"),
    "audio_proj_out.weight": ("audio_out_channels", "audio"),
}
_BLOCK = {
    "attn1.to_q.weight": ("video", "video"),
    "attn2.to_q.weight": ("video", "video"),
    "attn2.to_k.weight": ("video", "cross_attention_dim"),
    "audio_attn1.to_q.weight": ("audio", "audio"),
    "audio_attn2.to_q.weight": ("audio", "audio"),
    "audio_attn2.to_k.weight": ("audio", "audio_cross_attention_dim"),
    "audio_to_video_attn.to_q.weight": ("audio", "video"),
    "audio_to_video_attn.to_k.weight": ("audio", "audio"),
    "video_to_audio_attn.to_q.weight": ("audio", "audio"),
    "video_to_audio_attn.to_k.weight": ("audio", "video"),
}
"""Tensor -> what its (rows, columns) are: a stream's width, or a field of the config."""

_LINEAR = ("weight", "bias")
_MODULATIONS = tuple(
    f"{name}.{layer}.{part}"
    for name in (
        "time_embed", "audio_time_embed", "av_cross_attn_video_scale_shift", "av_cross_attn_audio_scale_shift",
        "av_cross_attn_video_a2v_gate", "av_cross_attn_audio_v2a_gate",
    )
    for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    for part in _LINEAR
)  # fmt: skip
_HALVES = ("encoder", "decoder")
_CODEC = (
    "latents_mean", "latents_std",
    *(f"{half}.{end}.conv.{part}" for half in _HALVES for end in ("conv_in", "conv_out") for part in _LINEAR),
)  # fmt: skip
REQUIRED: Mapping[str, Sequence[str]] = {
    "transformer": (
        *(f"{name}.{part}" for name in ("proj_in", "audio_proj_in", "proj_out", "audio_proj_out") for part in _LINEAR),
        "scale_shift_table", "audio_scale_shift_table", *_MODULATIONS,
    ),
    "vae": _CODEC,
    "audio_vae": (
        *_CODEC,
        *(
            f"{half}.mid.block_{block}.conv{conv}.conv.{part}"
            for half in _HALVES for block in (1, 2) for conv in (1, 2) for part in _LINEAR
        ),
    ),
}  # fmt: skip
"""Tensors that a component of this family has whatever its config says."""
_GEMMA = ("embed_tokens.weight", "norm.weight")
_GEMMA_EYES = (
    "mm_input_projection_weight", "mm_soft_emb_norm.weight", "patch_embedding.weight", "position_embedding.weight",
    "post_layernorm.weight",
)  # fmt: skip
"""Last parts of names that a Gemma 3 has, wherever releases of transformers put its two halves."""
_STACKS = (BLOCKS, "layers")
"""Lists of equal blocks."""
_COUNTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "connectors": {
        "video_connector.transformer_blocks": ("video_connector_num_layers",),
        "audio_connector.transformer_blocks": ("audio_connector_num_layers",),
    },
    "text_encoder": {
        "language_model.model.layers": ("text_config", "num_hidden_layers"),
        "model.language_model.layers": ("text_config", "num_hidden_layers"),
        "vision_tower.encoder.layers": ("vision_config", "num_hidden_layers"),
        "model.vision_tower.encoder.layers": ("vision_config", "num_hidden_layers"),
        "vision_tower.vision_model.encoder.layers": ("vision_config", "num_hidden_layers"),
        "model.vision_tower.vision_model.encoder.layers": ("vision_config", "num_hidden_layers"),
    },
}
"""Where a config says how many blocks a stack has."""


def check_complete(component: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Find tensors that are missing, as far as names tell. Raises ModelError that names the first and their number.

    Missing is what the family always has, the weight of a layer whose bias is there, what other blocks of the same
    stack have, and what other layers of the same kind have.
    """
    stacks = _STACKS if _blocks_are_equal(component.name, config) else ()
    refuse_gaps(component, {*_required(component.name, config, shapes), *unlike(shapes, stacks)} - shapes.keys())
    refuse_odd(component, shapes, stacks)
    for stack, fields in _COUNTS.get(component.name, {}).items():
        _check_count(component, config, shapes, stack, fields)


def _required(name: str, config: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    yield from REQUIRED.get(name, ())
    if name == "transformer" and config.get("use_prompt_embeddings", True):
        for stream in ("caption_projection", "audio_caption_projection"):
            yield from (f"{stream}.linear_{layer}.{part}" for layer in (1, 2) for part in _LINEAR)
    if name == "text_encoder" and config.get("model_type") == "gemma3":
        yield from _of_gemma(config, shapes)
    if name == "vocoder" and config.get("_class_name", "LTX2Vocoder") == "LTX2Vocoder":
        yield from ("conv_in.weight", "conv_in.bias", "conv_out.weight")
        yield from ("conv_out.bias",) if config.get("final_bias", True) else ()
    if name == "connectors":
        both = config.get("per_modality_projections", False)
        ends = ("video_text_proj_in", "audio_text_proj_in") if both else ("text_proj_in",)
        yield from (f"{end}.{part}" for end in ends for part in (_LINEAR if config.get("proj_bias") else ("weight",)))
        for stream, other in (("video", "audio"), ("audio", "video")):
            if config.get(f"{stream}_connector_num_learnable_registers", 128) is not None:
                yield f"{stream}_connector.learnable_registers"
            here, there = f"{stream}_connector.transformer_blocks.0.", f"{other}_connector.transformer_blocks.0."
            yield from (here + name.removeprefix(there) for name in shapes if name.startswith(there) and _plain(name))


def _of_gemma(config: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    outside = {name for name in shapes if ".layers." not in name}
    for ending in (*_GEMMA, *(_GEMMA_EYES if "vision_config" in config else ())):
        if not any(name.endswith(f".{ending}") for name in outside):
            yield ending
    for name in shapes:
        if "vision_tower." in name and name.endswith(".weight") and "position_embedding" not in name:
            yield f"{name.removesuffix('weight')}bias"


def _blocks_are_equal(name: str, config: Mapping[str, Any]) -> bool:
    """Text encoders after Gemma 3 may leave projections out of some of their layers."""
    return name != "text_encoder" or config.get("model_type") == "gemma3"


def _plain(name: str) -> bool:
    return GATES not in name  # one stream may be gated and the other not


def _check_count(component: Path, config: Mapping[str, Any], shapes: Shapes, stack: str, fields: Sequence[str]) -> None:
    wanted: Any = config
    for field in fields:
        wanted = wanted.get(field) if isinstance(wanted, Mapping) else None
    found = {name[len(stack) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{stack}.")}
    if isinstance(wanted, int) and found and len(found) != wanted:
        where = ".".join(fields)
        raise ModelError(f"{component}: {where} is {wanted} by config.json, the weights hold {len(found)} of {stack}")


def check_transformer(directory: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare a transformer's weights with its config. Raises ModelError that names the tensor and the fields."""
    blocks = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
    expected = _ENDS | {
        f"transformer_blocks.{block}.{name}": sides for block in blocks for name, sides in _BLOCK.items()
    }
    for name, sides in sorted(expected.items()):
        if name in shapes:
            _check(directory, name, shapes[name], config, sides)


def check_vae(directory: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare the latent statistics of a video VAE with its config. Raises ModelError as `check_transformer` does."""
    if "latents_mean" in shapes:
        _check(directory, "latents_mean", shapes["latents_mean"], config, ("latent_channels",))


def check_encoder(directory: Path, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Compare a text encoder's vocabulary and width with its config. Raises ModelError as `check_transformer` does."""
    inner = config.get("text_config", config)
    for name, shape in shapes.items():
        if name.endswith("embed_tokens.weight") and ".layers." not in name:
            _check(directory, name, shape, inner, ("vocab_size", "hidden_size"))


def _check(
    directory: Path, name: str, shape: tuple[int, ...], config: Mapping[str, Any], sides: tuple[str, ...]
) -> None:
    wanted = [_size(config, side) for side in sides]
    agrees = len(shape) == len(wanted) and all(
        size is None or size == have for size, have in zip(wanted, shape, strict=True)
    )
    if not agrees:
        fields = ", ".join(field for side in sides for field in _WIDTHS.get(side, (side,)) if field in config)
        made = " x ".join("any" if size is None else str(size) for size in wanted)
        raise ModelError(
            f"{directory}: {name} is {' x '.join(map(str, shape))} in the weights and {made} by config.json "
            f"({fields}); take both from the same model"
        )


def _size(config: Mapping[str, Any], side: str) -> int | None:
    """What the config makes of one side; None where it does not say."""
    fields = _WIDTHS.get(side, (side,))
    factors = [factor for field in fields if isinstance(factor := config.get(field), int)]
    return prod(factors) if len(factors) == len(fields) else None
