"""The map in docs/architecture.md is held against the tree: each place of "Where do I find" is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = ("accord", "services", "rollout_workers", "reward_servers", "learner", "tiny_models")


def _rows(heading: str) -> list[list[str]]:
    """Cells of the rows of the table below a heading, its own heading and rule left out."""
    section = re.split(r"^## ", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


KINDS = {".md", ".py", ".toml", ".yaml", ".yml", ".lua", ".js"}
PLACES = [
    (question, place) for question, where in _rows("Where do I find") for place in re.findall(r"`([^`]+)`", where)
]


@cache
def _names(path: Path) -> set[str]:
    """What a file defines: functions, classes, their methods, and names that are assigned at its top."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_map_answers_enough():
    questions = [question for question, _ in _rows("Where do I find")]
    assert len(questions) >= 25
    assert len(questions) == len(set(questions))


@pytest.mark.parametrize(("question", "place"), PLACES, ids=[place for _, place in PLACES])
def test_what_the_map_names_is_there(question, place):
    path, _, name = place.partition("::")
    assert (ROOT / path).exists(), f"{question}: {path} is not there"
    assert not name or name in _names(ROOT / path), f"{question}: {path} has no {name}"


def test_every_room_is_on_the_map():
    """Each package of the tree has a row among the rooms, and each row a package."""
    listed = {cells[0].strip("`").rstrip("/") for cells in _rows("Rooms")}
    present = {str(path.parent.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("__init__.py")}
    assert listed == present - {"services"}


def test_every_file_that_a_page_or_a_comment_names_is_there():
    folders = (*ROOMS, "deploy", "helm", "tests", "docs", "benchmarks", "examples")
    named = re.compile(rf"(?<![\w/.-])(?:{'|'.join(folders)})/[\w./-]+\.(?:py|md|ya?ml|json|toml|lua)\b")
    pages = [*ROOT.glob("*.md"), *(path for top in folders for path in (ROOT / top).rglob("*") if path.suffix in KINDS)]
    missing = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        for name in named.findall(page.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert missing == set()
