"""The built-in rewards as specs: what each measures, where it routes, how its server is sized.

A job lists rewards by name with a weight; everything else has a default here, written once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.clap_dir import inspect_clap_dir
from accord.config.contract import ModelFacts, Problem, RewardSpec
from accord.config.files import remembered
from accord.config.paths import InputPath
from accord.errors import UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class _Bounded(RewardSpec):
    """A reward of sound and picture whose range ends at 1."""

    highest: ClassVar[float | None] = 1.0
    route: Route = "both"


class _Heard(_Bounded):
    """One of the sound alone."""

    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    route: Route = "audio"


class _Seen(_Bounded):
    """One of the picture alone."""

    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    route: Route = "video"


class SyncReward(_Bounded):
    """Offset between sound onsets and visible contacts, corrected for matches by chance."""

    impl: ClassVar[str] = "reward_servers.models.sync:SyncModel"
    about: ClassVar[str] = "sound onsets fall on visible contacts more than chance would have them"
    offset_component: ClassVar[str] = "offset_s"
    name: Literal["sync"] = "sync"


class ClapReward(_Heard):
    """Text-audio cosine similarity of a CLAP checkpoint."""

    impl: ClassVar[str] = "reward_servers.models.clap:ClapRewardModel"
    about: ClassVar[str] = "the sound is the one the text names"
    prompt_anchored: ClassVar[bool] = True
    name: Literal["clap"] = "clap"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-clap", min_length=1, max_length=4096)
    """Directory of a transformers `ClapModel`, or `builtin:tiny-clap`."""
    num_cpus: float = Field(default=0.2, ge=0, le=64)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """The checkpoint's files, see `accord.config.clap_dir`."""
        del job
        if facts is not None:
            try:
                remembered(inspect_clap_dir, self.path)
            except UserError as error:
                yield "path", str(error)


class AudioAestheticsReward(_Heard):
    """Cleanliness of the sound."""

    impl: ClassVar[str] = "reward_servers.models.audio_aesthetics:AudioAestheticsModel"
    about: ClassVar[str] = "events stand clear of the noise floor"
    name: Literal["audio_aesthetics"] = "audio_aesthetics"


class VideoAestheticsReward(_Seen):
    """Technical frame quality."""

    impl: ClassVar[str] = "reward_servers.models.video_aesthetics:VideoAestheticsModel"
    about: ClassVar[str] = "frames are sharp, well exposed and free of noise"
    name: Literal["video_aesthetics"] = "video_aesthetics"


class TextVideoReward(_Seen):
    """Text-video agreement by a closed-vocabulary verifier (colour and motion words)."""

    impl: ClassVar[str] = "reward_servers.models.text_video:TextVideoModel"
    about: ClassVar[str] = "the moving thing has the colour and the motion that the text names"
    prompt_anchored: ClassVar[bool] = True
    name: Literal["text_video"] = "text_video"


class TemporalFlickerReward(_Seen):
    """VBench-style temporal flicker."""

    impl: ClassVar[str] = "reward_servers.models.vbench:TemporalFlickerModel"
    about: ClassVar[str] = "what stands still keeps its brightness"
    smallest_effect: ClassVar[float] = 0.002
    name: Literal["temporal_flicker"] = "temporal_flicker"


class MotionSmoothnessReward(_Seen):
    """VBench-style motion smoothness."""

    impl: ClassVar[str] = "reward_servers.models.vbench:MotionSmoothnessModel"
    about: ClassVar[str] = "a frame lies between its neighbours"
    smallest_effect: ClassVar[float] = 0.002
    name: Literal["motion_smoothness"] = "motion_smoothness"


class DynamicDegreeReward(_Seen):
    """VBench-style dynamic degree."""

    impl: ClassVar[str] = "reward_servers.models.vbench:DynamicDegreeModel"
    about: ClassVar[str] = "something moves"
    name: Literal["dynamic_degree"] = "dynamic_degree"
