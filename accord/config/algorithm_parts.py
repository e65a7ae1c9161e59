"""What training algorithms are made of, as data: credit, noise levels, surgery, region weights, the old policy.

Every constant that papers and published code disagree about is a field. A part that can misfit a job says so itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Spec
from accord.config.contract import Crossing, ModelFacts, PartName, PartSpec, Problem
from accord.types import Capture

if TYPE_CHECKING:
    from accord.config.job import JobSpec

_ROUNDING = 1e-6
"""A schedule is computed in float32; a bound that was read off it is no bound for its own rounding."""


class EnsembleSpec(PartSpec):
    """Rewards of one route that judge the same thing, combined to one after each is standardised within its prompt.

    Members that agree by chance are rare, so a policy that plays one of them earns less than by pleasing all.
    """

    name: PartName = Field(pattern=r"^[\w-]+$")
    members: tuple[PartName, ...] = Field(min_length=2, max_length=16, strict=False)
    """Names of rewards of the job with a weight; the ensemble's weight is the sum of theirs."""
    combine: Literal["mean", "min", "lower_confidence", "rank"] = "lower_confidence"
    k: float = Field(default=1.0, ge=0, le=10)
    """`lower_confidence`: how many standard deviations of the members are taken off their mean."""


class CreditSpec(PartSpec):
    """From reward scores to one advantage per sample and modality (OmniNFT eq. 6-7)."""

    mode: Literal["routed", "sum", "gdpo"] = "routed"
    """`routed`: each reward drives the branch(es) of its route. `sum`: weighted raw rewards, normalised once, shared.
    `gdpo`: normalised per reward, weighted, summed, shared."""
    std: Literal["prompt", "step"] = "step"
    """Divide by the standard deviation inside the prompt's group, or over all valid samples of the step."""
    epsilon: float = Field(default=1e-4, gt=0, lt=1)
    """A group counts as one without spread when its standard deviation is no more than this share of the step's, or of
    the largest score in the group."""
    batch_norm: bool = False
    """`gdpo` only: normalise the summed advantage over the step again (arXiv 2601.05242)."""

    ensembles: tuple[EnsembleSpec, ...] = Field(default=(), max_length=16, strict=False)
    """Rewards that are combined before they are routed."""

    @model_validator(mode="after")
    def _second_normalisation_fits(self) -> Self:
        if self.batch_norm and self.mode != "gdpo":
            raise ValueError(
                f"/batch_norm: only mode = 'gdpo' normalises a second time, and mode is {self.mode!r}; "
                "set batch_norm = false, or mode = 'gdpo'"
            )
        return self

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """Routed credit that no reward brings to a modality would leave that branch idle without a word."""
        del facts
        routes = {reward.route for reward in job.rewards if reward.weight > 0}
        idle = [modality for modality in job.backbone.modalities if not routes & {modality, "both"}]
        if self.mode == "routed" and idle:
            why = (
                f"credit is routed, and no reward with a weight has the route {' or '.join(idle)}, so that "
                f"branch would learn nothing; add one, set a route to 'both', or algorithm/credit/mode to 'gdpo'"
            )
            yield "/rewards", why
        yield from self._misfits(job)

    def _misfits(self, job: JobSpec) -> Iterable[Problem]:
        """Ensembles whose members cannot be combined."""
        if self.ensembles and self.mode == "sum":
            yield "ensembles", "mode = 'sum' adds raw rewards; use 'routed' or 'gdpo' with ensembles"
        weighted = {reward.name: reward for reward in job.rewards if reward.weight > 0}
        places = Counter(name for ensemble in self.ensembles for name in ensemble.members)
        names = Counter([ensemble.name for ensemble in self.ensembles] + [reward.name for reward in job.rewards])
        for index, ensemble in enumerate(self.ensembles):
            if names[ensemble.name] > 1:
                yield f"ensembles/{index}/name", f"{ensemble.name!r} is taken; give it a name of its own"
            known = [weighted[name] for name in ensemble.members if name in weighted]
            if len(known) < len(ensemble.members) or any(places[name] > 1 for name in ensemble.members):
                why = "each is a reward of this job with a weight, and a member of one ensemble, once"
                yield f"ensembles/{index}/members", why
            elif len({reward.route for reward in known}) > 1:
                yield f"ensembles/{index}/members", "their routes differ; combine rewards of one route"


class SigmaSpec(PartSpec):
    """Which noise levels are trained."""

    per_sample: int = Field(default=2, ge=1, le=1000)
    """Noise levels drawn for every sample and step."""
    low: float = Field(default=0.0, ge=0, le=1)
    high: float = Field(default=1.0, ge=0, le=1)
    """Only sigmas of the sampler's schedule inside [low, high] are drawn."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"/low: {self.low} must not exceed high ({self.high}), else no noise level is trained")
        return self

    def trained(self, schedule: Sequence[float]) -> tuple[float, ...]:
        """The sigmas of a schedule (without its final 0) that lie in [low, high], float32 rounding forgiven."""
        return tuple(sigma for sigma in schedule[:-1] if self.low - _ROUNDING <= sigma <= self.high + _ROUNDING)

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """A range that holds no noise level of the sampler's schedule."""
        schedule = facts.sigmas(job.sampling) if facts is not None else None
        if schedule is not None and not self.trained(schedule):
            values = ", ".join(f"{sigma:.3f}" for sigma in schedule[:-1][:12])
            yield "low", f"no sigma of the schedule lies in [{self.low}, {self.high}]; it has {values}"


class BlockScale(Spec):
    """A run of transformer blocks and what is left of the gradient there."""

    start: float = Field(ge=0)
    stop: float = Field(gt=0)
    """Blocks in [start, stop): fractions of the depth when both are ≤ 1 and `unit` is `depth`, else block numbers."""
    keep: float = Field(ge=0, le=1)
    """Factor on the gradient; 0 stops it, 1 leaves it alone."""
    unit: Literal["depth", "block"] = "depth"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"/stop: {self.stop} must be greater than start ({self.start})")
        if self.unit == "depth" and self.stop > 1:
            raise ValueError(f"/stop: {self.stop} is a fraction of the depth and must be ≤ 1; or set unit = 'block'")
        return self


class SurgerySpec(PartSpec):
    """Layer-wise gradient surgery at the audio-to-video cross-attention (OmniNFT eq. 8-9). Forward is unchanged."""

    enabled: bool = True
    tensor: Literal["context", "kv"] = "context"
    """Scale the gradient into the audio context before the projections, or into K and V after them."""
    schedule: tuple[BlockScale, ...] = Field(
        default=(BlockScale(start=0.0, stop=1 / 48, keep=0.0), BlockScale(start=1 / 48, stop=11 / 48, keep=0.1)),
        max_length=1000,
        strict=False,  # a list is a fine tuple once the preset has been laid under it
    )
    """Later entries win where runs overlap; the rest of the depth keeps 1. A block that runs cover in part keeps the
    mean over its stretch of the depth, so a schedule in fractions takes the same share from a model of any depth."""

    def factors(self, depth: int) -> list[float]:
        """What is left of the gradient at each block [depth]. Raises ValueError for a block number beyond the depth."""
        runs = []
        for index, run in enumerate(self.schedule if self.enabled else ()):
            if run.unit == "block" and run.stop > depth:
                raise ValueError(
                    f"/schedule/{index}/stop: {run.stop:g} is beyond the model's {depth} blocks; use unit = 'depth'"
                )
            scale = depth if run.unit == "depth" else 1
            runs.append((_snapped(run.start * scale), _snapped(run.stop * scale), run.keep))
        return [_mean_keep(runs, block) for block in range(depth)]

    @model_validator(mode="after")
    def _cuts_something(self) -> Self:
        if self.enabled and not self.schedule:
            raise ValueError(
                "/schedule: empty, so nothing would be cut; give a range of blocks, or set enabled = false"
            )
        return self

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """A model without the edge that is operated on, or a schedule that goes beyond its blocks."""
        if not self.enabled:
            return
        if _lacks(("video", "audio"), job, facts):
            yield "enabled", "true, but the model has no audio-to-video attention to operate on; set it to false"
        elif facts is not None and facts.depth:
            origin = self._origin(job)
            for index, run in enumerate(self.schedule):
                for place, message in _beyond(run, facts.depth):
                    yield f"schedule/{index}/{place}", message + origin

    def _origin(self, job: JobSpec) -> str:
        """Where a schedule that the user did not write comes from."""
        preset = job.algorithm.chosen_preset
        runs = job.algorithm.presets.get(preset, {}).get("surgery", {}).get("schedule", ())
        if self.schedule != tuple(BlockScale.model_validate(run) for run in runs):
            return ""
        return f"; this is the schedule of preset {preset!r}, made for a deeper model: give surgery.schedule beside it"


def _lacks(crossing: Crossing, job: JobSpec, facts: ModelFacts | None) -> bool:
    """True for a model in which the first modality is known not to attend to the second."""
    if facts is None or facts.crossings is None:
        return not set(crossing) <= set(job.backbone.modalities)
    return crossing not in facts.crossings


def _beyond(run: BlockScale, depth: int) -> Iterable[Problem]:
    """Block numbers that a model of this depth has not."""
    if run.unit != "block":
        return
    for name, value, highest in (("start", run.start, depth - 1), ("stop", run.stop, depth)):
        if value != int(value):
            yield name, f"{value} is not a whole block number"
        elif value > highest:
            yield name, f"{int(value)} is beyond the model's {depth} blocks: use at most {highest}, or unit = 'depth'"


def _snapped(edge: float) -> float:
    """A fraction of the depth in blocks; products such as 11/48 * 48 are whole numbers."""
    return float(round(edge)) if abs(edge - round(edge)) < 1e-6 else edge


def _mean_keep(runs: Sequence[tuple[float, float, float]], block: int) -> float:
    """Mean over [block, block + 1) of what runs of (start, stop, keep) leave; the last over a point wins."""
    ends = {min(max(end, block), block + 1) for start, stop, _ in runs for end in (start, stop)}
    edges = sorted(ends | {block, block + 1})
    pieces: dict[float, float] = {}
    for low, high in pairwise(edges):
        middle = (low + high) / 2
        keep = next((keep for start, stop, keep in reversed(runs) if start <= middle < stop), 1.0)
        pieces[keep] = pieces.get(keep, 0.0) + high - low
    return next(iter(pieces)) if len(pieces) == 1 else sum(keep * length for keep, length in pieces.items())


class RegionSpec(PartSpec):
    """Region-wise reweighting of the video loss by the model's own V2A attention (OmniNFT eq. 10-11)."""

    enabled: bool = True
    formula: Literal["minmax", "frame_sigmoid"] = "minmax"
    """`minmax`: 1 + strength * (s - min) / (max - min) per sample. `frame_sigmoid`: 1 + strength * sigmoid(strength z),
    z being the score standardised within its frame. Strength is that of the step, see `warmup_steps`."""
    strength: float = Field(default=0.5, ge=0, le=100)
    first_block: float = Field(default=0.2, ge=0, le=1)
    last_block: float = Field(default=1.0, ge=0, le=1)
    """Fractions of the depth between which attention is read."""
    first_step: float = Field(default=0.5, ge=0, le=1)
    last_step: float = Field(default=1.0, ge=0, le=1)
    """Fractions of the denoising steps between which attention is read."""
    warmup_steps: int = Field(default=0, ge=0)
    """Strength grows linearly over so many optimizer steps, from 0 in the first one."""

    def strength_at(self, step: int) -> float:
        """Return strength * min(k / warmup_steps, 1), k = step - 1: training steps count from 1, the warm-up from 0."""
        done = max(step - 1, 0)
        return self.strength * done / self.warmup_steps if done < self.warmup_steps else self.strength

    def capture(self, step: int) -> Capture | None:
        """What the groups of a training step are watched for; None when switched off."""
        if not self.enabled:
            return None
        return Capture(
            formula=self.formula,
            strength=self.strength_at(step),
            first_block=self.first_block,
            last_block=self.last_block,
            first_step=self.first_step,
            last_step=self.last_step,
        )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (("first_block", "last_block"), ("first_step", "last_step")):
            if getattr(self, low) >= getattr(self, high):
                first, last = getattr(self, low), getattr(self, high)
                raise ValueError(f"/{low}: {first:g} must be below {high} ({last:g}), else no attention is read")
        return self

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """A model without the attention that is read."""
        if self.enabled and _lacks(("audio", "video"), job, facts):
            yield "enabled", "true, but the model has no video-to-audio attention to read; set it to false"


class OldPolicySpec(Spec):
    """How the sampling policy follows the trained one: old <- eta * old + (1 - eta) * policy after every step."""

    start: float = Field(default=0.0, ge=0, le=1)
    rate: float = Field(default=0.001, ge=0, le=1)
    maximum: float = Field(default=0.5, ge=0, le=1)
    """eta(step) = min(start + rate * (step - delay), maximum); eta = 0 copies the policy."""
    delay: int = Field(default=0, ge=0)
    """eta is 0 before this step."""

    def share(self, step: int) -> float:
        """Return eta(step)."""
        return min(self.start + self.rate * (step - self.delay), self.maximum) if step >= self.delay else 0.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start > self.maximum:
            raise ValueError(f"/start: {self.start:g} exceeds maximum ({self.maximum:g}) and would never be reached")
        return self
