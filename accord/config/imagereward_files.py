"""What can be known of an ImageReward checkpoint without torch: is its file whole, and what `med_config.json` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accord.config.torch_files import inspect_torch_file
from accord.config.weights import read_json
from accord.errors import ModelError

MED_CONFIG = "med_config.json"


def inspect_imagereward(path: str) -> dict[str, Any]:
    """Check the weights and return the text encoder's config beside them. Raises ModelError that names the file."""
    inspect_torch_file(Path(path))
    file = Path(path).with_name(MED_CONFIG)
    config = read_json(file)
    for name in ("hidden_size", "num_attention_heads"):
        if type(config.get(name)) is not int or config[name] < 1:
            raise ModelError(f"{file}: says no {name}; copy the file that lies beside ImageReward.pt")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise ModelError(f"{file}: hidden_size is no multiple of num_attention_heads; copy the file again")
    return config
