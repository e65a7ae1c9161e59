"""What to train: a diffusers pipeline directory, the LoRA on it, and how clips are sampled from it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.base import Spec
from accord.types import MODALITIES, Modality


class LoRASpec(Spec):
    """The trained adapter."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32.0, gt=0)
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn", "ff", "audio_ff",
    )  # fmt: skip
    """Sub-modules of each transformer block whose linear layers get an adapter."""


class LTX2Spec(Spec):
    """A diffusers `LTX2Pipeline` directory (LTX-2 or LTX-2.3, tiny or full size)."""

    impl: ClassVar[str] = "accord.backbones.ltx2:LTX2Backbone"
    inspect: ClassVar[str] = "accord.config.model_dir:inspect_model_dir"
    """`module:function` (light) that checks `path` and returns ModelFacts; a backbone without it is not checked."""
    modalities: ClassVar[tuple[Modality, ...]] = MODALITIES

    name: Literal["ltx2"] = "ltx2"
    path: str = Field(default="builtin:tiny-ltx2", min_length=1, max_length=4096)
    """Directory of the pipeline, or `builtin:tiny-ltx2` for the model that ships with Accord."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the frozen weights; adapters are always float32."""
    lora: LoRASpec = LoRASpec()
    gradient_checkpointing: bool = False


class SamplingSpec(Spec):
    """One clip's size and how it is denoised."""

    frames: int = Field(default=25, ge=1, le=2049)
    height: int = Field(default=32, ge=8, le=4096)
    width: int = Field(default=32, ge=8, le=4096)
    fps: float = Field(default=12.0, gt=0, le=120)
    num_steps: int = Field(default=8, ge=1, le=1000)
    """Euler steps along the LTX-2 sigma schedule."""
    shift: float | None = Field(default=None, gt=0)
    """Schedule shift (mu); default: the pipeline's scheduler decides."""
    guidance: float = Field(default=1.0, ge=1.0, le=30.0)
    """Classifier-free guidance scale of both modalities; 1 = off (one conditional forward per step)."""
