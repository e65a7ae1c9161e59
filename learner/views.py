"""Views: how the groups of a step become micro-batches. `forward` noises clean latents again and matches velocities.

Everything drawn here is derived from (job seed, step, prompt index, sample index, draw): the same for any number of
ranks and any micro-batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from accord.config.algorithms import SigmaSpec
from accord.config.job import JobSpec
from accord.diffusion.noise import sample_noise
from accord.diffusion.schedule import trained_sigmas
from accord.errors import SpecError
from accord.requests import derive_seed
from accord.types import GroupData, Modality, ScoredGroup
from learner.algorithms.base import Credit, ForwardAlgorithm, ForwardBatch, Noised, View
from learner.batches import Batches, MicroBatch
from learner.transition import TransitionBatches


def candidate_sigmas(schedule: Tensor, spec: SigmaSpec) -> Tensor:
    """Return the noise levels of a sampler's schedule [N+1] that are trained. Raises SpecError when none is left."""
    kept = trained_sigmas(schedule.tolist(), spec.low, spec.high)
    if not kept:
        levels = ", ".join(f"{level:.3f}" for level in schedule[:-1].tolist())
        raise SpecError([("/algorithm/sigmas", f"no sigma of the schedule ({levels}) in [{spec.low}, {spec.high}]")])
    return torch.tensor(kept, dtype=torch.float32)


def draw_sigmas(levels: Tensor, count: int, *parts: int | str) -> Tensor:
    """Return `count` of `levels` [count]: a permutation derived from `parts`, repeated when it runs out."""
    order = sorted(range(levels.numel()), key=lambda index: derive_seed(*parts, index))
    return levels[[order[index % len(order)] for index in range(count)]]


class ForwardBatches:
    """Every sample at `SigmaSpec.per_sample` noise levels, each with its own noise, in (prompt, sample, draw) order.

    For an algorithm whose spec says `by_group`, the samples of a prompt share the noise and the noise level of each
    draw and stand together, in (prompt, draw, sample) order, so that micro-batches of a multiple of the group size hold
    whole groups.
    """

    def __init__(
        self,
        job: JobSpec,
        algorithm: ForwardAlgorithm,
        backbone: Any,
        step: int,
        groups: Sequence[ScoredGroup],
        credit: Credit,
        share: range,
        fetch: Callable[[Any], GroupData],
        device: str = "cpu",
    ) -> None:
        self.job, self.algorithm, self.step, self.device = job, algorithm, step, device
        self.groups = [groups[position] for position in share]
        self.data = [fetch(group.group.data) for group in self.groups]
        self.advantages = {modality: value[list(share)].float() for modality, value in credit.advantages.items()}
        self.conditions = backbone.encode([group.group.request.prompt.prompt_av for group in self.groups])
        self.levels = candidate_sigmas(backbone.sigmas(job.sampling.num_steps), algorithm.sigmas)
        self.by_group: bool = getattr(job.algorithm, "by_group", False)
        self.group_size = job.prompts.group_size if self.by_group else 1
        self.items = [
            (place, sample, draw)
            for place in range(len(self.groups))
            for sample in range(len(self.groups[place].group.request.seeds))
            for draw in range(algorithm.sigmas.per_sample)
        ]
        if self.by_group:
            self.items.sort(key=lambda item: (item[0], item[2], item[1]))

    def count(self) -> int:
        """Samples x noise levels of this rank."""
        return len(self.items)

    def __iter__(self) -> Iterator[MicroBatch]:
        size = self.job.optimizer.micro_batch
        for start in range(0, len(self.items), size):
            yield self._micro_batch(self.items[start : start + size])

    def _micro_batch(self, items: Sequence[tuple[int, int, int]]) -> MicroBatch:
        sigma_B = torch.stack([self._sigma(*item) for item in items]).to(self.device)
        noised = {
            modality: Noised(self._latents(modality, items), self._noise(modality, items), sigma_B)
            for modality in self.data[0].latents
        }
        places = torch.tensor([place for place, _, _ in items])
        samples = torch.tensor([sample for _, sample, _ in items])
        advantages = {modality: value[places, samples].to(self.device) for modality, value in self.advantages.items()}
        return MicroBatch(
            latents={modality: part.latents_BTC for modality, part in noised.items()},
            sigmas=dict.fromkeys(noised, sigma_B),
            conditions=self.conditions.select(places).to(self.device),
            batch=ForwardBatch(noised, advantages, self._token_weights(items), self.group_size),
        )

    def _parts(self, purpose: str, place: int, sample: int) -> tuple[int | str, ...]:
        """What a draw depends on; what a group shares is drawn as for its first sample."""
        drawn_for = 0 if self.by_group else sample
        return (self.job.seed, purpose, self.step, self.groups[place].group.request.prompt_index, drawn_for)

    def _sigma(self, place: int, sample: int, draw: int) -> Tensor:
        drawn = draw_sigmas(self.levels, self.algorithm.sigmas.per_sample, *self._parts("sigma", place, sample))
        return drawn[draw]

    def _latents(self, modality: Modality, items: Sequence[tuple[int, int, int]]) -> Tensor:
        rows = [torch.from_numpy(self.data[place].latents[modality][sample].copy()) for place, sample, _ in items]
        return torch.stack(rows).to(self.device)

    def _noise(self, modality: Modality, items: Sequence[tuple[int, int, int]]) -> Tensor:
        rows = []
        for place, sample, draw in items:
            seed = derive_seed(*self._parts("learn", place, sample), draw)
            rows.append(sample_noise(seed, f"train/{modality}", self.data[place].latents[modality][sample].shape))
        return torch.stack(rows).to(self.device)

    def _token_weights(self, items: Sequence[tuple[int, int, int]]) -> dict[Modality, Tensor]:
        """Weights captured while sampling, brought in by the warm-up: 1 + ramp (w - 1)."""
        region = self.algorithm.region
        captured = [data.token_weights_GT for data in self.data]
        if region is None or any(weights is None for weights in captured):
            return {}
        ramp = min(self.step / region.warmup_steps, 1.0) if region.warmup_steps else 1.0
        rows = [torch.from_numpy(captured[place][sample].copy()) for place, sample, _ in items]  # type: ignore[index]
        return {"video": (1 + ramp * (torch.stack(rows) - 1)).to(self.device)}


VIEWS: dict[View, Callable[..., Batches]] = {"forward": ForwardBatches, "transition": TransitionBatches}
