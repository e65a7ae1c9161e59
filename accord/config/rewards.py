"""The built-in rewards as specs: what each measures, where it routes, how its server is sized.

A job lists rewards by name with a weight; everything else has a default here, written once.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.base import Spec
from accord.config.paths import InputPath
from accord.types import Modality, Route

MIN_FRAMES = 3
"""Fewest frames of a clip that any reward looks at."""
MIN_AUDIO_S = 0.1
"""Shortest sound that any reward listens to, in seconds."""


class RewardSpec(Spec):
    """What all rewards have. A subclass fixes `name`, `impl`, `needs` and the default route."""

    impl: ClassVar[str] = ""
    """`module:Class` of the RewardModel; imported only in its server."""
    inspect: ClassVar[str] = ""
    """`module:function` (light) that checks `path` when a job is submitted and raises ModelError; "" = no files."""
    needs: ClassVar[tuple[Modality, ...]] = ("video", "audio")
    """Modalities it looks at; a backbone without one of them cannot use this reward."""
    about: ClassVar[str] = ""
    """One line: what a higher score means."""
    smallest_effect: ClassVar[float] = 0.01
    """A change of the mean below this counts as none that matters, however certain it is."""
    highest: ClassVar[float | None] = None
    """Top of the range, where there is one; a mean that stands there is called saturated."""
    prompt_anchored: ClassVar[bool] = False
    """True when the score depends on the prompt's text."""

    name: str
    route: Route
    """Which branch's loss it drives: video, audio or both."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of its normalised advantage; 0 = measured but not trained on."""
    required: bool = True
    """True: a step in which no sample of any group got a valid score stops the attempt. False: it is left out."""
    deadline_s: float = Field(default=120.0, gt=0, le=3600)
    """Wall time for one group, retries included; what is not scored by then is invalid (`timeout`)."""
    num_cpus: float = Field(default=0.1, ge=0, le=64)
    num_gpus: float = Field(default=0.0, ge=0, le=8)
    min_replicas: int = Field(default=1, ge=0, le=1000)
    max_replicas: int = Field(default=4, ge=1, le=1000)
    max_batch_groups: int = Field(default=4, ge=1, le=256)
    """Groups that one call of the model may batch."""
    batch_wait_s: float = Field(default=0.02, ge=0, le=10)


class SyncReward(RewardSpec):
    """Offset between sound onsets and visible contacts, corrected for matches by chance."""

    impl: ClassVar[str] = "reward_servers.models.sync:SyncModel"
    about: ClassVar[str] = "sound onsets fall on visible contacts more than chance would have them"
    highest: ClassVar[float | None] = 1.0
    name: Literal["sync"] = "sync"
    route: Route = "both"


class ClapReward(RewardSpec):
    """Text-audio cosine similarity of a CLAP checkpoint."""

    impl: ClassVar[str] = "reward_servers.models.clap:ClapRewardModel"
    inspect: ClassVar[str] = "accord.config.clap_dir:inspect_clap_dir"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    about: ClassVar[str] = "the sound is the one the text names"
    highest: ClassVar[float | None] = 1.0
    prompt_anchored: ClassVar[bool] = True
    name: Literal["clap"] = "clap"
    route: Route = "audio"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-clap", min_length=1, max_length=4096)
    """Directory of a transformers `ClapModel`, or `builtin:tiny-clap`."""
    num_cpus: float = Field(default=0.2, ge=0, le=64)


class AudioAestheticsReward(RewardSpec):
    """Cleanliness of the sound."""

    impl: ClassVar[str] = "reward_servers.models.audio_aesthetics:AudioAestheticsModel"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    about: ClassVar[str] = "events stand clear of the noise floor"
    highest: ClassVar[float | None] = 1.0
    name: Literal["audio_aesthetics"] = "audio_aesthetics"
    route: Route = "audio"


class VideoAestheticsReward(RewardSpec):
    """Technical frame quality."""

    impl: ClassVar[str] = "reward_servers.models.video_aesthetics:VideoAestheticsModel"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "frames are sharp, well exposed and free of noise"
    highest: ClassVar[float | None] = 1.0
    name: Literal["video_aesthetics"] = "video_aesthetics"
    route: Route = "video"


class TextVideoReward(RewardSpec):
    """Text-video agreement by a closed-vocabulary verifier (colour and motion words)."""

    impl: ClassVar[str] = "reward_servers.models.text_video:TextVideoModel"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "the moving thing has the colour and the motion that the text names"
    highest: ClassVar[float | None] = 1.0
    prompt_anchored: ClassVar[bool] = True
    name: Literal["text_video"] = "text_video"
    route: Route = "video"


class TemporalFlickerReward(RewardSpec):
    """VBench-style temporal flicker."""

    impl: ClassVar[str] = "reward_servers.models.vbench:TemporalFlickerModel"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "what stands still keeps its brightness"
    smallest_effect: ClassVar[float] = 0.002
    highest: ClassVar[float | None] = 1.0
    name: Literal["temporal_flicker"] = "temporal_flicker"
    route: Route = "video"


class MotionSmoothnessReward(RewardSpec):
    """VBench-style motion smoothness."""

    impl: ClassVar[str] = "reward_servers.models.vbench:MotionSmoothnessModel"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "a frame lies between its neighbours"
    smallest_effect: ClassVar[float] = 0.002
    highest: ClassVar[float | None] = 1.0
    name: Literal["motion_smoothness"] = "motion_smoothness"
    route: Route = "video"


class DynamicDegreeReward(RewardSpec):
    """VBench-style dynamic degree."""

    impl: ClassVar[str] = "reward_servers.models.vbench:DynamicDegreeModel"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "something moves"
    highest: ClassVar[float | None] = 1.0
    name: Literal["dynamic_degree"] = "dynamic_degree"
    route: Route = "video"
