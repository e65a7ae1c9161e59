"""Any diffusers `LTX2Pipeline` directory, tiny or full size, LTX-2 or LTX-2.3, as a Backbone.

What its network and its codecs need besides names and sizes: timesteps 0…1000, packing and normalisation of latents,
text connectors, decoders.
Which generation a directory holds is written in its configs (per-head gates, prompt modulation, connector layout) and
the classes of diffusers follow them; nothing here asks for a version.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Self

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2Pipeline
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2PerturbedAttnProcessor,
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging
from typing_extensions import override

from accord.backbones.adapters import ADAPTER_ROLES, add_roles, load_adapter_state
from accord.backbones.base import (
    Conditions,
    CrossAttends,
    IsolatesModalities,
    Latents,
    Part,
    SkipsSelfAttention,
    VelocityModel,
    WatchesAttention,
)
from accord.backbones.components import load_component
from accord.backbones.ltx2 import streams
from accord.backbones.ltx2.lora_file import read_lora_file
from accord.backbones.ltx2.model_dir import WEIGHTS, LTX2Facts, inspect_model_dir
from accord.backbones.ltx2.schedule import ScheduleConfig
from accord.backbones.ltx2.spec import LTX2Spec
from accord.backbones.text_cache import TextCache, content_digest
from accord.config.sampling import SamplingSpec
from accord.config.settings import Settings
from accord.config.weights import read_json
from accord.errors import ModelError
from accord.types import MODALITIES, Clip, Modality

_ROW = ("video", "audio", "mask")
"""Conditions: what each modality's tokens attend to [B, L, C], and 1 where a text token is to be attended to [B, L]."""
TIMESTEPS = 1000.0
"""Sigma 1 as the transformer counts it."""
TEXT_TOKENS = 1024
"""Longest prompt of the family; a tokenizer with a shorter limit decides for itself."""
TEXT_PARTS = ("text_encoder", "tokenizer", "connectors")
"""What turns prompts into conditions."""
DECODERS = ("vae", "audio_vae", "vocoder")
"""What turns latents into clips; the learner does without."""


def exact_sigmas(written: Mapping[str, Any], num_steps: int, video_tokens: int, shift: float | None = None) -> Tensor:
    """Return the sigmas that diffusers' scheduler of config `written` makes, float32 [num_steps + 1], from 1 down to 0.

    `shift` replaces mu, or the static shift where the config has no dynamic shifting. Raises ModelError for a schedule
    of another kind.
    """
    config = ScheduleConfig.parse(written)
    static = config.shift if shift is None or config.use_dynamic_shifting else shift
    terminal = config.shift_terminal if num_steps > 1 else None  # one step has nothing to stretch
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**{**asdict(config), "shift": static, "shift_terminal": terminal})
    linear = np.linspace(1.0, 1.0 / num_steps, num_steps)
    scheduler.set_timesteps(num_steps, sigmas=linear, mu=config.mu(video_tokens, shift))
    sigmas: Tensor = scheduler.sigmas
    return sigmas


class LTX2Velocity(VelocityModel, CrossAttends, WatchesAttention, SkipsSelfAttention, IsolatesModalities):
    """The transformer with the clip's geometry filled in."""

    def __init__(self, transformer: Any, grid: tuple[int, int, int], audio_tokens: int, fps: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.depth = len(transformer.transformer_blocks)
        self.compute_dtype: torch.dtype = transformer.proj_in.weight.dtype
        self.grid = grid
        self.audio_tokens = audio_tokens
        self.fps = fps
        self._isolated = False

    def forward(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """Return the velocity of both modalities, float32 [B, T, C].

        latents: [B, T, C]; sigmas: [B] in [0, 1]; conditions: B rows. Each modality is modulated by its own sigma and
        the cross-attention between them by the other's.
        """
        video_time, audio_time = sigmas["video"].float() * TIMESTEPS, sigmas["audio"].float() * TIMESTEPS
        frames, height, width = self.grid
        video, audio = self.transformer(
            hidden_states=latents["video"].to(self.compute_dtype),
            audio_hidden_states=latents["audio"].to(self.compute_dtype),
            encoder_hidden_states=conditions["video"],
            audio_encoder_hidden_states=conditions["audio"],
            timestep=video_time,
            audio_timestep=audio_time,
            sigma=video_time,
            audio_sigma=audio_time,
            encoder_attention_mask=conditions["mask"],
            audio_encoder_attention_mask=conditions["mask"],
            num_frames=frames,
            height=height,
            width=width,
            fps=self.fps,
            audio_num_frames=self.audio_tokens,
            use_cross_timestep=True,
            isolate_modalities=self._isolated,
            return_dict=False,
        )
        return {"video": video.float(), "audio": audio.float()}

    def branch_of(self, key: str) -> tuple[Modality, int] | None:
        """See `streams.branch_of`."""
        return streams.branch_of(key)

    @override
    def audio_to_video(self) -> list[nn.Module]:
        return [getattr(block, streams.AUDIO_TO_VIDEO) for block in self.transformer.transformer_blocks]

    @override
    @contextmanager
    def watch_video_attention(self, blocks: Sequence[int], sink: Callable[[Tensor], None]) -> Iterator[None]:
        with ExitStack() as stack:
            for index in blocks:
                stack.enter_context(_watched(self.transformer.transformer_blocks[index].video_to_audio_attn, sink))
            yield

    @override
    @contextmanager
    def skipping_self_attention(self, blocks: Sequence[int]) -> Iterator[None]:
        """The processor is exchanged, because the transformer's own switch does nothing unless its config says
        `perturbed_attn`, which that of LTX-2 does not.
        """
        chosen = [self.transformer.transformer_blocks[index] for index in blocks]
        attentions = [attention for block in chosen for attention in (block.attn1, block.audio_attn1)]
        before = [attention.processor for attention in attentions]
        try:
            for attention in attentions:
                attention.processor = _OwnValue()
            yield
        finally:
            for attention, processor in zip(attentions, before, strict=True):
                attention.processor = processor

    @override
    @contextmanager
    def isolating_modalities(self) -> Iterator[None]:
        self._isolated = True
        try:
            yield
        finally:
            self._isolated = False


class _OwnValue:
    """An attention processor that attends to nothing: values go straight to the gates and the output projection."""

    def __init__(self) -> None:
        self.processor = LTX2PerturbedAttnProcessor()

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        *_context: Any,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> Tensor:
        """What the attention calls; the transformer's own idea of what is perturbed is overruled."""
        del perturbation_mask, all_perturbed
        result: Tensor = self.processor(attention, hidden_states, all_perturbed=True)
        return result


@contextmanager
def _watched(attention: Any, sink: Callable[[Tensor], None]) -> Iterator[None]:
    """While entered, a cross-attention tells `sink` the attention that every key receives, [B, T], after each forward.

    The queries and keys are taken where the model's own processor computes them, behind their normalisation, so the
    processor, and with it the output, stays untouched.
    """
    seen: dict[str, Any] = {}

    def before(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["rotary"] = [kwargs.get("query_rotary_emb"), kwargs.get("key_rotary_emb")]

    def keep(name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        seen[name] = output.detach()

    def after(*_call: Any) -> None:
        sink(_received(attention, seen))
        seen.clear()

    parts = {"query": attention.norm_q, "key": attention.norm_k, "gate": attention.to_gate_logits}
    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(before, with_kwargs=True).remove)
        for name, part in parts.items():
            if part is not None:
                stack.callback(part.register_forward_hook(partial(keep, name)).remove)
        stack.callback(attention.register_forward_hook(after).remove)
        yield


def _received(attention: Any, seen: Mapping[str, Any]) -> Tensor:
    """The attention that every key receives, [B, T]; one head's [B, A, T] map lives at a time."""
    rotate = apply_split_rotary_emb if attention.rope_type == "split" else apply_interleaved_rotary_emb
    query, key = (
        (seen[name] if freqs is None else rotate(seen[name], freqs)).unflatten(2, (attention.heads, -1)).float()
        for name, freqs in zip(("query", "key"), seen["rotary"], strict=True)
    )
    gates = 2.0 * torch.sigmoid(seen["gate"].float()) if "gate" in seen else None
    scale = query.shape[-1] ** -0.5
    mass = torch.zeros(key.shape[:2], device=key.device)
    for head in range(attention.heads):
        shares = torch.softmax(query[:, :, head] @ key[:, :, head].transpose(1, 2) * scale, dim=-1)
        if gates is not None:
            shares = shares * gates[:, :, head, None]
        mass += shares.sum(dim=1)
    return mass / attention.heads


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while loading, and no dump of every component that is passed to the pipeline."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def _read(spec: LTX2Spec, facts: LTX2Facts, device: str, left_out: Sequence[str]) -> Any:
    """Load a pipeline without some of its components: frozen, on the device, decoders in float32.

    Raises ModelError when a component lacks weights or cannot be loaded.
    """
    index, dtype = read_json(facts.path / "model_index.json"), getattr(torch, spec.dtype)
    with _quiet():
        parts = {
            name: load_component(facts.path / name, index[name], torch.float32 if name in DECODERS else dtype)
            for name in WEIGHTS
            if name not in left_out
        }
        unused = (*left_out, *LTX2Pipeline._optional_components)
        try:
            pipeline: Any = LTX2Pipeline.from_pretrained(
                facts.path, local_files_only=True, **parts, **dict.fromkeys(unused)
            )
        except MemoryError:
            raise
        except Exception as error:  # a tokenizer's file may be wrong in ways that have no class of their own
            raise ModelError(f"{facts.path}: cannot be loaded as a pipeline: {error!r:.300}") from error
    pipeline.set_progress_bar_config(disable=True)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval().to("cpu" if spec.offload and name in DECODERS else device)
    return pipeline


def read_adapter(spec: LTX2Spec, path: str) -> dict[str, np.ndarray]:
    """The tensors of a LoRA file by key, at the scale of the job's alpha. Diffusers knows the original's names.

    A [rank, in] and B [out, rank], float32. Raises ModelError as `read_lora_file` does.
    """
    found = read_lora_file(path)
    content = {key: value for key, value in load_file(found.path).items() if not key.endswith(".alpha")}
    tensors: Mapping[str, Tensor] = LTX2Pipeline.lora_state_dict(content)
    start = {}
    for key, value in tensors.items():
        name = key.removeprefix("base_model.model.").removeprefix("transformer.")
        layer, _, part = name.partition(".lora_")
        factor = found.scales[layer] * spec.lora.rank / spec.lora.alpha if part == "B.weight" else 1.0
        start[name] = (value.float() * factor).numpy()
    return start


def _text_cache(spec: LTX2Spec, facts: LTX2Facts, device: str) -> TextCache | None:
    """The cache that the spec names: rows of these files, this type, and whatever else decides their bits."""
    if not spec.text_cache:
        return None
    directory = Settings().text_caches / spec.text_cache
    threads = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    computed_by = torch.cuda.get_device_name(device) if device.startswith("cuda") else threads
    versions = (torch.__version__, transformers.__version__, diffusers.__version__)
    content = content_digest([facts.path / part for part in TEXT_PARTS], directory)
    return TextCache(directory, (content, spec.dtype, computed_by, *versions))


class LTX2Backbone:
    """An LTX-2 pipeline as sampler and learner use it."""

    modalities: tuple[Modality, ...] = MODALITIES

    def __init__(
        self,
        pipeline: Any,
        spec: LTX2Spec,
        facts: LTX2Facts,
        sampling: SamplingSpec,
        device: str,
        cache: TextCache | None = None,
    ) -> None:
        """A pipeline may come without its text parts: they are loaded for the first prompt that `cache` lacks."""
        self.pipeline = pipeline
        self.spec = spec
        self.facts = facts
        self.sampling = sampling
        self.device = device
        self.cache = cache
        self.text_pipeline: Any = None if pipeline.text_encoder is None else pipeline
        self.grid = facts.video_grid(sampling.frames, sampling.height, sampling.width)
        self.audio_tokens = facts.audio_tokens(sampling.frames, sampling.fps)
        self.velocity_model = LTX2Velocity(pipeline.transformer, self.grid, self.audio_tokens, sampling.fps)
        self.depth = self.velocity_model.depth
        self.latent_frames = self.grid[0]

    @classmethod
    def load(
        cls,
        spec: LTX2Spec,
        sampling: SamplingSpec,
        *,
        device: str = "cpu",
        without: Collection[Part] = (),
        seed: int = 0,
    ) -> Self:
        """Load the directory, freeze it, and add the LoRA roles: initialised from `seed`, or read from `init_lora`.

        Transformer and text parts compute in `spec.dtype`; decoders always in float32, since the waveform and the
        closed-form codecs do not survive bfloat16. Raises ModelError; SpecError for a target that matches nothing;
        CheckpointError for an `init_lora` with other layers or another rank.
        """
        facts = inspect_model_dir(spec.path)
        cache = _text_cache(spec, facts, device)
        apart = cache is not None or "text" in without
        left_out = (*(DECODERS if "decoders" in without else ()), *(TEXT_PARTS if apart else ()))
        pipeline = _read(spec, facts, device, left_out)
        add_roles(pipeline.transformer, spec.lora, seed, streams.GATES)
        if spec.init_lora:
            start = read_adapter(spec, spec.init_lora)
            for name in ADAPTER_ROLES:
                load_adapter_state(pipeline.transformer, name, start)
        if spec.gradient_checkpointing:
            pipeline.transformer.enable_gradient_checkpointing()
        return cls(pipeline, spec, facts, sampling, device, cache)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditions:
        """Encode prompts one by one, so that a row is the same whatever it is encoded with. Returns len(texts) rows."""
        rows = [self._row(text) for text in texts]
        return Conditions({part: torch.cat([row[part] for row in rows]).to(self.device) for part in _ROW})

    def _row(self, text: str) -> Mapping[str, Tensor]:
        """One prompt's row: from the cache if it has it, else encoded and put there."""
        row = self.cache.get(text) if self.cache is not None else None
        if row is None:
            row = dict(zip(_ROW, self._encode_one(text), strict=True))
            if self.cache is not None:
                self.cache.put(text, row)
        return row

    def _encode_one(self, text: str) -> tuple[Tensor, Tensor, Tensor]:
        if self.text_pipeline is None:
            self.text_pipeline = _read(self.spec, self.facts, self.device, (*DECODERS, "transformer"))
        pipeline = self.text_pipeline
        embeds, mask, _, _ = pipeline.encode_prompt(
            [text],
            do_classifier_free_guidance=False,
            max_sequence_length=min(TEXT_TOKENS, pipeline.tokenizer_max_length),
            device=torch.device(self.device),
        )
        video, audio, mask = pipeline.connectors(embeds, mask, padding_side=pipeline.tokenizer.padding_side)
        return video, audio, mask

    def velocity(
        self, latents: Latents, sigmas: Mapping[Modality, Tensor], conditions: Conditions
    ) -> dict[Modality, Tensor]:
        """See LTX2Velocity.forward."""
        result: dict[Modality, Tensor] = self.velocity_model(latents, sigmas, conditions)
        return result

    def latent_shapes(self) -> dict[Modality, tuple[int, int]]:
        """(T, C) per modality for the job's clip size."""
        frames, height, width = self.grid
        return {
            "video": (frames * height * width, self.facts.video_channels),
            "audio": (self.audio_tokens, self.facts.audio_channels),
        }

    def sigmas(self, num_steps: int) -> Tensor:
        """The pipeline's own schedule for this clip size, float32 [num_steps + 1]."""
        tokens = self.latent_shapes()["video"][0]
        return exact_sigmas(self.facts.scheduler, num_steps, tokens, self.sampling.shift)

    @torch.no_grad()
    def decode(self, latents: Latents) -> list[Clip]:
        """Turn clean latents [G, T, C] into G clips, one at a time to bound memory."""
        with self._decoders():
            return [
                Clip(
                    video_FHWC=self._frames(latents["video"][index : index + 1]),
                    fps=self.sampling.fps,
                    audio_CS=self._sound(latents["audio"][index : index + 1]),
                    sample_rate=self.facts.sample_rate,
                )
                for index in range(latents["video"].shape[0])
            ]

    @contextmanager
    def _decoders(self) -> Iterator[None]:
        """With `offload` the decoders come to the device for this block and go back, whatever happens inside."""
        moved = [getattr(self.pipeline, name) for name in DECODERS] if self.spec.offload else []
        try:
            for part in moved:
                part.to(self.device)
            yield
        finally:
            for part in moved:
                part.to("cpu")

    def _frames(self, packed: Tensor) -> Any:
        """[1, T, C] to uint8 [F, H, W, 3]."""
        pipeline, vae = self.pipeline, self.pipeline.vae
        patches = (self.facts.patch_size, self.facts.patch_size_t)
        frames, height, width = self.grid
        raw = pipeline._unpack_latents(packed.float(), frames, height, width, *patches)
        raw = pipeline._denormalize_latents(raw, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        moment = torch.zeros(1, device=raw.device) if vae.config.timestep_conditioning else None
        with torch.random.fork_rng(devices=[]):  # a decoder that injects noise injects the same each time
            torch.manual_seed(0)
            pixels = vae.decode(raw, moment, return_dict=False)[0]
        scaled = ((pixels[0].clamp(-1.0, 1.0) + 1.0) * 127.5).round()
        return scaled.permute(1, 2, 3, 0).to("cpu", torch.uint8).contiguous().numpy()

    def _sound(self, packed: Tensor) -> Any:
        """[1, T, C] to float32 [channels, S]."""
        pipeline, audio_vae = self.pipeline, self.pipeline.audio_vae
        raw = pipeline._denormalize_audio_latents(packed.float(), audio_vae.latents_mean, audio_vae.latents_std)
        bins = audio_vae.config.mel_bins // audio_vae.mel_compression_ratio
        mel = audio_vae.decode(pipeline._unpack_audio_latents(raw, self.audio_tokens, bins), return_dict=False)[0]
        return pipeline.vocoder(mel)[0].clamp(-1.0, 1.0).float().cpu().contiguous().numpy()
