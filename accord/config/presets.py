"""The three readings of OmniNFT as data: `paper` (as printed), `published` (the released constants), `accord`.

`accord` is the field defaults themselves, so its table is empty. docs/omninft.md sets the three side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["accord", "paper", "published"]

_PAPER_LOSS = {
    "space": "velocity", "normaliser": "none", "advantage_clip": 1.0, "rescale": False, "reduction": "sum",
    "reference_penalty": 0.0,
}  # fmt: skip
_PUBLISHED_LOSS = {
    "space": "x0", "normaliser": "attached", "advantage_clip": 5.0, "rescale": True, "reduction": "mean",
    "reference_penalty": 1e-4, "reference_space": "x0",
}  # fmt: skip
_PUBLISHED_SIGMAS = {"per_sample": 8, "low": 0.915, "high": 1.0}
_PUBLISHED_OLD = {"start": 0.0, "rate": 0.001, "maximum": 0.5}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion_nft": {
        "accord": {},
        "paper": {"loss": _PAPER_LOSS},
        "published": {
            "credit": {"mode": "sum"},
            "loss": {**_PUBLISHED_LOSS, "normaliser": "detached", "reference_space": "velocity"},
        },
    },
    "omninft": {
        "accord": {},
        "paper": {
            "loss": _PAPER_LOSS,
            "surgery": {"tensor": "kv", "schedule": [{"start": 0, "stop": 10, "keep": 0.9, "unit": "block"}]},
            "region": {
                "formula": "minmax", "strength": 1.5, "first_block": 10 / 48, "last_block": 1.0, "first_step": 0.75,
                "last_step": 1.0,
            },
        },
        "published": {
            "loss": _PUBLISHED_LOSS,
            "sigmas": _PUBLISHED_SIGMAS,
            "old_policy": _PUBLISHED_OLD,
            "surgery": {
                "tensor": "context",
                "schedule": [
                    {"start": 0, "stop": 1, "keep": 0.0, "unit": "block"},
                    {"start": 1, "stop": 11, "keep": 0.1, "unit": "block"},
                    {"start": 40, "stop": 48, "keep": 0.3, "unit": "block"},
                ],
            },
            "region": {
                "formula": "frame_sigmoid", "strength": 0.5, "first_block": 0.0, "last_block": 1.0, "first_step": 0.5,
                "last_step": 0.9, "warmup_steps": 400,
            },
        },
    },
}  # fmt: skip

_UNGUIDED = {
    "guidance": 1.0, "stg_scale": 0.0, "stg_blocks": (), "modality_scale": 1.0, "guidance_rescale": 0.0,
    "audio_guidance": None, "audio_stg_scale": None, "audio_modality_scale": None, "audio_guidance_rescale": None,
}  # fmt: skip

PRESET_SAMPLING: dict[str, dict[str, dict[str, Any]]] = {
    "diffusion_nft": {"published": {**_UNGUIDED, "num_steps": 10}},
    "omninft": {
        "published": {
            **_UNGUIDED, "num_steps": 20, "shift": 2.05, "guidance": 1.5, "audio_guidance": 3.0, "stg_scale": 1.0,
            "stg_blocks": (29,),
        },
    },
}  # fmt: skip
"""Fields of `sampling` that belong to a preset. A preset that is missing says nothing of the sampler."""


def filled(value: Any, presets: Mapping[Any, Mapping[str, Any]], default: str) -> Any:
    """Lay what the user wrote over the preset they named. Raises ValueError for an unknown preset."""
    if not isinstance(value, dict):
        return value
    preset = value.get("preset", default)
    if not isinstance(preset, str) or preset not in presets:
        raise ValueError(f"/preset: unknown preset {preset!r}; known: {', '.join(presets)}")
    return _merged(presets[preset], value)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; a list is replaced whole."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
