"""What an algorithm is to the learner: credit from scores, a loss from predictions, and how the old policy follows.

Shapes: P prompts, G group, B micro-batch, T tokens, C channels. All of it is arithmetic on tensors; engines, ranks and
processes are somebody else's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from accord.config.algorithm_parts import RegionSpec, SigmaSpec, SurgerySpec
from accord.config.contract import RewardSpec
from accord.diffusion.solver import noised
from accord.types import Modality, Role, ScoredGroup

View = Literal["forward", "transition"]
"""`forward`: clean latents are noised again and the velocity is matched. `transition`: stored denoising steps are
re-evaluated. An algorithm names its view; `learner/views/` builds the micro-batches of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """One advantage per sample (and, if it likes, stochastic step) and modality, with what was seen on the way."""

    advantages: Mapping[Modality, Tensor]
    """float64 [P, G] per modality, or [P, G, K] in the transition view: one for each stochastic step of a sample, in
    the order of the plan. 0 where a sample earned none."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Flat names, see `assign_credit`; None where undefined."""
    earned: Mapping[Modality, Tensor] = field(default_factory=dict)
    """bool [P, G] per modality: a valid score of a group that was told apart stands behind the number, 0 or not."""
    anchored: Mapping[Modality, Tensor] = field(default_factory=dict)
    """bool [P, G] per modality: which samples are held to the reference; a modality that is missing: all are."""


@dataclass(frozen=True, slots=True, eq=False)
class Noised:
    """One modality of a micro-batch on the forward process x_sigma = (1 - sigma) x0 + sigma eps."""

    x0_BTC: Tensor
    noise_BTC: Tensor
    sigma_B: Tensor

    @property
    def latents_BTC(self) -> Tensor:
        """x_sigma, what the model sees."""
        return noised(self.x0_BTC, self.noise_BTC, self.sigma_B)

    @property
    def target_BTC(self) -> Tensor:
        """The velocity v* = eps - x0 that leads back to this sample."""
        return self.noise_BTC - self.x0_BTC


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """What a forward-view loss may look at, besides the predictions."""

    noised: Mapping[Modality, Noised]
    advantages: Mapping[Modality, Tensor]
    """[B] per modality."""
    token_weights: Mapping[Modality, Tensor]
    """[B, T] for modalities whose tokens are weighted; a modality that is missing counts every token alike."""
    group_size: int = 1
    """Samples of one prompt that share noise and noise level stand together in runs of so many; 1 = none do."""


@dataclass(frozen=True, slots=True, eq=False)
class Transition:
    """One modality of a micro-batch of stochastic denoising steps, as the sampler took them."""

    before_BTC: Tensor
    after_BTC: Tensor
    log_prob_B: Tensor
    """Log-density of the step under the sampling policy, mean over elements."""
    sigma_B: Tensor
    sigma_next_B: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TransitionBatch:
    """What a transition-view loss may look at, besides the predictions."""

    transitions: Mapping[Modality, Transition]
    advantages: Mapping[Modality, Tensor]
    """[B] per modality."""


LossBatch = ForwardBatch | TransitionBatch
BatchT = TypeVar("BatchT", bound=LossBatch, contravariant=True)


Predictions = Mapping[Role, Mapping[Modality, Tensor]]
"""Velocities [B, T, C] by role and modality; only `policy` carries gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class LossTerms:
    """Losses per item of a micro-batch. The learner sums them, divides by the items of the step and goes backward."""

    loss_B: Tensor
    metrics_B: Mapping[str, Tensor]
    """Detached tensors [B]; summed over micro-batches and reduced over ranks once per step."""


class Algorithm(Protocol[BatchT]):
    """A recipe. Built as `load_impl(spec)(spec)` on every learner rank."""

    view: View
    anchors: tuple[Role, ...]
    """Roles whose predictions the loss reads besides `policy`; they are evaluated without gradient."""
    surgery: SurgerySpec | None
    """Gradient surgery around the policy's forward and backward; None = off."""

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Turn the scores of a whole step into advantages. Pure: every rank computes the same."""

    def loss(self, batch: BatchT, predictions: Predictions) -> LossTerms:
        """Return losses of one micro-batch, as the algorithm's view makes it. No collective, no `.item()`."""

    def eta(self, step: int) -> float:
        """Share of itself that the old policy keeps after `step`."""


class ForwardAlgorithm(Algorithm[ForwardBatch], Protocol):
    """What the forward view asks of an algorithm besides."""

    sigmas: SigmaSpec
    region: RegionSpec | None
    """Region weights on video tokens; None = off."""
