"""Cosines of PE-AV, as specs: a permissive model in the place of ImageBind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from accord.config.clip_dir import inspect_tokenizer
from accord.config.contract import ModelFacts, Problem
from accord.config.pe_av_dir import inspect_pe_av
from accord.config.rewards.bundle import BundledReward, told
from accord.config.rewards.imagebind import Sense
from accord.types import Modality, Prompt, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class PeAvReward(BundledReward):
    """Cosine of two senses of PE-AV."""

    impl: ClassVar[str] = "reward_servers.models.pe_av:PeAvModel"
    senses: ClassVar[tuple[Sense, Sense]]
    """Which two."""
    min_frames: ClassVar[int] = 1
    max_audio_s: ClassVar[float] = 60.0
    """DAC's encoder hears a clip in one piece: 64 numbers for each of its 48000 samples a second, 0.7 GB a layer."""
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    smallest_effect: ClassVar[float] = 0.002
    accelerator: ClassVar[bool] = True
    folder: ClassVar[str] = "pe-av-large"
    frames: int = Field(default=16, ge=2, le=512)
    """Frames looked at, evenly spaced from the first to the last; 16 is what the `-16-frame` checkpoints want."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=600.0, gt=0, le=3600)

    def asked(self, prompt: Prompt) -> str:
        """The text that is read, where one is."""
        return prompt.prompt_v if "video" in self.needs else prompt.prompt_a

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_pe_av, str(self.weights))
            if "text" in self.senses:
                yield from told("path", inspect_tokenizer, str(self.weights))


class PeAvAVReward(PeAvReward):
    """Cosine of picture and sound."""

    senses: ClassVar[tuple[Sense, Sense]] = "vision", "audio"
    about: ClassVar[str] = "picture and sound are of one thing"
    needs: ClassVar[tuple[Modality, ...]] = ("video", "audio")
    name: Literal["pe_av"] = "pe_av"
    route: Route = "both"


class PeAvTVReward(PeAvReward):
    """Cosine of text and picture."""

    senses: ClassVar[tuple[Sense, Sense]] = "text", "vision"
    about: ClassVar[str] = "the picture is of what the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    prompt_anchored: ClassVar[bool] = True
    name: Literal["pe_tv"] = "pe_tv"
    route: Route = "video"


class PeAvTAReward(PeAvReward):
    """Cosine of text and sound."""

    senses: ClassVar[tuple[Sense, Sense]] = "text", "audio"
    about: ClassVar[str] = "the sound is of what the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    prompt_anchored: ClassVar[bool] = True
    name: Literal["pe_ta"] = "pe_ta"
    route: Route = "audio"
