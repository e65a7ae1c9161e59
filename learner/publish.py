"""What leaves the learner: the policy state of a version, and the adapter file of the finished job."""

from __future__ import annotations

from accord.ids import PolicyVersion
from accord.types import PolicyState
from learner.engine import Engine


def policy_state(engine: Engine, version: int) -> PolicyState:
    """Copy both trained roles out of the engine. Called on every rank, because ZeRO-3 gathers."""
    return PolicyState(
        version=PolicyVersion(version),
        adapters={"policy": engine.adapter_state("policy"), "old": engine.adapter_state("old")},
    )
