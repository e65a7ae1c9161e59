"""What to train: a diffusers pipeline directory, the LoRA on it, and how clips are sampled from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Spec
from accord.config.contract import AdapterSpec, BackboneSpec, PartName
from accord.config.paths import LORA_BYTES, InputPath
from accord.types import MODALITIES, Guidance, Modality, Role, RolloutPlan


class LoRASpec(AdapterSpec):
    """The trained adapter."""

    targets: Annotated[tuple[PartName, ...], Field(min_length=1, max_length=100)] = (
        "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn", "ff", "audio_ff",
    )  # fmt: skip
    """Sub-modules of each transformer block whose linear layers get an adapter."""


class LTX2Spec(BackboneSpec):
    """A diffusers `LTX2Pipeline` directory (LTX-2 or LTX-2.3, tiny or full size)."""

    impl: ClassVar[str] = "accord.backbones.ltx2.model:LTX2Backbone"
    inspect: ClassVar[str] = "accord.backbones.ltx2.model_dir:inspect_model_dir"
    sizes: ClassVar[str] = "accord.backbones.ltx2.sizes:model_sizes"
    component: ClassVar[str] = "transformer"
    modalities: ClassVar[tuple[Modality, ...]] = MODALITIES

    name: Literal["ltx2"] = "ltx2"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-ltx2", min_length=1, max_length=4096)
    """Directory of the pipeline, or `builtin:tiny-ltx2` for the model that ships with Accord."""
    lora: LoRASpec = LoRASpec()
    init_lora: Annotated[str, InputPath("file", LORA_BYTES)] = Field(default="", max_length=4096)
    """A LoRA file (.safetensors) that `policy` and `old` start from; rank and targets must be those of `lora`."""
    text_cache: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """Name of a cache of encoded prompts below ACCORD_TEXT_CACHE_DIR; jobs that give the same name share it. While it
    has all prompts of a job, the text encoder is not loaded. Empty = off."""
    offload: bool = False
    """Rollout workers on a GPU keep the decoders in host memory between decodes. Nothing changes on a CPU."""

    def notes(self) -> Iterable[str]:
        """What a text cache and offloading change."""
        if self.text_cache:
            yield "text encoder and connectors are loaded only where the text cache lacks a prompt"
        if self.offload:
            yield "the decoders' bytes are in host memory but during a decode, when no activations are held"


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
    """Classifier-free guidance scale; 1 = off. Everything off = one conditional forward per step."""
    stg_scale: float = Field(default=0.0, ge=0.0, le=30.0)
    """Spatio-temporal guidance: away from a pass whose self-attention is skipped in `stg_blocks`; 0 = off."""
    stg_blocks: Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=1000)] = ()
    """Transformer blocks, counted from 0."""
    modality_scale: float = Field(default=1.0, ge=1.0, le=30.0)
    """Modality guidance: away from a pass in which video and audio do not see each other; 1 = off."""
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the guided clean estimate that gets the unguided one's standard deviation; 0 = off."""
    audio_guidance: float | None = Field(default=None, ge=1.0, le=30.0)
    """This one and the next three: the audio's own value of the field above; default: the same as the video's."""
    audio_stg_scale: float | None = Field(default=None, ge=0.0, le=30.0)
    audio_modality_scale: float | None = Field(default=None, ge=1.0, le=30.0)
    audio_guidance_rescale: float | None = Field(default=None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _blocks_named(self) -> Self:
        if max(self.scales("stg_scale").values()) > 0 and not self.stg_blocks:
            raise ValueError(
                "/stg_blocks: stg_scale is on, and no block is named whose self-attention the perturbed pass skips; "
                "name some, such as [29] of the 48 of LTX-2 or [28] of LTX-2.3, or set stg_scale = 0"
            )
        return self

    def scales(self, name: str) -> dict[Modality, float]:
        """A guidance field by modality: the audio has its own value where one is given."""
        video, audio = getattr(self, name), getattr(self, f"audio_{name}")
        return {"video": video, "audio": video if audio is None else audio}

    def plan(self, role: Role) -> RolloutPlan:
        """The plain rollout: `role` along the ODE, guided as the fields say. What an algorithm's plan starts from."""
        return RolloutPlan(
            role=role,
            num_steps=self.num_steps,
            guidance=Guidance(
                text=self.scales("guidance"),
                stg=self.scales("stg_scale"),
                modality=self.scales("modality_scale"),
                rescale=self.scales("guidance_rescale"),
                blocks=self.stg_blocks,
            ),
        )

    @property
    def passes(self) -> int:
        """Forwards of one denoising step."""
        terms = (("guidance", 1.0), ("stg_scale", 0.0), ("modality_scale", 1.0))
        return 1 + sum(max(self.scales(name).values()) > off for name, off in terms)

    @property
    def guidance_text(self) -> str:
        """Everything that guides, in words; empty when nothing does."""
        terms = (("guidance", "classifier-free", 1.0), ("stg_scale", "spatio-temporal", 0.0),
                 ("modality_scale", "modality", 1.0))  # fmt: skip
        found = [
            f"{word} {_both(self.scales(name))}" for name, word, off in terms if max(self.scales(name).values()) > off
        ]
        if found and max(self.scales("guidance_rescale").values()) > 0:
            found.append(f"rescaled {_both(self.scales('guidance_rescale'))}")
        return ", ".join(found)


def _both(scales: dict[Modality, float]) -> str:
    video, audio = scales["video"], scales["audio"]
    return f"{video:g}" if video == audio else f"{video:g} (video), {audio:g} (audio)"
