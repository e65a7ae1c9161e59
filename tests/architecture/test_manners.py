"""Size, names and forbidden things, checked on every source file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from accord import run_folder

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("accord", "services", "rollout_workers", "reward_servers", "learner", "tiny_models")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
ALL_PYTHON = SOURCES + sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

FILE_LINES = 500
FUNCTION_LINES = 60
NAMES = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
WORDS = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "unfinished work has no place in a comment",
    r"\bNotImplementedError\b": "nothing a user can reach may be a stub",
    r"\btorch\.load\((?![^()\n]*weights_only=True)": "with weights_only=True on one line, or safetensors and JSON",
    r"\b(pickle|cloudpickle|dill|joblib)\.loads?\(": "safetensors and JSON only",
    r"\byaml\.(load|unsafe_load)\(": "yaml.safe_load",
    r"trust_remote_code\s*=\s*True": "code of a model directory is never run",
    r"\bexcept Exception:\s*\n\s*pass\b": "an error is handled or it travels on",
    r"^\s*except:\s*$": "name what is caught",
}
PARTS = {
    "purpose": r"purpose|what it is|what it does",
    "consumes": r"consumes|takes|inputs",
    "produces": r"produces|gives|outputs",
    "where to start reading": r"start reading|read first|where to start",
    "how to extend": r"extend",
    "how to test": r"test",
}


def _where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_short():
    long = {_where(path): n for path in ALL_PYTHON if (n := len(path.read_text().splitlines())) > FILE_LINES}
    assert long == {}


def test_functions_are_short():
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{_where(path)}:{node.lineno} {node.name}"] = lines
    assert long == {}


def test_names_say_something():
    parts = {path: {*path.relative_to(ROOT).parts[:-1], path.stem} for path in ALL_PYTHON}
    assert {_where(path): sorted(found & NAMES) for path, found in parts.items() if found & NAMES} == {}


@pytest.mark.parametrize("pattern", WORDS)
def test_forbidden_things(pattern):
    offenders = [
        f"{_where(path)}:{text.count(chr(10), 0, match.start()) + 1}: {WORDS[pattern]}"
        for path in SOURCES
        for text in [path.read_text(encoding="utf-8")]
        for match in re.finditer(pattern, text, flags=re.MULTILINE)
    ]
    assert offenders == []


def _words_of(tree: ast.Module) -> set[str]:
    """Every string of a module but its docstrings and other texts that are only said."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said)
    return {node.value for node in strings if isinstance(node.value, str)}


def test_files_of_a_run_are_named_in_one_place():
    names = [
        run_folder.SPEC, run_folder.INPUTS, run_folder.METRICS, run_folder.SUMMARY, run_folder.REPORT,
        run_folder.ARTIFACTS, run_folder.MANIFEST, run_folder.LORA_FILE,
    ]  # fmt: skip
    spelled = {
        (_where(path), name)
        for path in SOURCES
        for word in _words_of(ast.parse(path.read_text(encoding="utf-8")))
        for name in names
        if name in word
    }
    assert {where for where, _ in spelled} == {"accord/run_folder.py"}, spelled
    assert {name for _, name in spelled} == {*names}


def test_files_are_put_into_place_in_one_place():
    """`a.replace(b)` with one argument, and `rename`, is how a file gets its name; text is replaced with two."""
    puts = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and not node.keywords:
                of_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                if node.func.attr == "rename" or (node.func.attr == "replace" and (of_os or len(node.args) == 1)):
                    puts.add(_where(path))
    assert puts == {"accord/disk.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_its_page(room):
    readme = ROOT / room / "README.md"
    assert readme.exists(), f"{room}/README.md is missing"
    lines = readme.read_text().splitlines()
    headings = [found[1].lower() for line in lines if (found := re.match(r"(?:#+ |\*\*)([^*]+)", line))]
    missing = [part for part, words in PARTS.items() if not any(re.search(words, heading) for heading in headings)]
    assert missing == [], f"{room}/README.md has no part that begins with {', '.join(missing)}"
    assert len(lines) <= 120, "a room's page is short"


def test_links_between_pages_lead_somewhere():
    broken = []
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / room / "README.md" for room in ROOMS)]
    for page in (page for page in pages if page.exists()):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{_where(page)} -> {target}")
    assert broken == []
