"""What is sampled in each step, as pure functions of the job: which prompts, which seeds, which stochastic steps."""

from __future__ import annotations

from collections.abc import Sequence

from accord.config.grpo import WindowSpec
from accord.config.job import JobSpec
from accord.ids import PolicyVersion
from accord.seeds import Purpose, derive_seed
from accord.types import Prompt, RolloutRequest


def prompt_order(job_seed: int, epoch: int, count: int) -> list[int]:
    """Return a permutation of range(count): the order of the prompts in one pass over the file."""
    return sorted(range(count), key=lambda index: derive_seed(job_seed, Purpose.PROMPT_ORDER, epoch, index))


def sampling_version(step: int, policy_lag: int) -> PolicyVersion:
    """The one version whose samples step `step` trains on: max(0, step - 1 - policy_lag)."""
    return PolicyVersion(max(0, step - 1 - policy_lag))


def stochastic_steps(job: JobSpec, step: int) -> tuple[int, ...]:
    """Denoising steps (0-based, ascending) that are stochastic in training step `step`; () where the ODE is sampled.

    `random` begins anywhere, derived from (job seed, step); `progressive` begins at ((step - 1) // every * stride) and
    starts over at the noise when it would leave the schedule.
    """
    window = getattr(job.algorithm, "window", None)
    if not isinstance(window, WindowSpec):
        return ()
    candidates = window.candidates(job.sampling.num_steps)
    if window.kind == "all":
        return tuple(candidates)
    places = len(candidates) - window.size + 1
    moved = (step - 1) // window.every * window.stride
    start = (derive_seed(job.seed, Purpose.WINDOW, step) if window.kind == "random" else moved) % places
    return tuple(candidates[start : start + window.size])


def _step_prompts(job: JobSpec, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
    """The prompts of one step; where it runs over the end of a pass, the next pass goes on."""
    count = job.prompts.per_step
    places = [divmod(index, len(prompts)) for index in range((step - 1) * count, step * count)]
    orders = {epoch: prompt_order(job.seed, epoch, len(prompts)) for epoch in {epoch for epoch, _ in places}}
    return [prompts[orders[epoch][place]] for epoch, place in places]


def step_requests(job: JobSpec, prompts: Sequence[Prompt], step: int) -> list[RolloutRequest]:
    """The groups of one training step, in prompt order. Each pass over the prompts is a fresh permutation."""
    region = getattr(job.algorithm, "region", None)
    shared = getattr(job.algorithm, "initial_noise", "independent") == "shared"
    sde_steps = stochastic_steps(job, step)
    requests = []
    for position, prompt in enumerate(_step_prompts(job, prompts, step)):
        seeds = tuple(derive_seed(job.seed, Purpose.SAMPLE, step, position, g) for g in range(job.prompts.group_size))
        requests.append(
            RolloutRequest(
                step=step,
                prompt_index=position,
                prompt=prompt,
                seeds=seeds,
                role="old",
                policy_version=sampling_version(step, job.cluster.policy_lag),
                capture_token_weights=bool(region and region.enabled),
                sde_steps=sde_steps,
                initial_seed=derive_seed(job.seed, Purpose.SHARED_START, step, position) if shared else None,
            )
        )
    return requests


def evaluation_requests(job: JobSpec, prompts: Sequence[Prompt], version: PolicyVersion) -> list[RolloutRequest]:
    """One group per held-out prompt, same seeds each time, sampled from the trained policy along the ODE."""
    samples = range(job.evaluate.samples_per_prompt)
    return [
        RolloutRequest(
            step=0, prompt_index=index, prompt=prompt, role="policy", policy_version=version,
            seeds=tuple(derive_seed(job.seed, Purpose.HELD_OUT, index, sample) for sample in samples),
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
