"""The job spec: what a team submits. The TOML file and the REST body are this same document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from accord.config.base import Problems, Spec, pointer, problems_of
from accord.config.contract import AlgorithmSpec, BackboneSpec, ModelFacts, PluginSpec, Problem, RewardSpec
from accord.config.guards import GuardsSpec
from accord.config.panels import PanelName
from accord.config.paths import PROMPT_BYTES, InputPath, NamedPath, Place, input_paths
from accord.config.plans import planned
from accord.config.reward_presets import listed
from accord.config.sampling import SamplingSpec
from accord.config.subject import SubjectSpec, completed
from accord.errors import InputError, PluginError
from accord.plugins import OneOf, answering, origin

MOST_PROBLEMS = 1000
"""What one plug-in says beyond these is not read."""

LabelName = Annotated[str, Field(min_length=1, max_length=63)]
LabelValue = Annotated[str, Field(max_length=255)]


class PromptsSpec(Spec):
    """Where prompts come from: JSON lines with `id`, `prompt_av`, `prompt_v`, `prompt_a`."""

    train: Annotated[str, InputPath("file", PROMPT_BYTES)] = Field(min_length=1, max_length=4096)
    """File with the prompts that are trained on."""
    held_out: Annotated[str, InputPath("file", PROMPT_BYTES)] = Field(min_length=1, max_length=4096)
    """File with prompts that are only evaluated; none may be a training prompt."""
    per_step: int = Field(default=8, ge=1, le=4096)
    """Prompts (groups) per optimizer step."""
    group_size: int = Field(default=8, ge=1, le=1024)
    """Samples per prompt."""


class OptimizerSpec(Spec):
    """AdamW on the policy adapter."""

    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    micro_batch: int = Field(default=8, ge=1, le=4096)
    """Samples per forward on one rank; changes memory and speed, not the result beyond rounding.
    `crd` and `dgpo`, which compare the samples of a prompt, need a multiple of the group size."""
    gradient_norms: bool = True
    """Report the norm of each step's gradient by block and modality, as metrics `gradient/…`."""


class ClusterSpec(Spec):
    """How much of the cluster one attempt takes."""

    rollout_workers: int = Field(default=1, ge=1, le=4096)
    rollout_cpus: float = Field(default=0.5, ge=0, le=256)
    rollout_gpus: float = Field(default=0.0, ge=0, le=8)
    learner_ranks: int = Field(default=2, ge=1, le=4096)
    learner_cpus: float = Field(default=0.5, ge=0, le=256)
    learner_gpus: float = Field(default=0.0, ge=0, le=1)
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`torch` is the plain engine: one rank, no DeepSpeed."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    torch_threads: int = Field(default=1, ge=1, le=256)
    """Threads of every torch process; part of what makes CPU results reproducible."""
    policy_lag: int = Field(default=0, ge=0, le=8)
    """Groups of step n are sampled with version max(0, n-1-policy_lag), exactly. 1 overlaps sampling and learning."""


class CheckpointSpec(Spec):
    """When to write checkpoints and how many to keep."""

    every: int = Field(default=5, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep: int = Field(default=3, ge=1, le=1000)


class EvaluateSpec(Spec):
    """Held-out evaluation: the same prompts and seeds each time. Before the first and after the last step always."""

    every: int = Field(default=0, ge=0)
    """Steps between evaluations in between; 0 = none."""
    samples_per_prompt: int = Field(default=8, ge=2, le=1024)
    clips: int = Field(default=6, ge=0, le=100)
    """Held-out clips kept as mp4, base and tuned side by side."""


class JobSpec(Spec):
    """One post-training job, or an evaluation of what one made."""

    kind: Literal["train", "evaluate"] = "train"
    """`evaluate`: nothing is trained; `subject` is scored on the held-out prompts and compared with its base. Steps,
    algorithm and training prompts may then be left out; the rewards' weights say nothing."""
    subject: SubjectSpec | None = None
    """What an evaluation judges."""
    panel: PanelName | None = None
    """A set of rewards that an evaluation measures, besides those that are listed."""
    name: str = Field(default="untitled", min_length=1, max_length=100, pattern=r"^[\w .:-]+$")
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    steps: int = Field(ge=1, le=1_000_000)
    """Optimizer steps."""
    backbone: Annotated[BackboneSpec, OneOf("backbones")]
    sampling: SamplingSpec = SamplingSpec()
    prompts: PromptsSpec
    rewards: Annotated[tuple[Annotated[RewardSpec, OneOf("rewards")], ...], Field(min_length=1, max_length=64)]
    algorithm: Annotated[AlgorithmSpec, OneOf("algorithms")]
    optimizer: OptimizerSpec = OptimizerSpec()
    cluster: ClusterSpec = ClusterSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    guards: GuardsSpec = GuardsSpec()
    max_attempts: int = Field(default=3, ge=1, le=100)
    """Attempts before the job fails; only lost processes and infrastructure use them up."""
    max_runtime_s: float = Field(default=86_400.0, gt=0, le=31_536_000)
    """Wall time of one attempt before it is stopped and the job fails."""
    labels: dict[LabelName, LabelValue] = Field(default_factory=dict, max_length=16)
    """Words of the submitter's own, kept with the job."""

    @model_validator(mode="after")
    def _sampling_of_the_preset(self) -> Self:
        """Fields of `sampling` that the user left out are those of the algorithm's preset, where it has any."""
        under = self.algorithm.chosen_sampling
        own = {name: getattr(self.sampling, name) for name in self.sampling.model_fields_set}
        if under.keys() - own.keys():
            try:
                object.__setattr__(self, "sampling", SamplingSpec.model_validate(under | own))  # the spec is frozen
            except ValidationError as error:
                where, message = problems_of(error)[0]
                origin = f"what the job leaves out is that of preset {self.algorithm.chosen_preset!r}"
                raise ValueError(f"/sampling{where}: {message} ({origin})") from None
        return self

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if not self.trains and self.subject is None:
            raise ValueError("/subject: an evaluation needs something to judge; give an adapter, a checkpoint or clips")
        for name, value in (("subject", self.subject), ("panel", self.panel)):
            if self.trains and value is not None:
                raise ValueError(f"/{name}: a training job has none; leave it out, or set kind = 'evaluate'")
        if not self.trains and self.steps != 1:
            raise ValueError("/steps: an evaluation takes no optimizer steps; leave it out")
        if not self.trains and self.cluster.learner_ranks != 1:
            raise ValueError(
                f"/cluster/learner_ranks: an evaluation has one rank, not {self.cluster.learner_ranks}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _rewards_fit(self) -> Self:
        twice = [name for name, count in Counter(reward.name for reward in self.rewards).items() if count > 1]
        if twice:
            raise ValueError(f"/rewards: {', '.join(twice)} listed more than once; list each reward once")
        if self.trains and not any(reward.weight > 0 for reward in self.rewards):
            raise ValueError("/rewards: all weights are 0, so nothing would be trained; give one a weight")
        known = set(self.backbone.modalities)
        for index, reward in enumerate(self.rewards):
            wanted = set(reward.needs) | ({"video", "audio"} if reward.route == "both" else {reward.route})
            if not wanted <= known:
                missing = ", ".join(sorted(wanted - known))
                raise ValueError(f"/rewards/{index}: {reward.name} needs {missing}, which {self.backbone.name} lacks")
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        if self.prompts.group_size < 2:
            raise ValueError(
                f"/prompts/group_size: {self.prompts.group_size} cannot be normalised within its group; use 2 or more"
            )
        ranks = self.cluster.learner_ranks
        if self.cluster.engine == "torch" and ranks != 1:
            raise ValueError(f"/cluster/learner_ranks: the torch engine has one rank, not {ranks}; use deepspeed")
        if self.prompts.per_step % ranks:
            raise ValueError(
                f"/prompts/per_step: {self.prompts.per_step} prompts do not divide among {ranks} learner ranks"
            )
        return self

    @model_validator(mode="after")
    def _plugins_agree(self) -> Self:
        found = self.problems(None)
        if found:
            raise Problems(found)
        if self.trains:
            for step in sorted({1, self.steps}):
                planned(self, step)
        return self

    @classmethod
    def completed(cls, tree: Any) -> Any:
        """Its rewards one by one, and what an evaluation may leave out."""
        return completed(listed(tree))

    @classmethod
    def told(cls, found: list[tuple[str, str]], tree: Any) -> list[tuple[str, str]]:
        """Problems of rewards name them."""
        rewards = tree.get("rewards") if isinstance(tree, dict) else None
        listed = rewards if isinstance(rewards, list) else []
        return with_names(found, [one.get("name") if isinstance(one, dict) else None for one in listed])

    @property
    def trains(self) -> bool:
        """False for an evaluation."""
        return self.kind == "train"

    @property
    def samples(self) -> bool:
        """False for an evaluation of clips, which needs no model."""
        return self.subject is None or not self.subject.clips

    def plugins(self) -> Iterator[tuple[Place, PluginSpec]]:
        """The specs of the plug-ins that are at work, and where each stands."""
        if self.samples:
            yield ("backbone",), self.backbone
        for index, reward in enumerate(self.rewards):
            yield ("rewards", index), reward
        if self.trains:
            yield ("algorithm",), self.algorithm

    def problems(self, facts: ModelFacts | None) -> list[Problem]:
        """What the plug-ins find wrong, by JSON pointer; `facts` as in `PartSpec.problems`.

        Raises PluginError for one that breaks its contract.
        """
        found = []
        for place, plugin in self.plugins():
            try:
                with answering(plugin, "problems"):
                    told = islice(plugin.problems(self, facts), MOST_PROBLEMS)
                    said = [(str(where), str(message)) for where, message in told]
            except InputError as error:  # raised while it looked at a file
                said = [("", str(error))]
            for where, message in said:
                below = f"/{where}" if where and not where.startswith("/") else where
                found.append((where if where.startswith("/") else pointer(place) + below, message))
            self._require_fields(plugin, "problems", (where for where, _ in found))
        name, part = ("guards", self.guards) if self.subject is None else ("subject", self.subject)
        for where, message in part.problems(self, facts):
            found.append((where if where.startswith("/") else f"/{name}/{where}", message))
        return found

    def files(self) -> list[NamedPath]:
        """Every file and folder that the job names. Raises PluginError for a plug-in that breaks its contract."""
        found = list(input_paths(PromptsSpec, self.prompts, ("prompts",)))
        if self.subject is not None:
            found += input_paths(SubjectSpec, self.subject, ("subject",))
        for place, plugin in self.plugins():
            with answering(plugin, "files"):
                named = list(plugin.files())
            for one in named:
                if not (isinstance(one, NamedPath) and isinstance(one.path, str) and isinstance(one.mark, InputPath)):
                    raise PluginError(
                        f"{origin(plugin)}: files gave {one!r:.200}; give NamedPath(place, path, InputPath())"
                    )
                found.append(replace(one, place=(*place, *one.place)))
            self._require_fields(plugin, "files", (named.pointer for named in found))
        return sorted(found, key=lambda named: [*type(self).model_fields].index(str(named.place[0])))

    def _require_fields(self, plugin: PluginSpec, hook: str, pointers: Iterable[str]) -> None:
        for where in pointers:
            value: Any = self
            try:
                for part in (part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:]):
                    value = dict(value)[part] if isinstance(value, BaseModel | dict) else value[_index(part)]
            except (LookupError, TypeError, ValueError):
                raise PluginError(f"{origin(plugin)}: {hook} names {where}, which is no field of the job") from None


def with_names(found: Iterable[Problem], rewards: Sequence[Any]) -> list[Problem]:
    """Problems with the name of the reward that each is about, where its text lacks it. `rewards`: their names.

    A preset or a panel brings rewards, so a place in the list need not be one that the submitter wrote.
    """
    made = []
    for where, why in found:
        root, _, rest = where.removeprefix("/").partition("/")
        index = rest.partition("/")[0]
        name = rewards[int(index)] if root == "rewards" and index.isdecimal() and int(index) < len(rewards) else None
        made.append((where, f"{name}: {why}" if isinstance(name, str) and name not in why else why))
    return made


def _index(part: str) -> int:
    """A place in a list, as a JSON pointer writes it. Raises ValueError."""
    if not part.isdecimal():
        raise ValueError(part)
    return int(part)
