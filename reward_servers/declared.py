"""Whether what a reward declares fits together. Reads its spec alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from accord.config.contract import Component, RewardSpec


def incoherent(spec: RewardSpec) -> Iterator[str]:
    """Say what is missing or contradicts itself, a line each."""
    for name, text in (("about", spec.about), ("version", spec.version), ("licence", spec.licence)):
        if not text.strip():
            yield f"{name} is empty"
    if not (type(spec).__doc__ or "").strip():
        yield f"{type(spec).__name__} has no docstring"
    yield from _modalities(spec)
    yield from _values(spec)
    yield from _limits(spec)
    for name, part in spec.components.items():
        yield from _component(name, part)


def forbids_commerce(licence: str) -> bool:
    """Whether an SPDX identifier is of a non-commercial kind."""
    return re.search(r"(^|-)NC(-|$)", licence) is not None


def _modalities(spec: RewardSpec) -> Iterator[str]:
    if not spec.needs or not set(spec.needs) <= {"video", "audio"}:
        yield f"needs is {spec.needs!r}; it names video, audio, or both"
    if spec.route != "both" and spec.route not in spec.needs:
        yield f"route is {spec.route}, and it looks at {', '.join(spec.needs)} alone"
    offset = spec.offset_component
    if offset and (offset not in spec.components or spec.components[offset].unit != "s"):
        yield f"offset_component is {offset!r}, which is no component in s"


def _values(spec: RewardSpec) -> Iterator[str]:
    low, high = spec.range
    if not low < high:
        yield f"range is {low:g} to {high:g}; the first must be below the second"
    elif not (math.isfinite(spec.floor) and low <= spec.floor <= high):
        yield f"floor is {spec.floor!r}, outside of the range, {low:g} to {high:g}"
    if not 0 < spec.smallest_effect < high - low:
        yield f"smallest_effect is {spec.smallest_effect!r}; it lies between 0 and the width of the range"
    if not (math.isfinite(spec.batch_tolerance) and spec.batch_tolerance >= 0):
        yield f"batch_tolerance is {spec.batch_tolerance!r}; it is 0 or more"
    if forbids_commerce(spec.licence) and not spec.noncommercial:
        yield f"licence is {spec.licence}, and noncommercial is False"


def _limits(spec: RewardSpec) -> Iterator[str]:
    bounds: dict[str, tuple[float, float]] = {
        "min_frames, max_frames": (spec.min_frames, spec.max_frames),
        "min_side, max_side": (spec.min_side, spec.max_side),
        "frame_rates": spec.frame_rates,
        "min_audio_s, max_audio_s": (spec.min_audio_s, spec.max_audio_s),
        "sample_rates": spec.sample_rates,
    }
    for name, (least, most) in bounds.items():
        if not 0 < least <= most < math.inf:
            yield f"{name} are {least:g} and {most:g}; both are finite, and 0 < the first <= the second"


def _component(name: str, part: Component) -> Iterator[str]:
    if not name.isidentifier():
        yield f"component {name!r}: its name must be letters, digits and _"
    if not part.about.strip():
        yield f"component {name}: says nothing about itself"
    if not part.low < part.high:
        yield f"component {name}: its range is {part.low:g} to {part.high:g}; the first must be below the second"
