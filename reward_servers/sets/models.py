"""Rewards of sets: embed every clip, measure the set, give each clip what the measure would lose without it.

The set is all clips that can be measured: of the prompt, or of the step. Three are the least, since two must be left
when one is out. A step's Frechet distance is biased upwards by few clips, the more so the more dimensions there are, so
compare steps of one size only.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors.numpy
from typing_extensions import override

from accord.config.exemplars import LEAST, ROWS, inspect_exemplars
from accord.config.rewards.sets import ExemplarReward, SetReward
from accord.disk import write_whole
from accord.errors import ModelError, UserError
from accord.types import Clip, Prompt
from reward_servers.base import RewardModel, Score
from reward_servers.sets.embedders import embedder_of
from reward_servers.sets.measures import (
    Floats,
    class_divergence,
    frechet_distance,
    inception_score,
    leave_one_out,
    vendi_score,
)


class SetModel(RewardModel):
    """A measure over one embedder. Raises ModelError or UserError at construction, as the embedder does."""

    component: ClassVar[str]
    """What the measure of the whole set is called."""
    sign: ClassVar[float] = 1.0
    """-1 where the set is better when the measure is less."""

    def __init__(self, spec: SetReward) -> None:
        super().__init__(spec)
        self.embedder = embedder_of(spec)
        self.weights_digest = self.embedder.digest

    @abstractmethod
    def measure(self, rows: Floats) -> float:
        """The measure of a set of rows."""

    @override
    def score_set(self, prompts: Sequence[Prompt], clips: Sequence[Clip]) -> Sequence[Score]:
        """Component: the measure of the whole set, the same for each of its clips."""
        found = [self._row(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]
        rows = [row for row in found if not isinstance(row, Score)]
        gains = iter(self._gains(np.stack(rows)) if len(rows) >= LEAST else [Score.invalid("too_few")] * len(rows))
        return [row if isinstance(row, Score) else next(gains) for row in found]

    def _row(self, prompt: Prompt, clip: Clip) -> Floats | Score:
        """The clip's row; an invalid score where there is none, so that the set is measured without it."""
        try:
            row = self.embedder(clip)
        except Exception as error:
            return self._failed(prompt, error)
        return row if np.isfinite(row).all() else Score.invalid("non_finite")

    def _gains(self, rows: Floats) -> list[Score]:
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


class InceptionModel(SetModel):
    """Inception score of a step, over classes of sound."""

    component: ClassVar[str] = "inception"

    @override
    def measure(self, rows: Floats) -> float:
        return inception_score(rows)


class ExemplarModel(SetModel):
    """One that holds a step against exemplars.

    Raises:
        ModelError: at construction, for a file that is missing, torn, of another reward, embedder or weights.
    """

    sign: ClassVar[float] = -1.0

    def __init__(self, spec: ExemplarReward) -> None:
        super().__init__(spec)
        self.exemplars = read_exemplars(spec, self.embedder.digest)
        files = hashlib.sha256(self.embedder.digest.encode() + Path(spec.exemplars).read_bytes())
        self.weights_digest = files.hexdigest()


class FrechetModel(ExemplarModel):
    """Frechet distance to exemplars."""

    component: ClassVar[str] = "distance"

    @override
    def measure(self, rows: Floats) -> float:
        return frechet_distance(rows, self.exemplars)


class DivergenceModel(ExemplarModel):
    """KL divergence of the exemplars' classes of sound."""

    component: ClassVar[str] = "divergence"

    @override
    def measure(self, rows: Floats) -> float:
        return class_divergence(rows, self.exemplars)


def write_exemplars(spec: ExemplarReward, clips: Iterable[Clip]) -> int:
    """Embed clips and write them to `spec.exemplars`; returns how many. Raises as the embedder does, and UserError."""
    embed = embedder_of(spec)
    rows = [embed(clip) for clip in clips]
    if len(rows) < LEAST:
        raise UserError(f"{len(rows)} clips are too few for a distribution; give {LEAST} or more, better hundreds")
    told = {"reward": spec.name, "embedder": spec.embedder, "weights": embed.digest}
    write_whole(Path(spec.exemplars), safetensors.numpy.save({ROWS: np.stack(rows)}, told))
    return len(rows)


def read_exemplars(spec: ExemplarReward, weights: str) -> Floats:
    """Rows [M, D] of the exemplars of a reward whose embedder has weights of that digest. Raises ModelError."""
    path = spec.exemplars
    told = inspect_exemplars(path, spec.name, spec.embedder)
    if told.get("weights", "") != weights:
        was = told.get("weights", "")[:12] or "none"
        raise ModelError(
            f"{path} was written with other weights of {spec.embedder} (sha256 {was}…) than are at {spec.path} "
            f"({weights[:12]}…); write it anew with `accord rewards exemplars {spec.name}`, or name its weights"
        )
    rows = np.asarray(safetensors.numpy.load_file(path)[ROWS])
    if not np.isfinite(rows).all():
        raise ModelError(f"{path} holds what is no number; write it anew with `accord rewards exemplars {spec.name}`")
    return rows
