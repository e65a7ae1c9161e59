"""Whether a run still makes what it began with: bands around features that nobody trains on, and controls.

The bands are a function of the run folder's lines, so an attempt that resumes has the ones that the first one had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from accord.config.guards import FEATURES
from accord.config.job import JobSpec
from accord.events import StepCompleted
from accord.types import Clip, GroupSource, Prompt, ScoredGroup

Metrics = Mapping[str, float | None]

LOST = 0.75
"""Share of a measured reward's height, above the end of its range, that no band forgives."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one step looks like against the first ones."""

    gain: float = 0.0
    """How far the trained rewards rose, in standard deviations of their first samples."""
    outside: Mapping[str, float] = field(default_factory=dict)
    """What left its band, and by how many standard deviations, signed."""


class Watch:
    """Compares every step with the first ones of the run. Pure arithmetic, equal on every rank."""

    def __init__(self, job: JobSpec, past: Iterable[StepCompleted] = ()) -> None:
        self.job, self.spec = job, job.guards.divergence
        self.first: list[Metrics] = []
        self.streak = 0
        """Steps in a row that ended in an alarm, up to the latest."""
        for step in past:
            self.see(step.metrics)

    def see(self, metrics: Metrics) -> Verdict:
        """Take in a step's metrics: `feature/<name>/{mean,std}` and `reward/<name>/{mean,std}`."""
        if len(self.first) < self.spec.first_steps:
            self.first.append(metrics)
            return Verdict()
        verdict = Verdict(self._gain(metrics), self._outside(metrics))
        self.streak = self.streak + 1 if verdict.outside and verdict.gain > self.spec.gain else 0
        return verdict

    def moves(self, metrics: Metrics) -> dict[str, float]:
        """How far each feature is from where the run began, in standard deviations of the first samples, signed.

        {} while the first steps are still being seen. A feature that no clip has is missing.
        """
        if len(self.first) < self.spec.first_steps:
            return {}
        found = [(name, self._moved(metrics, f"feature/{name}", least)) for name, least in FEATURES.items()]
        return {name: moved for name, moved in found if moved is not None}

    @property
    def raised(self) -> bool:
        """Whether it is time to do something."""
        return self.spec.action != "off" and self.streak >= self.spec.patience

    def told(self, step: int, verdict: Verdict) -> str:
        """The alarm in words."""
        worst = sorted(verdict.outside.items(), key=lambda item: -abs(item[1]))
        moved = ", ".join(f"{name} by {sigmas:+.1f} standard deviations" for name, sigmas in worst[:4])
        return (
            f"step {step}: trained rewards rose by {verdict.gain:.2f} standard deviations while {moved} moved since "
            f"the first step: the policy pleases its rewards and loses what it made; lower the learning rate, raise "
            f"the reference penalty, add a reward that the change hurts, or name it in guards/divergence/ignore"
        )

    def _gain(self, metrics: Metrics) -> float:
        total = weights = 0.0
        for reward in self.job.rewards:
            moved = self._moved(metrics, f"reward/{reward.name}", reward.smallest_effect)
            if reward.weight > 0 and moved is not None:
                total, weights = total + reward.weight * moved, weights + reward.weight
        return total / weights if weights else 0.0

    def _outside(self, metrics: Metrics) -> dict[str, float]:
        """What left its band. A measured reward's ends where `LOST` of its height is gone, however much its first
        samples differed: in a wider one it could fall to nothing unseen."""
        moved = {name: self._moved(metrics, f"feature/{name}", least) for name, least in FEATURES.items()}
        found: dict[str, float] = {
            name: by for name, by in moved.items() if by is not None and abs(by) > self.spec.sigmas
        }
        for reward in self.job.rewards:
            if reward.weight == 0:
                by = self._moved(metrics, f"reward/{reward.name}", reward.smallest_effect, reward.range[0])
                if by is not None and by < -self.spec.sigmas:
                    found[reward.name] = by
        return {name: by for name, by in found.items() if name not in self.spec.ignore}

    def _moved(self, metrics: Metrics, name: str, least: float, low: float = -math.inf) -> float | None:
        """A mean's change since the first steps in standard deviations of their samples; None where it has none.

        A deviation is at most what makes `sigmas` of them reach `LOST` of the way to `low`.
        """
        now, means = metrics.get(f"{name}/mean"), [step.get(f"{name}/mean") for step in self.first]
        spreads = [step.get(f"{name}/std") for step in self.first]
        known = [(mean, std) for mean, std in zip(means, spreads, strict=True) if mean is not None and std is not None]
        if now is None or not known:
            return None
        centre = math.fsum(mean for mean, _ in known) / len(known)
        within = math.fsum(std**2 + (mean - centre) ** 2 for mean, std in known) / len(known)
        return (now - centre) / max(min(math.sqrt(within), LOST * (centre - low) / self.spec.sigmas), least)


def feature_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float | None]:
    """`feature/<name>/{mean,std}` over the samples of a step; None where no clip has it."""
    found: dict[str, float | None] = {}
    for name in FEATURES:
        values = [value for group in groups for value in group.group.features.get(name, ()) if math.isfinite(value)]
        mean = math.fsum(values) / len(values) if values else None
        found[f"feature/{name}/mean"] = mean
        found[f"feature/{name}/std"] = (
            math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)) if mean is not None else None
        )
    return found


class Controls:
    """One clip of every group, scored as if it belonged to another: with the other's prompt, and with its sound.

    Runs beside the update, on the first rank. A step of one group has no other and none of these numbers. A step whose
    controls fail, in whatever way, is without their numbers; that costs nothing else.
    """

    def __init__(self, job: JobSpec, source: GroupSource, warn: Callable[[str, str], None]) -> None:
        """`warn` takes a code and a message."""
        self.source, self.warn = source, warn
        trained = [reward for reward in job.rewards if reward.weight > 0]
        self.anchored = [reward.name for reward in trained if reward.prompt_anchored]
        self.paired = [reward.name for reward in trained if reward.route == "both" and len(reward.needs) > 1]
        self._pool = ThreadPoolExecutor(1, "controls")
        self._begun: Future[dict[str, float | None]] | None = None

    def begin(self, groups: Sequence[ScoredGroup]) -> None:
        """Start scoring the controls of a step."""
        self._begun = self._pool.submit(self._measured, list(groups))

    def gaps(self) -> dict[str, float | None]:
        """`control/<reward>/{prompt,sound}_gap` of the step begun last; waits for them."""
        try:
            return self._begun.result() if self._begun is not None else {}
        except Exception as error:  # a library's too: a lost object, say
            self.warn("controls", f"the controls of this step were not scored: {error!r}")
            return {}

    def _measured(self, groups: Sequence[ScoredGroup]) -> dict[str, float | None]:
        gaps: dict[str, list[float]] = {}
        if len(groups) < 2:
            return {}
        clips: list[Clip] = [self.source.fetch(group.group.clips)[0] for group in groups]
        for index, group in enumerate(groups):
            other = (index + 1) % len(groups)
            prompt, wrong = group.group.request.prompt, groups[other].group.request.prompt
            if wrong.prompt_av != prompt.prompt_av:
                self._compare(gaps, "prompt", self.anchored, group, wrong, clips[index])
            mixed = Clip(clips[index].video_FHWC, clips[index].fps, clips[other].audio_CS, clips[other].sample_rate)
            self._compare(gaps, "sound", self.paired, group, prompt, mixed)
        return {name: math.fsum(values) / len(values) for name, values in gaps.items()}

    def _compare(
        self, gaps: dict[str, list[float]], kind: str, rewards: Sequence[str], group: ScoredGroup, prompt: Prompt,
        clip: Clip,
    ) -> None:  # fmt: skip
        """Right minus wrong, for each reward that has both."""
        wrong = self.source.rescore(prompt, [clip], rewards) if rewards else {}
        for name, scores in wrong.items():
            gap = group.scores[name].values[0] - scores.values[0]
            if math.isfinite(gap):
                gaps.setdefault(f"control/{name}/{kind}_gap", []).append(gap)
