"""The forward view: clean latents are noised again and velocities matched.

Everything drawn here is derived from (job seed, step, prompt index, sample index, draw): the same for any number of
ranks and any micro-batch size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from accord.config.algorithm_parts import SigmaSpec
from accord.config.job import JobSpec
from accord.diffusion.noise import sample_noise
from accord.errors import SpecError
from accord.seeds import Purpose, derive_seed
from accord.types import Modality
from learner.algorithms.base import ForwardAlgorithm, ForwardBatch, Noised
from learner.views.base import Item, MicroBatch, Share, ShareView


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


class ForwardView(ShareView):
    """Every sample at `SigmaSpec.per_sample` noise levels, each with its own noise, in (prompt, sample, draw) order.

    For an algorithm whose spec says `by_group`, the samples of a prompt share the noise and the noise level of each
    draw and stand together, in (prompt, draw, sample) order, so that micro-batches of a multiple of the group size hold
    whole groups.
    """

    algorithm: ForwardAlgorithm

    def __init__(self, job: JobSpec, algorithm: ForwardAlgorithm, schedule: Tensor, device: str = "cpu") -> None:
        """Raises SpecError when no noise level of the schedule is trained."""
        super().__init__(job, algorithm, schedule, device)
        self.by_group = job.algorithm.by_group
        self.levels = candidate_sigmas(schedule, algorithm.sigmas)

    @override
    def items(self, share: Share) -> list[Item]:
        items = [
            (place, sample, draw)
            for place, request in enumerate(share.requests)
            for sample in range(len(request.seeds))
            for draw in range(self.algorithm.sigmas.per_sample)
        ]
        return sorted(items, key=lambda item: (item[0], item[2], item[1])) if self.by_group else items

    def micro_batch(self, share: Share, items: Sequence[Item]) -> MicroBatch:
        """Clean latents noised again."""
        sigma_B = torch.stack([self._sigma(share, *item) for item in items]).to(self.device)
        noised = {
            modality: Noised(self._latents(share, modality, items), self._noise(share, modality, items), sigma_B)
            for modality in share.data[0].latents
        }
        group_size = self.job.prompts.group_size if self.by_group else 1
        advantages, token_weights = self.advantages_of(share, items), self._token_weights(share, items)
        return MicroBatch(
            latents={modality: part.latents_BTC for modality, part in noised.items()},
            sigmas=dict.fromkeys(noised, sigma_B),
            conditions=self.conditions_of(share, items),
            batch=ForwardBatch(noised, advantages, token_weights, group_size),
            anchored=self.anchored_of(share, items),
        )

    def _parts(self, purpose: Purpose, share: Share, place: int, sample: int) -> tuple[int | str, ...]:
        """What a draw depends on; what a group shares is drawn as for its first sample."""
        drawn_for = 0 if self.by_group else sample
        return (self.job.seed, purpose, share.step, share.requests[place].prompt_index, drawn_for)

    def _sigma(self, share: Share, place: int, sample: int, draw: int) -> Tensor:
        parts = self._parts(Purpose.LOSS_SIGMA, share, place, sample)
        return draw_sigmas(self.levels, self.algorithm.sigmas.per_sample, *parts)[draw]

    def _latents(self, share: Share, modality: Modality, items: Sequence[Item]) -> Tensor:
        rows = [torch.from_numpy(share.data[place].latents[modality][sample].copy()) for place, sample, _ in items]
        return torch.stack(rows).to(self.device)

    def _noise(self, share: Share, modality: Modality, items: Sequence[Item]) -> Tensor:
        rows = []
        for place, sample, draw in items:
            seed = derive_seed(*self._parts(Purpose.LOSS_DRAW, share, place, sample), draw)
            shape = share.data[place].latents[modality][sample].shape
            rows.append(sample_noise(seed, Purpose.LOSS_NOISE.at(modality), shape))
        return torch.stack(rows).to(self.device)

    def _token_weights(self, share: Share, items: Sequence[Item]) -> dict[Modality, Tensor]:
        """Weights captured while sampling, at the strength of this very step (`RegionSpec.strength_at`)."""
        captured = [data.token_weights_GT for data in share.data]
        if self.algorithm.region is None or any(weights is None for weights in captured):
            return {}
        rows = [torch.from_numpy(captured[place][sample].copy()) for place, sample, _ in items]  # type: ignore[index]
        return {"video": torch.stack(rows).to(self.device)}
