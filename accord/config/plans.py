"""The plan of a training step, asked of the algorithm's spec and held to what the sampler can do."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from accord.config.base import problems_of
from accord.errors import PluginError, RolloutError
from accord.ids import PolicyVersion
from accord.plugins import answering, origin
from accord.types import Prompt, RolloutPlan, RolloutRequest

if TYPE_CHECKING:
    from accord.config.job import JobSpec


def planned(job: JobSpec, step: int) -> RolloutPlan:
    """What `plan` of the job's algorithm says of a training step. Raises PluginError for what cannot be sampled."""
    spec = job.algorithm
    with answering(spec, "plan"):
        plan = spec.plan(job, step)
        wrong = _misfit(plan, job.prompts.group_size)
    if wrong:
        raise PluginError(f"{origin(spec)}: plan of step {step}: {wrong}")
    return plan


@cache
def _typed() -> TypeAdapter[RolloutPlan]:
    return TypeAdapter(RolloutPlan)


def _misfit(plan: RolloutPlan, group_size: int) -> str:
    """Why no group can be sampled so; "" when one can."""
    if not isinstance(plan, RolloutPlan):
        return f"it is {plan!r:.200}; give a RolloutPlan, as super().plan(job, step) does"
    try:
        _typed().validate_json(json.dumps(asdict(plan)), strict=True)
    except ValidationError as error:
        return "; ".join(f"{where}: {message}" for where, message in problems_of(error))
    if plan.num_steps < 1:
        return f"num_steps is {plan.num_steps}; use 1 or more"
    drawn = plan.stochastic
    if drawn is not None:
        if not drawn.eta > 0:
            return f"stochastic.eta is {drawn.eta:g}, and a step without noise has no density; use more than 0"
        if not drawn.steps or [*drawn.steps] != sorted({*drawn.steps} & {*range(plan.num_steps)}):
            right = f"name at least one, ascending, from 0 to {plan.num_steps - 1}; or give stochastic = None"
            return f"stochastic.steps is {drawn.steps}; {right}"
    try:
        RolloutRequest(0, 0, Prompt("", "", "", ""), (0,) * group_size, PolicyVersion(0), plan)
    except RolloutError as error:
        return f"forks: {error}"
    return ""
