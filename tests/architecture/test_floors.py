"""Floors and circles of the import graph. A module stands above all that it imports; the ground floor is number 1."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

FLOORS = 6


ROOMS = ("accord", "services", "rollout_workers", "reward_servers", "learner", "tiny_models")


def _arrows(*rooms: str) -> dict[str, set[str]]:
    """Who imports whom, wherever the statement stands: at the top of a file or inside a function."""
    graph = grimp.build_graph(*rooms, exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def _floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Raises CycleError for arrows that run in a circle."""
    floors: dict[str, int] = {}
    for module in TopologicalSorter(arrows).static_order():
        floors[module] = 1 + max((floors[below] for below in arrows[module]), default=0)
    return floors


def test_no_import_runs_in_a_circle() -> None:
    try:
        _floors(_arrows(*ROOMS))
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_rooms_of_services_stand_on_few_floors() -> None:
    """A folder counts as one room, a file on the ground as another; inside a folder its files are counted."""

    def folder(module: str) -> str:
        return ".".join(module.split(".")[:2])

    modules = {module: below for module, below in _arrows("services").items() if module != "services"}
    rooms: dict[str, set[str]] = {folder(module): set() for module in modules}
    for module, below in modules.items():
        rooms[folder(module)] |= {folder(one) for one in below} - {folder(module)}
    assert max(_floors(rooms).values()) <= FLOORS, _floors(rooms)
    for room in rooms:
        inside = {m: {b for b in below if folder(b) == room} for m, below in modules.items() if folder(m) == room}
        assert max(_floors(inside).values()) <= FLOORS, _floors(inside)
