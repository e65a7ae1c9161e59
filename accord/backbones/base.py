"""What a backbone is: one forward for sampler and learner alike, text in, clips out.

Shapes: B batch, G group, T tokens, C channels, L text tokens. Latents are packed and normalised, exactly as the
transformer sees them; sigma runs from 1 (noise) to 0 (clean) and every modality has its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from accord.types import Clip, Modality

Latents = Mapping[Modality, Tensor]
"""[B, T, C] per modality."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """Encoded prompts, one row each."""

    video_BLC: Tensor
    """What the video tokens attend to."""
    audio_BLC: Tensor
    mask_BL: Tensor
    """1 where a text token is to be attended to."""

    def __len__(self) -> int:
        return self.video_BLC.shape[0]

    def repeat(self, count: int) -> Self:
        """Each row `count` times in a row: one prompt becomes its group."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def select(self, index: Sequence[int] | Tensor) -> Self:
        """The rows at `index`, in that order."""
        return self._each(lambda tensor: tensor[torch.as_tensor(index, device=tensor.device)])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self,
            video_BLC=change(self.video_BLC),
            audio_BLC=change(self.audio_BLC),
            mask_BL=change(self.mask_BL),
        )


class VelocityModel(nn.Module, ABC):
    """The trained network behind one signature; a wrapper such as DDP or DeepSpeed may hold it.

    `forward(latents, sigmas, conditions)` takes [B, T, C] and [B] per modality and returns the velocity
    v = eps - x0 as float32 [B, T, C] per modality.
    """

    depth: int
    """Transformer blocks."""

    @abstractmethod
    def watch_video_attention(
        self, blocks: Sequence[int], sink: Callable[[Tensor], None]
    ) -> AbstractContextManager[None]:
        """While entered, call `sink` with [B, T_video] for each listed block of each forward.

        The number of a video token is the attention it receives in video-to-audio cross-attention: softmax of the
        queries and keys the model computed (after normalisation and rotary embedding, times the per-head gates if
        there are any), summed over the audio queries, mean over heads. The forward's result does not change.
        """
        ...

    @abstractmethod
    def skipping_self_attention(self, blocks: Sequence[int]) -> AbstractContextManager[None]:
        """While entered, every token of both modalities keeps its own value in the self-attention of these blocks."""
        ...

    @abstractmethod
    def isolating_modalities(self) -> AbstractContextManager[None]:
        """While entered, no block lets one modality attend to the other."""
        ...


class Backbone(Protocol):
    """A model that can be sampled and trained."""

    modalities: tuple[Modality, ...]
    velocity_model: VelocityModel
    depth: int
    latent_frames: int
    """Tokens along time of a video; the tokens of one latent frame are neighbours."""

    @classmethod
    def load(cls, spec: Any, sampling: Any, *, device: str = "cpu", decoders: bool = True, seed: int = 0) -> Self:
        """Load from what the spec names, frozen, with the LoRA roles added. The learner needs no decoders."""
        ...

    def encode(self, texts: Sequence[str]) -> Conditions:
        """Encode prompts, one row each; a text's row does not depend on the others."""
        ...

    def velocity(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """Call `velocity_model`: the only forward there is."""
        ...

    def decode(self, latents: Latents) -> list[Clip]:
        """Turn clean latents [G, T, C] into G clips."""
        ...

    def latent_shapes(self) -> dict[Modality, tuple[int, int]]:
        """(T, C) per modality for the job's clip size."""
        ...

    def sigmas(self, num_steps: int) -> Tensor:
        """The sampler's schedule, float32 [num_steps + 1], from 1 down to 0."""
        ...
