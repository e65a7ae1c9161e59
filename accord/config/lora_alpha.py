"""How strong a LoRA file says it is: every published way of stating alpha, and a refusal where two of them disagree.

* `<layer>.alpha`, a number per layer, as kohya's scripts and their kin write it;
* the header's metadata: `lora_adapter_metadata` (diffusers: a PEFT config as JSON, with or without `transformer.`
  before its names), or the names in ALPHAS and RANKS in plain text;
* `adapter_config.json` beside the file (PEFT).

A file that states none is taken at scale 1, as diffusers does.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from accord.config.files import open_file, stamp_of
from accord.config.paths import LORA_BYTES
from accord.config.weights import header_bytes, read_json
from accord.errors import ModelError

LORA_CONFIG = "adapter_config.json"
ALPHAS = ("lora_alpha", "ss_network_alpha", "network_alpha", "alpha")
RANKS = ("r", "lora_rank", "ss_network_dim", "network_dim", "lora_dim", "rank")
_CONFIGS = ("lora_adapter_metadata", "adapter_config", "lora_config", "peft_config")
_PREFIX = re.compile(r"^(?:base_model\.model\.)?(?:transformer|diffusion_model)\.")
_NAME = re.compile(r"\^?[\w.]+")
_NUMBER = re.compile(r"[+-]?[\d.]+(?:[eE][+-]?\d+)?")
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "U8": "<B", "I8": "<b"}


@dataclass(frozen=True, slots=True)
class Stated:
    """What one source says."""

    source: str
    alpha: float | None = None
    by_layer: Mapping[str, float] = field(default_factory=dict)
    """By name of a layer: whole after a `^`, else its end, as PEFT matches them."""
    rooted: bool = False
    """Divided by the rank's square root instead of the rank."""

    def scale(self, layer: str, rank: int) -> float | None:
        """What the source makes of one layer; None when it says nothing of it."""
        alpha = next((value for key, value in self.by_layer.items() if _matches(key, layer)), self.alpha)
        return None if alpha is None else alpha / (math.sqrt(rank) if self.rooted else rank)


def scales(
    path: Path, metadata: Any, alphas: Mapping[str, float], layers: Collection[str], rank: int
) -> dict[str, float]:
    """Return what B A is multiplied by, for every layer.

    `metadata` is the header's; `alphas` are the numbers that the file holds by layer. Raises ModelError for statements
    that cannot be read, contradict each other or the tensors, or leave out some layers.
    """
    sources = [Stated("its alpha tensors", by_layer={f"^{name}": value for name, value in alphas.items()})]
    sources += _from_metadata(path, metadata, rank)
    beside = path.with_name(LORA_CONFIG)
    if stamp_of(str(beside)) is not None:
        sources += _of_config(path, LORA_CONFIG, read_json(beside), rank)
    found = {layer: _one(path, layer, rank, sources) for layer in layers}
    silent = sorted(layer for layer, scale in found.items() if scale is None)
    if silent and len(silent) < len(found):
        raise ModelError(f"{path}: states no alpha for {silent[0]} ({len(silent)} such), but for others; add it")
    return {layer: 1.0 if scale is None else scale for layer, scale in found.items()}


def read_numbers(path: Path, names: Mapping[str, str]) -> dict[str, float]:
    """Read tensors of one number each: value by layer, for `names` of tensors and their layers. Raises ModelError."""
    if not names:
        return {}
    text = header_bytes(path)
    header = json.loads(text)
    with open_file(path, LORA_BYTES) as file:
        return {
            layer: _number(file, 8 + len(text), header[name], f"{path}: {name}") for name, layer in names.items()
        }  # fmt: skip


def _number(file: BinaryIO, start: int, entry: Mapping[str, Any], where: str) -> float:
    kind = entry["dtype"]
    if math.prod(entry["shape"]) != 1 or (kind not in _NUMBERS and kind != "BF16"):
        raise ModelError(f"{where} is {kind} {entry['shape']}; an alpha is one number")
    begin, end = entry["data_offsets"]
    file.seek(start + begin)
    content = file.read(end - begin)
    value = struct.unpack("<f", b"\0\0" + content)[0] if kind == "BF16" else struct.unpack(_NUMBERS[kind], content)[0]
    return _positive(value, where)


def _one(path: Path, layer: str, rank: int, sources: Collection[Stated]) -> float | None:
    said = [(source.source, source.scale(layer, rank)) for source in sources]
    stated = [(source, scale) for source, scale in said if scale is not None]
    for source, scale in stated[1:]:
        if not math.isclose(scale, stated[0][1], rel_tol=1e-3):
            raise ModelError(
                f"{path}: {layer} has the scale {stated[0][1]:g} by {stated[0][0]} and {scale:g} by {source}; keep one"
            )
    return stated[0][1] if stated else None


def _from_metadata(path: Path, metadata: Any, rank: int) -> list[Stated]:
    if not isinstance(metadata, Mapping):
        return []
    found = []
    for name in _CONFIGS:
        if name in metadata:
            found += _of_config(path, f"the metadata's {name}", _as_json(path, name, metadata[name]), rank)
    plain = {_PREFIX.sub("", str(name)): value for name, value in metadata.items() if name not in _CONFIGS}
    for name in RANKS:
        _check_rank(path, name, plain.get(name), rank)
    rooted = _flag(plain, "use_rslora", f"{path}: use_rslora in its metadata")
    _refuse_unknown(path, plain)
    for name in ALPHAS:
        if not _silent(plain.get(name)):
            alpha = _positive(plain[name], f"{path}: {name} in its metadata")
            found.append(Stated(f"the metadata's {name}", alpha, rooted=rooted))
    return found


def _of_config(path: Path, source: str, config: Mapping[str, Any], rank: int) -> list[Stated]:
    """A PEFT config."""
    plain = {_PREFIX.sub("", str(name)): value for name, value in config.items()}
    if _flag(plain, "use_dora", f"{path}: use_dora in {source}"):
        raise ModelError(f"{path}: is a DoRA adapter; only LoRA is supported")
    patterns = plain.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or not isinstance(plain.get("rank_pattern") or {}, Mapping):
        raise ModelError(f"{path}: alpha_pattern or rank_pattern in {source} is no table")
    if not plain.get("rank_pattern"):
        _check_rank(path, f"r in {source}", plain.get("r"), rank)
    alpha = (
        None if _silent(plain.get("lora_alpha")) else _positive(plain["lora_alpha"], f"{path}: lora_alpha in {source}")
    )
    by_layer = {}
    for key, value in patterns.items():
        if not _NAME.fullmatch(key):
            raise ModelError(f"{path}: {key!r:.60} in alpha_pattern is no name of a layer; write the names out")
        name = _PREFIX.sub("", key.removeprefix("^"))
        by_layer["^" * key.startswith("^") + name] = _positive(value, f"{path}: alpha of {key}")
    return [Stated(source, alpha, by_layer, rooted=_flag(plain, "use_rslora", f"{path}: use_rslora in {source}"))]


def _as_json(path: Path, name: str, text: Any) -> Mapping[str, Any]:
    try:
        config = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its metadata {name} is not JSON; it may hold the adapter's alpha") from error
    if not isinstance(config, Mapping):
        raise ModelError(f"{path}: its metadata {name} is not a LoRA config; it may hold the adapter's alpha")
    return config


def _matches(pattern: str, layer: str) -> bool:
    if pattern.startswith("^"):
        return layer == pattern[1:]
    return layer == pattern or layer.endswith(f".{pattern}")


def _silent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip() in {"", "None", "null"})


def _flag(plain: Mapping[str, Any], name: str, where: str) -> bool:
    """A yes or no, which header metadata can only spell: `"false"` is a text that is not empty."""
    value = plain.get(name)
    if isinstance(value, bool) or _silent(value):
        return bool(value) and not isinstance(value, str)
    if str(value).strip().lower() in {"true", "false"}:
        return str(value).strip().lower() == "true"
    raise ModelError(f"{where} is {value!r:.60}; it is true or false")


def _refuse_unknown(path: Path, plain: Mapping[str, Any]) -> None:
    """A number under a name that speaks of an alpha is one, but of what? Kohya's other `ss_` names are settings."""
    for name, value in plain.items():
        known = name in ALPHAS or name.startswith("ss_") or "alpha" not in name.lower()
        if not known and _NUMBER.fullmatch(str(value).strip()):
            raise ModelError(
                f"{path}: {name!r:.60} in its metadata is no known name of an alpha; call it lora_alpha, or take it out"
            )


def _check_rank(path: Path, name: str, value: Any, rank: int) -> None:
    if not _silent(value) and _positive(value, f"{path}: {name}") != rank:
        raise ModelError(f"{path}: {name} says rank {value}, its tensors have rank {rank}; its alpha cannot be told")


def _positive(value: Any, where: str) -> float:
    try:
        number = float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} is {value!r:.60}, which is no number") from error
    if not (math.isfinite(number) and number > 0):
        raise ModelError(f"{where} is {number}; it must be positive and finite")
    return number
