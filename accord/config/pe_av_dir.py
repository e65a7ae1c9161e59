"""What can be known of a PE-AV checkpoint in a transformers directory without loading it: its files and its towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.files import files_below
from accord.config.gaps import refuse_gaps
from accord.config.weights import read_json, read_safetensors_header, refuse_quantised
from accord.errors import InputError, ModelError

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
_WHOLE = "model.safetensors"
_EVERY = ("text_model.embeddings.tok_embeddings.weight", "audio_model.audio_head.proj.weight",
          "audio_model.text_audio_head.proj.weight", "video_model.video_head.proj.weight",
          "video_model.text_video_head.proj.weight")  # fmt: skip


@dataclass(frozen=True, slots=True)
class PeAvFiles:
    """A checkpoint whose files agree, as far as their headers tell."""

    root: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    """One file, or its shards."""


def inspect_pe_av(path: str | Path) -> PeAvFiles:
    """Check a `PeAudioVideoModel` directory. Raises ModelError that names the file."""
    root = Path(path)
    config = read_json(root / CONFIG)
    if config.get("model_type") != "pe_audio_video":
        raise ModelError(
            f"{root / CONFIG}: model_type is {config.get('model_type')!r}, not 'pe_audio_video'; name a PE-AV"
        )
    try:
        sight = str(config["audio_video_config"]["video_config"]["vision_config"]["architecture"])
    except (KeyError, TypeError) as error:
        raise ModelError(f"{root / CONFIG}: says no architecture of its sight ({error!r}); copy it again") from error
    if not sight.startswith("vit_pe_core_") or "gigantic" in sight:
        raise ModelError(f"{root / CONFIG}: sees by {sight}; take a PE-AV with a PE-Core up to large")
    files = _weights(root)
    names = set[str]()
    for file in files:
        header = read_safetensors_header(file)
        refuse_quantised(file, header)
        names |= header.keys()
    refuse_gaps(root, {*_EVERY} - names)
    return PeAvFiles(root, config, files)


def _weights(root: Path) -> tuple[Path, ...]:
    try:
        found = sorted(file for file in files_below(root) if file.parent == root and file.suffix == ".safetensors")
    except InputError as error:
        raise ModelError(str(error)) from error
    whole = [file for file in found if file.name == _WHOLE]
    shards = [file for file in found if file.name.startswith("model-")]
    if bool(whole) == bool(shards):
        told = f"both {_WHOLE} and" if whole else f"neither {_WHOLE} nor"
        raise ModelError(f"{root}: holds {told} shards of it; one of the two is wanted")
    return tuple(whole or shards)
