"""Documents that repeat what the code says are held against it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import get_annotations
from operator import attrgetter
from pathlib import Path
from types import FunctionType

import pytest

from accord.backbones.base import (
    Backbone,
    CrossAttends,
    IsolatesModalities,
    SkipsSelfAttention,
    VelocityModel,
    WatchesAttention,
)
from accord.config.base import Spec
from accord.config.contract import AlgorithmSpec, BackboneSpec, PartSpec, PluginSpec, PresetSpec, RewardSpec
from accord.config.forward import OmniNFTSpec
from accord.config.grpo import RECIPES, FlowGRPOSpec
from accord.plugins import names, spec_class
from learner.algorithms.base import Algorithm, ForwardAlgorithm
from reward_servers.base import RewardModel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PRESETS = ("accord", "paper", "published")


def _rows(page: str, columns: int) -> list[list[str]]:
    """Cells of the table rows that start with a code span."""
    rows = []
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == columns:
            rows.append(cells)
    return rows


def _resolved(preset: str) -> OmniNFTSpec:
    return OmniNFTSpec.model_validate_json(f'{{"name": "omninft", "preset": "{preset}"}}')


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        scale = {"depth": (100, " %"), "block": (1, "")}
        return ", ".join(
            f"{run.start * scale[run.unit][0]:.3g}–{run.stop * scale[run.unit][0]:.3g}{scale[run.unit][1]}: {run.keep}"
            for run in value
        )
    return str(round(value, 4) if value < 0.01 else round(value, 3)) if isinstance(value, float) else str(value)


def test_the_presets_are_as_documented():
    rows = {row[0].strip("`"): row[1:4] for row in _rows("omninft.md", 5) if "." in row[0]}
    specs = [_resolved(preset) for preset in PRESETS]
    for path, cells in rows.items():
        group, field = path.split(".")
        assert cells == [_shown(getattr(getattr(spec, group), field)) for spec in specs], path
    differing = {
        f"{group}.{field}"
        for group in ("credit", "loss", "sigmas", "old_policy", "surgery", "region")
        for field in type(getattr(specs[0], group)).model_fields
        if len({repr(getattr(getattr(spec, group), field)) for spec in specs}) > 1
    }
    assert differing <= set(rows), "a field in which the presets differ is missing from the table"


def test_the_recipes_of_the_transition_view_are_as_documented():
    section = (DOCS / "algorithms.md").read_text().partition("## Transition view")[2]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    table = {cells[0].strip("`"): cells[1:] for cells in lines if len(cells) == 5}
    recipes = table.pop("field")
    specs = [FlowGRPOSpec.model_validate({"preset": recipe}) for recipe in recipes]
    assert recipes == list(RECIPES)
    for path in table.keys() - {"---"}:
        assert table[path] == [str(attrgetter(path)(spec)) for spec in specs], path
    fields = {f"{group}.{name}" if group else name for group, name in _fields(FlowGRPOSpec)}
    differing = {path for path in fields if len({repr(attrgetter(path)(spec)) for spec in specs}) > 1}
    assert differing <= set(table), "a field in which the recipes differ is missing from the table"


def test_the_recipes_of_the_forward_view_are_as_documented():
    section = (DOCS / "algorithms.md").read_text().partition("## Forward view")[2].partition("## Transition view")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()]
    table = {cells[0].strip("`"): cells[1:] for cells in lines if len(cells) == 5 and cells[0] != "---"}
    specs = [spec_class("algorithms", recipe)() for recipe in table.pop("field")]
    table = {path: cells for path, cells in table.items() if path in ("temperature",) or "." in path}
    for path, cells in table.items():
        group, _, field = path.rpartition(".")
        owners = [getattr(spec, group) if group else spec for spec in specs]
        assert cells == [str(getattr(owner, field)) if hasattr(owner, field) else "–" for owner in owners], path
    fields = {f"loss.{field}" for spec in specs for field in type(spec.loss).model_fields}
    assert fields <= set(table), "a field of a loss is missing from the table"


@pytest.mark.parametrize("page", ["omninft.md", "algorithms.md"])
def test_functions_and_tests_that_a_page_names_exist(page):
    """Code spans of the form `file.py: name, name`; a name may be a function, a class or a test."""
    named = re.findall(r"`((?:\w+/)+\w+\.py): ([\w, ]+)`", (DOCS / page).read_text())
    assert len(named) > 5
    for file, listed in named:
        tree = ast.parse((ROOT / file).read_text())
        known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        missing = {name.strip() for name in listed.split(",")} - known
        assert not missing, f"{page}: {file} has no {', '.join(sorted(missing))}"


def _fields(spec: type[Spec]) -> Iterator[tuple[str, str]]:
    """(group, field) of a spec with one level of nested specs, its preset's name left out; ("", field) on top."""
    for name, field in spec.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            yield from ((name, inner) for inner in field.annotation.model_fields)
        elif name != "preset":
            yield "", name


def test_every_reward_is_documented():
    rows = {row[0].strip("`"): row for row in _rows("rewards.md", 6)}
    built_in = {name for name in names("rewards") if spec_class("rewards", name).impl.startswith("reward_servers.")}
    assert set(rows) == built_in
    for name, row in rows.items():
        spec = spec_class("rewards", name)
        route = spec.model_fields["route"]
        assert row[3] == ("–" if route.is_required() else route.default), name
        assert set(spec.needs) == {word.strip() for word in row[1].split(",")} & {"video", "audio"}, name
        assert ("prompt" in row[1]) == spec.prompt_anchored, name


def test_reward_ranges_are_as_documented():
    for row in _rows("rewards.md", 6):
        low, high = (float(number) for number in row[2].split("…"))
        spec = spec_class("rewards", row[0].strip("`"))
        assert (low, high) == spec.range, row[0]
        assert 0 < spec.smallest_effect < high - low, row[0]


def test_every_endpoint_is_documented():
    pytest.importorskip("fastapi")
    from accord.config.settings import Settings
    from services.api.app import create_app
    from tests.memory_store import InMemoryJobStore

    app = create_app(Settings(api_key="x" * 16), InMemoryJobStore(), check_spec=lambda _spec: None)
    routes = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, item in app.openapi()["paths"].items()
        for method in item
    }
    text = (DOCS / "api.md").read_text()
    listed = {
        (method, re.sub(r"\{[^}]*\}", "{}", path.partition("?")[0]))
        for method, path in re.findall(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`]*)`", text)
    }
    assert routes <= listed, sorted(routes - listed)


def test_every_setting_is_documented():
    from accord.config.settings import Settings

    text = (DOCS / "operations.md").read_text()
    for field in Settings.model_fields:
        variable = field.upper() if field in {"redis_url", "ray_address"} else f"ACCORD_{field.upper()}"
        assert variable in text, f"{variable} is missing from docs/operations.md"


def test_decisions_are_listed():
    listed = (DOCS / "adr" / "README.md").read_text()
    for page in DOCS.glob("adr/0*.md"):
        assert page.name in listed
        for part in ("**Decision.**", "**Why.**", "**Consequences.**"):
            assert part in page.read_text(), f"{page.name} lacks {part}"


CONTRACT = (
    PartSpec, PluginSpec, AlgorithmSpec, PresetSpec, BackboneSpec, RewardSpec, Algorithm, ForwardAlgorithm, Backbone,
    VelocityModel, CrossAttends, WatchesAttention, SkipsSelfAttention, IsolatesModalities, RewardModel,
)  # fmt: skip


def _hooks(spec: type) -> Iterator[tuple[str, str | None]]:
    """Signature, and default where the class itself says it, of every hook that a base of the contract declares."""
    for name, kind in get_annotations(spec).items():
        constant, plain = kind.startswith("ClassVar["), kind.removeprefix("Annotated[").partition(", InputPath")[0]
        default = spec.__dict__.get(name, "none") if constant or not issubclass(spec, Spec) else "none"
        shown = default if default == "none" else "`" + repr(default).replace("'", '"') + "`"
        if constant or not issubclass(spec, Spec) or spec.model_fields[name].is_required():
            yield f"`{name}: {plain.removeprefix('ClassVar[').removesuffix(']') if constant else plain}`", shown
    for name, value in spec.__dict__.items():
        hook = isinstance(value, FunctionType | classmethod | property) and not getattr(value, "__final__", False)
        if name.startswith("_") or not hook:
            continue
        code = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        arguments = [f"{a}: {k}" for a, k in code.__annotations__.items() if a != "return"]
        call = "" if isinstance(value, property) else f"({', '.join(arguments)})"
        yield f"`{name}{call} -> {code.__annotations__['return']}`", None


def test_the_table_of_hooks_is_the_contract():
    declared = [(hook, f"`{spec.__name__}`", default) for spec in CONTRACT for hook, default in _hooks(spec)]
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| hook | of |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
    written = [(hook.replace("\\|", "|"), spec, default) for hook, spec, default, _ in rows]
    assert sorted((hook, spec) for hook, spec, _ in written) == sorted((hook, spec) for hook, spec, _ in declared)
    defaults = {(hook, spec): default for hook, spec, default in declared}
    assert [row for row in written if defaults[row[:2]] not in (None, row[2])] == []
    assert all(when for *_, when in rows)
