"""One rollout worker: a model, the weights of one policy version, and the requests it is handed. No Ray."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor

from accord.backbones.adapters import ADAPTER_ROLES, load_adapter_state, reset_adapters, role, starting_adapter
from accord.backbones.base import Backbone, Conditions
from accord.backbones.region import capture_region
from accord.clip_features import features
from accord.config.contract import BackboneSpec
from accord.config.sampling import SamplingSpec
from accord.errors import NonFiniteError, RolloutError
from accord.ids import PolicyVersion
from accord.plugins import load_impl
from accord.types import GroupData, Modality, PolicyState, RolloutRequest, SampleGroup
from rollout_workers.sampler import denoise

_CACHED_PROMPTS = 256


class RolloutWorker:
    """Samples groups. The bits of a group depend on its request and the weights, not on the worker."""

    def __init__(
        self, spec: BackboneSpec, sampling: SamplingSpec, *, seed: int = 0, threads: int = 1, device: str = "cpu"
    ) -> None:
        """Load the backbone of `spec` for the clip size of `sampling`; `seed` is what its adapters start from.

        Raises what loading the model raises.
        """
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - costs time, decides nothing
        self.backbone: Backbone = load_impl(spec).load(spec, sampling, device=device, seed=seed)
        self._start = starting_adapter(self.backbone.velocity_model)
        self.version = PolicyVersion(0)
        """What is loaded; 0 is what the model starts from."""
        self.serial = 0
        """Which publication of that version; 0 is the start."""
        self._encoded: OrderedDict[str, Conditions] = OrderedDict()

    def load(self, state: PolicyState | None, serial: int = 0) -> None:
        """Take over published weights; None is version 0, as loaded. Raises CheckpointError on a misfit."""
        if state is None:
            reset_adapters(self.backbone.velocity_model, self._start)
        else:
            for name in ADAPTER_ROLES:
                load_adapter_state(self.backbone.velocity_model, name, state.adapters[name])
        self.version, self.serial = PolicyVersion(0) if state is None else state.version, serial

    def sample(self, request: RolloutRequest) -> SampleGroup:
        """Sample and decode one group.

        Raises:
            RolloutError: another version is loaded than the request asks for.
            NonFiniteError: the model produced NaN or infinity.
        """
        if request.policy_version != self.version:
            raise RolloutError(f"asked to sample version {request.policy_version} while {self.version} is loaded")
        try:
            data, latents = self._denoise(request)
        except NonFiniteError as error:
            raise NonFiniteError(f"prompt {request.prompt.id!r}, version {self.version}: {error}") from error
        clips = self.backbone.decode(latents)
        return SampleGroup(request, self.version, data, clips, features(clips))

    def _denoise(self, request: RolloutRequest) -> tuple[GroupData, Mapping[Modality, Tensor]]:
        """The group's data, with token weights and stochastic steps if the plan wants them; latents [G, T, C]."""
        model, plan = self.backbone.velocity_model, request.plan
        region = capture_region(model, plan.capture, plan.num_steps) if plan.capture is not None else None
        prompt = self._encode(request.prompt.prompt_av)
        with role(model, plan.role):
            denoised = denoise(
                self.backbone,
                prompt,
                self._encode("") if plan.guidance.reads_empty_prompt else None,
                request.seeds,
                plan,
                start_seed=request.start_seed,
                region=region,
            )
        weights = region.weights(self.backbone.latent_frames).cpu().numpy() if region is not None else None
        arrays = {name: latent.cpu().numpy() for name, latent in denoised.latents.items()}
        return GroupData(arrays, prompt.to("cpu"), weights, denoised.transitions), denoised.latents

    def _encode(self, text: str) -> Conditions:
        """Encode a text once; the most recent ones are kept."""
        if text not in self._encoded:
            self._encoded[text] = self.backbone.encode([text])
            if len(self._encoded) > _CACHED_PROMPTS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(text)
        return self._encoded[text]
