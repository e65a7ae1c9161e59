"""The forward view: clean latents are noised again and velocities matched.

Everything drawn here is derived from (job seed, step, prompt index, sample index, draw): the same for any number of
ranks and any micro-batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from accord.config.algorithms import SigmaSpec
from accord.diffusion.noise import sample_noise
from accord.errors import SpecError
from accord.seeds import Purpose, derive_seed
from accord.types import Modality
from learner.algorithms.base import ForwardAlgorithm, ForwardBatch, Noised
from learner.views.base import Batches, Item, MicroBatch


def candidate_sigmas(schedule: Tensor, spec: SigmaSpec) -> Tensor:
    """Return the noise levels of a sampler's schedule [N+1] that are trained. Raises SpecError when none is left."""
    kept = spec.trained(schedule.tolist())
    if not kept:
        levels = ", ".join(f"{level:.3f}" for level in schedule[:-1].tolist())
        raise SpecError([("/algorithm/sigmas", f"no sigma of the schedule ({levels}) in [{spec.low}, {spec.high}]")])
    return torch.tensor(kept, dtype=torch.float32)


def draw_sigmas(levels: Tensor, count: int, *parts: int | str) -> Tensor:
    """Return `count` of `levels` [count]: a permutation derived from `parts`, repeated when it runs out."""
    order = sorted(range(levels.numel()), key=lambda index: derive_seed(*parts, index))
    return levels[[order[index % len(order)] for index in range(count)]]


class ForwardBatches(Batches):
    """Every sample at `SigmaSpec.per_sample` noise levels, each with its own noise, in (prompt, sample, draw) order.

    For an algorithm whose spec says `by_group`, the samples of a prompt share the noise and the noise level of each
    draw and stand together, in (prompt, draw, sample) order, so that micro-batches of a multiple of the group size hold
    whole groups.
    """

    algorithm: ForwardAlgorithm

    @override
    def list_items(self) -> list[Item]:
        items = [
            (place, sample, draw)
            for place, group in enumerate(self.groups)
            for sample in range(len(group.group.request.seeds))
            for draw in range(self.algorithm.sigmas.per_sample)
        ]
        return sorted(items, key=lambda item: (item[0], item[2], item[1])) if self.by_group else items

    @property
    def by_group(self) -> bool:
        """Whether the samples of a prompt share noise and noise levels."""
        return self.job.algorithm.by_group

    @cached_property
    def levels(self) -> Tensor:
        """Noise levels that are drawn from."""
        return candidate_sigmas(self.schedule, self.algorithm.sigmas)

    def micro_batch(self, items: Sequence[Item]) -> MicroBatch:
        """Clean latents noised again."""
        sigma_B = torch.stack([self._sigma(*item) for item in items]).to(self.device)
        noised = {
            modality: Noised(self._latents(modality, items), self._noise(modality, items), sigma_B)
            for modality in self.data[0].latents
        }
        group_size = self.job.prompts.group_size if self.by_group else 1
        return MicroBatch(
            latents={modality: part.latents_BTC for modality, part in noised.items()},
            sigmas=dict.fromkeys(noised, sigma_B),
            conditions=self.conditions_of(items),
            batch=ForwardBatch(noised, self.advantages_of(items), self._token_weights(items), group_size),
        )

    def _parts(self, purpose: Purpose, place: int, sample: int) -> tuple[int | str, ...]:
        """What a draw depends on; what a group shares is drawn as for its first sample."""
        drawn_for = 0 if self.by_group else sample
        return (self.job.seed, purpose, self.step, self.groups[place].group.request.prompt_index, drawn_for)

    def _sigma(self, place: int, sample: int, draw: int) -> Tensor:
        parts = self._parts(Purpose.LOSS_SIGMA, place, sample)
        return draw_sigmas(self.levels, self.algorithm.sigmas.per_sample, *parts)[draw]

    def _latents(self, modality: Modality, items: Sequence[Item]) -> Tensor:
        rows = [torch.from_numpy(self.data[place].latents[modality][sample].copy()) for place, sample, _ in items]
        return torch.stack(rows).to(self.device)

    def _noise(self, modality: Modality, items: Sequence[Item]) -> Tensor:
        rows = []
        for place, sample, draw in items:
            seed = derive_seed(*self._parts(Purpose.LOSS_DRAW, place, sample), draw)
            shape = self.data[place].latents[modality][sample].shape
            rows.append(sample_noise(seed, Purpose.LOSS_NOISE.at(modality), shape))
        return torch.stack(rows).to(self.device)

    def _token_weights(self, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """Weights captured while sampling, at the strength of this very step (`RegionSpec.strength_at`)."""
        captured = [data.token_weights_GT for data in self.data]
        if self.algorithm.region is None or any(weights is None for weights in captured):
            return {}
        rows = [torch.from_numpy(captured[place][sample].copy()) for place, sample, _ in items]  # type: ignore[index]
        return {"video": torch.stack(rows).to(self.device)}
