"""The plug-in contract: what the spec of an algorithm, a backbone or a reward says beside its fields.

Everybody reads these hooks as plain attributes and methods, and nobody asks which plug-in it is. A third party's spec
class inherits one of the three bases, sets `impl` and `name`, and overrides what differs. CONTRIBUTING.md has all of it
in one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from accord.config.base import Spec
from accord.config.files import remembered
from accord.config.paths import InputPath, NamedPath, input_paths
from accord.config.presets import filled
from accord.plugins import resolve
from accord.types import Modality, RolloutPlan, Route, Term

if TYPE_CHECKING:
    from accord.config.algorithm_parts import RegionSpec, SurgerySpec
    from accord.config.job import JobSpec
    from accord.config.sampling import SamplingSpec

Problem = tuple[str, str]
"""Where, and what is wrong there and what would be right. A place that begins with `/` is a JSON pointer into the job;
any other is the way to a field of the spec that found the problem (`path`, `window/size`), "" being the spec itself."""

PartName = Annotated[str, Field(max_length=200)]
LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,120}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^!?([A-Za-z0-9._-]{1,63}|in\([A-Za-z0-9._,-]{1,400}\))$")]

Crossing = tuple[Modality, Modality]
"""(reader, read): the blocks let the tokens of the first attend to those of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known of any model from its files, before it is loaded. A backbone adds its own in a subclass."""

    path: Path = Path()
    """The model's directory: what `builtin:` names, too."""
    depth: int = 0
    """Transformer blocks; 0 = not known."""
    block_parts: frozenset[str] = frozenset()
    """Names of the sub-modules of a block that hold matrices: what an adapter may target; empty = not known."""
    crossings: frozenset[Crossing] | None = None
    """Which modality attends to which other; None = not known."""

    def sigmas(self, sampling: SamplingSpec) -> Sequence[float] | None:
        """The sampler's noise levels for a clip of that size, from 1 to 0. None: known only once it is loaded."""
        del sampling
        return None


class PartSpec(Spec):
    """A part of a plug-in's spec that has checks of its own; they run wherever it is a field."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """What is wrong with a job that this is part of, beyond what each field says of itself.

        Called twice: with `facts` None when the job validates, where no file may be read; and with what is known of the
        model when the job's files are looked at, within the allowed folders (read through `accord.config.files`).
        Default: what its own parts find. An override adds to it.
        """
        for field, part in self:
            if isinstance(part, PartSpec):
                for place, message in part.problems(job, facts):
                    yield place if place.startswith("/") else f"{field}/{place}".removesuffix("/"), message


class PluginSpec(PartSpec):
    """What the specs of all plug-ins have."""

    impl: ClassVar[str] = ""
    """`module:Class` that does the work; imported only in the process that runs it."""
    labelled: ClassVar[str] = ""
    """The name that its entry point has, where a job may list several of it: each is called `<that>:<label>`, and
    `name` is a text with a pattern. "" = there is one in a job, or none."""

    name: str
    """A subclass makes it `Literal["…"] = "…"`, the name that its entry point has."""

    @classmethod
    def code(cls) -> Iterable[tuple[str, str]]:
        """Hooks that lead to code, and the `module:Name` each holds; looked for, but not imported, at start."""
        yield "impl", cls.impl

    def files(self) -> Iterable[NamedPath]:
        """The files and folders that it reads: confined, looked at, and pinned by the first attempt.

        Default: every field that is annotated with `InputPath`. An override may add what those lead to, as the shards
        that an index names, at the place of the field that led there. Called where files may be read.
        """
        return input_paths(type(self), self)


class AlgorithmSpec(PluginSpec):
    """Base of the specs of algorithms. The class named by `impl` satisfies `learner.algorithms.base.Algorithm`."""

    by_group: ClassVar[bool] = False
    """True: the loss compares the samples of a prompt. They share noise and noise levels, and micro-batches hold whole
    groups."""
    judges_by_reference: ClassVar[bool] = False
    """True: the loss weighs samples by what the reference says of them, beyond a penalty on the distance to it."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Fields that a preset fills where the job leaves them out, by name of the preset. A spec with presets inherits
    `PresetSpec`."""
    preset_sampling: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What a preset needs of the sampler; it is laid under the job's own `sampling`. One that is missing needs
    nothing."""

    @property
    def chosen_preset(self) -> str:
        """The preset that the job names; "" where there are none."""
        return ""

    @property
    def chosen_sampling(self) -> dict[str, Any]:
        """Fields of `sampling` that come with the chosen preset."""
        return dict(self.preset_sampling.get(self.chosen_preset, {}))

    @property
    def penalises_reference(self) -> bool:
        """True: the loss has a penalty on the distance to the reference, and reports it, not weighted, as the metric
        `loss/reference/<modality>` of every modality."""
        return False

    @property
    def active_surgery(self) -> SurgerySpec | None:
        """Gradient surgery around the policy's forward and backward; None = off."""
        return None

    @property
    def active_region(self) -> RegionSpec | None:
        """Region weights on video tokens, captured while sampling; None = off."""
        return None

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        """How the groups of a training step are sampled. Default: from the old policy along the ODE, guided as the job
        says, with attention captured where region weights are on."""
        region = self.active_region
        return replace(job.sampling.plan("old"), capture=region.capture(step) if region is not None else None)

    def draws(self, job: JobSpec) -> int:
        """How often a step trains each sample, counted by `accord plan`. Default: once, or at each step that the plan
        makes stochastic."""
        drawn = self.plan(job, 1).stochastic
        return len(drawn.steps) if drawn is not None else 1

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': micro-batches of an algorithm that goes `by_group` hold whole groups."""
        yield from super().problems(job, facts)
        size, batch = job.prompts.group_size, job.optimizer.micro_batch
        if self.by_group and batch % size:
            near = max(1, round(batch / size)) * size
            why = (
                f"{batch} does not hold whole groups, and {self.name} compares the samples of a prompt within one "
                f"forward; use a multiple of prompts/group_size ({size}), as {near}"
            )
            yield "/optimizer/micro_batch", why


class PresetSpec(AlgorithmSpec):
    """An algorithm whose fields a preset fills; anything that the job writes beside it wins."""

    preset: str

    @property
    def chosen_preset(self) -> str:
        """The preset that the job names."""
        return self.preset

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        return filled(value, cls.presets, cls.model_fields["preset"].default)


class AdapterSpec(Spec):
    """The trained adapter; a backbone's subclass says which parts it targets by default."""

    rank: int = Field(default=16, ge=1, le=512)
    alpha: float = Field(default=32.0, gt=0)
    targets: Annotated[tuple[PartName, ...], Field(min_length=1, max_length=100)]
    """Sub-modules of each transformer block whose linear layers get an adapter."""


class BackboneSpec(PluginSpec):
    """Base of the specs of backbones. The class named by `impl` satisfies `accord.backbones.base.Backbone`."""

    modalities: ClassVar[tuple[Modality, ...]] = ("video",)
    """What it makes, in order."""
    inspect: ClassVar[str] = ""
    """`module:function` (light) that looks at `path` and returns `ModelFacts`, or raises `ModelError`; "" = nothing is
    known before the model is loaded."""
    sizes: ClassVar[str] = ""
    """`module:function` (heavy) of (spec, sampling) that counts what `accord plan` shows, as
    `accord.backbones.sizes.ModelSizes`; "" = it cannot be planned."""

    read_adapter: ClassVar[str] = "accord.backbones.adapters:import_lora"
    """`module:function` (heavy) of (spec, path) that reads an adapter file as the tensors of a role, by key and at the
    scale of `lora.alpha`. Default: a file as `accord export` writes it."""
    component: ClassVar[str] = ""
    """The part of the pipeline directory at `path` that adapters sit on, and are merged into by `accord export`; the
    names in an exported adapter begin with it. "" = `path` is no such directory."""
    guides: ClassVar[frozenset[Term]] = frozenset({"text"})
    """Terms of guidance that its network can compute; the others need capabilities (`accord/backbones/base.py`)."""

    path: Annotated[str, InputPath("directory")]
    """Where the weights are, or `builtin:…`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the frozen weights; adapters are always float32."""
    lora: AdapterSpec
    """The trained adapter."""
    gradient_checkpointing: bool = False

    @classmethod
    def code(cls) -> Iterable[tuple[str, str]]:
        """`inspect` and `sizes` may be left out."""
        yield from super().code()
        yield "read_adapter", cls.read_adapter
        yield from ((hook, path) for hook, path in (("inspect", cls.inspect), ("sizes", cls.sizes)) if path)

    def facts(self) -> ModelFacts | None:
        """What `inspect` finds. Raises ModelError."""
        return remembered(resolve(self.inspect), self.path) if self.inspect else None

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': guidance that the network cannot compute."""
        yield from super().problems(job, facts)
        for term, name in job.sampling.terms.items():
            if term not in self.guides:
                yield f"/sampling/{name}", f"on, but {self.name} has no weaker pass to guide away from; switch it off"

    @property
    def draws_the_world(self) -> bool:
        """True when its clips are those of the built-in world, so that an evaluation can hold them against clean
        ones."""
        return False

    def notes(self) -> Iterable[str]:
        """What the numbers of `accord plan` leave open, a clause each."""
        return ()


@dataclass(frozen=True, slots=True)
class Component:
    """One part of a score, as a reward declares it."""

    about: str
    """What it measures, in a clause."""
    unit: str = ""
    """"" = none."""
    low: float = -math.inf
    high: float = math.inf
    better: Literal["higher", "lower", "neither"] = "neither"
    """Which way a better clip moves it."""


class RewardSpec(PluginSpec):
    """Base of the specs of rewards: a subclass fixes `name`, `impl`, `needs` and the default route. The class named by
    `impl` is a `reward_servers.base.RewardModel`."""

    version: ClassVar[str] = "1"
    """Changes whenever the same clip may get another value."""
    about: ClassVar[str] = ""
    """One line: what a higher score means."""
    scope: ClassVar[Literal["clip", "group", "step"]] = "clip"
    """What one value needs to be seen: the clip alone, all clips of its prompt, or all clips of the training step."""
    needs: ClassVar[tuple[Modality, ...]] = ("video", "audio")
    """Modalities it looks at; a backbone without one of them cannot use this reward."""
    needs_sound: ClassVar[bool] = True
    """Whether silence is emptiness (`floor`) for it, if it looks at the sound at all."""
    prompt_anchored: ClassVar[bool] = False
    """True when the score depends on the prompt's text."""
    min_frames: ClassVar[int] = 3
    """Fewest frames of a clip that it looks at; a shorter one has no valid score."""
    max_frames: ClassVar[int] = 4096
    min_side: ClassVar[int] = 8
    """Smallest height or width, in pixels."""
    max_side: ClassVar[int] = 4096
    frame_rates: ClassVar[tuple[float, float]] = (0.1, 240.0)
    """Lowest and highest frame rate, in Hz."""
    min_audio_s: ClassVar[float] = 0.1
    """Shortest sound that it listens to, in seconds."""
    max_audio_s: ClassVar[float] = 600.0
    sample_rates: ClassVar[tuple[int, int]] = (4_000, 384_000)
    """Lowest and highest sample rate, in Hz."""

    range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    """Smallest and largest value; a value outside is none (`out_of_range`)."""
    floor: ClassVar[float] = 0.0
    """Value of a clip that is empty where it looks."""
    smallest_effect: ClassVar[float] = 0.01
    """A change of the mean below this counts as none that matters, however certain it is."""
    components: ClassVar[Mapping[str, Component]] = {}
    """What its values are made of, by name."""
    batch_tolerance: ClassVar[float] = 0.0
    """How far a score may lie from the one that the clip gets alone; 0 = no bit differs."""

    accelerator: ClassVar[bool] = False
    """Whether it is meant for a GPU; it runs without one, slowly."""
    licence: ClassVar[str] = "Apache-2.0"
    """SPDX identifier of what binds who uses it: its code and its weights."""
    noncommercial: ClassVar[bool] = False
    """True: refused unless the job says `allow_noncommercial`."""
    train_allowed: ClassVar[bool] = True
    """False: measured only (`weight = 0`)."""
    offset_component: ClassVar[str] = ""
    """Component of its scores that says in seconds how far sound and picture are apart; an evaluation tells its median.
    "" = there is none."""

    route: Route
    """Which branch's loss it drives: video, audio or both."""
    weight: float = Field(default=1.0, ge=0, le=1000)
    """Weight of its normalised advantage; 0 = measured but not trained on."""
    shadow_steps: int = Field(default=0, ge=0)
    """First steps in which it is measured and not trained on, whatever its weight."""
    clip: tuple[float, float] | None = None
    """Values beyond these bounds earn no more than the bounds do. None: no bounds."""
    band: tuple[float, float] | None = None
    """Values within earn alike, and others less by how far they lie outside: for what has a right amount rather than a
    right direction. None: higher is better all the way."""
    required: bool = True
    """True: a step in which no sample of any group got a valid score stops the attempt, unless it reads the prompts and
    all of them are `unverifiable`. False: a step in which its server fails for any sample is trained without it."""
    deadline_s: float = Field(default=120.0, gt=0, le=3600)
    """Wall time for one group, retries included; what is not scored by then is invalid (`timeout`)."""
    break_after: int = Field(default=5, ge=1, le=10_000)
    """Groups in a row without an answer, after which the others do not wait for it (`circuit_open`) until a probe has
    succeeded."""
    pack: str = Field(default="", pattern=r"^[a-z0-9_]{0,40}$")
    """Rewards of a job with the same name here share one server process, and one call scores a group with all of them.
    "" = it has a server of its own."""
    num_cpus: float = Field(default=0.1, ge=0, le=64)
    num_gpus: float = Field(default=0.0, ge=0, le=8)
    """For each replica; a fraction below 1 shares a GPU. A pack asks for the sum."""
    accelerator_type: str = Field(default="", max_length=60)
    """GPU that a replica needs, as Ray calls it (`H100`, `L4`); "" = any."""
    node_labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=20)
    """Labels that a node must have (`ray start --labels`): `pool = "rewards"`, `zone = "in(a,b)"`, `pool = "!spot"`."""
    env: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,60}$")
    """Environment of its server, by the name that `ACCORD_REWARD_ENVS` has for it; "" = the one of the cluster."""
    min_replicas: int = Field(default=1, ge=0, le=1000)
    """0: none while nobody asks."""
    max_replicas: int = Field(default=4, ge=1, le=1000)
    target_ongoing: float = Field(default=0.0, ge=0, le=10_000)
    """Groups at a replica, waiting ones too, that scaling aims at; 0 = two batches."""
    upscale_delay_s: float = Field(default=3.0, ge=0, le=3600)
    """How long there must be too many groups before replicas are added: rollouts come in bursts."""
    downscale_delay_s: float = Field(default=300.0, ge=0, le=86_400)
    """How long there must be too few before one goes; longer than a step, or each step starts it again."""
    look_back_s: float = Field(default=8.0, gt=0, le=3600)
    """Time over which the load is averaged."""
    max_batch_groups: int = Field(default=4, ge=1, le=256)
    """Groups that one call of the model may batch."""
    batch_wait_s: float = Field(default=0.02, ge=0, le=10)
    max_batch_pixels: int = Field(default=0, ge=0)
    """Pixels, of all frames of all its clips, that one forward of the model may hold; 0 = no bound. A clip is never
    cut."""
    remember: int = Field(default=4096, ge=0, le=1_000_000)
    """Scores that its server keeps, so that the same clip is not judged twice for the same prompt; 0 = none, and no
    digest is taken of any clip."""
    max_queued: int = Field(default=0, ge=0, le=100_000)
    """Groups that each caller may have waiting at its server; more are refused (`backpressure`). 0 = four batches for
    each of `max_replicas`."""
    allow_noncommercial: bool = False
    """Says that the terms of a reward whose licence forbids commercial use are kept."""

    @property
    def queue_bound(self) -> int:
        """Groups that one job has under way at its server at most; the others wait in the job."""
        return self.max_queued or 4 * self.max_batch_groups * self.max_replicas

    @property
    def highest(self) -> float | None:
        """Top of the range; None where there is none."""
        return self.range[1] if math.isfinite(self.range[1]) else None

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': terms that the job does not accept."""
        yield from super().problems(job, facts)
        for field, bounds in (("clip", self.clip), ("band", self.band)):
            if bounds is not None and not bounds[0] < bounds[1]:
                yield field, f"{list(bounds)} holds nothing; give the lower bound first"
        if self.noncommercial and not self.allow_noncommercial:
            yield "allow_noncommercial", f"{self.name} is {self.licence}; set it to true where that licence is kept"
        if self.weight and not self.train_allowed and job.trains:
            yield "weight", f"{self.name} may be measured but not trained on; use 0"
