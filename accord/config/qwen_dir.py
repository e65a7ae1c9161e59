"""What can be known of a Qwen2-VL without loading it: its config, its tokenizer, and which tensors it has.

Two kinds of names are read. Files written before transformers 4.52 call the vision tower `visual.` and the language
model `model.`; later ones say `model.visual.` and `model.language_model.`. Everything here speaks the later names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.config.files import JSON_BYTES, kind_of, read_bytes
from accord.config.gaps import refuse_gaps
from accord.config.weights import Shapes, read_json
from accord.errors import InputError, ModelError

TEXT, VISION = "language_model.", "visual."
EMBEDDING = f"{TEXT}embed_tokens.weight"
HEAD = "rm_head."
LM_HEAD = "lm_head."
"""What turns hidden states into words; a reward needs none of it, and it is never loaded."""
_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def base_files(root: Path) -> list[Path]:
    """The files of a Qwen2-VL's directory that a reward reads, its weights left out, as far as they are there."""
    return [root / name for name in dict.fromkeys((*_FILES, *_TEMPLATES)) if kind_of(root / name) == "file"]


@dataclass(frozen=True, slots=True)
class QwenBase:
    """The directory of a Qwen2-VL: everything of it that is no weight."""

    root: Path
    config: Mapping[str, Any]
    chat_template: str

    @property
    def files(self) -> list[Path]:
        """Files of it that a score may depend on."""
        return base_files(self.root)

    @property
    def text(self) -> Mapping[str, Any]:
        """The language model's part of the config; older configs hold it at the top."""
        part = self.config.get("text_config")
        return part if isinstance(part, dict) else self.config

    @property
    def vision(self) -> Mapping[str, Any]:
        """The vision tower's part of the config."""
        part = self.config.get("vision_config")
        return part if isinstance(part, dict) else {}


def inspect_base(path: str | Path) -> QwenBase:
    """Check the directory of a Qwen2-VL for all but its weights. Raises ModelError that names the file."""
    root = Path(path)
    files = {name: read_json(root / name) for name in _FILES}
    config = files["config.json"]
    if config.get("model_type") != "qwen2_vl":
        raise ModelError(f"{root / 'config.json'}: model_type is {config.get('model_type')!r}, not 'qwen2_vl'")
    if not isinstance(files["tokenizer.json"].get("model"), dict):
        raise ModelError(f"{root / 'tokenizer.json'}: holds no model of a tokenizer; copy it again")
    base = QwenBase(root, config, _chat_template(root))
    base_shapes(base, 1)
    return base


def _chat_template(root: Path) -> str:
    """The template of a conversation. Raises ModelError when no file has one."""
    for name in _TEMPLATES:
        if kind_of(root / name) != "file":
            continue
        if name.endswith(".jinja"):
            return read_text(root / name)
        found = read_json(root / name).get("chat_template")
        if isinstance(found, str) and found:
            return found
    raise ModelError(f"{root}: none of {', '.join(_TEMPLATES)} holds a chat_template; copy the whole directory")


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises ModelError when it is none."""
    try:
        return read_bytes(path, JSON_BYTES).decode()
    except InputError as error:
        raise ModelError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is no text in UTF-8") from error


def renamed(name: str, *, old: bool) -> str:
    """The name of a tensor below `Qwen2VLModel`; heads keep theirs. `old`: the file has names from before 4.52."""
    if old:
        return f"{TEXT}{name.removeprefix('model.')}" if name.startswith("model.") else name
    return name.removeprefix("model.")


def has_old_names(names: Iterable[str]) -> bool:
    """Whether a file calls its parts as transformers did before 4.52."""
    return not any(name.startswith((f"model.{TEXT}", f"model.{VISION}")) for name in names)


def base_shapes(base: QwenBase, rows: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of `Qwen2VLModel` with `rows` tokens. Raises ModelError for a config that lacks a number."""
    try:
        return {**dict(_text_shapes(base.text, rows)), **dict(_vision_shapes(base.vision))}
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{base.root / 'config.json'}: lacks what a Qwen2-VL's config says ({error!r})") from error


def _text_shapes(config: Mapping[str, Any], rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    narrow = wide // heads * int(config["num_key_value_heads"])
    yield EMBEDDING, (rows, wide)
    yield f"{TEXT}norm.weight", (wide,)
    for index in range(int(config["num_hidden_layers"])):
        layer = f"{TEXT}layers.{index}."
        for part, width in (("q", wide), ("k", narrow), ("v", narrow)):
            yield f"{layer}self_attn.{part}_proj.weight", (width, wide)
            yield f"{layer}self_attn.{part}_proj.bias", (width,)
        yield f"{layer}self_attn.o_proj.weight", (wide, wide)
        yield f"{layer}mlp.gate_proj.weight", (inner, wide)
        yield f"{layer}mlp.up_proj.weight", (inner, wide)
        yield f"{layer}mlp.down_proj.weight", (wide, inner)
        yield f"{layer}input_layernorm.weight", (wide,)
        yield f"{layer}post_attention_layernorm.weight", (wide,)


def _vision_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, out = int(config["embed_dim"]), int(config["hidden_size"])
    patch, channels = int(config.get("patch_size", 14)), int(config.get("in_channels", config.get("in_chans", 3)))
    inner = int(wide * config.get("mlp_ratio", 4))
    merged = wide * int(config.get("spatial_merge_size", 2)) ** 2
    yield f"{VISION}patch_embed.proj.weight", (wide, channels, int(config.get("temporal_patch_size", 2)), patch, patch)
    layers = {"merger.mlp.0": (merged, merged), "merger.mlp.2": (out, merged)}
    norms = {"merger.ln_q": wide}
    for index in range(int(config["depth"])):
        block = f"blocks.{index}."
        layers |= {f"{block}attn.qkv": (3 * wide, wide), f"{block}attn.proj": (wide, wide)}
        layers |= {f"{block}mlp.fc1": (inner, wide), f"{block}mlp.fc2": (wide, inner)}
        norms |= {f"{block}norm1": wide, f"{block}norm2": wide}
    for name, (height, width) in layers.items():
        yield f"{VISION}{name}.weight", (height, width)
        yield f"{VISION}{name}.bias", (height,)
    for name, width in norms.items():
        yield f"{VISION}{name}.weight", (width,)
        yield f"{VISION}{name}.bias", (width,)


def refuse_unlike(where: Path, found: Shapes, wanted: Shapes, base: QwenBase) -> None:
    """Hold a file's tensors to those that the config asks for. Raises ModelError that names the first odd one."""
    refuse_gaps(where, wanted.keys() - found.keys())
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise ModelError(f"{where}: holds the unknown {unknown[0]} ({len(unknown)} such); is it for this base model?")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(
                f"{where}: {name} is {_sides(found[name])}, and {base.root / 'config.json'} asks for {_sides(shape)}; "
                "take the base that the checkpoint was trained from"
            )


def _sides(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
