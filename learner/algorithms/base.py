"""What an algorithm is to the learner: credit from scores, a loss from predictions, and how the old policy follows.

Shapes: P prompts, G group, B micro-batch, T tokens, C channels. All of it is arithmetic on tensors; engines, ranks and
processes are somebody else's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from accord.config.algorithms import RegionSpec, SigmaSpec, SurgerySpec
from accord.config.rewards import RewardSpec
from accord.types import Modality, Role, ScoredGroup

View = Literal["forward", "transition"]
"""`forward`: clean latents are noised again and the velocity is matched. `transition`: stored denoising steps are
re-evaluated. An algorithm names its view; `learner/views.py` builds the micro-batches of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Credit:
    """One advantage per sample and modality, with what was seen on the way."""

    advantages: Mapping[Modality, Tensor]
    """float64 [P, G] per modality; 0 where a sample earned none."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Flat names, see `assign_credit`; None where undefined."""


@dataclass(frozen=True, slots=True, eq=False)
class Noised:
    """One modality of a micro-batch on the forward process x_sigma = (1 - sigma) x0 + sigma eps."""

    x0_BTC: Tensor
    noise_BTC: Tensor
    sigma_B: Tensor

    @property
    def latents_BTC(self) -> Tensor:
        """x_sigma, what the model sees."""
        sigma = self.sigma_B.view(-1, 1, 1)
        return (1 - sigma) * self.x0_BTC + sigma * self.noise_BTC

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


Predictions = Mapping[Role, Mapping[Modality, Tensor]]
"""Velocities [B, T, C] by role and modality; only `policy` carries gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class LossTerms:
    """Losses per sample. The learner sums them, divides by the number of samples and goes backward."""

    loss_B: Tensor
    metrics_B: Mapping[str, Tensor]
    """Detached tensors [B]; summed over micro-batches and reduced over ranks once per step."""


class Algorithm(Protocol):
    """A recipe. Built as `load_impl(spec)(spec)` on every learner rank."""

    view: View
    anchors: tuple[Role, ...]
    """Roles whose predictions the loss reads besides `policy`; they are evaluated without gradient."""
    sigmas: SigmaSpec
    surgery: SurgerySpec | None
    """Gradient surgery around the policy's forward and backward; None = off."""
    region: RegionSpec | None
    """Region weights on video tokens; None = off."""

    def credit(
        self, groups: Sequence[ScoredGroup], rewards: Sequence[RewardSpec], modalities: Sequence[Modality]
    ) -> Credit:
        """Turn the scores of a whole step into advantages. Pure: every rank computes the same."""
        ...

    def loss(self, batch: ForwardBatch, predictions: Predictions) -> LossTerms:
        """Return losses of one micro-batch. No collective, no `.item()`."""
        ...

    def eta(self, step: int) -> float:
        """Share of itself that the old policy keeps after `step`."""
        ...
