"""Rewards of a whole set of clips, as specs: each clip gets what it adds to the set's measure (leave one out).

`…_vendi` looks at the clips of one prompt. The others look at all clips of a step. `…_frechet` and `audio_kl` hold
them against exemplars, a file that `accord rewards exemplars` writes from clips that are as the policy's should be.

A measure works on one row of numbers for each clip. `embedder` says which: one without weights, or a model at `path`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from accord.config.ast_dir import inspect_ast
from accord.config.clap_dir import inspect_clap_dir
from accord.config.clip_dir import inspect_clip_image
from accord.config.contract import Component, ModelFacts, Problem, RewardSpec
from accord.config.exemplars import EXEMPLARS_BYTES, LEAST, inspect_exemplars
from accord.config.paths import InputPath, NamedPath, is_path
from accord.config.rewards.bundle import part, told
from accord.errors import ModelError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec

LEARNED: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "clap": ("CLAP", inspect_clap_dir),
    "clip": ("clip-vit-base-patch32", inspect_clip_image),
    "ast": ("ast-finetuned-audioset-10-10-0.4593", inspect_ast),
}
"""Embedders that have weights: name of their folder in a bundle, and who looks at it."""


class SetReward(RewardSpec):
    """A measure of a set, and what each clip adds to it."""

    scope: ClassVar[Literal["clip", "group", "step"]] = "step"
    needs_sound: ClassVar[bool] = False
    smallest_effect: ClassVar[float] = 0.001
    embedder: str
    """What the rows are; a subclass says which there are."""
    path: Annotated[str, InputPath("directory")] = Field(default="", max_length=4096)
    """Directory of the embedder's model, or a bundle that has it; "" for an embedder without weights."""
    num_cpus: float = Field(default=0.2, ge=0, le=64)

    @property
    def weights(self) -> Path | None:
        """Directory of the embedder's model, whether it is there or not; None for one without weights."""
        return part(self.path, LEARNED[self.embedder][0]) if self.embedder in LEARNED else None

    @property
    def misplaced_path(self) -> str:
        """What is wrong with `path` beside `embedder`; "" = nothing."""
        if self.path and self.embedder not in LEARNED:
            return f"{self.embedder} has no weights; leave it out, or set embedder to the model that is there"
        if not self.path and self.embedder in LEARNED:
            return f"name the directory of the {self.embedder} model that makes the rows"
        return ""

    @override
    def files(self) -> Iterable[NamedPath]:
        """Its embedder's part of `path` alone."""
        for named in super().files():
            if named.place != ("path",):
                yield named
        if self.weights is not None and is_path(self.path):
            yield NamedPath(("path",), str(self.weights), InputPath("directory"))

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the embedder's directory, and sets that are too small to be measured."""
        yield from super().problems(job, facts)
        if self.misplaced_path:
            yield "path", self.misplaced_path
        elif facts is None:
            size = job.prompts.group_size * (job.prompts.per_step if self.scope == "step" else 1)
            if job.trains and size < LEAST:
                why = f"{size} clips are too few to be measured as a set; use {LEAST} or more in a {self.scope}"
                yield "/prompts/group_size", f"{self.name}: {why}"
        elif self.weights is not None:
            yield from told("path", LEARNED[self.embedder][1], str(self.weights))


class _OfSound(SetReward):
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    route: Route = "audio"
    embedder: Literal["log_mel", "clap"] = "log_mel"
    """log_mel: statistics of mel bands, no weights. clap: CLAP's embedding of the sound."""


class _OfPicture(SetReward):
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    route: Route = "video"
    embedder: Literal["colours", "clip"] = "colours"
    """colours: histograms of colour and change, no weights. clip: CLIP's embedding of frames."""


class _OfClasses(SetReward):
    """One whose rows are shares of classes of sound."""

    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    licence: ClassVar[str] = "BSD-3-Clause"
    route: Route = "audio"
    embedder: Literal["ast"] = "ast"
    """ast: an Audio Spectrogram Transformer, tuned to the classes of AudioSet."""
    path: Annotated[str, InputPath("directory")] = Field(min_length=1, max_length=4096)
    """Directory of a transformers `ASTForAudioClassification`, or a bundle that has it."""
    num_cpus: float = Field(default=1.0, ge=0, le=64)
    deadline_s: float = Field(default=300.0, gt=0, le=3600)


class _Diversity(SetReward):
    """What a clip adds to the Vendi score of its group."""

    impl: ClassVar[str] = "reward_servers.sets.models:DiversityModel"
    scope: ClassVar[Literal["clip", "group", "step"]] = "group"
    about: ClassVar[str] = "it differs from the other clips of its prompt"
    components: ClassVar[Mapping[str, Component]] = {
        "vendi": Component("effective number of different clips in the group", low=1.0)
    }


class AudioVendiReward(_OfSound, _Diversity):
    """What a clip's sound adds to the Vendi score of its group."""

    name: Literal["audio_vendi"] = "audio_vendi"


class VideoVendiReward(_OfPicture, _Diversity):
    """What a clip's picture adds to the Vendi score of its group."""

    name: Literal["video_vendi"] = "video_vendi"


class ExemplarReward(SetReward):
    """One that holds the step's clips against others."""

    exemplars: Annotated[str, InputPath("file", EXEMPLARS_BYTES)] = Field(min_length=1, max_length=4096)
    """File of exemplars that `accord rewards exemplars` wrote for this reward and this embedder."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: exemplars of another reward or embedder. Whether the embedder's weights are the same is
        seen when they are loaded."""
        yield from super().problems(job, facts)
        if facts is not None:
            try:
                inspect_exemplars(self.exemplars, self.name, self.embedder)
            except ModelError as error:
                yield "exemplars", str(error)


class _Frechet(ExemplarReward):
    """By how much the step's Frechet distance to the exemplars would be larger without the clip."""

    impl: ClassVar[str] = "reward_servers.sets.models:FrechetModel"
    about: ClassVar[str] = "it brings the step's clips nearer to the exemplars"
    components: ClassVar[Mapping[str, Component]] = {
        "distance": Component("Frechet distance of the step to the exemplars", low=0.0)
    }


class AudioFrechetReward(_OfSound, _Frechet):
    """Frechet audio distance (FAD), as credit of a clip."""

    name: Literal["audio_frechet"] = "audio_frechet"


class VideoFrechetReward(_OfPicture, _Frechet):
    """Frechet distance of the pictures, as credit of a clip."""

    name: Literal["video_frechet"] = "video_frechet"


class AudioKLReward(_OfClasses, ExemplarReward):
    """By how much the exemplars' classes of sound would diverge more from the step's without the clip."""

    impl: ClassVar[str] = "reward_servers.sets.models:DivergenceModel"
    about: ClassVar[str] = "it brings the step's classes of sound nearer to those of the exemplars"
    components: ClassVar[Mapping[str, Component]] = {
        "divergence": Component("KL divergence of the exemplars' classes from the step's", "nats", low=0.0)
    }
    name: Literal["audio_kl"] = "audio_kl"


class AudioInceptionReward(_OfClasses):
    """What a clip's sound adds to the step's inception score."""

    impl: ClassVar[str] = "reward_servers.sets.models:InceptionModel"
    about: ClassVar[str] = "its sound is clearly of a class that is rare in the step"
    components: ClassVar[Mapping[str, Component]] = {"inception": Component("inception score of the step", low=1.0)}
    name: Literal["audio_inception"] = "audio_inception"
