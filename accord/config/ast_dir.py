"""What can be known of an AST that tags sound with the classes of AudioSet without loading it: its files agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.gaps import refuse_gaps
from accord.config.weights import read_json, read_safetensors_header, refuse_quantised
from accord.errors import ModelError

CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
FILES = (CONFIG, EXTRACTOR, WEIGHTS)
KIND, EXTRACTOR_KIND = "audio-spectrogram-transformer", "ASTFeatureExtractor"
RATE = 16_000
CLASSES = 527
"""Of AudioSet."""
FAMILIES = (
    ("Speech", "people"), ("Singing", "music"), ("Groan", "people"), ("Animal", "animals"), ("Music", "music"),
    ("Wind", "nature"), ("Fire", "fire"), ("Vehicle", "traffic"), ("Door", "household"), ("Alarm", "traffic"),
    ("Mechanisms", "household"), ("Explosion", "blasts"), ("Wood", ""), ("Liquid", "nature"), ("Sonar", ""),
    ("Noise", "noise"), ("Television", ""),
)  # fmt: skip
"""First label of each stretch of AudioSet's list, which follows its ontology, and the family of that stretch. "" = what
any source may be heard as, or in which room: it belongs to none."""
_SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "patch_size": 16, "frequency_stride": 10,
    "time_stride": 10, "max_length": 1024, "num_mel_bins": 128,
}  # fmt: skip
"""What a config says by leaving it out."""


@dataclass(frozen=True, slots=True)
class AstFiles:
    """An AST whose files agree."""

    root: Path
    labels: tuple[str, ...]
    """By class."""
    families: tuple[str, ...]
    """Of each label; "" = none."""


def inspect_ast(path: str | Path) -> AstFiles:
    """Check an `ASTForAudioClassification` directory with AudioSet's labels. Raises ModelError that names the file."""
    root = Path(path)
    file, config = root / CONFIG, read_json(root / CONFIG)
    if config.get("model_type") != KIND:
        raise ModelError(f"{file}: model_type is {config.get('model_type')!r}, not {KIND!r}; name an AST")
    labels = _labels(file, config.get("id2label"))
    families = _families(file, labels)
    sizes = {name: config.get(name, default) for name, default in _SIZES.items()}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ModelError(f"{file}: {name} is {size!r}, and must be a whole number from 1; copy it again")
    _check_extractor(root / EXTRACTOR, sizes)
    weights, header = root / WEIGHTS, read_safetensors_header(root / WEIGHTS)
    refuse_quantised(weights, header)
    wanted = dict(_shapes(sizes))
    refuse_gaps(weights, wanted.keys() - header.keys())
    if unknown := sorted(header.keys() - wanted.keys()):
        raise ModelError(f"{weights}: holds the unknown {unknown[0]} ({len(unknown)} such); is {CONFIG} of this model?")
    for name, shape in wanted.items():
        found = tuple(header[name]["shape"])
        if found != shape:
            raise ModelError(f"{weights}: {name} is {found}, and {CONFIG} asks for {shape}; take both from one model")
    return AstFiles(root, labels, families)


def _labels(file: Path, said: Any) -> tuple[str, ...]:
    found = said if isinstance(said, Mapping) else {}
    if len(found) != CLASSES:
        raise ModelError(
            f"{file}: id2label has {len(found)} labels, and AudioSet {CLASSES}; name an AST that was tuned to AudioSet"
        )
    labels = tuple(found.get(str(place)) for place in range(CLASSES))
    for place, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ModelError(f"{file}: id2label has no text for class {place}; copy it again")
    return tuple(str(label) for label in labels)


def _families(file: Path, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The family of each label. Raises ModelError where the stretches do not begin in AudioSet's order."""
    firsts = [labels.index(first) if first in labels else -1 for first, _ in FAMILIES]
    if firsts != sorted(set(firsts)) or firsts[0] != 0:
        away = next((first for (first, _), place in zip(FAMILIES, firsts, strict=True) if place < 0), "order")
        raise ModelError(f"{file}: its labels are not AudioSet's in AudioSet's order ({away!r}); take its own id2label")
    ends = [*firsts[1:], CLASSES]
    return tuple(
        family for (_, family), first, end in zip(FAMILIES, firsts, ends, strict=True) for _ in range(first, end)
    )


def _check_extractor(file: Path, sizes: Mapping[str, int]) -> None:
    """Whether sound is prepared in the shape that the model wants."""
    settings = read_json(file)
    if settings.get("feature_extractor_type") != EXTRACTOR_KIND:
        kind = settings.get("feature_extractor_type")
        raise ModelError(f"{file}: prepares sound by {kind!r}, not {EXTRACTOR_KIND}; copy the file of this model")
    wanted = {"sampling_rate": RATE, "max_length": sizes["max_length"], "num_mel_bins": sizes["num_mel_bins"]}
    for name, value in wanted.items():
        if settings.get(name) != value:
            raise ModelError(f"{file}: {name} is {settings.get(name)!r}, where {value} is wanted; copy it again")
    for name in ("mean", "std"):
        if type(settings.get(name)) not in {int, float} or (name == "std" and not settings[name] > 0):
            raise ModelError(f"{file}: {name} is {settings.get(name)!r}, no number to normalise by; copy it again")


def _shapes(sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors as they are published."""
    wide, inner, patch = sizes["hidden_size"], sizes["intermediate_size"], sizes["patch_size"]
    rows = (sizes["num_mel_bins"] - patch) // sizes["frequency_stride"] + 1
    columns = (sizes["max_length"] - patch) // sizes["time_stride"] + 1
    at = "audio_spectrogram_transformer"
    yield f"{at}.embeddings.cls_token", (1, 1, wide)
    yield f"{at}.embeddings.distillation_token", (1, 1, wide)
    yield f"{at}.embeddings.position_embeddings", (1, rows * columns + 2, wide)
    yield f"{at}.embeddings.patch_embeddings.projection.weight", (wide, 1, patch, patch)
    yield f"{at}.embeddings.patch_embeddings.projection.bias", (wide,)
    linears = {"classifier.dense": (CLASSES, wide)}
    norms = [f"{at}.layernorm", "classifier.layernorm"]
    for index in range(sizes["num_hidden_layers"]):
        layer = f"{at}.encoder.layer.{index}."
        linears |= {f"{layer}attention.attention.{name}": (wide, wide) for name in ("query", "key", "value")}
        linears |= {f"{layer}attention.output.dense": (wide, wide)}
        linears |= {f"{layer}intermediate.dense": (inner, wide), f"{layer}output.dense": (wide, inner)}
        norms += [f"{layer}layernorm_before", f"{layer}layernorm_after"]
    for name, shape in linears.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    for name in norms:
        yield f"{name}.weight", (wide,)
        yield f"{name}.bias", (wide,)
