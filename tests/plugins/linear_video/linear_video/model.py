"""The network and what `accord.backbones.base.Backbone` asks for around it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accord.backbones.adapters import add_roles
from accord.backbones.base import Conditions, Latents, Part, VelocityModel
from accord.backbones.sizes import Activations, ModelSizes
from accord.config.sampling import SamplingSpec
from accord.types import Clip, Modality
from linear_video.spec import WEIGHTS, LinearFacts, LinearVideoSpec, inspect, schedule


class Block(nn.Module):
    """Tokens one by one, with what all of them have in common."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(2 * width, width), nn.Linear(width, width)

    def forward(self, h_BTW: Tensor) -> Tensor:
        common = h_BTW.mean(1, keepdim=True).expand_as(h_BTW)
        return h_BTW + self.out(torch.tanh(self.mix(torch.cat([h_BTW, common], -1))))


class LinearNetwork(VelocityModel):
    """Predicts the clean picture. Its clock runs from 0 (noise) to 1000 (clean), against sigma from 1 to 0."""

    def __init__(self, facts: LinearFacts) -> None:
        super().__init__()
        self.depth = facts.depth
        channels = 3 * facts.patch**2
        self.enter, self.clock = nn.Linear(channels, facts.width), nn.Linear(1, facts.width)
        self.blocks = nn.ModuleList(Block(facts.width) for _ in range(facts.depth))
        self.leave = nn.Linear(facts.width, channels)

    def clean(self, x_BTC: Tensor, clock_B: Tensor, text_BW: Tensor) -> Tensor:
        """The network as it was made: what is left when the noise has gone, [B, T, C]."""
        h_BTW = self.enter(x_BTC) + self.clock(clock_B.view(-1, 1, 1) / 1000) + text_BW.unsqueeze(1)
        for block in self.blocks:
            h_BTW = block(h_BTW)
        return self.leave(h_BTW)

    def forward(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """v = eps - x0 of what it predicts: x = (1 - sigma) x0 + sigma eps, so v = (x - x0) / sigma."""
        x, sigma_B = latents["video"], sigmas["video"]
        clean = self.clean(x, 1000 * (1 - sigma_B), conditions["text"])
        return {"video": (x - clean) / sigma_B.view(-1, 1, 1)}


class LinearVideo:
    """Pixels in patches are the latents; text is a vector of its letters."""

    modalities: tuple[Modality, ...] = ("video",)

    def __init__(self, spec: LinearVideoSpec, sampling: SamplingSpec, network: LinearNetwork, device: str) -> None:
        self.facts, self.sampling, self.device = inspect(spec.path), sampling, device
        self.velocity_model, self.depth, self.latent_frames = network, network.depth, sampling.frames

    @classmethod
    def load(
        cls,
        spec: LinearVideoSpec,
        sampling: SamplingSpec,
        *,
        device: str = "cpu",
        without: Collection[Part] = (),
        seed: int = 0,
    ) -> Self:
        """See `Backbone`."""
        network = LinearNetwork(inspect(spec.path))
        network.load_state_dict(load_file(Path(spec.path) / WEIGHTS))
        network.requires_grad_(False).to(device)
        add_roles(network, spec.lora, seed)
        return cls(spec, sampling, network, device)

    def encode(self, texts: Sequence[str]) -> Conditions:
        """See `Backbone`."""
        digests = [hashlib.shake_128(text.encode()).digest(self.facts.width) for text in texts]
        rows = [torch.frombuffer(bytearray(digest), dtype=torch.uint8).float() / 128 - 1 for digest in digests]
        return Conditions({"text": torch.stack(rows).to(self.device)})

    def velocity(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """See `Backbone`."""
        return self.velocity_model(latents, sigmas, conditions)

    def decode(self, latents: Latents) -> list[Clip]:
        """Patches to pixels; there is no sound."""
        patch, (rows, columns) = self.facts.patch, self._grid()
        video = latents["video"].cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        video = video.view(-1, self.sampling.frames, rows, columns, patch, patch, 3).permute(0, 1, 2, 4, 3, 5, 6)
        pixels = video.reshape(-1, self.sampling.frames, self.sampling.height, self.sampling.width, 3).numpy()
        return [Clip(frames, self.sampling.fps, np.zeros((1, 0), np.float32), 48_000) for frames in pixels]

    def latent_shapes(self) -> dict[Modality, tuple[int, int]]:
        """See `Backbone`."""
        rows, columns = self._grid()
        return {"video": (self.sampling.frames * rows * columns, 3 * self.facts.patch**2)}

    def sigmas(self, num_steps: int) -> Tensor:
        """See `Backbone`."""
        return torch.tensor(schedule(num_steps), dtype=torch.float32)

    def _grid(self) -> tuple[int, int]:
        return self.sampling.height // self.facts.patch, self.sampling.width // self.facts.patch


def sizes(spec: LinearVideoSpec, sampling: SamplingSpec) -> ModelSizes:
    """What `accord plan` shows."""
    facts = inspect(spec.path)
    with torch.device("meta"):
        network = LinearNetwork(facts)
    count = sum(parameter.numel() for parameter in network.parameters())
    tokens = sampling.frames * sampling.height * sampling.width // facts.patch**2
    adapted = facts.depth * spec.lora.rank * 5 * facts.width
    kept = 4 * tokens * facts.width
    return ModelSizes(
        parameters={"network": count}, weight_bytes={"network": 4 * count}, trained="network",
        adapter_parameters=adapted, depth=facts.depth, tokens={"video": tokens, "text": 1},
        clip_bytes=3 * sampling.frames * sampling.height * sampling.width,
        activations=Activations(
            plain=5 * kept * facts.depth, checkpointed=kept * facts.depth, block=5 * kept, forward=3 * kept
        ),
    )  # fmt: skip
