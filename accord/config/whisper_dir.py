"""What can be known of a Whisper in a transformers directory without loading it: its files, tensors and languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.clip_dir import inspect_tokenizer
from accord.config.gaps import refuse_gaps
from accord.config.weights import read_json, read_safetensors_header, refuse_quantised
from accord.errors import ModelError

CONFIG, EXTRACTOR, GENERATION = "config.json", "preprocessor_config.json", "generation_config.json"
TOKENIZER, WEIGHTS = "tokenizer.json", "model.safetensors"
FILES = (CONFIG, EXTRACTOR, GENERATION, TOKENIZER, WEIGHTS)
KIND, EXTRACTOR_KIND = "whisper", "WhisperFeatureExtractor"
RATE, HOP = 16_000, 160
TIED = "proj_out.weight"
"""The same tensor as the table of tokens; some files hold it twice."""
_SIZES = ("d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size",
          "num_mel_bins", "max_source_positions", "max_target_positions", "eos_token_id",
          "decoder_start_token_id")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tokens:
    """Numbers of the tokens that steer a transcript."""

    languages: Mapping[str, int]
    """By their codes; none = it knows English alone, and is told neither language nor task."""
    transcribe: int
    no_timestamps: int
    never: tuple[int, ...]
    """Not written at all."""
    not_first: tuple[int, ...]
    """Not written as the first."""


@dataclass(frozen=True, slots=True)
class WhisperFiles:
    """A Whisper whose files agree."""

    root: Path
    places: int
    """Tokens that the decoder has places for, the start of a transcript included."""
    start: int
    end: int
    """Tokens that begin and end a transcript; all tokens of text lie below the second."""
    tokens: Tokens

    def start_of(self, language: str) -> list[int]:
        """What a transcript in a language begins with. Raises KeyError for one that it does not know."""
        told = [self.tokens.languages[language], self.tokens.transcribe] if self.tokens.languages else []
        return [self.start, *told, self.tokens.no_timestamps]


def inspect_whisper(path: str | Path) -> WhisperFiles:
    """Check a `WhisperForConditionalGeneration` directory. Raises ModelError that names the file."""
    root = Path(path)
    file, config = root / CONFIG, read_json(root / CONFIG)
    if config.get("model_type") != KIND:
        raise ModelError(f"{file}: model_type is {config.get('model_type')!r}, not {KIND!r}; name a Whisper")
    sizes = {name: config.get(name) for name in _SIZES}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ModelError(f"{file}: {name} is {size!r}, and must be a whole number from 1; copy it again")
    whole = {name: int(size) for name, size in sizes.items() if size is not None}
    _check_extractor(root / EXTRACTOR, whole)
    tokens = _tokens(root / GENERATION, whole["vocab_size"])
    inspect_tokenizer(root)
    weights, header = root / WEIGHTS, read_safetensors_header(root / WEIGHTS)
    refuse_quantised(weights, header)
    wanted = dict(_shapes(whole))
    refuse_gaps(weights, wanted.keys() - header.keys())
    if unknown := sorted(header.keys() - wanted.keys() - {TIED}):
        raise ModelError(f"{weights}: holds the unknown {unknown[0]} ({len(unknown)} such); is {CONFIG} of this model?")
    for name, shape in wanted.items():
        found = tuple(header[name]["shape"])
        if found != shape:
            raise ModelError(f"{weights}: {name} is {found}, and {CONFIG} asks for {shape}; take both from one model")
    ends = whole["decoder_start_token_id"], whole["eos_token_id"]
    return WhisperFiles(root, whole["max_target_positions"], *ends, tokens)


def _check_extractor(file: Path, sizes: Mapping[str, int]) -> None:
    """Whether sound is prepared in the shape that the model wants."""
    settings = read_json(file)
    if settings.get("feature_extractor_type") != EXTRACTOR_KIND:
        kind = settings.get("feature_extractor_type")
        raise ModelError(f"{file}: prepares sound by {kind!r}, not {EXTRACTOR_KIND}; copy the file of this model")
    wanted = {"sampling_rate": RATE, "hop_length": HOP, "feature_size": sizes["num_mel_bins"]}
    for name, value in wanted.items():
        if settings.get(name) != value:
            raise ModelError(f"{file}: {name} is {settings.get(name)!r}, where {value} is wanted; copy it again")
    length = settings.get("chunk_length")
    frames = length * RATE // HOP if type(length) is int else 0
    if frames != 2 * sizes["max_source_positions"]:
        raise ModelError(
            f"{file}: chunk_length is {length!r} s, and {CONFIG} has places for {sizes['max_source_positions'] / 50:g} "
            "s; take both from one model"
        )


def _tokens(file: Path, count: int) -> Tokens:
    """The tokens that steer. Raises ModelError for settings of another age or model."""
    settings = read_json(file)

    def token(tree: Any, name: str) -> int:
        found: Any = tree.get(name) if isinstance(tree, Mapping) else None
        if not _is_token(found, count):
            raise ModelError(f"{file}: {name} is {found!r}, no token of {count}; take the file of today's model")
        return int(found)

    silent = []
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        listed = settings.get(name) or []
        if not isinstance(listed, list) or not all(_is_token(one, count) for one in listed):
            raise ModelError(f"{file}: {name} is no list of tokens of {count}; take the file of today's model")
        silent.append(tuple(listed))
    no_timestamps = token(settings, "no_timestamps_token_id")
    if settings.get("is_multilingual") is False:
        return Tokens({}, no_timestamps, no_timestamps, *silent)
    known = settings.get("lang_to_id")
    languages = {name.strip("<|>"): token(known, name) for name in (known if isinstance(known, Mapping) else {})}
    if not languages:
        raise ModelError(f"{file}: says no tokens of languages (lang_to_id); take the file of today's model")
    return Tokens(languages, token(settings.get("task_to_id"), "transcribe"), no_timestamps, *silent)


def _is_token(value: Any, tokens: int) -> bool:
    return type(value) is int and 0 <= value < tokens


def _shapes(sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors as they are published."""
    wide = sizes["d_model"]
    yield "model.encoder.conv1.weight", (wide, sizes["num_mel_bins"], 3)
    yield "model.encoder.conv2.weight", (wide, wide, 3)
    yield "model.encoder.conv1.bias", (wide,)
    yield "model.encoder.conv2.bias", (wide,)
    yield "model.encoder.embed_positions.weight", (sizes["max_source_positions"], wide)
    yield "model.decoder.embed_positions.weight", (sizes["max_target_positions"], wide)
    yield "model.decoder.embed_tokens.weight", (sizes["vocab_size"], wide)
    norms: list[str] = []
    for half, attentions in (("encoder", ("self_attn",)), ("decoder", ("self_attn", "encoder_attn"))):
        inner = sizes[f"{half}_ffn_dim"]
        for index in range(sizes[f"{half}_layers"]):
            layer = f"model.{half}.layers.{index}."
            for attention in attentions:
                for part in ("q", "k", "v", "out"):
                    yield f"{layer}{attention}.{part}_proj.weight", (wide, wide)
                yield from ((f"{layer}{attention}.{part}_proj.bias", (wide,)) for part in ("q", "v", "out"))
            yield from ((f"{layer}fc1.weight", (inner, wide)), (f"{layer}fc1.bias", (inner,)))
            yield from ((f"{layer}fc2.weight", (wide, inner)), (f"{layer}fc2.bias", (wide,)))
            norms += [f"{layer}{attention}_layer_norm" for attention in attentions] + [f"{layer}final_layer_norm"]
        norms.append(f"model.{half}.layer_norm")
    for name in norms:
        yield from ((f"{name}.weight", (wide,)), (f"{name}.bias", (wide,)))
