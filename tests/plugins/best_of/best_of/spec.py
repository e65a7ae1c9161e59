"""An algorithm: imitate the best samples of each group. Light, read by the API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from accord.config.algorithm_parts import SigmaSpec
from accord.config.contract import AlgorithmSpec, ModelFacts, Problem
from accord.types import RolloutPlan

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class BestOfSpec(AlgorithmSpec):
    """Matching on the best samples of each group, drawn from the policy itself in more and more steps."""

    impl: ClassVar[str] = "best_of.recipe:BestOf"

    name: Literal["best_of"] = "best_of"
    keep: int = Field(default=1, ge=1)
    """Samples of each group that are imitated."""
    finer: int = Field(default=1, ge=0)
    """Denoising steps by which each training step's rollouts are finer than the last one's."""
    levels: SigmaSpec = SigmaSpec(per_sample=2)

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        """From the policy itself, finer in each step."""
        plan = super().plan(job, step)
        return replace(plan, role="policy", num_steps=plan.num_steps + self.finer * (step - 1))

    def draws(self, job: JobSpec) -> int:
        """Noise levels of each sample."""
        return self.levels.per_sample

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Somebody must not be the best."""
        yield from super().problems(job, facts)
        if self.keep >= job.prompts.group_size:
            yield "keep", f"{self.keep} of {job.prompts.group_size} samples leave none out; keep fewer"
