"""Plug-ins: a name leads to a light spec class, whose `impl` string leads to the heavy class.

Built-ins stand in the table below. Third parties register entry points in the groups `accord.algorithms`,
`accord.backbones` and `accord.rewards`; each names a spec class that inherits the base of its kind
(`accord/config/contract.py`). One that breaks the contract is refused where a process first reads the table, by package
and class. Nothing heavy is imported until `load_impl` is called in the process that runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from symtable import symtable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, overload

from pydantic import Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema

from accord.errors import AccordError, PluginError

if TYPE_CHECKING:
    from accord.config.contract import AlgorithmSpec, BackboneSpec, PluginSpec, RewardSpec

Kind = Literal["algorithms", "backbones", "rewards"]

BASES: dict[Kind, str] = {
    "algorithms": "accord.config.contract:AlgorithmSpec",
    "backbones": "accord.config.contract:BackboneSpec",
    "rewards": "accord.config.contract:RewardSpec",
}
BUILT_IN: dict[Kind, dict[str, str]] = {
    "algorithms": {
        "omninft": "accord.config.forward:OmniNFTSpec",
        "diffusion_nft": "accord.config.forward:DiffusionNFTSpec",
        "awm": "accord.config.forward:AWMSpec",
        "crd": "accord.config.forward:CRDSpec",
        "flow_rwr": "accord.config.forward:FlowRWRSpec",
        "dgpo": "accord.config.forward:DGPOSpec",
        "flow_grpo": "accord.config.grpo:FlowGRPOSpec",
    },
    "backbones": {
        "ltx2": "accord.backbones.ltx2.spec:LTX2Spec",
    },
    "rewards": {
        "sync": "accord.config.rewards.panel:SyncReward",
        "stereo_place": "accord.config.rewards.panel:StereoPlaceReward",
        "clap": "accord.config.rewards.sound:ClapReward",
        "desync": "accord.config.rewards.cross:DesyncReward",
        "audiobox": "accord.config.rewards.sound:AudioboxReward",
        "audio_events": "accord.config.rewards.sound:AudioEventsReward",
        "dnsmos": "accord.config.rewards.sound:DnsmosReward",
        "speech_words": "accord.config.rewards.sound:SpeechWordsReward",
        "sound": "accord.config.rewards.panel:SoundReward",
        "picture": "accord.config.rewards.panel:PictureReward",
        "motion": "accord.config.rewards.panel:MotionReward",
        "consistency": "accord.config.rewards.panel:ConsistencyReward",
        "text_audio": "accord.config.rewards.panel:TextAudioReward",
        "text_video": "accord.config.rewards.panel:TextVideoReward",
        "temporal_flicker": "accord.config.rewards.panel:TemporalFlickerReward",
        "motion_smoothness": "accord.config.rewards.panel:MotionSmoothnessReward",
        "dynamic_degree": "accord.config.rewards.panel:DynamicDegreeReward",
        "hpsv3": "accord.config.rewards.preference:HPSv3Reward",
        "videoalign": "accord.config.rewards.preference:VideoAlignReward",
        "clip_score": "accord.config.rewards.picture:ClipScoreReward",
        "pickscore": "accord.config.rewards.picture:PickScoreReward",
        "hpsv2": "accord.config.rewards.picture:HPSv2Reward",
        "imagereward": "accord.config.rewards.picture:ImageRewardReward",
        "laion_aesthetic": "accord.config.rewards.picture:LaionAestheticReward",
        "aesthetic_quality": "accord.config.rewards.picture:AestheticQualityReward",
        "subject_consistency": "accord.config.rewards.picture:SubjectConsistencyReward",
        "background_consistency": "accord.config.rewards.picture:BackgroundConsistencyReward",
        "imagebind_av": "accord.config.rewards.imagebind:ImageBindAVReward",
        "imagebind_tv": "accord.config.rewards.imagebind:ImageBindTVReward",
        "imagebind_ta": "accord.config.rewards.imagebind:ImageBindTAReward",
        "pe_av": "accord.config.rewards.pe_av:PeAvAVReward",
        "pe_tv": "accord.config.rewards.pe_av:PeAvTVReward",
        "pe_ta": "accord.config.rewards.pe_av:PeAvTAReward",
        "vlm_judge": "accord.config.rewards.judges:VLMJudgeReward",
        "vlm_ranking": "accord.config.rewards.judges:VLMRankingReward",
        "remote": "accord.config.rewards.remote:RemoteReward",
        "audio_vendi": "accord.config.rewards.sets:AudioVendiReward",
        "video_vendi": "accord.config.rewards.sets:VideoVendiReward",
        "audio_frechet": "accord.config.rewards.sets:AudioFrechetReward",
        "video_frechet": "accord.config.rewards.sets:VideoFrechetReward",
        "audio_kl": "accord.config.rewards.sets:AudioKLReward",
        "audio_inception": "accord.config.rewards.sets:AudioInceptionReward",
    },
}


def resolve(path: str) -> Any:
    """Import `package.module:Name`."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


@cache
def registered(kind: Kind) -> dict[str, type[PluginSpec]]:
    """Return name → spec class for built-ins and installed entry points.

    Raises PluginError for an entry point whose class breaks the contract, or that takes a name twice.
    """
    table: dict[str, type[PluginSpec]] = {name: resolve(path) for name, path in BUILT_IN[kind].items()}
    for entry in entry_points(group=f"accord.{kind}"):
        if entry.name in table:
            taken = table[entry.name]
            raise PluginError(
                f"{_named(entry)}: the name {entry.name!r} in {kind} is that of {taken.__module__}:{taken.__qualname__}"
            )
        table[entry.name] = _held_to_contract(kind, entry)
    return table


def names(kind: Kind) -> list[str]:
    """Registered names, sorted."""
    return sorted(registered(kind))


@overload
def spec_class(kind: Literal["algorithms"], name: str) -> type[AlgorithmSpec]: ...
@overload
def spec_class(kind: Literal["backbones"], name: str) -> type[BackboneSpec]: ...
@overload
def spec_class(kind: Literal["rewards"], name: str) -> type[RewardSpec]: ...
@overload
def spec_class(kind: Kind, name: str) -> type[PluginSpec]: ...
def spec_class(kind: Kind, name: str) -> type[PluginSpec]:
    """Return the light spec class; of `remote:motion`, that of `remote`. Raises KeyError with the known names."""
    table = registered(kind)
    found = table.get(base_name(name))
    if found is None or (base_name(name) != name and not found.labelled):
        raise KeyError(f"unknown {kind.removesuffix('s')} {name!r}; known: {', '.join(sorted(table))}")
    return found


def base_name(name: str) -> str:
    """What a plug-in is registered as: a name without the label that tells several of a kind apart in one job."""
    return name.partition(":")[0]


def tag_of(value: Any) -> str | None:
    """The registered name of a spec or of the tree of one, which may be anything; None where it says none."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return None if name is None else base_name(str(name))


def load_impl(spec: PluginSpec) -> Any:
    """Import the class that does the work of a spec (heavy). Raises PluginError when it cannot be imported."""
    try:
        return resolve(spec.impl)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{origin(spec)}: impl {spec.impl!r} cannot be imported ({error})") from error


@dataclass(frozen=True, slots=True)
class OneOf:
    """Beside a base class in a field's annotation: pydantic reads the registered specs of that kind, told by `name`."""

    kind: Kind

    @property
    def classes(self) -> Any:
        """The union of them."""
        return Union[tuple(spec_class(self.kind, name) for name in names(self.kind))]  # noqa: UP007

    def class_of(self, value: Any) -> type[PluginSpec] | None:
        """The registered class of a spec, or of the tree of one; None where its name is nobody's."""
        return registered(self.kind).get(tag_of(value) or "")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        table = registered(self.kind)
        if any(found.labelled for found in table.values()):
            told: Any = Union[tuple(Annotated[found, Tag(name)] for name, found in sorted(table.items()))]  # noqa: UP007
            return handler.generate_schema(Annotated[told, Discriminator(tag_of)])
        return handler.generate_schema(
            self.classes if len(table) == 1 else Annotated[self.classes, Field(discriminator="name")]
        )


def origin(spec: PluginSpec) -> str:
    """The package and the class of a spec, for messages."""
    kind = type(spec)
    package = kind.__module__.partition(".")[0]
    for group in BASES:
        for entry in entry_points(group=f"accord.{group}", name=base_name(spec.name)):
            package = entry.dist.name if entry.dist is not None else package
    return f"plug-in package {package}, {kind.__module__}:{kind.__qualname__}"


@contextmanager
def answering(spec: PluginSpec, hook: str) -> Iterator[None]:
    """What a hook raises that is no error of Accord's is the plug-in's fault. Raises PluginError."""
    try:
        yield
    except AccordError:
        raise
    except Exception as error:
        raise PluginError(f"{origin(spec)}: {hook} raised {type(error).__name__}: {error}") from error


def _named(entry: EntryPoint) -> str:
    return f"plug-in package {entry.dist.name if entry.dist is not None else '?'}, {entry.value}"


def _held_to_contract(kind: Kind, entry: EntryPoint) -> type[PluginSpec]:
    """The spec class of an entry point. Raises PluginError that says what it lacks."""
    base = resolve(BASES[kind])
    try:
        found = resolve(entry.value)
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_named(entry)}: cannot be imported ({type(error).__name__}: {error})") from error
    wrong = "is no class" if not isinstance(found, type) else ""
    if not wrong and not issubclass(found, base):
        wrong = f"does not inherit {BASES[kind]}"
    if not wrong and kind == "rewards" and not entry.name.isidentifier():
        wrong = f"the name {entry.name!r} must be letters, digits and _; servers and metrics are named by it"
    wrong = wrong or misfit(found, entry.name)
    if wrong:
        raise PluginError(f"{_named(entry)}: {wrong}")
    return found  # type: ignore[no-any-return]


def misfit(found: type[PluginSpec], name: str) -> str:
    """What a spec class has against its contract; "" when nothing."""
    field = found.model_fields["name"]
    if found.labelled and (found.labelled != name or field.annotation is not str or not field.is_required()):
        return f'labelled must be "{name}", as the entry point calls it, and name a text without a default'
    if not found.labelled and (get_args(field.annotation) != (name,) or field.default != name):
        return f'name must be Literal["{name}"] = "{name}", as the entry point calls it'
    try:
        code = [(hook, path) for hook, path in found.code()]
    except Exception as error:
        return f"code raised {type(error).__name__}: {error}"
    for hook, path in code:
        wrong = _unimportable(path)
        if wrong:
            return f"{hook} = {path!r}: {wrong}"
    return ""


def _unimportable(path: str) -> str:
    """Why `module:Name` cannot be imported, found without importing it; "" when it can, or cannot be told."""
    module, colon, attribute = path.partition(":") if isinstance(path, str) else ("", "", "")
    if not (module and colon and attribute.isidentifier()):
        return "must be written module:Name"
    try:
        where = find_spec(module)
        if where is None:
            return f"there is no module {module}"
        source = where.loader.get_source(module) if where.loader is not None else None  # type: ignore[attr-defined]
        if source is not None and not _binds(source, attribute):
            return f"{module} defines no {attribute}"
    except Exception as error:  # the package above the module is imported, and may do anything
        return f"{module} cannot be imported ({type(error).__name__}: {error})"
    return ""


def _binds(source: str, name: str) -> bool:
    """Whether a module's text binds a name, or may, because it imports all that another one has."""
    table = symtable(source, "module", "exec")
    return "import *" in source or (name in table.get_identifiers() and table.lookup(name).is_local())
