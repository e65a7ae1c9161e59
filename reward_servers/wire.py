"""The body of `POST /v1/score`: one safetensors file, no pickle, no paths.

Tensors: `video` uint8 [G, F, H, W, 3] and `audio` float32 [G, C, S]; a reward that looks at one modality needs only
that one. The `__metadata__` of the header holds strings: `prompt` (JSON object with `prompt_av`, `prompt_v`,
`prompt_a`, and optionally `id`; or a plain text that stands for all three), `fps` and `sample_rate`.

The header is held to its limits before anything is made of it, and clips are views of the body: a stranger's bytes cost
no more memory than they are.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from accord.types import Clip, Modality, Prompt

MAX_CLIPS = 1024
MAX_HEADER_BYTES = 2**20
_RATE: dict[Modality, str] = {"video": "fps", "audio": "sample_rate"}
_HIGHEST_RATE = 1e9
_TEXTS = ("prompt_av", "prompt_v", "prompt_a")


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a tensor must be."""

    dtype: str
    numpy: str
    axes: str
    most: tuple[int, ...]
    """Longest axes; how much there is in all is bounded by the body."""

    @property
    def wanted(self) -> str:
        return f"send {self.dtype} {self.axes}"


_LAYOUT: dict[str, _Layout] = {
    "video": _Layout("U8", "|u1", "[G, F, H, W, 3]", (MAX_CLIPS, 2**16, 2**16, 2**16, 3)),
    "audio": _Layout("F32", "<f4", "[G, C, S]", (MAX_CLIPS, 2**10, 2**28)),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the header has it, all of it looked at."""

    shape: tuple[int, ...]
    begin: int
    end: int


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


def read_body(body: bytes | bytearray, needs: Sequence[Modality]) -> tuple[Prompt, list[Clip]]:
    """Unpack prompt and clips, whose arrays are views of `body`. Raises BadBody naming the field."""
    header, data = _header(body)
    metadata = _metadata(header.pop("__metadata__", {}))
    tensors = {_known(name): _tensor(name, entry) for name, entry in header.items()}
    _fill_exactly(tensors, len(body) - data)
    prompt = _prompt(metadata)
    for modality in needs:
        if modality not in tensors:
            raise BadBody(f"/{modality}", f"missing; {_LAYOUT[modality].wanted}")
    counts = {modality: tensors[modality].shape[0] for modality in needs}
    if len(set(counts.values())) != 1:
        raise BadBody("/audio", f"video has {counts['video']} clips and audio {counts['audio']}; send as many of each")
    count = counts[needs[0]]
    if count < 1:
        raise BadBody(f"/{needs[0]}", f"holds no clip; send 1 to {MAX_CLIPS}")
    rates = {modality: _rate(metadata, modality) for modality in needs}
    nothing: dict[str, NDArray[Any]] = {
        "video": np.zeros((count, 0, 0, 0, 3), np.uint8),
        "audio": np.zeros((count, 1, 0), np.float32),
    }
    media = nothing | {modality: _view(body, data, modality, tensors[modality]) for modality in needs}
    fps, sample_rate = rates.get("video", 1.0), int(rates.get("audio", 1))
    pairs = zip(media["video"], media["audio"], strict=True)
    return prompt, [Clip(video, fps, audio, sample_rate) for video, audio in pairs]


def _header(body: bytes | bytearray) -> tuple[dict[str, Any], int]:
    """The header's object, and where the data begins: 8 bytes say how long the header is."""
    size = int.from_bytes(body[:8], "little")
    if len(body) < 8 or size > len(body) - 8:
        raise BadBody("", "not a safetensors file: the header is longer than the body")
    if size > MAX_HEADER_BYTES:
        raise BadBody("", f"the header has {size} bytes; {MAX_HEADER_BYTES} are read")
    return _object(bytes(body[8 : 8 + size]), "", "not a safetensors file: the header"), 8 + size


def _object(data: bytes | str, field: str, what: str) -> dict[str, Any]:
    """A JSON object in UTF-8 without names that stand twice."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        tree = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadBody(field, f"{what} is not a JSON object ({_short(error)})") from error
    if not isinstance(tree, dict):
        raise BadBody(field, f"{what} is not a JSON object")
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _metadata(entries: Any) -> dict[str, str]:
    if not isinstance(entries, dict):
        raise BadBody("/__metadata__", "must be an object of texts")
    for key, value in entries.items():
        if not _is_text(key) or not _is_text(value):
            raise BadBody(_pointer("__metadata__", key), "must be a text")
    return entries


def _is_text(value: object) -> bool:
    """Whether it is a text that can be written; half of a surrogate pair cannot."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _known(name: str) -> str:
    if name not in _LAYOUT:
        raise BadBody(_pointer(name), f"is unknown; send {' and '.join(_LAYOUT)}")
    return name


def _tensor(name: str, entry: Any) -> _Tensor:
    """What the header says of a tensor, once it agrees with itself."""
    layout, field = _LAYOUT[name], f"/{name}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadBody(field, "must be an object of dtype, shape and data_offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] != layout.dtype:
        raise BadBody(field, f"is {_short(entry['dtype'])}; {layout.wanted}")
    if not _sizes(shape, len(layout.most)) or (name == "video" and shape[-1] != 3):
        raise BadBody(field, f"has the shape {_short(shape)}; {layout.wanted}")
    beyond = [axis for axis, (size, most) in enumerate(zip(shape, layout.most, strict=True)) if size > most]
    if beyond:
        raise BadBody(field, f"has the shape {_short(shape)}; at most {list(layout.most)} is read")
    if not _sizes(offsets, 2):
        raise BadBody(field, f"has the data_offsets {_short(offsets)}; give where it begins and where it ends")
    begin, end = offsets
    size = math.prod(shape) * np.dtype(layout.numpy).itemsize
    if end - begin != size:
        raise BadBody(field, f"has {end - begin} bytes; its shape and dtype make {size}")
    return _Tensor(tuple(shape), begin, end)


def _sizes(value: Any, count: int) -> bool:
    """Whether it is a list of so many whole numbers, none negative and none beyond 63 bits."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(size) is int and 0 <= size < 2**63 for size in value)


def _fill_exactly(tensors: Mapping[str, _Tensor], size: int) -> None:
    """Tensors lie one behind the other and fill the data."""
    place = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != place or tensor.end > size:
            raise BadBody(
                f"/{name}", f"lies at {tensor.begin} to {tensor.end} of {size} bytes; it would begin at {place}"
            )
        place = tensor.end
    if place != size:
        raise BadBody("", f"not a safetensors file: the tensors end at {place} of {size} bytes")


def _view(body: bytes | bytearray, data: int, modality: str, tensor: _Tensor) -> NDArray[Any]:
    """The tensor where it lies; a copy where its numbers are out of line with memory."""
    flat = np.frombuffer(body, _LAYOUT[modality].numpy, math.prod(tensor.shape), data + tensor.begin)
    return np.require(flat, requirements="A").reshape(tensor.shape)


def _prompt(metadata: Mapping[str, str]) -> Prompt:
    field = "/__metadata__/prompt"
    text = metadata.get("prompt")
    if not text:
        raise BadBody(field, f"missing; give a text or a JSON object with {', '.join(_TEXTS)}")
    if not text.lstrip().startswith("{"):
        return Prompt("http", text, text, text)
    tree = _object(text, field, f"which begins with a brace and should hold {', '.join(_TEXTS)},")
    if missing := [key for key in _TEXTS if key not in tree]:
        raise BadBody(field, f"has no {', '.join(missing)}")
    fields = {key: tree.get(key, "http") for key in ("id", *_TEXTS)}
    for key, value in fields.items():
        if not _is_text(value):
            raise BadBody(field, f"{key} must be a text")
    return Prompt(**fields)


def _rate(metadata: Mapping[str, str], modality: Modality) -> float:
    key = _RATE[modality]
    field = f"/__metadata__/{key}"
    try:
        rate = float(metadata[key])
    except KeyError as error:
        raise BadBody(field, "missing; give a positive number as text") from error
    except ValueError as error:
        raise BadBody(field, f"{_short(metadata[key])} is not a number") from error
    if not 0 < rate <= _HIGHEST_RATE:
        raise BadBody(field, f"{rate} must be a positive number, at most {_HIGHEST_RATE:g}")
    if modality == "audio" and not rate.is_integer():
        raise BadBody(field, f"{rate} must be a whole number of samples a second")
    return rate


def _pointer(*parts: object) -> str:
    """A JSON pointer to something that a stranger named."""
    return "".join(f"/{_ascii(str(part))[:80].replace('~', '~0').replace('/', '~1')}" for part in parts)


def _short(value: object) -> str:
    """What a stranger sent, fit for a message."""
    text = _ascii(str(value) if isinstance(value, Exception) else reprlib.repr(value))
    return text if len(text) <= 120 else f"{text[:117]}..."


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")
