"""An LTX-2 pipeline as a job names it, and what keeps a job from fitting one. Light."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from accord.backbones.ltx2.lora_file import lora_misfits, read_lora_file
from accord.backbones.ltx2.model_dir import WRONG_KIND, LTX2Facts
from accord.backbones.ltx2.streams import PARTS
from accord.config.contract import AdapterSpec, BackboneSpec, ModelFacts, PartName, Problem
from accord.config.files import remembered
from accord.config.paths import LORA_BYTES, InputPath
from accord.errors import ModelError
from accord.types import MODALITIES, Modality, Term

if TYPE_CHECKING:
    from accord.config.job import JobSpec

MAX_CLIP_S = 3600.0
"""Longest clip that is sampled, in seconds."""


class LoRASpec(AdapterSpec):
    """The trained adapter."""

    targets: Annotated[tuple[PartName, ...], Field(min_length=1, max_length=100)] = PARTS
    """Sub-modules of each transformer block whose linear layers get an adapter."""


class LTX2Spec(BackboneSpec):
    """A diffusers `LTX2Pipeline` directory (LTX-2 or LTX-2.3, tiny or full size)."""

    impl: ClassVar[str] = "accord.backbones.ltx2.model:LTX2Backbone"
    inspect: ClassVar[str] = "accord.backbones.ltx2.model_dir:inspect_model_dir"
    sizes: ClassVar[str] = "accord.backbones.ltx2.sizes:model_sizes"
    read_adapter: ClassVar[str] = "accord.backbones.ltx2.model:read_adapter"
    modalities: ClassVar[tuple[Modality, ...]] = MODALITIES
    guides: ClassVar[frozenset[Term]] = frozenset({"text", "stg", "modality"})
    component: ClassVar[str] = "transformer"

    name: Literal["ltx2"] = "ltx2"
    path: Annotated[str, InputPath("directory")] = Field(default="builtin:tiny-ltx2", min_length=1, max_length=4096)
    """Directory of the pipeline, or `builtin:tiny-ltx2` for the model that ships with Accord."""
    lora: LoRASpec = LoRASpec()
    init_lora: Annotated[str, InputPath("file", LORA_BYTES)] = Field(default="", max_length=4096)
    """A LoRA file (.safetensors) that `policy` and `old` start from; rank and targets must be those of `lora`."""
    text_cache: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """Name of a cache of encoded prompts below ACCORD_TEXT_CACHE_DIR; jobs that give the same name share it. While it
    has all prompts of a job, the text encoder is not loaded. Empty = off."""
    offload: bool = False
    """Rollout workers on a GPU keep the decoders in host memory between decodes. Nothing changes on a CPU."""

    def problems(self, job: JobSpec, facts: ModelFacts | None) -> Iterable[Problem]:
        """A clip that the pipeline cannot make, blocks and parts that it has not, a LoRA file that does not fit."""
        yield from super().problems(job, facts)
        if not isinstance(facts, LTX2Facts):
            return
        try:
            yield from [
                *_size_problems(job, facts),
                *_length_problems(job, facts),
                *_schedule_problems(job, facts),
                *_guidance_problems(job, facts),
                *self._target_problems(facts),
                *self._adapter_problems("init_lora", self.init_lora, facts),
                *self._adapter_problems("/subject/adapter", job.subject.adapter if job.subject else "", facts),
            ]
        except ModelError as error:
            yield "path", str(error)
        except WRONG_KIND as error:
            yield "path", f"the model's configs hold values that no schedule or clip can be made of ({error})"

    @property
    def draws_the_world(self) -> bool:
        """The models that ship were pretrained on it."""
        return self.path.startswith("builtin:")

    def notes(self) -> Iterable[str]:
        """What a text cache and offloading change."""
        if self.text_cache:
            yield "text encoder and connectors are loaded only where the text cache lacks a prompt"
        if self.offload:
            yield "the decoders' bytes are in host memory but during a decode, when no activations are held"

    def _target_problems(self, facts: LTX2Facts) -> Iterable[Problem]:
        unknown = [name for name in self.lora.targets if name not in facts.block_parts]
        if unknown:
            known = ", ".join(sorted(part for part in facts.block_parts if "attn" in part or part.endswith("ff")))
            yield "lora/targets", f"{', '.join(unknown)}: no such part of a block; the model has {known}"

    def _adapter_problems(self, place: str, path: str, facts: LTX2Facts) -> Iterable[Problem]:
        if not path:
            return
        try:
            found = remembered(read_lora_file, path)
            yield from [(place, why) for why in lora_misfits(found, self.lora, facts)]
        except ModelError as error:
            yield place, str(error)


def _size_problems(job: JobSpec, facts: LTX2Facts) -> Iterable[Problem]:
    sampling, step = job.sampling, facts.temporal_compression * facts.patch_size_t
    if (sampling.frames - 1) % step:
        low = (sampling.frames - 1) // step * step + 1
        why = f"{sampling.frames} frames do not fit the VAE: use {step} k + 1, as {low} or {low + step}"
        yield "/sampling/frames", why
    side = facts.spatial_compression * facts.patch_size
    for name, pixels in (("height", sampling.height), ("width", sampling.width)):
        if pixels % side:
            near = max(1, round(pixels / side)) * side
            yield f"/sampling/{name}", f"{pixels} pixels do not fit the VAE: use a multiple of {side}, as {near}"


def _length_problems(job: JobSpec, facts: LTX2Facts) -> Iterable[Problem]:
    """A clip has an audio token at least, and is long enough for what its rewards look at."""
    frames, fps = job.sampling.frames, job.sampling.fps
    if frames / fps > MAX_CLIP_S:
        why = f"{frames} frames at {fps:g} a second last {frames / fps:.3g} s, and sound is made for all of it"
        yield "/sampling/fps", f"{why}; use at most {MAX_CLIP_S:g} s"
        return
    tokens, rate = facts.audio_tokens(frames, fps), facts.audio_tokens_per_second
    sound = max(0.0, tokens - 0.75) / rate  # a causal decoder makes less of the first token
    made = f"{frames} frame{'s' if frames > 1 else ''} at {fps:g} a second"
    if tokens < 1:
        yield "/sampling/frames", f"{made} make no audio token; use more frames, or a lower sampling.fps"
        return
    blind = {reward.name: reward.min_frames for reward in job.rewards if "video" in reward.needs}
    blind = {name: fewest for name, fewest in blind.items() if frames < fewest}
    if blind:
        why = f"{made} are too few to be scored by {', '.join(blind)}; use {max(blind.values())} or more"
        yield "/sampling/frames", why
    deaf = {reward.name: reward.min_audio_s for reward in job.rewards if "audio" in reward.needs}
    deaf = {name: shortest for name, shortest in deaf.items() if sound < shortest}
    if deaf:
        why = f"{made} make {sound:.2f} s of sound; {', '.join(deaf)} need {max(deaf.values()):g} s"
        yield "/sampling/frames", f"{why}: use more frames, or a lower sampling.fps"


def _guidance_problems(job: JobSpec, facts: LTX2Facts) -> Iterable[Problem]:
    beyond = [index for index in job.sampling.stg_blocks if index >= facts.depth]
    carried = job.algorithm.chosen_sampling.get("stg_blocks") == job.sampling.stg_blocks
    if not beyond or (carried and "stg" not in job.sampling.terms):
        return
    why = f"{', '.join(map(str, beyond))}: beyond the model's {facts.depth} blocks; use 0 to {facts.depth - 1}"
    if carried:
        why += f"; this is the sampling of preset {job.algorithm.chosen_preset!r}, made for a deeper model"
    yield "/sampling/stg_blocks", why


def _schedule_problems(job: JobSpec, facts: LTX2Facts) -> Iterable[Problem]:
    """A shift, given or grown with the clip, that leaves no sigma but 1."""
    sampling = job.sampling
    try:
        facts.schedule(sampling)
        return
    except ArithmeticError:
        pass
    if sampling.shift is not None:
        yield "/sampling/shift", f"{sampling.shift:g} leaves no schedule; the scheduler's own is about 1 to 2"
        return
    grid = facts.video_grid(sampling.frames, sampling.height, sampling.width)
    clip = f"{sampling.frames} frames of {sampling.width} x {sampling.height} are {grid[0] * grid[1] * grid[2]} tokens"
    yield (
        "/sampling/height",
        f"{clip}, for which the scheduler's shift leaves no schedule; use a smaller clip, or a shift",
    )
