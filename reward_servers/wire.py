"""The body of `POST /rewards/<name>/score`: one safetensors file, no pickle, no paths.

Tensors: `video` uint8 [G, F, H, W, 3] and `audio` float32 [G, C, S]; a reward that looks at one modality needs only
that one. The `__metadata__` of the header holds strings: `prompt` (JSON object with `prompt_av`, `prompt_v`,
`prompt_a`, and optionally `id`; or a plain text that stands for all three), `fps` and `sample_rate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from accord.types import Clip, Modality, Prompt

_LAYOUT: dict[Modality, tuple[str, int, str]] = {
    "video": ("uint8", 5, "[G, F, H, W, 3]"),
    "audio": ("float32", 3, "[G, C, S]"),
}
_RATE: dict[Modality, str] = {"video": "fps", "audio": "sample_rate"}
MAX_CLIPS = 1024


class BadBody(Exception):
    """A body that cannot be read. `field` is a JSON pointer into the header, `detail` says what would be right."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(field, detail)
        self.field, self.detail = field, detail


def write_body(prompt: Prompt, clips: Sequence[Clip], needs: Sequence[Modality] = ("video", "audio")) -> bytes:
    """Pack clips for the wire, of one size and rate in each modality that is sent."""
    meta = {"id": prompt.id, "prompt_av": prompt.prompt_av, "prompt_v": prompt.prompt_v, "prompt_a": prompt.prompt_a}
    media = {"video": [clip.video_FHWC for clip in clips], "audio": [clip.audio_CS for clip in clips]}
    tensors: dict[str, Any] = {modality: np.stack(media[modality]) for modality in needs}
    rates = {"fps": str(clips[0].fps), "sample_rate": str(clips[0].sample_rate)}
    return save(tensors, metadata={"prompt": json.dumps(meta), **rates})


def read_body(body: bytes, needs: Sequence[Modality]) -> tuple[Prompt, list[Clip]]:
    """Unpack prompt and clips. Raises BadBody naming the field."""
    metadata = _metadata(body)
    try:
        tensors = load(body)
    except Exception as error:  # the library has no narrower promise for bytes of strangers
        raise BadBody("", f"not a safetensors file: {error}") from error
    prompt = _prompt(metadata)
    media = {modality: _tensor(tensors, modality) for modality in needs}
    rates = {modality: _rate(metadata, modality) for modality in needs}
    counts = {modality: len(tensor) for modality, tensor in media.items()}
    if len(set(counts.values())) != 1:
        raise BadBody("/audio", f"video has {counts['video']} clips and audio {counts['audio']}; send as many of each")
    count = next(iter(counts.values()))
    if not 1 <= count <= MAX_CLIPS:
        raise BadBody(f"/{needs[0]}", f"{count} clips; send 1 to {MAX_CLIPS}")
    nothing: Mapping[str, Any] = {"video": np.zeros((count, 0, 0, 0, 3), np.uint8), "audio": np.zeros((count, 1, 0))}
    video, audio = (media.get(modality, nothing[modality]) for modality in ("video", "audio"))
    fps, sample_rate = rates.get("video", 1.0), int(rates.get("audio", 1))
    return prompt, [Clip(video[index], fps, audio[index], sample_rate) for index in range(count)]


def _metadata(body: bytes) -> dict[str, str]:
    """The `__metadata__` of the header; the header is 8 bytes of length and JSON."""
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > len(body) - 8:
        raise BadBody("", "not a safetensors file: the header is longer than the body")
    try:
        header = json.loads(body[8 : 8 + size])
        metadata = header.get("__metadata__", {})
        return {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError) as error:
        raise BadBody("", f"not a safetensors file: the header is not a JSON object ({error})") from error


def _prompt(metadata: Mapping[str, str]) -> Prompt:
    text = metadata.get("prompt")
    if not text:
        raise BadBody(
            "/__metadata__/prompt", "missing; give a text or a JSON object with prompt_av, prompt_v, prompt_a"
        )
    if not text.lstrip().startswith("{"):
        return Prompt("http", text, text, text)
    try:
        tree = json.loads(text)
        fields = [tree[key] for key in ("prompt_av", "prompt_v", "prompt_a")]
    except (ValueError, KeyError) as error:
        raise BadBody(
            "/__metadata__/prompt", f"not a JSON object with prompt_av, prompt_v, prompt_a: {error}"
        ) from error
    if not all(isinstance(value, str) for value in fields):
        raise BadBody("/__metadata__/prompt", "prompt_av, prompt_v and prompt_a must be texts")
    return Prompt(str(tree.get("id", "http")), *fields)


def _tensor(tensors: Mapping[str, Any], modality: Modality) -> Any:
    dtype, rank, shape = _LAYOUT[modality]
    if modality not in tensors:
        raise BadBody(f"/{modality}", f"missing; send {dtype} {shape}")
    tensor = tensors[modality]
    if str(tensor.dtype) != dtype or tensor.ndim != rank or (modality == "video" and tensor.shape[-1] != 3):
        raise BadBody(f"/{modality}", f"is {tensor.dtype} {list(tensor.shape)}; send {dtype} {shape}")
    return tensor


def _rate(metadata: Mapping[str, str], modality: Modality) -> float:
    key = _RATE[modality]
    try:
        rate = float(metadata[key])
    except KeyError as error:
        raise BadBody(f"/__metadata__/{key}", "missing; give a positive number as text") from error
    except ValueError as error:
        raise BadBody(f"/__metadata__/{key}", f"{metadata[key]!r} is not a number") from error
    if not (math.isfinite(rate) and rate > 0):
        raise BadBody(f"/__metadata__/{key}", f"{metadata[key]!r} must be a positive number")
    return rate
