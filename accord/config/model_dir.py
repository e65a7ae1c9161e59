"""What can be known about a model directory without loading it: is it whole, is it safe, what are its sizes.

Reads JSON and safetensors headers (8 bytes of length, then JSON) with the standard library alone, so that a job is
refused in the control plane, before any process with an ML framework starts.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import accord
from accord.config.files import JSON_BYTES, files_below, open_file, read_bytes
from accord.config.model_shapes import Shapes, check_transformer, check_vae
from accord.config.paths import BUILT_IN, LORA_BYTES
from accord.errors import InputError, ModelError
from accord.types import MODALITIES, Modality

WEIGHTS: dict[str, tuple[str, ...]] = {
    "transformer": ("LTX2VideoTransformer3DModel",),
    "vae": ("AutoencoderKLLTX2Video",),
    "audio_vae": ("AutoencoderKLLTX2Audio",),
    "vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
    "connectors": ("LTX2TextConnectors",),
    "text_encoder": (),
}
"""Components with weights and the classes they may have; the text encoder may be any class of transformers."""
_LIBRARIES = ("diffusers", "transformers", "ltx2")
_UNSAFE = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), "a pickle, which can run code when opened"),
    **dict.fromkeys((".py", ".pyc", ".so"), "code"),
}
_BLOCKS = "transformer_blocks."
_MAX_HEADER = 100_000_000
_WEIGHT_BYTES = 1024 * LORA_BYTES
_DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
               "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a pipeline that a job can be checked against."""

    path: Path
    depth: int
    """Transformer blocks."""
    block_parts: frozenset[str]
    """Names of the sub-modules of a block that hold matrices: what an adapter may target."""
    temporal_compression: int
    spatial_compression: int
    """Frames per latent frame (after the first) and pixels per latent pixel."""
    patch_size: int
    """Latent pixels per token along each side."""
    patch_size_t: int
    video_channels: int
    audio_channels: int
    """Width of one packed token of each modality."""
    audio_tokens_per_second: float
    sample_rate: int
    """Of the decoded sound, in Hz."""
    scheduler: Mapping[str, Any]
    """The scheduler's config as written."""
    modalities: tuple[Modality, ...] = MODALITIES
    audio_to_video: bool = True
    """Blocks let video attend to sound: the edge that gradient surgery works on."""
    video_to_audio: bool = True
    """Blocks let sound attend to video: the attention that region weights are read from."""

    def video_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip of so many frames and pixels."""
        latent_frames = (frames - 1) // self.temporal_compression + 1
        side = self.spatial_compression * self.patch_size
        return latent_frames // self.patch_size_t, height // side, width // side

    def audio_tokens(self, frames: int, fps: float) -> int:
        """Audio tokens of a clip of so many frames."""
        return round(frames / fps * self.audio_tokens_per_second)


def resolve_model_path(path: str) -> Path:
    """Turn `builtin:<name>` into the directory shipped with Accord; any other path is taken as it is.

    Raises ModelError for a name that is not shipped.
    """
    if not path.startswith(BUILT_IN):
        return Path(path)
    shipped = Path(accord.__file__).parent / "world" / "pretrained"
    name = path.removeprefix(BUILT_IN)
    known = sorted(entry.name for entry in shipped.iterdir() if (entry / "model_index.json").is_file())
    if name not in known:
        raise ModelError(f"no built-in model {name!r}; there is {', '.join(BUILT_IN + one for one in known)}")
    return shipped / name


def inspect_model_dir(path: str) -> ModelFacts:
    """Check an `LTX2Pipeline` directory and return its facts. Raises ModelError that names the file and the remedy."""
    root = resolve_model_path(path)
    try:
        index = read_json(root / "model_index.json")
    except ModelError as error:
        raise ModelError(f"{error}; give the folder of a pipeline, which holds model_index.json") from error
    _refuse_unsafe_files(root)
    _check_index(root, index)
    shapes = {component: _check_weights(root / component) for component in WEIGHTS}
    check_transformer(root / "transformer", read_json(root / "transformer" / "config.json"), shapes["transformer"])
    check_vae(root / "vae", read_json(root / "vae" / "config.json"), shapes["vae"])
    if not any((root / "tokenizer" / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(f"{root / 'tokenizer'}: holds neither tokenizer.json nor tokenizer.model")
    try:
        return _facts(root, shapes["transformer"])
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{root}: a config holds a value of the wrong kind ({error})") from error


def read_model_configs(path: str) -> ModelFacts:
    """Return the facts of a directory that may hold configs alone: for sizing, not for running. Raises ModelError."""
    root = resolve_model_path(path)
    _check_index(root, read_json(root / "model_index.json"))
    try:
        return _facts(root, None)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{root}: a config holds a value of the wrong kind ({error})") from error


def read_safetensors_header(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the header of a safetensors file, name to entry. Raises ModelError when it is torn or is no such file.

    With `whole = False` the tensors behind the header may be missing.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, _MAX_HEADER):
            raise ModelError(f"{path}: torn; the file ends inside its header ({size} bytes). Copy it again")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path}: not a safetensors file (its header is not JSON)") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: not a safetensors file (its header is not an object)")
    header.pop("__metadata__", None)
    if whole:
        _check_extents(path, header, size - 8 - length)
    return header


def _opened(path: Path) -> BinaryIO:
    try:
        return open_file(path, _WEIGHT_BYTES)
    except InputError as error:
        raise ModelError(str(error)) from error


def _files(root: Path) -> list[Path]:
    try:
        return files_below(root)
    except InputError as error:
        raise ModelError(str(error)) from error


def _check_extents(path: Path, header: Mapping[str, Any], available: int) -> None:
    end = 0
    for name, entry in header.items():
        try:
            begin, stop = entry["data_offsets"]
            count = 1
            for side in entry["shape"]:
                count *= side
            bits = _DTYPE_BITS.get(entry["dtype"])
        except (TypeError, KeyError, ValueError) as error:
            raise ModelError(f"{path}: header entry {name!r} is malformed") from error
        if begin > stop or (bits is not None and (stop - begin) * 8 != count * bits):
            raise ModelError(f"{path}: tensor {name!r} does not have the bytes its shape needs")
        end = max(end, stop)
    if end != available:
        raise ModelError(f"{path}: torn; its tensors need {end} bytes, the file has {available}. Copy it again")


def _refuse_unsafe_files(root: Path) -> None:
    for file in _files(root):
        reason = _UNSAFE.get(file.suffix.lower())
        if reason:
            raise ModelError(f"{file}: is {reason}; a model directory may hold safetensors and JSON only")
        if file.name.endswith(".json") and "tokenizer" not in file.name and "index" not in file.name:
            _refuse_auto_map(file, read_json(file))
    tokenizer = root / "tokenizer" / "tokenizer_config.json"
    if tokenizer.is_file():
        _refuse_auto_map(tokenizer, read_json(tokenizer))


def _refuse_auto_map(file: Path, config: Any) -> None:
    if isinstance(config, dict) and ("auto_map" in config or "custom_pipelines" in config):
        raise ModelError(f"{file}: asks for custom code (auto_map); only classes of diffusers and transformers load")


def _check_index(root: Path, index: Mapping[str, Any]) -> None:
    where = root / "model_index.json"
    if index.get("_class_name") != "LTX2Pipeline":
        raise ModelError(f"{where}: _class_name is {index.get('_class_name')!r}, not 'LTX2Pipeline'")
    for name, entry in index.items():
        if name.startswith("_") or entry == [None, None]:
            continue
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in _LIBRARIES and isinstance(entry[1], str)):
            raise ModelError(f"{where}: {name} is {entry!r}; only classes of diffusers and transformers load")
    for name, classes in {**WEIGHTS, "tokenizer": (), "scheduler": ("FlowMatchEulerDiscreteScheduler",)}.items():
        entry = index.get(name) or [None, None]
        if entry[1] is None or not (root / name).is_dir():
            raise ModelError(f"{root}: component {name!r} is missing; an LTX2Pipeline has {', '.join(WEIGHTS)}")
        if classes and entry[1] not in classes:
            raise ModelError(f"{where}: {name} is a {entry[1]}; expected {' or '.join(classes)}")


def _check_weights(component: Path) -> Shapes:
    """Check every weight file of a component; return the shapes of its tensors by name."""
    read_json(component / "config.json")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(component):
        if not file.is_file():
            raise ModelError(f"{file}: missing, though the index of {component.name} lists it. Copy it again")
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_safetensors_header(file).items()}
    if not shapes:
        raise ModelError(f"{component}: holds no .safetensors weights")
    return shapes


def weight_files(component: Path) -> Iterator[Path]:
    """Weight files of a component: those its index lists, whether they exist or not, else all there are."""
    indexes = sorted(component.glob("*.safetensors.index.json"))
    for index in indexes:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ModelError(f"{index}: has no weight_map")
        yield from (component / str(name) for name in sorted({*weight_map.values()}))
    if not indexes:
        yield from sorted(component.glob("*.safetensors"))


def _facts(root: Path, tensors: Shapes | None) -> ModelFacts:
    """Read the configs, and hold the depth against the transformer's tensors if they are given."""
    transformer = read_json(root / "transformer" / "config.json")
    vae, audio_vae = read_json(root / "vae" / "config.json"), read_json(root / "audio_vae" / "config.json")
    vocoder = read_json(root / "vocoder" / "config.json")
    depth = int(transformer.get("num_layers", 48))
    blocks = {tuple(name.split(".")[1:]): shape for name, shape in (tensors or {}).items() if name.startswith(_BLOCKS)}
    found = {int(name[0]) for name in blocks}
    if tensors is not None and found != set(range(depth)):
        raise ModelError(f"{root / 'transformer'}: config says {depth} blocks, the weights hold {len(found)}")
    parts = frozenset(name[1] for name, shape in blocks.items() if name[-1] == "weight" and len(shape) == 2)
    hop = int(audio_vae.get("mel_hop_length", 160)) * 4
    temporal, spatial = _compression(vae)
    return ModelFacts(
        path=root,
        depth=depth,
        block_parts=parts,
        temporal_compression=temporal,
        spatial_compression=spatial,
        patch_size=int(transformer.get("patch_size", 1)),
        patch_size_t=int(transformer.get("patch_size_t", 1)),
        video_channels=int(transformer.get("in_channels", 128)),
        audio_channels=int(transformer.get("audio_in_channels", 128)),
        audio_tokens_per_second=int(audio_vae.get("sample_rate", 16000)) / hop,
        sample_rate=int(vocoder.get("output_sampling_rate", 24000)),
        scheduler=read_json(root / "scheduler" / "scheduler_config.json"),
        audio_to_video=tensors is None or "audio_to_video_attn" in parts,
        video_to_audio=tensors is None or "video_to_audio_attn" in parts,
    )


def _compression(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Temporal and spatial compression of the video VAE; both default to what its down blocks make."""
    scaling = vae.get("spatio_temporal_scaling", (True, True, True, True))
    if isinstance(scaling, bool):
        scaling = (scaling,) * len(vae.get("block_out_channels", (256, 512, 1024, 2048)))
    levels = sum(bool(flag) for flag in scaling)
    temporal = vae.get("temporal_compression_ratio") or int(vae.get("patch_size_t", 1)) * 2**levels
    spatial = vae.get("spatial_compression_ratio") or int(vae.get("patch_size", 4)) * 2**levels
    return int(temporal), int(spatial)


def read_json(path: Path) -> dict[str, Any]:
    """Read a config. Raises ModelError when it is not there, too big, or no JSON object."""
    try:
        tree = json.loads(read_bytes(path, JSON_BYTES))
    except InputError as error:
        raise ModelError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{path}: holds no JSON object")
    return tree
