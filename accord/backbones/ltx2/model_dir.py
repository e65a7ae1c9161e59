"""What can be known about a model directory without loading it: is it whole, is it safe, what are its sizes.

Reads JSON and safetensors headers with the standard library alone, so that a job is refused in the control plane,
before any process with an ML framework starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accord
from accord.backbones.ltx2 import streams
from accord.backbones.ltx2.schedule import ScheduleConfig, sigma_schedule
from accord.backbones.ltx2.shapes import check_complete, check_encoder, check_transformer, check_vae
from accord.config import contract
from accord.config.files import files_below
from accord.config.paths import BUILT_IN
from accord.config.sampling import SamplingSpec
from accord.config.weights import Shapes, component_shapes, read_json
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
_HOMES = {"vocoder": "ltx2", "connectors": "ltx2", "text_encoder": "transformers", "tokenizer": "transformers"}
"""The library of a component's class; of the others, diffusers."""
_UNSAFE = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), "a pickle, which can run code when opened"),
    **dict.fromkeys((".py", ".pyc", ".so"), "code"),
}
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_CROSSINGS: dict[str, contract.Crossing] = {
    streams.AUDIO_TO_VIDEO: ("video", "audio"),
    streams.VIDEO_TO_AUDIO: ("audio", "video"),
}
"""Part of a block, and who reads whom in it."""
WRONG_KIND = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What Python raises when a config holds a text for a number, a list for a table, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LTX2Facts(contract.ModelFacts):
    """Sizes of a pipeline that a job can be checked against."""

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

    def video_grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip of so many frames and pixels."""
        latent_frames = (frames - 1) // self.temporal_compression + 1
        side = self.spatial_compression * self.patch_size
        return latent_frames // self.patch_size_t, height // side, width // side

    def audio_tokens(self, frames: int, fps: float) -> int:
        """Audio tokens of a clip of so many frames."""
        return round(frames / fps * self.audio_tokens_per_second)

    def sigmas(self, sampling: SamplingSpec) -> Sequence[float] | None:
        """The scheduler's; None where it makes none, which is the backbone's to tell."""
        try:
            return self.schedule(sampling)
        except (ModelError, *WRONG_KIND):
            return None

    def schedule(self, sampling: SamplingSpec) -> Sequence[float]:
        """The scheduler's. Raises ModelError for one of another kind, ArithmeticError for a shift that leaves none."""
        frames, height, width = self.video_grid(sampling.frames, sampling.height, sampling.width)
        config = ScheduleConfig.parse(self.scheduler)
        return sigma_schedule(config, sampling.num_steps, frames * height * width, sampling.shift)


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


def inspect_model_dir(path: str) -> LTX2Facts:
    """Check an `LTX2Pipeline` directory and return its facts. Raises ModelError that names the file and the remedy."""
    root = resolve_model_path(path)
    try:
        return _inspect(root)
    except WRONG_KIND as error:
        raise ModelError(f"{root}: a config holds a value of the wrong kind ({error})") from error


def _inspect(root: Path) -> LTX2Facts:
    try:
        index = read_json(root / "model_index.json")
    except ModelError as error:
        raise ModelError(f"{error}; give the folder of a pipeline, which holds model_index.json") from error
    files = _files(root)
    _refuse_unsafe_files(files)
    _check_index(root, index)
    configs = {component: read_json(root / component / "config.json") for component in WEIGHTS}
    shapes = {component: component_shapes(root / component) for component in WEIGHTS}
    check_transformer(root / "transformer", configs["transformer"], shapes["transformer"])
    check_vae(root / "vae", configs["vae"], shapes["vae"])
    _check_encoder(root, index["text_encoder"][1], configs["text_encoder"], shapes["text_encoder"])
    for component in WEIGHTS:
        check_complete(root / component, configs[component], shapes[component])
    _check_optional(root, index, files)
    tokenizers = [root / "tokenizer" / name for name in _TOKENIZERS if root / "tokenizer" / name in files]
    if not tokenizers:
        raise ModelError(f"{root / 'tokenizer'}: holds neither tokenizer.json nor tokenizer.model")
    if tokenizers[0].suffix == ".json" and not isinstance(read_json(tokenizers[0]).get("model"), dict):
        raise ModelError(f"{tokenizers[0]}: holds no model of a tokenizer; copy it again")
    return _facts(root, shapes["transformer"])


def _check_encoder(root: Path, kind: str, config: Mapping[str, Any], shapes: Shapes) -> None:
    """A class that does not fit, or sizes beyond the weights, would be made in full, at random, before that is seen."""
    made = config.get("architectures")
    if not isinstance(made, list) or kind not in made:
        where = root / "text_encoder" / "config.json"
        raise ModelError(f"{where}: was saved by {made or 'nobody that it names'}, but model_index.json loads a {kind}")
    check_encoder(root / "text_encoder", config, shapes)


def read_model_configs(path: str) -> LTX2Facts:
    """Return the facts of a directory that may hold configs alone: for sizing, not for running. Raises ModelError."""
    root = resolve_model_path(path)
    _check_index(root, read_json(root / "model_index.json"))
    try:
        return _facts(root, None)
    except WRONG_KIND as error:
        raise ModelError(f"{root}: a config holds a value of the wrong kind ({error})") from error


def _files(root: Path) -> list[Path]:
    try:
        return files_below(root)
    except InputError as error:
        raise ModelError(str(error)) from error


def _refuse_unsafe_files(files: Sequence[Path]) -> None:
    for file in files:
        reason = _UNSAFE.get(file.suffix.lower())
        if reason:
            raise ModelError(f"{file}: is {reason}; a model directory may hold safetensors and JSON only")
        if (
            file.name.endswith(".json") and "tokenizer" not in file.name and "index" not in file.name
        ) or file.name == "tokenizer_config.json":
            _refuse_auto_map(file, read_json(file))


def _check_optional(root: Path, index: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Components that jobs do without, but that others who load the directory need whole."""
    for name in ("prompt_enhancer", "duration_head"):
        if (index.get(name) or [None, None])[1] is not None:
            read_json(root / name / "config.json")
            component_shapes(root / name)
    if (index.get("processor") or [None, None])[1] is not None:
        there = {file.name for file in files if file.parent == root / "processor"}
        if not there & {*_TOKENIZERS} or not there & {"processor_config.json", "preprocessor_config.json"}:
            raise ModelError(
                f"{root / 'processor'}: is no whole processor (it lacks its config or a tokenizer); copy it again, or "
                "set it to [null, null] in model_index.json"
            )


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
        if entry[0] != _HOMES.get(name, "diffusers"):
            home = _HOMES.get(name, "diffusers")
            raise ModelError(f"{where}: {name} is a class of {entry[0]}, where none is known; it is one of {home}")
        if classes and entry[1] not in classes:
            raise ModelError(f"{where}: {name} is a {entry[1]}; expected {' or '.join(classes)}")


def _facts(root: Path, tensors: Shapes | None) -> LTX2Facts:
    """Read the configs, and hold the depth against the transformer's tensors if they are given."""
    transformer = read_json(root / "transformer" / "config.json")
    vae, audio_vae = read_json(root / "vae" / "config.json"), read_json(root / "audio_vae" / "config.json")
    vocoder = read_json(root / "vocoder" / "config.json")
    depth = int(transformer.get("num_layers", 48))
    blocks = {
        tuple(name.split(".")[1:]): shape
        for name, shape in (tensors or {}).items()
        if name.startswith(f"{streams.BLOCKS}.")
    }
    found = {int(name[0]) for name in blocks}
    if tensors is not None and (len(found) != depth or found != set(range(len(found)))):
        raise ModelError(f"{root / 'transformer'}: config says {depth} blocks, the weights hold {len(found)}")
    parts = frozenset(name[1] for name, shape in blocks.items() if name[-1] == "weight" and len(shape) == 2)
    hop = int(audio_vae.get("mel_hop_length", 160)) * 4
    temporal, spatial = _compression(vae)
    facts = LTX2Facts(
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
        crossings=frozenset(edge for name, edge in _CROSSINGS.items() if tensors is None or name in parts),
    )
    sizes = (depth, temporal, spatial, facts.patch_size, facts.patch_size_t, facts.video_channels, facts.audio_channels,
             facts.sample_rate, facts.audio_tokens_per_second)  # fmt: skip
    if min(sizes) <= 0:
        raise ValueError(f"a size is {min(sizes)}")
    return facts


def _compression(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Temporal and spatial compression of the video VAE; both default to what its down blocks make."""
    scaling = vae.get("spatio_temporal_scaling", (True, True, True, True))
    if isinstance(scaling, bool):
        scaling = (scaling,) * len(vae.get("block_out_channels", (256, 512, 1024, 2048)))
    levels = sum(bool(flag) for flag in scaling)
    temporal = vae.get("temporal_compression_ratio") or int(vae.get("patch_size_t", 1)) * 2**levels
    spatial = vae.get("spatial_compression_ratio") or int(vae.get("patch_size", 4)) * 2**levels
    return int(temporal), int(spatial)
