"""Rewards that learned what people prefer on top of a Qwen2-VL, as specs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from accord.config.contract import Component, ModelFacts, Problem
from accord.config.files import kind_of
from accord.config.paths import InputPath, NamedPath
from accord.config.preference_dir import HPSv3Files, inspect_hpsv3, template_of
from accord.config.qwen_dir import QwenBase, base_files, inspect_base
from accord.config.reward_template import BESIDE, sound_template
from accord.config.rewards.bundle import BundledReward
from accord.config.video_reward_dir import (
    CONFIG,
    VideoRewardFiles,
    base_weight_files,
    inspect_video_reward,
    own_template,
)
from accord.errors import ModelError, UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class _QwenReward(BundledReward):
    """One whose weights stand on a Qwen2-VL, and which reads `prompt_v` and frames."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    prompt_anchored: ClassVar[bool] = True
    min_frames: ClassVar[int] = 1
    min_side: ClassVar[int] = 28
    """A visual token's; it also keeps the longer side below 200 times the shorter one, the library's limit."""
    accelerator: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    tokens: ClassVar[tuple[str, ...]]
    """What it reads its values at."""
    base_name: ClassVar[str]
    """What the Qwen2-VL below is called where it is published."""
    route: Route = "video"
    base: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """Directory of the Qwen2-VL below: config, tokenizer, chat template. "" = the checkpoint's own folder."""
    template: Annotated[str, InputPath("file")] = Field(default="", max_length=4096)
    """The words around the prompt: a text with `{text_prompt}`, or the authors' Python file, which is read and never
    run. "" = `prompt_template.txt` beside the weights."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the backbone; heads are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where `num_gpus` gives it one."""
    max_visual_tokens: int = Field(default=1024, ge=64, le=1_000_000)
    """Most visual tokens of one forward; one clip (VideoAlign) or frame (HPSv3) always fits."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)

    @property
    def home(self) -> Path:
        """The folder that the checkpoint is in."""
        return self.weights.parent if self.weight_files else self.weights

    @property
    def base_root(self) -> Path:
        """The folder of the Qwen2-VL below."""
        return Path(self.base) if self.base else self.home

    def below(self) -> QwenBase:
        """The Qwen2-VL below. Raises ModelError that says what to name."""
        if kind_of(self.weights) is None:
            raise ModelError(
                f"{self.weights}: not found or not allowed; name the bundle, or the folder {self.folder} of it"
            )
        if not self.base and kind_of(self.home / "config.json") is None:
            raise ModelError(f"{self.home}: holds no config and no tokenizer; name the folder of {self.base_name}")
        return inspect_base(self.base_root)

    def words(self) -> str:
        """The template. Raises ModelError."""
        return template_of(self.home, self.template, self.tokens)

    @override
    def files(self) -> Iterable[NamedPath]:
        """The checkpoint, the words, and of the base what is no weight."""
        yield from super().files()
        for file in base_files(self.base_root):
            yield NamedPath(("base" if self.base else "path",), str(file), InputPath("file"))
        if self.template:
            yield NamedPath(("template",), self.template, InputPath("file"))
        elif self.weight_files and kind_of(self.home / BESIDE) == "file":
            yield NamedPath(("path",), str(self.home / BESIDE), InputPath("file"))

    @abstractmethod
    def fits(self, base: QwenBase, template: str) -> object:
        """What is loaded, all of it checked. Raises ModelError."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the files, see `accord.config.preference_dir`."""
        yield from super().problems(job, facts)
        field = "path" if kind_of(self.weights) is None else "base"
        try:
            if facts is not None:
                base = self.below()
                field = "template"
                words = self.words()
                field = "path"
                self.fits(base, words)
        except UserError as error:
            yield field, str(error)


class HPSv3Reward(_QwenReward):
    """Frame preference with uncertainty (HPSv3)."""

    impl: ClassVar[str] = "reward_servers.models.hpsv3:HPSv3Model"
    about: ClassVar[str] = "people prefer its frames for that text"
    folder: ClassVar[str] = "HPSv3"
    weight_files: ClassVar[tuple[str, ...]] = ("HPSv3.safetensors",)
    tokens: ClassVar[tuple[str, ...]] = ("<|Reward|>",)
    base_name: ClassVar[str] = "Qwen2-VL-7B-Instruct"
    components: ClassVar[Mapping[str, Component]] = {
        "mu": Component("mean preference over the frames looked at, without cap", better="higher"),
        "sigma": Component("mean of the head's second number, how unsure it is"),
        "frames": Component("frames looked at", low=1.0),
    }
    batch_tolerance: ClassVar[float] = 0.05
    smallest_effect: ClassVar[float] = 0.05
    name: Literal["hpsv3"] = "hpsv3"
    frames: int = Field(default=5, ge=1, le=256)
    """Frames looked at, evenly spaced from the first to the last."""
    best_share: float = Field(default=0.3, gt=0, le=1)
    """Of the frames' values, the highest ceil(best_share * n) are averaged."""
    pixels: int = Field(default=256 * 28**2, ge=28**2, le=4096 * 28**2)
    """Size that every frame is brought to, as far as sides of multiples of 28 pixels allow: 256 visual tokens."""
    cap: float = Field(default=15.0, ge=-100, le=100)
    """No frame counts for more."""
    deadline_s: float = Field(default=300.0, gt=0, le=3600)

    @override
    def fits(self, base: QwenBase, template: str) -> HPSv3Files:
        """The weights against their base."""
        return inspect_hpsv3(self.weights, base, template)


class VideoAlignReward(_QwenReward):
    """Visual quality, motion quality and text alignment of a whole clip (VideoAlign's VideoReward)."""

    impl: ClassVar[str] = "reward_servers.models.videoalign:VideoAlignModel"
    about: ClassVar[str] = "people would call its picture good, and what the text asks for"
    folder: ClassVar[str] = "VideoReward"
    tokens: ClassVar[tuple[str, ...]] = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
    base_name: ClassVar[str] = "Qwen2-VL-2B-Instruct"
    min_frames: ClassVar[int] = 2
    components: ClassVar[Mapping[str, Component]] = {
        "vq": Component("visual quality", better="higher"),
        "mq": Component("motion quality", better="higher"),
        "ta": Component("alignment of text and picture", better="higher"),
        "frames": Component("frames looked at", low=2.0),
    }
    batch_tolerance: ClassVar[float] = 0.05
    smallest_effect: ClassVar[float] = 0.02
    name: Literal["videoalign"] = "videoalign"
    aggregate: Literal["vq_ta", "overall", "vq", "mq", "ta"] = "vq_ta"
    """What the value is: (VQ + TA) / 2 as in OmniNFT, VQ + MQ + TA as its authors report, or one of the three."""
    normalise: bool = True
    """Whether values are brought to mean 0 and spread 1 by the constants of the checkpoint's config."""
    step: int | None = Field(default=None, ge=0)
    """Which `checkpoint-<step>`; None = the latest."""
    fps: float = Field(default=2.0, gt=0, le=60)
    """Frames looked at per second of clip, 4 at least; it was trained at 2."""
    max_looked_at: int = Field(default=64, ge=2, le=768)
    """Most frames looked at, however long the clip is."""
    pixels: int = Field(default=256 * 28**2, ge=28**2, le=4096 * 28**2)
    """Largest size that a frame is brought to; the smallest is half of the default."""
    deadline_s: float = Field(default=300.0, gt=0, le=3600)

    @override
    def words(self) -> str:
        """The template; that of the checkpoint's config before one that only lies beside it."""
        own = None if self.template else own_template(self.home)
        return super().words() if own is None else sound_template(self.home / CONFIG, own, self.tokens)

    @override
    def files(self) -> Iterable[NamedPath]:
        """Besides its base's: the weights below a LoRA, where there are any."""
        yield from super().files()
        if self.base:
            try:
                for file in base_weight_files(inspect_base(self.base_root)):
                    yield NamedPath(("base",), str(file), InputPath("file"))
            except ModelError:
                return  # whole weights need none; for a LoRA, `problems` tells

    @override
    def fits(self, base: QwenBase, template: str) -> VideoRewardFiles:
        """The checkpoint's files against their base, and whether what is asked for is in them."""
        found = inspect_video_reward(self.home, self.step, base, template)
        if self.normalise and not found.norms:
            raise ModelError(
                f"{self.home / CONFIG}: has no inference_config to normalise by; copy the published one, or set "
                "normalise = false"
            )
        return found
