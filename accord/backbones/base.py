"""What a backbone is: one forward for sampler and learner alike, text in, clips out.

Shapes: B batch, G group, T tokens, C channels. Latents are packed and normalised, exactly as the network sees them;
sigma runs from 1 (noise) to 0 (clean) and every modality has its own.

What only some networks can do is a capability: a small class that a velocity model inherits besides. Who needs one asks
for it with `capable` or `demanded`; a job that needs what its backbone's facts exclude is refused before it starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from accord.config.contract import BackboneSpec
from accord.config.sampling import SamplingSpec
from accord.errors import SpecError
from accord.types import Clip, Modality

Latents = Mapping[Modality, Tensor]
"""[B, T, C] per modality."""
Part = Literal["text", "decoders"]
"""`text`: what turns prompts into conditions. `decoders`: what turns latents into clips."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """Encoded prompts, one row each, as the backbone that encoded them reads them. Can be pickled."""

    tensors: Mapping[str, Tensor]
    """[B, ...] each, by names of the backbone's own."""

    def __len__(self) -> int:
        return next(iter(self.tensors.values())).shape[0]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def repeat(self, count: int) -> Self:
        """Each row `count` times in a row: one prompt becomes its group. [B, ...] to [B * count, ...]."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def select(self, index: Sequence[int] | Tensor) -> Self:
        """The rows at `index`, n whole numbers, in that order: [B, ...] to [n, ...]."""
        return self._each(lambda tensor: tensor[torch.as_tensor(index, device=tensor.device)])

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order: [B1, ...], [B2, ...] to [B1 + B2, ...]. At least one part."""
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)({name: change(tensor) for name, tensor in self.tensors.items()})


class VelocityModel(nn.Module, ABC):
    """The trained network behind one signature; a wrapper such as DDP or DeepSpeed may hold it.

    `forward(latents, sigmas, conditions)` takes [B, T, C] and [B] per modality and returns the velocity
    v = eps - x0 as float32 [B, T, C] per modality.
    """

    depth: int
    """Transformer blocks."""

    def branch_of(self, key: str) -> tuple[Modality, int] | None:
        """Stream and block that an adapter tensor belongs to, by its key; None for one outside of the blocks.

        Default: none belongs anywhere, and the norms of a step's gradient are not told apart.
        """
        del key
        return None


class CrossAttends(ABC):
    """Capability: blocks in which video attends to sound. Gradient surgery works on them."""

    @abstractmethod
    def audio_to_video(self) -> list[nn.Module]:
        """The attention of each block, in the order of the model, called with the audio hidden state as its context.

        Each is like an attention of diffusers: `to_k` and `to_v` project the context, which is the second argument or
        `encoder_hidden_states`.
        """


class WatchesAttention(ABC):
    """Capability: shows how much sound attends to each video token. Region weights are made of it."""

    depth: int

    @abstractmethod
    def watch_video_attention(
        self, blocks: Sequence[int], sink: Callable[[Tensor], None]
    ) -> AbstractContextManager[None]:
        """While entered, call `sink` with [B, T_video] for each listed block of each forward.

        The number of a video token is the attention it receives in video-to-audio cross-attention: softmax of the
        queries and keys the model computed (after normalisation and rotary embedding, times the per-head gates if
        there are any), summed over the audio queries, mean over heads. The forward's result does not change.
        """


class SkipsSelfAttention(ABC):
    """Capability: a weaker pass for spatio-temporal guidance."""

    @abstractmethod
    def skipping_self_attention(self, blocks: Sequence[int]) -> AbstractContextManager[None]:
        """While entered, every token of every modality keeps its own value in the self-attention of these blocks."""


class IsolatesModalities(ABC):
    """Capability: a weaker pass for modality guidance."""

    @abstractmethod
    def isolating_modalities(self) -> AbstractContextManager[None]:
        """While entered, no block lets one modality attend to another."""


Capability = TypeVar("Capability")


def capable(module: nn.Module, kind: type[Capability]) -> Capability | None:
    """The part of `module` that is of `kind`, such as a capability; any wrapper may be around it. None without one."""
    return next((part for part in module.modules() if isinstance(part, kind)), None)


def demanded(module: nn.Module, kind: type[Capability], pointer: str) -> Capability:
    """As `capable`. Raises SpecError, which names the field at `pointer` that asks for it, when there is none."""
    found = capable(module, kind)
    if found is None:
        why = f"the backbone's network lacks the capability {kind.__name__}, which this asks for; switch it off"
        raise SpecError([(pointer, why)])
    return found


class Backbone(Protocol):
    """A model that can be sampled and trained."""

    modalities: tuple[Modality, ...]
    velocity_model: VelocityModel
    depth: int
    device: str
    """Where the network is, and where latents and conditions are expected."""
    latent_frames: int
    """Tokens along time of a video; the tokens of one latent frame are neighbours."""

    @classmethod
    def load(
        cls,
        spec: BackboneSpec,
        sampling: SamplingSpec,
        *,
        device: str = "cpu",
        without: Collection[Part] = (),
        seed: int = 0,
    ) -> Self:
        """Load from what the spec names, frozen, with the LoRA roles added.

        `without` leaves parts out: a learner rank decodes nothing, and encodes nothing where conditions come with the
        groups. Text parts that were left out are loaded when `encode` is called nevertheless.
        """

    def encode(self, texts: Sequence[str]) -> Conditions:
        """Encode prompts, one row each; a text's row does not depend on the others."""

    def velocity(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """Call `velocity_model`: the only forward there is."""

    def decode(self, latents: Latents) -> list[Clip]:
        """Turn clean latents [G, T, C] into G clips."""

    def latent_shapes(self) -> dict[Modality, tuple[int, int]]:
        """(T, C) per modality for the job's clip size."""

    def sigmas(self, num_steps: int) -> Tensor:
        """The sampler's schedule, float32 [num_steps + 1], from 1 down to 0."""
