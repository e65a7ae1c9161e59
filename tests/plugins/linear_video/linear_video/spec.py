"""A backbone that makes pictures without sound from a few linear layers. Light, read by the API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.contract import AdapterSpec, BackboneSpec, ModelFacts, PartName, Problem
from accord.config.paths import InputPath
from accord.config.weights import read_json
from accord.errors import ModelError
from accord.types import Modality

if TYPE_CHECKING:
    from accord.config.job import JobSpec
    from accord.config.sampling import SamplingSpec

CONFIG, WEIGHTS = "model.json", "model.safetensors"
PARTS = ("mix", "out")


def schedule(num_steps: int) -> list[float]:
    """Noise levels of the sampler; the network's own clock runs the other way, see `linear_video.model`."""
    return [1.0 - index / num_steps for index in range(num_steps)] + [0.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFacts(ModelFacts):
    """What the config says."""

    patch: int
    width: int

    def sigmas(self, sampling: SamplingSpec) -> Sequence[float]:
        """Evenly spaced, whatever the clip."""
        return schedule(sampling.num_steps)


def inspect(path: str) -> LinearFacts:
    """Read the config. Raises ModelError."""
    config = read_json(Path(path) / CONFIG)
    try:
        depth, patch, width = (int(config[name]) for name in ("depth", "patch", "width"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}/{CONFIG}: lacks depth, patch or width ({error})") from error
    return LinearFacts(
        path=Path(path), depth=depth, patch=patch, width=width, block_parts=frozenset(PARTS), crossings=frozenset()
    )


class LinearLoRA(AdapterSpec):
    """The trained adapter."""

    targets: Annotated[tuple[PartName, ...], Field(min_length=1)] = PARTS


class LinearVideoSpec(BackboneSpec):
    """A folder with `model.json` and `model.safetensors`, as `python -m linear_video.make FOLDER` writes it."""

    impl: ClassVar[str] = "linear_video.model:LinearVideo"
    inspect: ClassVar[str] = "linear_video.spec:inspect"
    sizes: ClassVar[str] = "linear_video.model:sizes"
    modalities: ClassVar[tuple[Modality, ...]] = ("video",)

    name: Literal["linear_video"] = "linear_video"
    path: Annotated[str, InputPath("directory")] = Field(min_length=1)
    lora: LinearLoRA = LinearLoRA()

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Patches that do not fill the picture."""
        yield from super().problems(job, facts)
        if isinstance(facts, LinearFacts):
            for side in ("height", "width"):
                pixels = job.sampling.height if side == "height" else job.sampling.width
                if pixels % facts.patch:
                    yield f"/sampling/{side}", f"{pixels} pixels are no multiple of {facts.patch}"
