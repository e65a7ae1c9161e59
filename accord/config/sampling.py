"""How clips are sampled from any backbone: their size, the steps, and what guides."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from accord.config.base import Spec
from accord.types import Guidance, Modality, Role, RolloutPlan, Term


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
    def terms(self) -> dict[Term, str]:
        """The terms of guidance that are on for some modality, and the field of each."""
        fields: dict[Term, tuple[str, float]] = {
            "text": ("guidance", 1.0), "stg": ("stg_scale", 0.0), "modality": ("modality_scale", 1.0),
        }  # fmt: skip
        return {term: name for term, (name, off) in fields.items() if max(self.scales(name).values()) > off}

    @property
    def passes(self) -> int:
        """Forwards of one denoising step."""
        return 1 + len(self.terms)

    @property
    def guidance_text(self) -> str:
        """Everything that guides, in words; empty when nothing does."""
        words: dict[Term, str] = {"text": "classifier-free", "stg": "spatio-temporal", "modality": "modality"}
        found = [f"{words[term]} {_both(self.scales(name))}" for term, name in self.terms.items()]
        if found and max(self.scales("guidance_rescale").values()) > 0:
            found.append(f"rescaled {_both(self.scales('guidance_rescale'))}")
        return ", ".join(found)


def _both(scales: dict[Modality, float]) -> str:
    video, audio = scales["video"], scales["audio"]
    return f"{video:g}" if video == audio else f"{video:g} (video), {audio:g} (audio)"
