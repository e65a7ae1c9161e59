"""What is sampled in each step, as pure functions of the job: the prompts, seeds and version around a step's plan."""

from __future__ import annotations

from collections.abc import Sequence

from accord.config.job import JobSpec
from accord.config.plans import planned
from accord.ids import PolicyVersion
from accord.seeds import Purpose, derive_seed
from accord.types import Prompt, RolloutRequest


def prompt_order(job_seed: int, epoch: int, count: int) -> list[int]:
    """Return a permutation of range(count): the order of the prompts in one pass over the file."""
    return sorted(range(count), key=lambda index: derive_seed(job_seed, Purpose.PROMPT_ORDER, epoch, index))


def sampling_version(step: int, policy_lag: int) -> PolicyVersion:
    """The one version whose samples step `step` trains on: max(0, step - 1 - policy_lag)."""
    return PolicyVersion(max(0, step - 1 - policy_lag))


def _step_prompts(job: JobSpec, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
    """The prompts of one step; where it runs over the end of a pass, the next pass goes on."""
    count = job.prompts.per_step
    places = [divmod(index, len(prompts)) for index in range((step - 1) * count, step * count)]
    orders = {epoch: prompt_order(job.seed, epoch, len(prompts)) for epoch in {epoch for epoch, _ in places}}
    return [prompts[orders[epoch][place]] for epoch, place in places]


def step_requests(job: JobSpec, prompts: Sequence[Prompt], step: int) -> list[RolloutRequest]:
    """The groups of one training step, in prompt order. Each pass over the prompts is a fresh permutation."""
    plan = planned(job, step)
    requests = []
    for position, prompt in enumerate(_step_prompts(job, prompts, step)):
        seeds = tuple(derive_seed(job.seed, Purpose.SAMPLE, step, position, g) for g in range(job.prompts.group_size))
        requests.append(
            RolloutRequest(
                step=step,
                prompt_index=position,
                prompt=prompt,
                seeds=seeds,
                policy_version=sampling_version(step, job.cluster.policy_lag),
                plan=plan,
                start_seed=derive_seed(job.seed, Purpose.SHARED_START, step, position),
            )
        )
    return requests


def held_out_seeds(job: JobSpec, prompt: int, count: int) -> tuple[int, ...]:
    """Seeds of a held-out prompt's samples by its place in the file: those of a job, whatever it evaluates."""
    return tuple(derive_seed(job.seed, Purpose.HELD_OUT, prompt, sample) for sample in range(count))


def evaluation_requests(job: JobSpec, prompts: Sequence[Prompt], version: PolicyVersion) -> list[RolloutRequest]:
    """One group per held-out prompt, same seeds each time, sampled from the trained policy along the ODE."""
    plan = job.sampling.plan("policy")
    return [
        RolloutRequest(
            step=0, prompt_index=index, prompt=prompt, policy_version=version, plan=plan,
            seeds=held_out_seeds(job, index, job.evaluate.samples_per_prompt),
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
