"""Guards against a policy that pleases its rewards and loses everything else: what a job says about them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from accord.config.contract import ModelFacts, PartSpec, Problem
from accord.types import Modality

if TYPE_CHECKING:
    from accord.config.job import JobSpec

Feature = Literal["luma", "contrast", "saturation", "motion", "loudness_db", "silent_share", "flatness"]
FEATURES: dict[Feature, float] = {
    "luma": 0.02, "contrast": 0.02, "saturation": 0.02, "motion": 0.005,
    "loudness_db": 1.5, "silent_share": 0.05, "flatness": 0.02,
}  # fmt: skip
"""Features of a clip by name, with the least standard deviation that a band, or a unit of distance, is made from."""
FEATURES_OF: dict[Modality, tuple[Feature, ...]] = {
    "video": ("luma", "contrast", "saturation", "motion"),
    "audio": ("loudness_db", "silent_share", "flatness"),
}
"""Which of them are measured on what."""


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
    its rank by advantage minus its mean rank by `auxiliaries`, among the samples of the step, both in 0..1. Scores of
    auxiliaries count from their mean over the prompt, as advantages do.
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
        yield from _without_leash(job, "gate")


class ReferenceResetSpec(PartSpec):
    """Let the reference follow the policy (GARDO, arXiv 2512.24138): reference <- policy, in steps.

    A penalty on the distance to a fixed reference ends up weighing more than the rewards, and the policy stands still.
    With resets it limits how fast the policy moves, no longer how far: use it with what watches the distance, the alarm
    or a gate. A reference of its own costs a learner rank the memory of one more adapter role.
    """

    above: float | None = Field(default=None, gt=0)
    """Reset when the step's mean `loss/reference/<modality>`, of the modality where it is largest, is more than this.
    Its unit is that of the algorithm's penalty; a run without resets shows what it amounts to. Samples that a gate sets
    free count in the mean with no distance. None: however far."""
    every: int | None = Field(default=None, ge=1)
    """Reset after every so many steps. None: however long."""

    @model_validator(mode="after")
    def _some_reason(self) -> Self:
        if self.above is None and self.every is None:
            raise ValueError("/above: nothing says when to reset; set above, every, or both")
        return self

    def due(self, step: int, distance: float) -> bool:
        """Whether the reference follows after `step`, whose samples lay `distance` from it."""
        timely = self.every is not None and step % self.every == 0
        return timely or (self.above is not None and distance > self.above)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': losses whose reference holds nobody back, or does more than that."""
        yield from super().problems(job, facts)
        yield from _without_leash(job, "reset")


def _without_leash(job: JobSpec, verb: str) -> Iterable[Problem]:
    """An algorithm whose reference is no leash and nothing else.

    Where samples are judged by what the reference says of them, it is part of the aim: to move it changes what is
    learned, and with a policy that equals it every judgement starts anew.
    """
    name = job.algorithm.name
    if job.algorithm.judges_by_reference:
        yield "", f"{name} weighs samples by what the reference says; it has no penalty alone to {verb}"
    elif not job.algorithm.penalises_reference:
        why = f"the loss of this {name} has no penalty on the distance to the reference, so there is nothing to {verb}"
        yield "", f"{why}; give that penalty a weight in algorithm/loss, or leave this out"


class DiversitySpec(PartSpec):
    """Credit samples that are unlike the others of their group (GARDO): a positive advantage is multiplied by the
    sample's distance to its nearest neighbour in the group, over the mean of that distance in the group.

    Distances are those of the clips' features (`accord/clip_features.py`), of picture or sound by modality, each in
    standard deviations of the step's samples. The paper's are cosine distances of DINOv3 features.
    """

    cap: float = Field(default=3.0, ge=1, le=100)
    """Most that an advantage is multiplied by."""


class DirectionCorrectionSpec(PartSpec):
    """Take out of the credit what is explained by features that a reward is known to prefer (after D2-Align).

    The formula is in `learner/direction.py`. Each modality's credit is corrected along the named features of its own.
    """

    features: tuple[Feature, ...] = Field(min_length=1, max_length=len(FEATURES))
    """Directions, such as `saturation`, `luma` or `loudness_db`."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """Share of the explained part that is taken out."""
    only_moved: bool = True
    """Take out only what pulls a feature further into where the run has gone already, in proportion to how far: nothing
    where it began, all of it at the edge of its band (`divergence.sigmas`). False: in both directions, from the first
    step."""
    ridge: float = Field(default=0.1, gt=0, le=100)
    """Penalty of the regression per sample, in squared standard deviations: the larger, the less is explained."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Besides its parts': features of what the model does not make."""
        yield from super().problems(job, facts)
        made = [name for modality in job.backbone.modalities for name in FEATURES_OF[modality]]
        for index, name in enumerate(self.features):
            if name not in made:
                yield f"features/{index}", f"{job.backbone.name} makes nothing that has {name!r}; use {', '.join(made)}"


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
    reference_reset: ReferenceResetSpec | None = None
    """None: the reference is the base model, for good."""
    diversity: DiversitySpec | None = None
    """None: credit is what the rewards say, whoever else in the group is alike."""
    direction_correction: DirectionCorrectionSpec | None = None
    """None: credit may be earned in any direction."""

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
