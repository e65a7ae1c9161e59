"""Training algorithms as data: every constant that papers and published code disagree about is a field here.

A preset fills fields that the user left out; anything written beside it wins. The resolved spec shows every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Spec
from accord.config.presets import PRESET_SAMPLING, PRESETS, PresetName, filled
from accord.types import Capture, RolloutPlan

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class CreditSpec(Spec):
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

    @model_validator(mode="after")
    def _second_normalisation_fits(self) -> Self:
        if self.batch_norm and self.mode != "gdpo":
            raise ValueError(
                f"/batch_norm: only mode = 'gdpo' normalises a second time, and mode is {self.mode!r}; "
                "set batch_norm = false, or mode = 'gdpo'"
            )
        return self


class LossSpec(Spec):
    """The negative-aware forward-process loss (OmniNFT eq. 3-6, DiffusionNFT)."""

    space: Literal["x0", "velocity"] = "x0"
    normaliser: Literal["detached", "attached", "none"] = "detached"
    """Adaptive weight 1/mean|x0hat - x0| per sample; `attached` lets gradient through it, as published."""
    beta: float = Field(default=1.0, gt=0, le=10)
    """Mixing strength between old and trained prediction."""
    advantage_clip: float = Field(default=5.0, gt=0)
    """r = 1/2 + clip(A / advantage_clip, -1, 1) / 2; the loss is scaled by advantage_clip / beta in return."""
    rescale: bool = True
    """Multiply by advantage_clip / beta, so that the on-policy gradient is A times that of the plain matching loss."""
    reduction: Literal["sum", "mean"] = "mean"
    """How the modalities' losses combine."""
    reference_penalty: float = Field(default=1e-4, ge=0)
    """Weight of the distance to the reference policy."""
    reference_space: Literal["x0", "velocity"] = "velocity"


class SigmaSpec(Spec):
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


class SurgerySpec(Spec):
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


class RegionSpec(Spec):
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


class DiffusionNFTSpec(Spec):
    """Negative-aware fine-tuning on clean samples (DiffusionNFT), with shared or routed credit."""

    impl: ClassVar[str] = "learner.algorithms.nft:NFT"
    presets: ClassVar[dict[PresetName, dict[str, Any]]] = PRESETS["diffusion_nft"]
    preset_sampling: ClassVar[dict[PresetName, dict[str, Any]]] = PRESET_SAMPLING["diffusion_nft"]
    """What a preset needs of the sampler; `JobSpec` lays it under the job's own `sampling`."""

    name: Literal["diffusion_nft"] = "diffusion_nft"
    preset: PresetName = "accord"
    credit: CreditSpec = CreditSpec(mode="gdpo")
    loss: LossSpec = LossSpec()
    sigmas: SigmaSpec = SigmaSpec()
    old_policy: OldPolicySpec = OldPolicySpec()

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        """How the groups of a training step are sampled: from the old policy along the ODE."""
        del step
        return job.sampling.plan("old")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        return filled(value, cls.presets)


class OmniNFTSpec(DiffusionNFTSpec):
    """OmniNFT (arXiv 2605.12480): routed advantages, gradient surgery, region-wise reweighting over DiffusionNFT."""

    presets: ClassVar[dict[PresetName, dict[str, Any]]] = PRESETS["omninft"]
    preset_sampling: ClassVar[dict[PresetName, dict[str, Any]]] = PRESET_SAMPLING["omninft"]

    name: Literal["omninft"] = "omninft"  # type: ignore[assignment]
    credit: CreditSpec = CreditSpec(mode="routed")
    surgery: SurgerySpec = SurgerySpec()
    region: RegionSpec = RegionSpec()

    def plan(self, job: JobSpec, step: int) -> RolloutPlan:
        """From the old policy along the ODE, with the region watched."""
        return replace(job.sampling.plan("old"), capture=self.region.capture(step))
