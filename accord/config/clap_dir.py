"""What can be known about a CLAP checkpoint without loading it: are its files there, whole, and of one model."""

from __future__ import annotations

from pathlib import Path

import accord
from accord.config.paths import BUILT_IN
from accord.config.weights import read_json, read_safetensors_header
from accord.errors import ModelError

TINY = f"{BUILT_IN}tiny-clap"
SHIPPED = {TINY: Path(accord.__file__).parents[1] / "reward_servers" / "checkpoints" / "tiny-clap"}
CONFIGS = ("config.json", "preprocessor_config.json", "tokenizer.json")
WEIGHTS = "model.safetensors"
_TOWERS = ("audio_model.", "text_model.", "audio_projection.", "text_projection.")


def clap_directory(path: str) -> Path:
    """Turn `builtin:tiny-clap` into its directory. Raises ModelError for another built-in name."""
    if path.startswith(BUILT_IN) and path not in SHIPPED:
        raise ModelError(f"no built-in CLAP checkpoint {path!r}; there is {', '.join(SHIPPED)}")
    return SHIPPED.get(path, Path(path))


def inspect_clap_dir(path: str) -> Path:
    """Check a transformers `ClapModel` directory and return it. Raises ModelError that names the file."""
    root = clap_directory(path)
    config = {name: read_json(root / name) for name in CONFIGS}["config.json"]
    if config.get("model_type") != "clap":
        raise ModelError(f"{root / 'config.json'}: model_type is {config.get('model_type')!r}, not 'clap'")
    header = read_safetensors_header(root / WEIGHTS)
    for tower in _TOWERS:
        if not any(name.startswith(tower) for name in header):
            raise ModelError(f"{root / WEIGHTS}: holds nothing of {tower.rstrip('.')}; save a whole ClapModel")
    return root
