"""The Lua scripts of the Redis store, with the transition table of job.py and the limits written in front of each."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from services.jobs.job import ACTIVE, TERMINAL, TRANSITIONS, JobState
from services.jobs.store import FEED_KEPT, STEPS_KEPT


@cache
def scripts() -> dict[str, str]:
    """Name → Lua text."""
    table = ", ".join(f"{state.value} = {_lua_set(following)}" for state, following in TRANSITIONS.items())
    head = (
        f"local NEXT = {{{table}}}\nlocal TERMINAL = {_lua_set(TERMINAL)}\nlocal ACTIVE = {_lua_set(ACTIVE)}\n"
        f"local STEPS_KEPT = {STEPS_KEPT}\nlocal FEED_KEPT = {FEED_KEPT}\n"
    )
    folder = files("services.jobs") / "lua"
    prelude = (folder / "prelude.lua").read_text(encoding="utf-8")
    return {
        Path(entry.name).stem: head + prelude + entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua") and entry.name != "prelude.lua"
    }


def _lua_set(states: Iterable[JobState]) -> str:
    return "{" + ", ".join(f"{state.value} = true" for state in sorted(states)) + "}"
