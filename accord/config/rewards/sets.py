"""Rewards of a whole set of clips, as specs: each clip gets what it adds to the set's measure (leave one out).

`…_vendi` looks at the clips of one prompt. The others look at all clips of a step and hold them against exemplars,
a file that `accord rewards exemplars` writes from clips that are as the policy's should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.contract import Component, RewardSpec
from accord.config.paths import InputPath
from accord.types import Modality, Route

EXEMPLARS_BYTES = 1 << 30


class _Set(RewardSpec):
    """A measure of a set, and what each clip adds to it."""

    scope: ClassVar[Literal["clip", "group", "step"]] = "step"
    needs_sound: ClassVar[bool] = False
    smallest_effect: ClassVar[float] = 0.001
    num_cpus: float = Field(default=0.2, ge=0, le=64)


class _Diversity(_Set):
    """What a clip adds to the Vendi score of its group."""

    impl: ClassVar[str] = "reward_servers.sets.models:DiversityModel"
    scope: ClassVar[Literal["clip", "group", "step"]] = "group"
    about: ClassVar[str] = "it differs from the other clips of its prompt"
    components: ClassVar[Mapping[str, Component]] = {
        "vendi": Component("effective number of different clips in the group", low=1.0)
    }


class AudioVendiReward(_Diversity):
    """What a clip's sound adds to the Vendi score of its group, over log-mel statistics."""

    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    name: Literal["audio_vendi"] = "audio_vendi"
    route: Route = "audio"


class VideoVendiReward(_Diversity):
    """What a clip's picture adds to the Vendi score of its group, over histograms of colour and change."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    name: Literal["video_vendi"] = "video_vendi"
    route: Route = "video"


class FrechetReward(_Set):
    """By how much the step's Frechet distance to the exemplars would be larger without the clip."""

    impl: ClassVar[str] = "reward_servers.sets.models:FrechetModel"
    about: ClassVar[str] = "it brings the step's clips nearer to the exemplars"
    components: ClassVar[Mapping[str, Component]] = {
        "distance": Component("Frechet distance of the step to the exemplars", low=0.0)
    }
    exemplars: Annotated[str, InputPath("file", EXEMPLARS_BYTES)] = Field(min_length=1, max_length=4096)
    """File of exemplars that `accord rewards exemplars` wrote for this reward."""


class AudioFrechetReward(FrechetReward):
    """Frechet audio distance (FAD) over log-mel statistics, as credit of a clip."""

    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    name: Literal["audio_frechet"] = "audio_frechet"
    route: Route = "audio"


class VideoFrechetReward(FrechetReward):
    """Frechet distance over histograms of colour and change, as credit of a clip."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    name: Literal["video_frechet"] = "video_frechet"
    route: Route = "video"
