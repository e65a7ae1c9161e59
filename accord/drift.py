"""Whether a reward still judges the canary set as it did first: values that are kept, and how far others lie from them.

Distances are in standard deviations of the reward's first values over the set, and not less than its smallest effect:
so a tolerance means the same for every reward. What a learner or a command does about it is theirs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, TypeAdapter

from accord.canary import Canary, digest
from accord.config.contract import RewardSpec


class CanaryScores(BaseModel):
    """What a reward said of its canary set."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    """Of the reward."""
    clips: str
    """SHA-256 over the set, hexadecimal."""
    values: dict[str, float | None]
    """By canary; None without a valid score."""
    reasons: dict[str, str]

    @classmethod
    def of(cls, spec: RewardSpec, canaries: Sequence[Canary], found: Mapping[str, tuple[float, str]]) -> CanaryScores:
        """From (value, reason) by canary; a value that is no number is no score."""
        return cls(
            version=spec.version,
            clips=digest(canary.clip for canary in canaries),
            values={name: value if math.isfinite(value) else None for name, (value, _) in found.items()},
            reasons={name: reason for name, (_, reason) in found.items()},
        )

    def filled(self, later: CanaryScores) -> CanaryScores:
        """These, with later values where there are none yet."""
        values = {name: later.values[name] if value is None else value for name, value in self.values.items()}
        reasons = {
            name: later.reasons[name] if self.values[name] is None else reason for name, reason in self.reasons.items()
        }
        return self.model_copy(update={"values": values, "reasons": reasons})


FILE: TypeAdapter[dict[str, CanaryScores]] = TypeAdapter(dict[str, CanaryScores])
"""A file of them, by reward: `canaries.json` of a run folder, or what `accord rewards check --out` writes."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a reward is from what it was."""

    distances: Mapping[str, float]
    """By canary, of those that have a score now and had one first."""
    bound: float
    """The largest distance that is none."""

    @property
    def farthest(self) -> str:
        """The canary that moved most; "" when none can be compared."""
        return max(self.distances, key=self.distances.__getitem__, default="")

    @property
    def distance(self) -> float:
        """Of the farthest canary; 0 when none can be compared."""
        return self.distances.get(self.farthest, 0.0)

    @property
    def beyond(self) -> bool:
        """Whether it is another reward than it was."""
        return self.distance > self.bound


def drift(spec: RewardSpec, first: CanaryScores, now: CanaryScores, tolerance: float) -> Drift:
    """Compare two sets of scores of the same clips.

    The bound is `tolerance`, or what company in a batch may do to both scores where the reward declares more.
    """
    known = {name: value for name, value in first.values.items() if value is not None}
    spread = max(statistics.pstdev(known.values()) if known else 0.0, spec.smallest_effect)
    later = {name: now.values.get(name) for name in known}
    distances = {name: abs(value - known[name]) / spread for name, value in later.items() if value is not None}
    return Drift(distances, max(tolerance, 2 * spec.batch_tolerance / spread))
