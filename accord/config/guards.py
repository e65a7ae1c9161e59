"""Guards against a policy that pleases its rewards and loses everything else: what a job says about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from accord.config.contract import ModelFacts, PartSpec, Problem

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class DivergenceSpec(PartSpec):
    """The alarm: trained rewards rise while what nobody trains on leaves the band that it had at the start.

    Watched are the features of every clip (`accord/clip_features.py`), up and down, and the rewards of weight 0, down.
    The band of each is its mean over the samples of the first steps, plus and minus `sigmas` standard deviations of
    those samples. Trained rewards have risen when the weighted mean of their changes, each in standard deviations of
    its first samples, is more than `gain`.
    """

    action: Literal["stop", "warn", "off"] = "stop"
    """`stop` ends the job with reason `guard` and keeps the adapter of the last version inside the bands."""
    sigmas: float = Field(default=3.0, gt=0, le=100)
    gain: float = Field(default=0.1, ge=0, le=100)
    first_steps: int = Field(default=1, ge=1, le=1000)
    """Steps whose samples make the bands."""
    patience: int = Field(default=2, ge=1, le=1000)
    """Steps in a row outside of a band before anything is done."""
    ignore: tuple[Annotated[str, Field(max_length=100)], ...] = Field(default=(), max_length=100)
    """Features and rewards that may go where they like, by name."""


class GatedReferenceSpec(PartSpec):
    """Hold to the reference only the samples whose reward is doubtful (GARDO, arXiv 2512.24138), and set others free.

    A sample is doubtful when the trained rewards rank it above what light rewards, which nobody trains on, say of it:
    its rank by advantage minus its mean rank by `auxiliaries`, among the samples of the step, both in 0..1.
    """

    auxiliaries: tuple[Annotated[str, Field(max_length=100)], ...] = Field(min_length=1, max_length=16)
    """Names of rewards of weight 0; each speaks for the branches of its route."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Share of the step's samples that is held to the reference, the most doubtful first."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': auxiliaries that are trained on, and losses that have no penalty to gate."""
        yield from super().problems(job, facts)
        measured = {reward.name for reward in job.rewards if reward.weight == 0}
        for index, name in enumerate(self.auxiliaries):
            if name not in measured:
                there = ", ".join(sorted(measured)) or "none"
                yield f"auxiliaries/{index}", f"{name!r} is no reward of weight 0 in this job; there are {there}"
        if job.algorithm.judges_by_reference:
            yield "", f"{job.algorithm.name} weighs samples by what the reference says; it has no penalty alone to gate"


class DriftSpec(PartSpec):
    """Whether the rewards still judge as they did when the job began: eight small clips (`accord/canary.py`) that each
    reward scores before the first step, when an attempt goes on, and then now and then, beside the sampling.

    A reward has drifted when a canary lies further from its first value than the tolerance. Rewards that compare clips
    are left out: what they say of one depends on its company.
    """

    on_drift: Literal["continue", "pause", "stop", "off"] = "continue"
    """`continue` marks the reward as degraded and tells; `pause` begins no step until it judges again as it did, and
    ends the job when it does not; `stop` ends the job with reason `guard`; `off` scores no canary."""
    tolerance: float = Field(default=0.05, ge=0, le=100)
    """Largest distance that is none, in standard deviations of the reward's first values over the canaries. A reward
    whose `batch_tolerance` allows more is allowed that."""
    every_s: float = Field(default=3600.0, gt=0, le=1_000_000)
    """Seconds from the end of one comparison to the next."""
    wait_s: float = Field(default=3600.0, gt=0, le=86_400)
    """How long `pause` waits."""
    ignore: tuple[Annotated[str, Field(max_length=100)], ...] = Field(default=(), max_length=64)
    """Rewards whose canaries are not scored, by name: those that draw at random, or are too dear."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': names that are no reward of the job."""
        yield from super().problems(job, facts)
        there = [reward.name for reward in job.rewards]
        for index, name in enumerate(self.ignore):
            if name not in there:
                yield f"ignore/{index}", f"{name!r} is no reward of this job; there are {', '.join(there)}"


class GuardsSpec(PartSpec):
    """What watches over a run, whatever its algorithm."""

    allow_prompt_blind: bool = False
    """Train a branch on rewards alone that do not depend on the prompt. Such a branch is free to forget it."""
    controls: bool = True
    """Score one clip of each group with the prompt, and with the sound, of another group in every step, and report the
    gaps: a reward that no longer tells the right one is being played."""
    divergence: DivergenceSpec = DivergenceSpec()
    drift: DriftSpec = DriftSpec()
    gated_reference: GatedReferenceSpec | None = None
    """None: every sample is held to the reference, as far as the loss has a penalty."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': names that are no feature or reward; and, when a job is submitted or begins, branches
        that nothing holds to the prompt."""
        yield from super().problems(job, facts)
        known = sorted({*FEATURES, *(reward.name for reward in job.rewards)})
        for index, name in enumerate(self.divergence.ignore):
            if name not in known:
                yield f"divergence/ignore/{index}", f"{name!r} is watched by nobody; there are {', '.join(known)}"
        if facts is not None and not self.allow_prompt_blind:
            yield from _prompt_blind(job)


def _prompt_blind(job: JobSpec) -> Iterable[Problem]:
    trained = [reward for reward in job.rewards if reward.weight > 0]
    for modality in job.backbone.modalities:
        driving = [reward for reward in trained if reward.route in (modality, "both")]
        if driving and not any(reward.prompt_anchored for reward in driving):
            names = ", ".join(reward.name for reward in driving)
            why = (
                f"what trains the {modality} ({names}) does not depend on the prompt, so the policy is free to forget "
                "it; add a prompt-anchored reward with a weight, or set guards/allow_prompt_blind = true"
            )
            yield "/rewards", why


FEATURES: dict[str, float] = {
    "luma": 0.02, "contrast": 0.02, "saturation": 0.02, "motion": 0.005,
    "loudness_db": 1.5, "silent_share": 0.05, "flatness": 0.02,
}  # fmt: skip
"""Features of a clip by name, with the least standard deviation that a band is made from."""
