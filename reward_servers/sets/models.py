"""Rewards of sets: embed every clip, measure the set, give each clip what the measure would lose without it.

The set is all clips that can be measured: of the prompt, or of the step. A set of two is the least; a step's Frechet
distance is biased upwards by few clips, the more so the more dimensions there are, so compare steps of one size only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors
import safetensors.numpy
from typing_extensions import override

from accord.config.rewards.sets import FrechetReward
from accord.disk import write_whole
from accord.errors import ModelError
from accord.types import Clip, Modality, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.sets import embedders
from reward_servers.sets.measures import Floats, frechet_distance, leave_one_out, vendi_score

LEAST = 3
"""Clips of a set whose leave-one-out measure is defined."""


class SetModel(RewardModel):
    """A measure over one embedder."""

    component: ClassVar[str]
    """What the measure of the whole set is called."""
    sign: ClassVar[float] = 1.0
    """-1 where the set is better when the measure is less."""

    def embed(self, clip: Clip) -> Floats:
        """One row of a clip [D]."""
        return embedders.signal(self.spec.needs[0])(clip)

    @abstractmethod
    def measure(self, rows: Floats) -> float:
        """The measure of a set of rows."""

    @override
    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Sequence[Score]:
        """Component: the measure of the whole set, the same for each of its clips."""
        if len(clips) < LEAST:
            return [Score.invalid("too_few") for _ in clips]
        rows = np.stack([self.embed(clip) for clip in clips])
        order = np.lexsort(rows.T)  # sums have the same bits in whatever order the clips come
        whole, gains = self.measure(rows[order]), np.empty(len(rows))
        gains[order] = leave_one_out(self.measure, rows[order])
        return [Score(self.sign * float(gain), {self.component: whole}) for gain in gains]


class DiversityModel(SetModel):
    """Vendi score of a group."""

    component: ClassVar[str] = "vendi"

    @override
    def measure(self, rows: Floats) -> float:
        return vendi_score(rows)


class FrechetModel(SetModel):
    """Frechet distance to exemplars. Raises ModelError for a file that is missing, torn, or of another reward."""

    component: ClassVar[str] = "distance"
    sign: ClassVar[float] = -1.0

    def __init__(self, spec: FrechetReward) -> None:
        super().__init__(spec)
        self._exemplars = read_exemplars(spec.exemplars, spec.name)

    @override
    def measure(self, rows: Floats) -> float:
        return frechet_distance(rows, self._exemplars)


def write_exemplars(path: Path, modality: Modality, reward: str, clips: Sequence[Clip]) -> None:
    """Embed clips and write them as exemplars of a reward."""
    rows = np.stack([embedders.signal(modality)(clip) for clip in clips])
    write_whole(path, safetensors.numpy.save({"rows": rows}, {"reward": reward}))


def read_exemplars(path: str, reward: str) -> Floats:
    """Rows [M, D] of a file of exemplars. Raises ModelError."""
    remedy = f"write it with `accord rewards exemplars {reward} CLIPS --out FILE`"
    try:
        with safetensors.safe_open(path, "np") as file:
            made_for, rows = (file.metadata() or {}).get("reward", ""), file.get_tensor("rows")
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} holds no exemplars ({error}); {remedy}") from error
    if made_for != reward:
        raise ModelError(f"{path} holds exemplars of {made_for or 'no reward'}, not of {reward}; {remedy}")
    if rows.dtype != np.float64 or rows.ndim != 2 or len(rows) < LEAST or not np.isfinite(rows).all():
        raise ModelError(f"{path} holds {rows.dtype} {list(rows.shape)}; exemplars are {LEAST} or more rows; {remedy}")
    return np.asarray(rows)
