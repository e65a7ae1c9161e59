"""Recipes of the forward view as data: NFT, AWM, CRD, Flow-RWR, DGPO (docs/algorithms.md, "Forward view").

They share credit, noise levels and old policy, all but DiffusionNFT surgery and region weights too, and differ in the
loss alone. A preset fills fields that the user left out; anything written beside it wins. The resolved spec shows every
value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from accord.config.algorithm_parts import CreditSpec, OldPolicySpec, RegionSpec, SigmaSpec, SurgerySpec
from accord.config.base import Spec
from accord.config.contract import AlgorithmSpec, PresetSpec
from accord.config.presets import PRESET_SAMPLING, PRESETS, PresetName

if TYPE_CHECKING:
    from accord.config.job import JobSpec


class MatchingSpec(Spec):
    """How far a velocity is from a sample, and what every loss of this family adds to its own equation."""

    space: Literal["x0", "velocity"] = "velocity"
    """Measure the error of the velocity, or that of the clean sample it leads to (sigma times as large)."""
    reduction: Literal["sum", "mean"] = "mean"
    """How the modalities' losses combine."""
    reference_penalty: float = Field(default=1e-4, ge=0)
    """Weight of the distance to the reference policy."""
    reference_space: Literal["x0", "velocity"] = "velocity"


class LossSpec(MatchingSpec):
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


class AWMLossSpec(MatchingSpec):
    """Advantage-weighted matching with a clipped ratio."""

    advantage_clip: float = Field(default=5.0, gt=0)
    """Advantages are cut to [-advantage_clip, advantage_clip]."""
    clip_range: float = Field(default=0.1, gt=0, lt=1)
    """The ratio counts inside [1 - clip_range, 1 + clip_range]."""
    old_penalty: float = Field(default=0.0, ge=0)
    """Weight of the mean square between trained and old velocity."""


class CRDLossSpec(MatchingSpec):
    """Regression of the centred implicit reward on the centred external one."""

    space: Literal["x0", "velocity"] = "x0"
    normaliser: Literal["detached", "none"] = "detached"
    """Adaptive weight 1/mean|x0hat - x0| per sample on each squared error."""
    beta: float = Field(default=1.0, gt=0, le=10)
    """How strongly the implicit reward answers to the external one."""
    advantage_clip: float = Field(default=5.0, gt=0)
    """R = 1/2 + clip(A / advantage_clip, -1, 1) / 2; the loss is scaled by advantage_clip / beta in return."""
    regression: Literal["square", "bce"] = "square"
    """Squared difference, or cross-entropy of sigmoid(beta r) against R."""
    penalty_floor: float = Field(default=1.0, ge=0, le=1)
    """The reference penalty of a sample is multiplied by c + R (1 - c), c being this; 1 = the same for all."""


class DGPOLossSpec(MatchingSpec):
    """Group preference against the reference policy."""

    beta: float = Field(default=1.0, gt=0, le=1e6)
    """How soon a group counts as told apart: the slope in front of the group's mean preference."""
    advantage_clip: float = Field(default=5.0, gt=0)
    """Advantages are cut to [-advantage_clip, advantage_clip]."""


class ForwardSpec(AlgorithmSpec):
    """What all of them have. A subclass fixes `name` and `impl`, and what its loss adds."""

    credit: CreditSpec = CreditSpec(mode="routed")
    loss: MatchingSpec = MatchingSpec()
    sigmas: SigmaSpec = SigmaSpec()
    old_policy: OldPolicySpec = OldPolicySpec()

    @property
    def penalises_reference(self) -> bool:
        """Where the penalty has a weight."""
        return self.loss.reference_penalty > 0

    def draws(self, job: JobSpec) -> int:
        """Noise levels drawn for every sample."""
        del job
        return self.sigmas.per_sample


class ShapedSpec(ForwardSpec):
    """With gradient surgery and region weights, off unless a subclass or a job turns them on."""

    surgery: SurgerySpec = SurgerySpec(enabled=False)
    region: RegionSpec = RegionSpec(enabled=False)

    @property
    def active_surgery(self) -> SurgerySpec | None:
        """The field, where it is enabled."""
        return self.surgery if self.surgery.enabled else None

    @property
    def active_region(self) -> RegionSpec | None:
        """The field, where it is enabled."""
        return self.region if self.region.enabled else None


class DiffusionNFTSpec(ForwardSpec, PresetSpec):
    """Negative-aware fine-tuning on clean samples (DiffusionNFT), with shared or routed credit."""

    impl: ClassVar[str] = "learner.algorithms.nft:NFT"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS["diffusion_nft"]
    preset_sampling: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_SAMPLING["diffusion_nft"]

    name: Literal["diffusion_nft"] = "diffusion_nft"
    preset: PresetName = "accord"
    credit: CreditSpec = CreditSpec(mode="gdpo")
    loss: LossSpec = LossSpec()


class OmniNFTSpec(ShapedSpec, PresetSpec):
    """OmniNFT (arXiv 2605.12480): routed advantages, gradient surgery, region-wise reweighting over DiffusionNFT."""

    impl: ClassVar[str] = "learner.algorithms.nft:NFT"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS["omninft"]
    preset_sampling: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_SAMPLING["omninft"]

    name: Literal["omninft"] = "omninft"
    preset: PresetName = "accord"
    loss: LossSpec = LossSpec()
    surgery: SurgerySpec = SurgerySpec()
    region: RegionSpec = RegionSpec()


class AWMSpec(ShapedSpec):
    """Advantage-weighted matching: a clipped policy gradient whose log-probability is minus the matching error."""

    impl: ClassVar[str] = "learner.algorithms.awm:AWM"

    name: Literal["awm"] = "awm"
    loss: AWMLossSpec = AWMLossSpec()


class CRDSpec(ShapedSpec):
    """Centred reward distillation: the gain in matching error over the old policy is fitted to the reward."""

    impl: ClassVar[str] = "learner.algorithms.crd:CRD"
    by_group: ClassVar[bool] = True

    name: Literal["crd"] = "crd"
    loss: CRDLossSpec = CRDLossSpec()


class FlowRWRSpec(ShapedSpec):
    """Reward-weighted regression: matching on the model's own samples, weighted by a softmax over the group."""

    impl: ClassVar[str] = "learner.algorithms.rwr:FlowRWR"

    name: Literal["flow_rwr"] = "flow_rwr"
    temperature: float = Field(default=1.0, gt=0, le=1000)
    """Weights are softmax(A / temperature): small = only the best samples, large = all alike."""


class DGPOSpec(ShapedSpec):
    """Direct group preference: samples are pulled or pushed by their advantage while the group is not told apart."""

    impl: ClassVar[str] = "learner.algorithms.dgpo:DGPO"
    judges_by_reference: ClassVar[bool] = True
    by_group: ClassVar[bool] = True

    name: Literal["dgpo"] = "dgpo"
    loss: DGPOLossSpec = DGPOLossSpec()
