"""What a finished run is known by. Light: the attempt's process reads it without loading torch."""

from __future__ import annotations

from dataclasses import dataclass

from accord.ids import PolicyVersion


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Returned by the page."""

    policy_version: PolicyVersion
    adapter_sha256: str
    """Of the exported adapter file; empty on ranks other than the first."""
    steps: int
