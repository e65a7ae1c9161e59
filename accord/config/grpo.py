"""Flow-GRPO and its recipes as data: stored stochastic denoising steps are evaluated again (docs/algorithms.md).

A recipe fills fields that the user left out; anything written beside it wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from accord.config.algorithm_parts import CreditSpec, OldPolicySpec
from accord.config.base import Spec
from accord.config.contract import ModelFacts, PartSpec, PresetSpec, Problem
from accord.seeds import Purpose, derive_seed
from accord.types import RolloutPlan, StochasticSteps

if TYPE_CHECKING:
    from accord.config.job import JobSpec

RecipeName = Literal["flow_grpo", "dance_grpo", "fast_grpo", "mix_grpo"]

RECIPES: dict[str, dict[str, Any]] = {
    "flow_grpo": {"old_policy": {"rate": 0.0}},
    "dance_grpo": {
        "old_policy": {"rate": 0.0},
        "dynamics": {"kind": "dance", "eta": 0.25},
        "loss": {"kl_weight": 0.0},
        "initial_noise": "shared",
        "trained_share": 1 / 3,
    },
    "fast_grpo": {
        "old_policy": {"rate": 0.0},
        "dynamics": {"eta": 0.8},
        "window": {"kind": "random", "size": 2},
        "loss": {"clip_range": 1e-5, "kl_weight": 0.0},
    },
    "mix_grpo": {
        "old_policy": {"rate": 0.0},
        "window": {"kind": "progressive", "size": 4, "every": 25, "stride": 1},
        "loss": {"kl_weight": 0.0},
        "initial_noise": "shared",
    },
}
"""The released constants where there are any. `flow_grpo` is the field defaults, sampled on policy."""

RECIPE_SAMPLING: dict[str, dict[str, Any]] = {"flow_grpo": {"num_steps": 10}, "dance_grpo": {"num_steps": 16}}
"""Fields of `sampling` that belong to a recipe."""


class DynamicsSpec(Spec):
    """The noise of a stochastic denoising step. Both kinds keep the marginals of the ODE for small steps."""

    kind: Literal["flow", "dance"] = "flow"
    """`flow`: g = eta sqrt(sigma / (1 - sigma)) (Flow-GRPO). `dance`: g = eta (DanceGRPO)."""
    eta: float = Field(default=0.7, le=10)
    """How much noise is added."""

    @field_validator("eta")
    @classmethod
    def _noisy(cls, value: float) -> float:
        if value <= 0:
            raise ValueError(
                f"eta {value:g} adds no noise, and a step without noise has no log-probability to train: "
                "use a value above 0, such as 0.7 (flow) or 0.25 (dance)"
            )
        return value


class WindowSpec(PartSpec):
    """Which denoising steps of a training step are stochastic, and thereby trained. The others follow the ODE."""

    kind: Literal["all", "random", "progressive"] = "all"
    """`all`: every step but the last. `random`: neighbouring steps that begin anywhere, anew in each training step.
    `progressive`: neighbouring steps that move from noise towards the clip and then begin again."""
    size: int = Field(default=2, ge=1, le=1000)
    """Steps in the window; not read by `all`."""
    every: int = Field(default=25, ge=1)
    """`progressive` only: training steps before the window moves."""
    stride: int = Field(default=1, ge=1, le=1000)
    """`progressive` only: denoising steps by which it moves."""

    def candidates(self, num_steps: int) -> range:
        """Denoising steps that may be stochastic: all but the last, whose noise would stay in the clip."""
        return range(num_steps - 1)

    def steps(self, num_steps: int, job_seed: int, step: int) -> tuple[int, ...]:
        """Denoising steps (0-based, ascending) that are stochastic in training step `step`.

        `random` begins anywhere, derived from (job seed, step); `progressive` begins at ((step - 1) // every * stride)
        and starts over at the noise when it would leave the schedule.
        """
        candidates = self.candidates(num_steps)
        if self.kind == "all":
            return tuple(candidates)
        places = len(candidates) - self.size + 1
        moved = (step - 1) // self.every * self.stride
        start = (derive_seed(job_seed, Purpose.WINDOW, step) if self.kind == "random" else moved) % places
        return tuple(candidates[start : start + self.size])

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """What stochastic steps ask of the sampler."""
        del facts
        steps = job.sampling.num_steps
        free = len(self.candidates(steps))
        if free == 0:
            yield "/sampling/num_steps", f"{steps} leaves no step to be stochastic; use 2 or more"
        elif self.kind != "all" and self.size > free:
            why = (
                f"{self.size} steps do not fit into the {free} that can be stochastic "
                f"(sampling/num_steps = {steps} without the last); use at most {free}, or more num_steps"
            )
            yield "size", why
        if job.sampling.passes > 1:
            why = (
                f"{job.sampling.guidance_text} samples from a guided velocity, but "
                f"{job.algorithm.name} trains the log-probability of the unguided one; use guidance = 1, "
                "stg_scale = 0 and modality_scale = 1, which are off"
            )
            yield "/sampling/guidance", why


class GRPOLossSpec(Spec):
    """The clipped policy-gradient loss of each modality."""

    clip_range: float = Field(default=1e-4, gt=0, le=1)
    """The ratio counts inside [1 - clip_range, 1 + clip_range]. Small, because log-probabilities are element means."""
    advantage_clip: float = Field(default=5.0, gt=0)
    """Advantages are cut to [-advantage_clip, advantage_clip]."""
    kl_weight: float = Field(default=0.04, ge=0)
    """Weight of the KL divergence of the step to that of the base model; 0 saves a forward."""
    kl_variance: Literal["rate", "step"] = "rate"
    """What that divergence divides by: `rate` is g^2, the variance per unit of sigma, for which the released weights
    were chosen; `step` is g^2 (sigma - sigma_next), the step's own variance, which makes it the KL of the step."""
    reduction: Literal["sum", "mean"] = "mean"
    """How the modalities' losses combine."""


class FlowGRPOSpec(PresetSpec):
    """Group-relative policy optimisation on stochastic denoising steps, with a log-probability per modality."""

    impl: ClassVar[str] = "learner.algorithms.grpo:FlowGRPO"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPES
    preset_sampling: ClassVar[Mapping[str, Mapping[str, Any]]] = RECIPE_SAMPLING

    name: Literal["flow_grpo"] = "flow_grpo"
    preset: RecipeName = "flow_grpo"
    credit: CreditSpec = CreditSpec(mode="routed")
    dynamics: DynamicsSpec = DynamicsSpec()
    window: WindowSpec = WindowSpec()
    initial_noise: Literal["independent", "shared"] = "independent"
    """`shared`: the samples of a group start from the same noise and differ by their stochastic steps alone."""
    trained_share: float = Field(default=1.0, gt=0, le=1)
    """Share of each group that is trained, per modality: half of it the best, half the worst by advantage; the others
    earn 0. At least one of each."""
    loss: GRPOLossSpec = GRPOLossSpec()
    old_policy: OldPolicySpec = OldPolicySpec(rate=0.0)
    """Who samples; by default the policy itself."""

    @property
    def penalises_reference(self) -> bool:
        """Where the KL divergence has a weight."""
        return self.loss.kl_weight > 0

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        """From the old policy, stochastic inside the window."""
        window = self.window.steps(job.sampling.num_steps, job.seed, step)
        return replace(
            super().plan(job, step),
            stochastic=StochasticSteps(self.dynamics.kind, self.dynamics.eta, window),
            initial_noise=self.initial_noise,
        )
