"""Sets of rewards by one name, after the work that trained on them: what a job may write in place of their list.

`rewards = "omninft"` is short for `[[rewards]]` with `preset = "omninft"`, an entry that stands for the paper's five
with their routes and weights. A job that has validated lists them one by one and knows of no preset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import Field, ValidationError

from accord.config.base import Spec, glimpse, pointer, problems_of
from accord.config.contract import RewardSpec
from accord.config.paths import InputPath, NamedPath, Place, input_paths
from accord.errors import SpecError

_BUNDLE = "OmniNFT-Reward-Series"

REWARD_PRESETS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "omninft": (
        {"name": "videoalign", "route": "video", "weight": 1.0, "path": _BUNDLE, "base": "Qwen2-VL-2B-Instruct"},
        {"name": "hpsv3", "route": "video", "weight": 1.5, "path": _BUNDLE, "base": "Qwen2-VL-7B-Instruct"},
        {"name": "audiobox", "route": "audio", "weight": 0.5, "path": _BUNDLE},
        {"name": "clap", "route": "audio", "weight": 1.0, "path": _BUNDLE},
        {"name": "desync", "route": "both", "weight": 1.0, "path": _BUNDLE},
    ),
}
"""What each reward of a preset has; folders are those below `models`, called as they are published."""
_FOLDERS = ("path", "base")


class RewardPresetSpec(Spec):
    """An entry that stands for a set of rewards. Other fields beside these are those that every reward has, and go to
    each of the set."""

    preset: str
    models: Annotated[str, InputPath("directory")] = Field(default="/models", min_length=1, max_length=4096)
    """Folder with `OmniNFT-Reward-Series`, `Qwen2-VL-2B-Instruct` and `Qwen2-VL-7B-Instruct`."""


def listed(tree: Any) -> Any:
    """The tree of a job, which may be anything, with the rewards of a preset one by one, before the others.

    A reward of the set that the job names itself is laid over the preset's. Raises SpecError.
    """
    entries = [*_entries(tree)]
    if not any(_is_set(entry) for _, entry in entries):
        return tree
    of_sets: dict[str, dict[str, Any]] = {}
    for place, entry in entries:
        for reward in _rewards(place, entry) if _is_set(entry) else ():
            if reward["name"] in of_sets:
                raise SpecError([(pointer(place), f"brings {reward['name']} a second time; keep one preset")])
            of_sets[reward["name"]] = reward
    others, laid = [], set()
    for _, entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in of_sets and name not in laid:
            laid.add(name)
            of_sets[name] |= entry
        elif not _is_set(entry):
            others.append(entry)
    return {**tree, "rewards": [*of_sets.values(), *others]}


def preset_paths(tree: Any) -> Iterator[NamedPath]:
    """The folders that presets name in the tree of a job, which may be anything."""
    for place, entry in _entries(tree):
        if _is_set(entry):
            yield from input_paths(RewardPresetSpec, entry, place)


def _entries(tree: Any) -> Iterator[tuple[Place, Any]]:
    """What a job lists as its rewards, and where; a text or a table alone is a list of one."""
    rewards = tree.get("rewards") if isinstance(tree, dict) else None
    if isinstance(rewards, str):
        yield ("rewards",), {"preset": rewards}
    elif isinstance(rewards, dict):
        yield ("rewards",), rewards
    elif isinstance(rewards, list):
        yield from ((("rewards", index), entry) for index, entry in enumerate(rewards))


def _is_set(entry: Any) -> bool:
    """Whether it stands for a set: a reward has a name, whatever presets of its own it has."""
    return isinstance(entry, dict) and "preset" in entry and "name" not in entry


def _rewards(place: Place, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rewards of one entry. Raises SpecError."""
    own = {name: value for name, value in entry.items() if name in RewardPresetSpec.model_fields}
    shared = {name: value for name, value in entry.items() if name not in own}
    try:
        spec = RewardPresetSpec.model_validate(own)
    except ValidationError as error:
        raise SpecError([(pointer(place) + where, why) for where, why in problems_of(error)]) from None
    if spec.preset not in REWARD_PRESETS:
        known = ", ".join(REWARD_PRESETS)
        why = f"{glimpse(spec.preset)} is no set of rewards; there is {known}. A reward of its own needs its name"
        raise SpecError([(pointer(place), why)])
    strange = [name for name in shared if name not in RewardSpec.model_fields]
    if strange:
        why = f"not every reward of preset {spec.preset!r} has it; write it in an entry with the reward's name"
        raise SpecError([(pointer((*place, name)), why) for name in strange])
    for reward in REWARD_PRESETS[spec.preset]:
        below = {name: str(PurePath(spec.models) / reward[name]) for name in _FOLDERS if name in reward}
        yield {**reward, **below, **shared}
