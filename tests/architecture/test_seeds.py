"""Every draw names its purpose from the table of `accord/seeds.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from accord.seeds import Purpose

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("accord", "services", "rollout_workers", "reward_servers", "learner")
TABLE = ROOT / "accord" / "seeds.py"
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path != TABLE)
DRAWS = {"derive_seed", "sample_noise", "group_noise"}
WORDS = {"train", "evaluate", "lora", "sigma", "learn", "shuffle"}
"""Purposes that are ordinary words too: they may stand elsewhere, but in no call that draws."""


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in DRAWS:
                yield node


def _drawn_for(call: ast.Call) -> list[str]:
    """Purposes in a call; parts handed on (`*parts`, a variable) got theirs where they were put together."""
    return [
        node.attr
        for node in ast.walk(call)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Purpose"
    ]


def _handed_on(call: ast.Call) -> bool:
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return any(isinstance(part, ast.Starred) for part in call.args) or "purpose" in names


def test_every_draw_names_its_purpose():
    offenders = []
    for path in SOURCES:
        for call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
            literal = [part for part in call.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if literal or len(_drawn_for(call)) > 1 or not (_drawn_for(call) or _handed_on(call)):
                offenders.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}")
    assert offenders == []


def test_purposes_are_written_in_the_table_alone():
    telling = {purpose.value for purpose in Purpose} - WORDS
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in telling
    ]
    assert offenders == []


def test_every_purpose_is_used_in_one_file_and_described():
    text = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    for purpose in Purpose:
        users = [str(path.relative_to(ROOT)) for path, source in text.items() if f"Purpose.{purpose.name}" in source]
        assert len(users) == 1, f"{purpose.name} drives draws of {users}: a purpose drives one thing"
    body = next(node for node in ast.parse(TABLE.read_text()).body if isinstance(node, ast.ClassDef)).body
    for entry, line in pairwise(body):
        if isinstance(entry, ast.Assign):
            assert isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant), ast.unparse(entry)
