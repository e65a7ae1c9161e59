"""A reward: how close the picture's mean colour is to one in a file. Light, read by the API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.config.contract import Component, ModelFacts, Problem, RewardSpec
from accord.config.files import read_bytes
from accord.config.paths import InputPath
from accord.types import Modality, Route

if TYPE_CHECKING:
    from accord.config.job import JobSpec

MAX_BYTES = 1024


def colour_of(path: str) -> tuple[float, float, float]:
    """Read `{"rgb": [r, g, b]}`. Raises ValueError for anything else, InputError where it cannot be opened."""
    try:
        red, green, blue = json.loads(read_bytes(path, MAX_BYTES))["rgb"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no object with rgb ({error})") from error
    return float(red), float(green), float(blue)


class PaletteReward(RewardSpec):
    """Closeness of the mean colour to a wanted one."""

    impl: ClassVar[str] = "palette.model:Palette"
    needs: ClassVar[tuple[Modality, ...]] = ("video",)
    about: ClassVar[str] = "the picture has the wanted colour"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    components: ClassVar[Mapping[str, Component]] = {
        "away": Component("distance from the wanted colour, 1 = the cube's diagonal", low=0.0, high=1.0, better="lower")
    }
    min_frames: ClassVar[int] = 1

    name: Literal["palette"] = "palette"
    route: Route = "video"
    colour: Annotated[str, InputPath("file", MAX_BYTES)] = Field(min_length=1)
    """File with the wanted colour."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """A file that names no colour, a colour that is none."""
        yield from super().problems(job, facts)
        if facts is None:
            return
        try:
            if not all(0 <= part <= 255 for part in colour_of(self.colour)):
                yield "colour", "rgb has three numbers from 0 to 255"
        except ValueError as error:
            yield "colour", f'{error}; write {{"rgb": [255, 0, 0]}}'
