"""Learned rewards of sound and picture together, as specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from accord.config.contract import Component, ModelFacts, Problem
from accord.config.rewards.bundle import BundledReward, told
from accord.config.torch_files import inspect_torch_file
from accord.types import Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class DesyncReward(BundledReward):
    """Closeness of sound and picture in time (Synchformer)."""

    impl: ClassVar[str] = "reward_servers.models.desync:DesyncModel"
    about: ClassVar[str] = "the sound comes when the picture has it come"
    folder: ClassVar[str] = "synchformer"
    weight_files: ClassVar[tuple[str, ...]] = ("synchformer_state_dict.pth",)
    min_audio_s: ClassVar[float] = 4.8
    range: ClassVar[tuple[float, float]] = (0.333, 1.0)
    floor: ClassVar[float] = 1 / 3
    components: ClassVar[Mapping[str, Component]] = {
        "expected_s": Component("expected distance of the streams", "s", 0.0, 2.0, better="lower"),
        "offset_s": Component("expected offset, positive where the sound is late", "s", -2.0, 2.0),
        "desync_s": Component("distance of the likeliest offset: the published DeSync", "s", 0.0, 2.0, better="lower"),
        "entropy": Component("how unsure it is, 1 = no idea", low=0.0, high=1.0),
        "windows": Component("windows of 4.8 s that were judged", low=1.0, high=2.0),
    }
    offset_component: ClassVar[str] = "offset_s"
    accelerator: ClassVar[bool] = True
    licence: ClassVar[str] = "MIT"
    name: Literal["desync"] = "desync"
    route: Route = "both"
    num_cpus: float = Field(default=1.0, ge=0, le=64)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its base's: the checkpoint's file, and a job whose clips are too short to be judged."""
        yield from super().problems(job, facts)
        length = job.sampling.frames / job.sampling.fps
        if job.samples and length < self.min_audio_s:
            yield "", f"judges no less than {self.min_audio_s:g} s; /sampling makes {length:.2f} s, take more frames"
        if facts is not None:
            yield from told("path", _inspect, str(self.weights))


def _inspect(path: str) -> None:
    inspect_torch_file(Path(path))
