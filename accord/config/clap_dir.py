"""What can be known about a CLAP checkpoint without loading it: are its files there, whole, and of one model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accord
from accord.config.files import kind_of
from accord.config.gaps import refuse_gaps, refuse_odd, unlike
from accord.config.paths import BUILT_IN
from accord.config.weights import Shapes, read_json, read_safetensors_header, refuse_quantised
from accord.errors import ModelError

TINY = f"{BUILT_IN}tiny-clap"
SHIPPED = {TINY: Path(accord.__file__).parents[1] / "reward_servers" / "checkpoints" / "tiny-clap"}
CONFIGS = ("config.json", "tokenizer.json")
EXTRACTOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Either says how sound is prepared: the second, which transformers 5 writes, in its `feature_extractor`."""
WEIGHTS = "model.safetensors"
_STACKS = ("layer", "blocks")
"""Lists of equal blocks: of the text encoder, and within a stage of the audio encoder."""
_EVERY = ("logit_scale_a", "logit_scale_t", "text_model.embeddings.word_embeddings.weight",
          "text_model.embeddings.position_embeddings.weight", "text_model.embeddings.token_type_embeddings.weight",
          "audio_model.audio_encoder.patch_embed.proj.weight", "audio_model.audio_encoder.patch_embed.proj.bias",
          "audio_model.audio_encoder.norm.weight", "audio_model.audio_encoder.norm.bias",
          "audio_model.audio_encoder.batch_norm.weight", "audio_model.audio_encoder.batch_norm.bias",
          "audio_model.audio_encoder.batch_norm.running_mean",
          "audio_model.audio_encoder.batch_norm.running_var")  # fmt: skip
DERIVED = {"text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids"}
"""Buffers that transformers recomputes; some checkpoints do not hold them."""
_TOWERS = ("audio_model.", "text_model.", "audio_projection.", "text_projection.")


def clap_directory(path: str) -> Path:
    """Turn `builtin:tiny-clap` into its directory. Raises ModelError for another built-in name."""
    if path.startswith(BUILT_IN) and path not in SHIPPED:
        raise ModelError(f"no built-in CLAP checkpoint {path!r}; there is {', '.join(SHIPPED)}")
    return SHIPPED.get(path, Path(path))


def inspect_clap_dir(path: str) -> Path:
    """Check a transformers `ClapModel` directory and return it. Raises ModelError that names the file."""
    root = clap_directory(path)
    files = {name: read_json(root / name) for name in CONFIGS}
    extractor_file, extractor = _extractor(root)
    config = files["config.json"]
    if config.get("model_type") != "clap":
        raise ModelError(f"{root / 'config.json'}: model_type is {config.get('model_type')!r}, not 'clap'")
    audio = config.get("audio_config")
    fused = bool(audio.get("enable_fusion")) if isinstance(audio, dict) else False
    if (extractor.get("truncation", "fusion") == "fusion") != fused:
        raise ModelError(
            f"{extractor_file}: prepares sound for {'an unfused' if fused else 'a fused'} model, and config.json is of "
            "the other kind; copy both from one checkpoint"
        )
    if not isinstance(files["tokenizer.json"].get("model"), dict):
        raise ModelError(f"{root / 'tokenizer.json'}: holds no model of a tokenizer; copy it again")
    header = read_safetensors_header(root / WEIGHTS)
    refuse_quantised(root / WEIGHTS, header)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    for tower in _TOWERS:
        if not any(name.startswith(tower) for name in shapes):
            raise ModelError(f"{root / WEIGHTS}: holds nothing of {tower.rstrip('.')}; save a whole ClapModel")
    refuse_gaps(root, {*unlike(shapes, _STACKS), *_ends(shapes)} - shapes.keys() - DERIVED)
    refuse_odd(root, shapes, _STACKS)
    return root


def clap_files(root: Path) -> list[Path]:
    """What a score of a checkpoint that was inspected depends on."""
    return [root / name for name in (*CONFIGS, WEIGHTS, EXTRACTOR, PROCESSOR) if kind_of(root / name) == "file"]


def _extractor(root: Path) -> tuple[Path, dict[str, Any]]:
    """The settings of the feature extractor as transformers finds them, and where they stand."""
    if kind_of(root / PROCESSOR) == "file":
        nested = read_json(root / PROCESSOR).get("feature_extractor")
        if isinstance(nested, dict):
            return root / PROCESSOR, nested
    return root / EXTRACTOR, read_json(root / EXTRACTOR)


def _ends(shapes: Shapes) -> Iterator[str]:
    """What every ClapModel has outside its blocks."""
    for name in _EVERY:
        if name not in shapes:
            yield name
    for name in shapes:
        if "LayerNorm.weight" in name or (name.startswith(_TOWERS[2:]) and name.endswith(".weight")):
            yield f"{name.removesuffix('weight')}bias"
