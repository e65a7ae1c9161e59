"""What the store's server says of itself (INFO), and what of it matters here. Pure: no connection is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLDEST = (6, 2)
FULL_AT = 0.8
"""Share of `maxmemory` at which no new job is taken; the rest is for the events of jobs that are there."""


def complaints(info: Mapping[str, Any]) -> list[str]:
    """Why this server cannot be trusted with jobs, each with what to change; empty when it can. Unknown facts pass."""
    found = []
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST:
        found.append(f"its version {version} is too old; run Redis 6.2 or newer, or Valkey")
    if info.get("role", "master") != "master":
        found.append("it is a read-only replica; let REDIS_URL lead to the primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            f"its maxmemory-policy is {policy}, so it drops jobs when memory is short; set maxmemory-policy noeviction"
        )
    if str(info.get("aof_enabled", 1)) == "0":
        found.append(
            "it keeps no append-only file, so a restart loses jobs; set appendonly yes (and appendfsync always)"
        )
    return found


def room(info: Mapping[str, Any]) -> float:
    """Bytes that new jobs may still take; infinite without a limit."""
    most = int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    return FULL_AT * most - used if most else float("inf")
