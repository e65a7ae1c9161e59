"""ImageBind's cosines, as specs: measured, never trained on, and only where its licence is kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from accord.config.clip_dir import TOKENIZER, inspect_tokenizer
from accord.config.contract import ModelFacts, Problem
from accord.config.paths import InputPath, NamedPath
from accord.config.rewards.bundle import BundledReward, told
from accord.config.torch_files import inspect_torch_file
from accord.types import Modality, Prompt, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


Sense = Literal["vision", "audio", "text"]


class ImageBindReward(BundledReward):
    """Cosine of two senses of ImageBind."""

    impl: ClassVar[str] = "reward_servers.models.imagebind_cosine:ImageBindModel"
    senses: ClassVar[tuple[Sense, Sense]]
    """Which two."""
    min_frames: ClassVar[int] = 1
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    smallest_effect: ClassVar[float] = 0.002
    accelerator: ClassVar[bool] = True
    licence: ClassVar[str] = "CC-BY-NC-SA-4.0"
    noncommercial: ClassVar[bool] = True
    train_allowed: ClassVar[bool] = False
    folder: ClassVar[str] = "ImageBind"
    weight_files: ClassVar[tuple[str, ...]] = ("imagebind_huge.pth",)
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=600.0, gt=0, le=3600)

    @property
    def tokenizer_root(self) -> Path:
        """The folder that the tokenizer is in, where texts are read."""
        return self.weights.parent

    def asked(self, prompt: Prompt) -> str:
        """The text that is read, where one is."""
        return prompt.prompt_av

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's file."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", _torch_file, str(self.weights))


class _OfText(ImageBindReward):
    """One that reads the prompt."""

    prompt_anchored: ClassVar[bool] = True
    tokenizer: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """Directory with the `tokenizer.json` of a CLIP. "" = the checkpoint's own folder."""
    text: Literal["part", "whole"] = "part"
    """part: what of the prompt can be seen, or heard. whole: all of it."""

    @property
    @override
    def tokenizer_root(self) -> Path:
        return Path(self.tokenizer) if self.tokenizer else self.weights.parent

    @override
    def asked(self, prompt: Prompt) -> str:
        part = prompt.prompt_v if "video" in self.needs else prompt.prompt_a
        return part if self.text == "part" else prompt.prompt_av

    @override
    def files(self) -> Iterable[NamedPath]:
        """The weights and the tokenizer."""
        yield from super().files()
        file = str(self.tokenizer_root / TOKENIZER)
        yield NamedPath(("tokenizer" if self.tokenizer else "path",), file, InputPath("file"))

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the tokenizer."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("tokenizer", inspect_tokenizer, str(self.tokenizer_root))


class ImageBindAVReward(ImageBindReward):
    """Cosine of picture and sound."""

    senses: ClassVar[tuple[Sense, Sense]] = "vision", "audio"
    about: ClassVar[str] = "picture and sound are of one thing"
    needs: ClassVar[tuple[Modality, ...]] = ("video", "audio")
    name: Literal["imagebind_av"] = "imagebind_av"
    route: Route = "both"


class ImageBindTVReward(_OfText):
    """Cosine of text and picture."""

    senses: ClassVar[tuple[Sense, Sense]] = "text", "vision"
    about: ClassVar[str] = "the picture is of what the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    name: Literal["imagebind_tv"] = "imagebind_tv"
    route: Route = "video"


class ImageBindTAReward(_OfText):
    """Cosine of text and sound."""

    senses: ClassVar[tuple[Sense, Sense]] = "text", "audio"
    about: ClassVar[str] = "the sound is of what the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    name: Literal["imagebind_ta"] = "imagebind_ta"
    route: Route = "audio"


def _torch_file(path: str) -> None:
    inspect_torch_file(Path(path))
