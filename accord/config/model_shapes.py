"""Do the weights of a pipeline have the sizes that its configs promise? Names and shapes only, from file headers.

A config beside weights of another model loads until the first layer that does not fit, minutes into a job. What a
config does not state is not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accord.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

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
    factors = [config.get(field) for field in _WIDTHS.get(side, (side,))]
    if any(not isinstance(factor, int) for factor in factors):
        return None
    size = 1
    for factor in factors:
        size *= int(factor or 0)
    return size
