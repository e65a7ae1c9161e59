"""What leaves the learner: the policy state of a version, and the adapter file of the finished job."""

from __future__ import annotations

import hashlib
from pathlib import Path

from accord.ids import PolicyVersion
from accord.types import PolicyState
from learner.engine import Engine


def policy_state(engine: Engine, version: int) -> PolicyState:
    """Copy both trained roles out of the engine. Called on every rank, because ZeRO-3 gathers."""
    return PolicyState(
        version=PolicyVersion(version),
        adapters={"policy": engine.adapter_state("policy"), "old": engine.adapter_state("old")},
    )


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
