"""Held-out evaluation: the same prompts and seeds each time, sampled from the trained policy.

Writes `evaluation/step-000010.json` (summaries, every sample's scores, the change since the base) and clips of the base
and the tuned model for the same prompts and seeds. Standard errors treat prompts as the independent draws.

Nobody trains on these, and they go to `held_out`:
`<modality>_distance`  Frechet distance of the latents to the clean built-in world; lower is better (tiny model only)
`<modality>_diversity` spread of the latents; a fall means collapse (tiny model only)
`<reward>_shuffled`    a reward on audio and video together, scored with another clip's audio: what chance gives
`<reward>_gap`         paired minus shuffled, sample by sample
`<reward>_offset_ms_median`  median of |offset| over samples that have one; lower is better
"""

from __future__ import annotations

import json
import statistics as stdlib_statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accord.config.contract import RewardSpec
from accord.config.job import JobSpec
from accord.errors import MediaError
from accord.events import EvaluationDone, Event, Phase, Progress, RewardSummary, Warned
from accord.ids import PolicyVersion
from accord.media import write_mp4
from accord.requests import evaluation_requests
from accord.run_folder import Evaluation, Label, RunFolder, Sample
from accord.seeds import Purpose, derive_seed
from accord.types import Clip, GroupData, GroupSource, Modality, Prompt, RolloutRequest, ScoredGroup
from accord.world import latent_distance
from accord.world.latent_distance import WorldStatistics
from learner.uncertainty import Scores, bootstrapped, clustered, compared, differences

_Sound = tuple[np.ndarray, int]
"""audio_CS and its sample rate."""


@dataclass(slots=True)
class _Seen:
    """What one evaluation has measured so far; lists run over prompts."""

    groups: list[ScoredGroup] = field(default_factory=list)
    latents: dict[Modality, list[np.ndarray]] = field(default_factory=dict)
    sounds: list[list[_Sound]] = field(default_factory=list)
    scores: dict[str, list[list[float | None]]] = field(default_factory=dict)


class Evaluator:
    """Runs on rank 0 only."""

    def __init__(
        self,
        job: JobSpec,
        folder: RunFolder,
        source: GroupSource,
        held_out: Sequence[Prompt],
        emit: Callable[[Event], None],
        write: Callable[[Callable[[], Any]], Any] = lambda call: call(),
    ) -> None:
        """`write` does a write that may be repeated from its beginning."""
        self.write = write
        self.job, self.folder, self.source, self.held_out, self.emit = job, folder, source, held_out, emit
        self.paired = [reward for reward in job.rewards if reward.route == "both" and len(reward.needs) > 1]

    def done(self, step: int) -> bool:
        """True when the run folder has the evaluation of a step; files appear whole."""
        return self.folder.exists(self.folder.evaluation(step))

    def evaluate(self, step: int) -> EvaluationDone:
        """Sample, score, measure, write. Raises what the source raises (RolloutError, DeadlineExceeded)."""
        started = time.monotonic()
        requests = evaluation_requests(self.job, self.held_out, PolicyVersion(step))
        seen = _Seen(scores={reward.name: [] for reward in self.job.rewards})
        for batch in _batches(requests, self.job.prompts.per_step):
            for group in self.source.evaluate(batch, [reward.name for reward in self.job.rewards]):
                self._take_in(step, seen, group)
            self._progress(step, len(seen.groups), len(requests))
        rewards = {reward.name: clustered(seen.scores[reward.name]) for reward in self.job.rewards}
        held_out = self._spread(seen)
        for reward in self.paired if sum(map(len, seen.sounds)) > 1 else ():
            held_out |= self._shuffled_control(reward, seen)
        event = EvaluationDone(step=step, role="policy", rewards=rewards, held_out=held_out)
        self._write(event, seen, time.monotonic() - started)
        return event

    def _take_in(self, step: int, seen: _Seen, group: ScoredGroup) -> None:
        """Keep what later measures need: latents, sound and scores; pictures are only passed through."""
        clips: list[Clip] = self.source.fetch(group.group.clips)
        data: GroupData = self.source.fetch(group.group.data)
        index = len(seen.groups)
        seen.groups.append(group)
        seen.sounds.append([(clip.audio_CS, clip.sample_rate) for clip in clips])
        for modality, latents in data.latents.items():
            seen.latents.setdefault(modality, []).append(np.asarray(latents))
        for name, rows in seen.scores.items():
            rows.append(group.scores[name].known())
        if step in (0, self.job.steps):
            self._keep(group.group.request, clips, self._kept(index, len(clips)), "base" if step == 0 else "tuned")

    def _keep(self, request: RolloutRequest, clips: Sequence[Clip], samples: range, label: Label) -> None:
        for sample in samples:
            name = self.folder.clip(request.prompt_index, request.seeds[sample], label)
            try:
                self.write(partial(write_mp4, clips[sample], self.folder, name))
            except MediaError as error:
                self.emit(Warned(code="clip_not_written", message=str(error)))

    def _kept(self, prompt_index: int, clips: int) -> range:
        """Samples of a prompt whose clips are kept: the wanted number is dealt out to the prompts in turn."""
        whole, rest = divmod(self.job.evaluate.clips, len(self.held_out))
        return range(min(whole + (prompt_index < rest), clips))

    def _spread(self, seen: _Seen) -> dict[str, RewardSummary]:
        """Distance to the clean built-in world and diversity, per modality; nothing for other models and clip sizes."""
        found: dict[str, RewardSummary] = {}
        if not self.job.backbone.draws_the_world:
            return found
        clean = latent_distance.load_clean_world()
        for modality, groups in seen.latents.items():
            statistics = clean[modality]
            if groups[0][0].size != len(statistics.centre):
                continue
            for name, measure in (
                ("distance", latent_distance.frechet_distance),
                ("diversity", latent_distance.diversity),
            ):
                found[f"{modality}_{name}"] = bootstrapped(
                    _over_prompts(measure, groups, statistics), len(groups), self.job.seed, modality, name
                )
        return found

    def _shuffled_control(self, reward: RewardSpec, seen: _Seen) -> dict[str, RewardSummary]:
        """Score every picture with the sound of another prompt's clip, and compare sample by sample."""
        shuffled: list[list[float | None]] = []
        for index, group in enumerate(seen.groups):
            clips: list[Clip] = self.source.fetch(group.group.clips)
            mixed = []
            for sample, clip in enumerate(clips):
                prompt, other = partner(self.job.seed, index, sample, len(seen.groups), len(clips))
                mixed.append(Clip(clip.video_FHWC, clip.fps, *seen.sounds[prompt][other]))
            scores = self.source.rescore(group.group.request.prompt, mixed, [reward.name])
            shuffled.append(scores[reward.name].known())
        name = reward.name
        seen.scores[f"{name}_shuffled"] = shuffled
        seen.scores[f"{name}_gap"] = differences(seen.scores[name], shuffled)
        found = {key: clustered(seen.scores[key]) for key in (f"{name}_shuffled", f"{name}_gap")}
        offsets = [_offsets_ms(group, reward) for group in seen.groups]
        if any(offsets):
            found[f"{name}_offset_ms_median"] = bootstrapped(
                lambda indices: _median([value for index in indices for value in offsets[index]]), len(offsets),
                self.job.seed, name, "offset",
            )  # fmt: skip
        return found

    def _write(self, event: EvaluationDone, seen: _Seen, seconds: float) -> None:
        samples = [
            {
                "prompt": group.group.request.prompt.id,
                "seed": seed,
                "scores": {name: rows[index][sample] for name, rows in seen.scores.items()},
                "reasons": {name: score.reasons[sample] for name, score in group.scores.items()},
            }
            for index, group in enumerate(seen.groups)
            for sample, seed in enumerate(group.group.request.seeds)
        ]
        body = event.model_dump(mode="json") | {
            "standard_errors": "prompts are the independent draws (clustered, or bootstrapped over prompts)",
            "seconds": round(seconds, 3),
            "change": self._change(event.step, seen.scores),
            "samples": samples,
        }
        text = json.dumps(body, indent=1, allow_nan=False)
        self.write(partial(self.folder.write_whole, self.folder.evaluation(event.step), text))

    def _change(self, step: int, scores: Mapping[str, Scores]) -> dict[str, Any]:
        """Difference to the base, paired by prompt and seed, for every score that has one value per sample."""
        if step == 0 or not self.done(0):
            return {}
        samples = Evaluation.model_validate_json(self.folder.read(self.folder.evaluation(0))).samples
        base: dict[str, list[Sample]] = {}
        for sample in samples:
            base.setdefault(sample.prompt, []).append(sample)
        change = {}
        for name, rows in scores.items():
            before = [[sample.scores.get(name) for sample in group] for group in base.values()]
            change[name] = compared(rows, before, self.job.seed, name).model_dump(mode="json")
        return change

    def _progress(self, step: int, done: int, total: int) -> None:
        phase: Phase = "evaluate"
        self.emit(Progress(phase=phase, step=step, done=done, total=total, detail="held-out prompts"))


def partner(seed: int, prompt: int, sample: int, prompts: int, samples: int) -> tuple[int, int]:
    """Whose sound a clip gets in the shuffled control: the same sample number of another prompt.

    All prompts shift by the same derived distance, so every sound is used once. With a single prompt the sound is that
    of its next sample.
    """
    if prompts == 1:
        return 0, (sample + 1) % samples
    shift = 1 + derive_seed(seed, Purpose.SHUFFLED_SOUND, sample) % (prompts - 1)
    return (prompt + shift) % prompts, sample


def _over_prompts(
    measure: Callable[[Tensor, WorldStatistics], float], groups: Sequence[np.ndarray], statistics: WorldStatistics
) -> Callable[[list[int]], float]:
    """A measure of latents [N, T, C] as a function of the prompts that are taken."""
    rows = [torch.from_numpy(latents.copy()) for latents in groups]
    return lambda indices: measure(torch.cat([rows[index] for index in indices]), statistics)


def _offsets_ms(group: ScoredGroup, reward: RewardSpec) -> list[float]:
    offsets = group.scores[reward.name].components.get(reward.offset_component, ())
    return [abs(value) * 1000 for value in offsets if value is not None and np.isfinite(value)]


def _median(values: Sequence[float]) -> float | None:
    return stdlib_statistics.median(values) if values else None


def _batches(requests: Sequence[RolloutRequest], size: int) -> list[Sequence[RolloutRequest]]:
    return [requests[start : start + size] for start in range(0, len(requests), size)]
