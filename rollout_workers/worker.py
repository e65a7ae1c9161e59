"""One rollout worker: a model, the weights of one policy version, and the requests it is handed. No Ray."""

from __future__ import annotations

import time
from collections import OrderedDict

import torch
from torch import Tensor

from accord.backbones.adapters import ADAPTER_ROLES, load_adapter_state, reset_adapters, role, starting_adapter
from accord.backbones.base import Backbone, Conditions
from accord.backbones.shaping import capture_region
from accord.config.job import JobSpec
from accord.errors import NonFiniteError, RolloutError
from accord.ids import PolicyVersion
from accord.plugins import load_impl
from accord.types import GroupData, Modality, PolicyState, RolloutRequest, SampleGroup
from rollout_workers.guidance import Guidance
from rollout_workers.sampler import StochasticSteps, denoise

_CACHED_PROMPTS = 256


class RolloutWorker:
    """Samples groups. The bits of a group depend on its request and the weights, not on the worker."""

    def __init__(self, job: JobSpec) -> None:
        torch.set_num_threads(job.cluster.torch_threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - costs time, decides nothing
        self.job = job
        self.backbone: Backbone = load_impl(job.backbone).load(
            job.backbone, job.sampling, device="cuda" if job.cluster.rollout_gpus > 0 else "cpu", seed=job.seed
        )
        self._start = starting_adapter(self.backbone.velocity_model)
        self.version = PolicyVersion(0)
        """What is loaded; 0 is what the job starts from."""
        self._encoded: OrderedDict[str, Conditions] = OrderedDict()

    def load(self, state: PolicyState | None) -> None:
        """Take over published weights; None is version 0, as loaded. Raises CheckpointError on a misfit."""
        if state is None:
            reset_adapters(self.backbone.velocity_model, self._start)
        else:
            for name in ADAPTER_ROLES:
                load_adapter_state(self.backbone.velocity_model, name, state.adapters[name])
        self.version = PolicyVersion(0) if state is None else state.version

    def sample(self, request: RolloutRequest) -> SampleGroup:
        """Sample and decode one group.

        Raises:
            RolloutError: another version is loaded than the request asks for.
            NonFiniteError: the model produced NaN or infinity.
        """
        if request.policy_version != self.version:
            raise RolloutError(f"asked to sample version {request.policy_version} while {self.version} is loaded")
        began = time.perf_counter()
        self._encode(request.prompt.prompt_av)
        encoded = time.perf_counter()
        try:
            data, latents = self._denoise(request)
        except NonFiniteError as error:
            raise NonFiniteError(f"prompt {request.prompt.id!r}, version {self.version}: {error}") from error
        denoised = time.perf_counter()
        clips = self.backbone.decode(latents)
        return SampleGroup(
            request=request,
            policy_version=self.version,
            data=data,
            clips=clips,
            seconds={
                "encode": encoded - began,
                "denoise": denoised - encoded,
                "decode": time.perf_counter() - denoised,
            },
        )

    def _denoise(self, request: RolloutRequest) -> tuple[GroupData, dict[Modality, Tensor]]:
        """The group's data, with token weights and stochastic steps if the request wants them; latents [G, T, C]."""
        sampling, model, guidance = self.job.sampling, self.backbone.velocity_model, Guidance.of(self.job.sampling)
        spec = getattr(self.job.algorithm, "region", None) if request.capture_token_weights else None
        region = capture_region(model, spec, sampling.num_steps) if spec is not None else None
        dynamics = getattr(self.job.algorithm, "dynamics", None) if request.sde_steps else None
        stochastic = StochasticSteps(dynamics, request.sde_steps) if dynamics is not None else None
        with role(model, request.role):
            latents = denoise(
                self.backbone,
                self._encode(request.prompt.prompt_av),
                self._encode("") if guidance.reads_empty_prompt else None,
                request.seeds,
                num_steps=sampling.num_steps,
                guidance=guidance,
                region=region,
                stochastic=stochastic,
                initial_seed=request.initial_seed,
            )
        weights = (
            region.weights(self.backbone.latent_frames, request.step).cpu().numpy() if region is not None else None
        )
        arrays = {name: latent.cpu().numpy() for name, latent in latents.items()}
        return GroupData(arrays, weights, stochastic.recorded() if stochastic is not None else None), latents

    def _encode(self, text: str) -> Conditions:
        """Encode a text once; the most recent ones are kept."""
        if text not in self._encoded:
            self._encoded[text] = self.backbone.encode([text])
            if len(self._encoded) > _CACHED_PROMPTS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(text)
        return self._encoded[text]
