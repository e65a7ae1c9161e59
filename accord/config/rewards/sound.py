"""Learned rewards of the sound alone, as specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.clap_dir import inspect_clap_dir
from accord.config.contract import Component, ModelFacts, Problem, RewardSpec
from accord.config.files import remembered
from accord.config.paths import InputPath
from accord.errors import UserError
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class ClapReward(RewardSpec):
    """Text-audio cosine similarity of a CLAP checkpoint."""

    impl: ClassVar[str] = "reward_servers.models.clap:ClapRewardModel"
    about: ClassVar[str] = "the sound is the one the text names"
    needs: ClassVar[tuple[Modality, ...]] = ("audio",)
    prompt_anchored: ClassVar[bool] = True
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    floor: ClassVar[float] = -0.25
    components: ClassVar[Mapping[str, Component]] = {
        "windows": Component("stretches of the checkpoint's length that the sound was cut into", low=1.0)
    }
    name: Literal["clap"] = "clap"
    route: Route = "audio"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-clap", min_length=1, max_length=4096)
    """Directory of a transformers `ClapModel`, or `builtin:tiny-clap`."""
    num_cpus: float = Field(default=0.2, ge=0, le=64)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's files, see `accord.config.clap_dir`."""
        yield from super().problems(job, facts)
        if facts is not None:
            try:
                remembered(inspect_clap_dir, self.path)
            except UserError as error:
                yield "path", str(error)
