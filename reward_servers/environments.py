"""Environments of their own for rewards whose pins conflict with those of the cluster.

Whoever runs the cluster writes them, a job only names one: such a file decides which code runs. `ACCORD_REWARD_ENVS` is
a folder of files `NAME.json`, each a Ray runtime environment, as `{"py_executable": "/opt/envs/hpsv3/bin/python"}` or
`{"uv": ["transformers==4.45.2"]}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accord.config.contract import RewardSpec
from accord.errors import SpecError


def environments(specs: Sequence[RewardSpec], folder: Path | None) -> dict[str, dict[str, Any]]:
    """The environments that rewards name, by name.

    Raises SpecError for a name that `folder` has no file for, and for a file that holds no JSON object.
    """
    named = {spec.env: f"/rewards/{place}/env" for place, spec in enumerate(specs) if spec.env}
    found, problems = {}, []
    for name, pointer in named.items():
        try:
            found[name] = _read(folder, name)
        except (OSError, ValueError) as error:
            known = sorted(path.stem for path in folder.glob("*.json")) if folder is not None else []
            there = ", ".join(known) or "none; set ACCORD_REWARD_ENVS to a folder of them"
            problems.append((pointer, f"there is no environment {name!r} ({error}); there are: {there}"))
    if problems:
        raise SpecError(problems)
    return found


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None:
        raise ValueError("none are set up")
    tree = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"{name}.json holds no JSON object")
    return tree
