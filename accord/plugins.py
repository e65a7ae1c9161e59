"""Plug-ins: a name leads to a light spec class, whose `impl` string leads to the heavy class.

Built-ins stand in the table below. Third parties register entry points in the groups `accord.algorithms`,
`accord.backbones` and `accord.rewards`; each names a spec class. A name clash is an error. Nothing heavy is imported
until `load_impl` is called in the process that runs it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Union

from pydantic import Field

Kind = Literal["algorithms", "backbones", "rewards"]

BUILT_IN: dict[Kind, dict[str, str]] = {
    "algorithms": {
        "omninft": "accord.config.algorithms:OmniNFTSpec",
        "diffusion_nft": "accord.config.algorithms:DiffusionNFTSpec",
        "awm": "accord.config.forward:AWMSpec",
        "crd": "accord.config.forward:CRDSpec",
        "flow_rwr": "accord.config.forward:FlowRWRSpec",
        "dgpo": "accord.config.forward:DGPOSpec",
        "flow_grpo": "accord.config.grpo:FlowGRPOSpec",
    },
    "backbones": {
        "ltx2": "accord.config.backbones:LTX2Spec",
    },
    "rewards": {
        "sync": "accord.config.rewards:SyncReward",
        "clap": "accord.config.rewards:ClapReward",
        "audio_aesthetics": "accord.config.rewards:AudioAestheticsReward",
        "video_aesthetics": "accord.config.rewards:VideoAestheticsReward",
        "text_video": "accord.config.rewards:TextVideoReward",
        "temporal_flicker": "accord.config.rewards:TemporalFlickerReward",
        "motion_smoothness": "accord.config.rewards:MotionSmoothnessReward",
        "dynamic_degree": "accord.config.rewards:DynamicDegreeReward",
    },
}


def resolve(path: str) -> Any:
    """Import `package.module:Name`."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@cache
def registered(kind: Kind) -> dict[str, str]:
    """Return name → `module:SpecClass` for built-ins and installed entry points. Raises ValueError on a name clash."""
    table = dict(BUILT_IN[kind])
    for entry in entry_points(group=f"accord.{kind}"):
        if entry.name in table:
            raise ValueError(f"plug-in {entry.value} wants the name {entry.name!r} of {table[entry.name]} in {kind}")
        table[entry.name] = entry.value
    return table


def names(kind: Kind) -> list[str]:
    """Registered names, sorted."""
    return sorted(registered(kind))


def spec_class(kind: Kind, name: str) -> Any:
    """Return the light spec class. Raises KeyError with the known names."""
    table = registered(kind)
    if name not in table:
        raise KeyError(f"unknown {kind.removesuffix('s')} {name!r}; known: {', '.join(sorted(table))}")
    return resolve(table[name])


def load_impl(spec: Any) -> Any:
    """Import the class that does the work of a spec (heavy)."""
    return resolve(type(spec).impl)


def spec_union(kind: Kind) -> Any:
    """The annotated union of all registered specs, discriminated by `name`, for a pydantic field."""
    classes = tuple(spec_class(kind, name) for name in names(kind))
    return classes[0] if len(classes) == 1 else Annotated[Union[classes], Field(discriminator="name")]  # noqa: UP007
