"""Learned rewards of single frames: what people prefer, what fits a text, what stays the same. As specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from accord.config.clip_dir import CONFIG, inspect_clip, inspect_clip_image, inspect_tokenizer, weights_of
from accord.config.contract import Component, ModelFacts, Problem
from accord.config.files import kind_of
from accord.config.imagereward_files import MED_CONFIG, inspect_imagereward
from accord.config.paths import InputPath, NamedPath
from accord.config.rewards.bundle import BundledReward, told
from accord.config.torch_files import inspect_torch_file
from accord.config.vit_file import inspect_vit
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec

_BASE = "clip-vit-large-patch14"


def _of_frames(what: str) -> dict[str, Component]:
    return {
        "lowest": Component(f"lowest {what} of a frame", better="higher"),
        "highest": Component(f"highest {what} of a frame", better="higher"),
        "frames": Component("frames looked at", low=1.0),
    }


class _FramesReward(BundledReward):
    """One whose value is the mean over some frames, each looked at alone."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    min_frames: ClassVar[int] = 1
    accelerator: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    route: Route = "video"
    frames: int = Field(default=8, ge=1, le=4096)
    """Frames looked at, evenly spaced from the first to the last."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=300.0, gt=0, le=3600)


class _TextFramesReward(_FramesReward):
    """One that holds frames against `prompt_v`."""

    prompt_anchored: ClassVar[bool] = True
    tokenizer: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """Directory with the `tokenizer.json` that texts are read with. "" = the checkpoint's own folder."""

    @property
    def tokenizer_root(self) -> Path:
        """The folder that the tokenizer is in."""
        if self.tokenizer:
            return Path(self.tokenizer)
        return self.weights.parent if self.weight_files else self.weights

    @override
    def files(self) -> Iterable[NamedPath]:
        """The weights and the tokenizer."""
        yield from super().files() if self.weight_files else _clip_files("path", self.weights)
        file = str(self.tokenizer_root / "tokenizer.json")
        yield NamedPath(("tokenizer" if self.tokenizer else "path",), file, InputPath("file"))

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.clip_dir`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_clip if not self.weight_files else _torch_file, str(self.weights))
            yield from told("tokenizer", inspect_tokenizer, str(self.tokenizer_root))


class ClipScoreReward(_TextFramesReward):
    """Cosine of frames and text under a CLIP."""

    impl: ClassVar[str] = "reward_servers.models.clip_text:ClipScoreModel"
    about: ClassVar[str] = "its frames show what the text names"
    folder: ClassVar[str] = "clip-vit-base-patch32"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    smallest_effect: ClassVar[float] = 0.002
    components: ClassVar[Mapping[str, Component]] = _of_frames("cosine")
    name: Literal["clip_score"] = "clip_score"


class PickScoreReward(_TextFramesReward):
    """Frame preference by PickScore."""

    impl: ClassVar[str] = "reward_servers.models.clip_text:PickScoreModel"
    about: ClassVar[str] = "people who asked for that text would pick its frames"
    folder: ClassVar[str] = "PickScore_v1"
    range: ClassVar[tuple[float, float]] = (-101.0, 101.0)
    smallest_effect: ClassVar[float] = 0.05
    components: ClassVar[Mapping[str, Component]] = _of_frames("score")
    name: Literal["pickscore"] = "pickscore"


class HPSv2Reward(_TextFramesReward):
    """Frame preference by HPSv2.1."""

    impl: ClassVar[str] = "reward_servers.models.clip_text:HPSv2Model"
    about: ClassVar[str] = "people prefer its frames for that text"
    folder: ClassVar[str] = "HPSv2"
    weight_files: ClassVar[tuple[str, ...]] = ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt")
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    smallest_effect: ClassVar[float] = 0.002
    components: ClassVar[Mapping[str, Component]] = _of_frames("cosine")
    licence: ClassVar[str] = "Apache-2.0"
    name: Literal["hpsv2"] = "hpsv2"


class ImageRewardReward(_TextFramesReward):
    """Frame preference by ImageReward."""

    impl: ClassVar[str] = "reward_servers.models.imagereward:ImageRewardModel"
    about: ClassVar[str] = "people like its frames for that text"
    folder: ClassVar[str] = "ImageReward"
    weight_files: ClassVar[tuple[str, ...]] = ("ImageReward.pt",)
    smallest_effect: ClassVar[float] = 0.02
    components: ClassVar[Mapping[str, Component]] = _of_frames("score")
    licence: ClassVar[str] = "Apache-2.0"
    name: Literal["imagereward"] = "imagereward"

    @override
    def files(self) -> Iterable[NamedPath]:
        """Besides its base's: the config of the text encoder."""
        yield from super().files()
        yield NamedPath(("path",), str(self.weights.with_name(MED_CONFIG)), InputPath("file"))

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the config of the text encoder, see `accord.config.imagereward_files`."""
        yield from super().problems(job, facts)
        if facts is not None and kind_of(self.weights) == "file":
            yield from told("path", inspect_imagereward, str(self.weights))


class _AestheticReward(_FramesReward):
    """A head on the image feature of CLIP L/14, which is `base`."""

    base: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """Directory of CLIP L/14. "" = `clip-vit-large-patch14` beside the head or in the bundle."""

    @property
    def base_root(self) -> Path:
        """The folder of the CLIP below."""
        if self.base:
            return Path(self.base)
        beside = self.weights.parent / _BASE
        return beside if kind_of(beside / CONFIG) == "file" else self.weights.parent.parent / _BASE

    @override
    def files(self) -> Iterable[NamedPath]:
        """The head, and config and weights of the CLIP below."""
        yield from super().files()
        yield from _clip_files("base" if self.base else "path", self.base_root)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the head's file, and those of the CLIP below."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", _torch_file, str(self.weights))
            yield from told("base", inspect_clip_image, str(self.base_root))


class LaionAestheticReward(_AestheticReward):
    """How beautiful frames are, by LAION's second predictor."""

    impl: ClassVar[str] = "reward_servers.models.aesthetic:LaionAestheticModel"
    about: ClassVar[str] = "people find its frames beautiful"
    folder: ClassVar[str] = "improved-aesthetic-predictor"
    weight_files: ClassVar[tuple[str, ...]] = ("sac+logos+ava1-l14-linearMSE.pth",)
    components: ClassVar[Mapping[str, Component]] = _of_frames("rating over 10")
    licence: ClassVar[str] = "Apache-2.0"
    name: Literal["laion_aesthetic"] = "laion_aesthetic"


class AestheticQualityReward(_AestheticReward):
    """VBench's aesthetic quality: LAION's first, linear predictor."""

    impl: ClassVar[str] = "reward_servers.models.aesthetic:AestheticQualityModel"
    about: ClassVar[str] = "people find its frames beautiful, as VBench counts it"
    folder: ClassVar[str] = "aesthetic-predictor"
    weight_files: ClassVar[tuple[str, ...]] = ("sa_0_4_vit_l_14_linear.pth",)
    components: ClassVar[Mapping[str, Component]] = _of_frames("rating over 10")
    name: Literal["aesthetic_quality"] = "aesthetic_quality"


class _ConsistencyReward(_FramesReward):
    """How much frames are alike to the first and to the one before, by features."""

    min_frames: ClassVar[int] = 2
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    smallest_effect: ClassVar[float] = 0.002
    components: ClassVar[Mapping[str, Component]] = {
        "to_first": Component("mean cosine to the first frame", low=0.0, high=1.0),
        "to_previous": Component("mean cosine to the frame before", low=0.0, high=1.0),
        "lowest": Component("smallest cosine to the first frame", low=0.0, high=1.0, better="higher"),
        "frames": Component("frames looked at", low=2.0),
    }
    frames: int = Field(default=16, ge=2, le=4096)
    """Frames looked at, evenly spaced from the first to the last. VBench looks at all: 4096."""


class SubjectConsistencyReward(_ConsistencyReward):
    """VBench's subject consistency: features of DINO."""

    impl: ClassVar[str] = "reward_servers.models.same_subject:SubjectConsistencyModel"
    about: ClassVar[str] = "what is shown stays what it is; VBench's formula"
    folder: ClassVar[str] = "DINO"
    weight_files: ClassVar[tuple[str, ...]] = ("model.safetensors", "dino_vitbase16_pretrain.pth", "pytorch_model.bin")
    licence: ClassVar[str] = "Apache-2.0"
    name: Literal["subject_consistency"] = "subject_consistency"

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the file of weights, see `accord.config.vit_file`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_vit, str(self.weights))


class BackgroundConsistencyReward(_ConsistencyReward):
    """VBench's background consistency: image features of CLIP B/32."""

    impl: ClassVar[str] = "reward_servers.models.same_subject:BackgroundConsistencyModel"
    about: ClassVar[str] = "the scene stays what it is; VBench's formula"
    folder: ClassVar[str] = "clip-vit-base-patch32"
    name: Literal["background_consistency"] = "background_consistency"

    @override
    def files(self) -> Iterable[NamedPath]:
        """Config and weights of the CLIP."""
        yield from _clip_files("path", self.weights)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.clip_dir`."""
        yield from super().problems(job, facts)
        if facts is not None:
            yield from told("path", inspect_clip_image, str(self.weights))


def _torch_file(path: str) -> None:
    inspect_torch_file(Path(path))


def _clip_files(field: str, root: Path) -> Iterable[NamedPath]:
    for file in (root / CONFIG, weights_of(root)):
        yield NamedPath((field,), str(file), InputPath("file"))
