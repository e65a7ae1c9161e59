"""Where a job departs from what its preset stands for: fields of the algorithm and of the sampler it was made with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accord.config.job import JobSpec

OWN = "accord"
"""The preset that stands for nobody's method but this project's: nothing departs from it."""


def departures(job: JobSpec) -> list[str]:
    """One line for each field that differs from the job's preset: `/sampling/num_steps: 8, and preset '…' has 20`."""
    algorithm = job.algorithm
    preset = algorithm.chosen_preset
    if preset == OWN or preset not in algorithm.presets:
        return []
    needed = {name: value for name, value in algorithm if type(algorithm).model_fields[name].is_required()}
    meant = type(algorithm).model_validate({**needed, "preset": preset}).model_dump(mode="json")
    sampling = job.sampling.model_dump(mode="json")
    under = json.loads(json.dumps(algorithm.chosen_sampling))
    found = [
        *_differing("/algorithm", algorithm.model_dump(mode="json"), meant),
        *_differing("/sampling", {name: sampling[name] for name in under}, under),
    ]
    return [f"{pointer}: {_shown(here)}, and preset {preset!r} has {_shown(there)}" for pointer, here, there in found]


def _differing(where: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(pointer, value, value of the preset) of every leaf that differs; a list is a leaf."""
    for name, value in here.items():
        other = there.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(f"{where}/{name}", value, other)
        elif value != other:
            yield f"{where}/{name}", value, other


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
