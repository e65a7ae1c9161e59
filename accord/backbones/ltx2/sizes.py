"""Sizes of an `LTX2Pipeline` directory: configs are enough, safetensors headers are read where they are.

A component without weight files is made by its own class on the meta device. The transformer always is, with one and
with two blocks: its blocks are alike, so everything about it is linear in their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accord.backbones.adapters import adapter_parameters, add_roles
from accord.backbones.base import Conditions
from accord.backbones.components import component_class
from accord.backbones.ltx2.model import DECODERS, TEXT_TOKENS, LTX2Velocity
from accord.backbones.ltx2.model_dir import WEIGHTS, LTX2Facts, read_model_configs
from accord.backbones.ltx2.spec import LTX2Spec
from accord.backbones.ltx2.streams import GATES
from accord.backbones.sizes import Activations, ModelSizes, kept_bytes, peak_bytes
from accord.config.sampling import SamplingSpec
from accord.config.weights import read_json, read_safetensors_header, weight_files
from accord.errors import ModelError
from accord.types import Modality


def model_sizes(spec: LTX2Spec, sampling: SamplingSpec) -> ModelSizes:
    """Count what `spec` and `sampling` ask for.

    Raises ModelError when a config is missing or its class cannot be made from it, SpecError for a LoRA target that
    matches nothing.
    """
    facts = read_model_configs(spec.path)
    index = read_json(facts.path / "model_index.json")
    config = read_json(facts.path / "transformer" / "config.json")
    one, two = (_with_blocks(config, count, spec) for count in (1, 2))
    parameters = {name: numbers_in(facts.path / name, index[name]) for name in WEIGHTS if name != "transformer"}
    parameters["transformer"] = _linear(facts.depth, _size(one, frozen=True), _size(two, frozen=True))
    width = {name: 4 if name in DECODERS else getattr(torch, spec.dtype).itemsize for name in parameters}
    frames, height, width_tokens = facts.video_grid(sampling.frames, sampling.height, sampling.width)
    tokens = {
        "video": frames * height * width_tokens,
        "audio": facts.audio_tokens(sampling.frames, sampling.fps),
        "text": _text_tokens(facts.path),
    }
    return ModelSizes(
        parameters=parameters,
        weight_bytes={name: count * width[name] for name, count in parameters.items()},
        trained="transformer",
        adapter_parameters=_linear(facts.depth, _size(one), _size(two)),
        depth=facts.depth,
        tokens=tokens,
        clip_bytes=_clip_bytes(facts, sampling),
        activations=_activations(facts, sampling, one, two, tokens["text"]),
    )


def _linear(depth: int, one: int, two: int) -> int:
    return one + (depth - 1) * (two - one)


def _with_blocks(config: Mapping[str, Any], count: int, spec: LTX2Spec) -> nn.Module:
    """The transformer on the meta device with so many blocks and the LoRA roles."""
    model = _on_meta("diffusers", str(config.get("_class_name")), {**config, "num_layers": count})
    nn.Module.to(model, dtype=getattr(torch, spec.dtype))
    add_roles(model.requires_grad_(False), spec.lora, seed=0, frozen=GATES)
    return model


def _size(model: nn.Module, *, frozen: bool = False) -> int:
    """Numbers in one adapter role, or in everything else."""
    if not frozen:
        return sum(parameter.numel() for parameter in adapter_parameters(model, "policy").values())
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora_" not in name)


def numbers_in(component: Path, entry: Sequence[str]) -> int:
    """Parameters and buffers of a component: from the headers of its weights, else from its class.

    `entry` is its library and class as in model_index.json. Raises ModelError.
    """
    config = read_json(component / "config.json")
    files = [file for file in weight_files(component) if file.is_file()]
    if files:
        headers = [read_safetensors_header(file, whole=False) for file in files]
        return sum(prod(tensor["shape"]) for header in headers for tensor in header.values())
    model = _on_meta(entry[0], entry[1], config)
    return sum(tensor.numel() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def _on_meta(library: str, name: str, config: Mapping[str, Any]) -> Any:
    """Make a class from its config, without memory. Raises ModelError."""
    kind = component_class(library, name)
    try:
        with torch.device("meta"):
            if library == "transformers":
                return kind._from_config(kind.config_class.from_dict(dict(config)))
            return kind.from_config(config)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{name} cannot be made from its config: {error}") from error


def _text_tokens(root: Path) -> int:
    """Length that prompts are padded to."""
    file = root / "tokenizer" / "tokenizer_config.json"
    longest = read_json(file).get("model_max_length", TEXT_TOKENS) if file.is_file() else TEXT_TOKENS
    return min(TEXT_TOKENS, int(longest))


def _clip_bytes(facts: LTX2Facts, sampling: SamplingSpec) -> int:
    vocoder = read_json(facts.path / "vocoder" / "config.json")
    channels = int(vocoder.get("bwe_out_channels", vocoder.get("out_channels", 2)))
    sound = round(sampling.frames / sampling.fps * facts.sample_rate) * channels * 4
    return sampling.frames * sampling.height * sampling.width * 3 + sound


def _activations(facts: LTX2Facts, sampling: SamplingSpec, one: Any, two: Any, text: int) -> Activations:
    """What a forward of one sample keeps and needs, counted with one and two blocks, with and without checkpointing."""
    kept = {}
    for checkpointing in (False, True):
        for model in (one, two):
            (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
            kept[checkpointing, model] = kept_bytes(model, _forward(facts, sampling, model, text))
    block = kept[False, two] - kept[False, one]
    inputs = _linear(facts.depth, kept[True, one], kept[True, two])
    return Activations(
        plain=_linear(facts.depth, kept[False, one], kept[False, two]),
        checkpointed=inputs + block,
        block=block,
        forward=peak_bytes(_forward(facts, sampling, two, text)),
    )


def _forward(facts: LTX2Facts, sampling: SamplingSpec, model: Any, text: int) -> Callable[[], Any]:
    """A forward of one sample with `text` text tokens, on the meta device."""
    grid = facts.video_grid(sampling.frames, sampling.height, sampling.width)
    audio_tokens = facts.audio_tokens(sampling.frames, sampling.fps)
    velocity = LTX2Velocity(model, grid, audio_tokens, sampling.fps)
    config = model.config
    widths = (config.cross_attention_dim, config.audio_cross_attention_dim)
    if config.use_prompt_embeddings:
        widths = (config.caption_channels,) * 2
    with torch.device("meta"):
        video_text, audio_text = (torch.empty(1, text, width, dtype=velocity.compute_dtype) for width in widths)
        mask = torch.empty(1, text, dtype=torch.int64)
        conditions = Conditions({"video": video_text, "audio": audio_text, "mask": mask})
        latents: dict[Modality, Tensor] = {
            "video": torch.empty(1, prod(grid), facts.video_channels),
            "audio": torch.empty(1, audio_tokens, facts.audio_channels),
        }
        sigmas: dict[Modality, Tensor] = {"video": torch.empty(1), "audio": torch.empty(1)}
    return lambda: velocity(latents, sigmas, conditions)
