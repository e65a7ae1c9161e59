"""Loads one component of a pipeline by its class, and takes it only if every weight came from its files.

The libraries fill what is missing with random numbers, other ones in each process, and pass over what they do not know.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accord.errors import ModelError

_LIBRARIES = ("diffusers", "transformers")


def component_class(library: str, name: str) -> Any:
    """The class that model_index.json names: of a library, or of a pipeline's own folder in diffusers.

    Raises ModelError when the installed library has none.
    """
    try:
        kind = getattr(
            import_module(library if library in _LIBRARIES else f"diffusers.pipelines.{library}"), name, None
        )
    except ModuleNotFoundError:
        kind = None
    if kind is None:
        raise ModelError(f"the installed {library} has no {name}")
    return kind


def load_component(directory: Path, entry: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """Load a component from its directory; `entry` is its library and class as in model_index.json.

    Raises ModelError that names what keeps it from being what was saved.
    """
    library, name = entry
    kind = component_class(library, name)
    try:
        model, report = kind.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{directory}: {name} cannot be loaded from it: {reason[0]}") from error
    refuse_partial(directory, report)
    assert isinstance(model, nn.Module)
    return model


def refuse_partial(directory: Path, report: Any, derived: Collection[str] = ()) -> None:
    """Raise ModelError for weights that were missing, unknown or of another shape; `derived` ones may be missing."""
    for kind, word in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has in another shape"),
        ("unexpected_keys", "holds the unknown"),
    ):
        found = sorted(key if isinstance(key, str) else str(key[0]) for key in report[kind] or ())
        found = [key for key in found if key not in derived]
        if found:
            raise ModelError(
                f"{directory}: {word} {found[0]} ({len(found)} such); take all weights and the config from one model"
            )
