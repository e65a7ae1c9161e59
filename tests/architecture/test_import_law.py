"""The import law of the house, beyond what import-linter's contracts can say."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("accord", "services", "rollout_workers", "reward_servers", "learner", "tiny_models")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))

DOORS: dict[str, set[str]] = {
    "deepspeed": {"learner/zero.py"},
    "ray.serve": {
        "reward_servers/app.py",
        "reward_servers/serve_handles.py",
        "reward_servers/controller.py",
        "reward_servers/deployment.py",
        "reward_servers/door.py",
    },
    "ray.serve._private": {"reward_servers/controller.py"},
    "ray.serve.context": {"reward_servers/controller.py"},
    "redis": {"services/jobs/redis_store.py"},
}
LTX_DOORS = ("accord/backbones/ltx2/", "tiny_models/")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> set[str]:
    """Everything a file imports, wherever the statement stands; `a.b.c` for `from a.b import c`."""
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_contracts_of_import_linter_hold():
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("pip install -e '.[dev]' brings import-linter")
    result = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("framework", DOORS)
def test_each_framework_has_one_door(framework):
    through = {
        str(path.relative_to(ROOT)) for path in SOURCES if any(_inside(name, framework) for name in _imports(path))
    }
    assert through <= DOORS[framework], f"{framework} is imported by {sorted(through - DOORS[framework])}"


def test_ltx_classes_stay_behind_their_door():
    offenders = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name in sorted(_imports(path))
        if name.startswith("diffusers.") and "LTX" in name and not str(path.relative_to(ROOT)).startswith(LTX_DOORS)
    ]
    assert offenders == []


LTX_STRINGS = re.compile(
    r"audio_to_video_attn|video_to_audio_attn|to_gate_logits|transformer_blocks|\bLTX2[A-Z]\w+|\baudio_vae\b|\bvae\b"
    r"|\bvocoder\b|\bconnectors\b|\"transformer\"|_class_name|proj_in\b|gemma"
)
"""Names of parts, classes, components and config keys that only the LTX-2 family has."""
LTX_SAID = {
    "accord/plugins.py": {"LTX2Spec"},  # the table of plug-ins
    "services/cli/commands.py": {"LTX2Pipeline"},  # help: how a user loads an export
    "accord/media.py": {"vocoder"},  # help: whose fault a broken sound is
    "accord/world/measure.py": {"vocoder"},
}


def test_what_only_ltx2_has_is_named_in_its_room_alone():
    said = {
        str(path.relative_to(ROOT)): {found[0] for found in LTX_STRINGS.finditer(path.read_text(encoding="utf-8"))}
        for path in SOURCES
    }
    outside = {
        name: found - LTX_SAID.get(name, set()) for name, found in said.items() if not name.startswith(LTX_DOORS)
    }
    assert {name: sorted(found) for name, found in outside.items() if found} == {}


def test_nobody_asks_which_algorithm_or_backbone_it_is():
    """`x.algorithm.name == "…"` outside the file of that algorithm makes a second place that must know all of them."""
    offenders = []
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant):
                left = ast.unparse(node.left)
                if left.endswith(("algorithm", "algorithm.name", "backbone", "backbone.name")):
                    offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert offenders == []


def test_hooks_of_specs_are_declared_and_nobody_asks_for_a_class():
    """`getattr(spec, …)` reads what no contract declares; `isinstance(…, SomeSpec)` asks which plug-in it is."""
    specs = re.compile(r"(^|[._(])(algorithm|backbone|reward|spec)\)?$")
    offenders = []
    for path in SOURCES:
        for node in ast.walk(_tree(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
                continue
            first, second = (ast.unparse(argument) for argument in node.args[:2])
            by_luck = node.func.id in {"getattr", "hasattr"} and specs.search(first)
            by_class = node.func.id == "isinstance" and {*re.findall(r"\w+(?:Spec|Reward)\b", second)} - {
                "PartSpec",
                "IncompatibleSpec",
            }
            if by_luck or by_class:
                offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert offenders == []


SLIM = """
import sys
from importlib import metadata
from importlib.abc import MetaPathFinder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

def needs(name, extras, seen):
    name = canonicalize_name(name)
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    try:
        listed = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, listed):
        markers = [{"extra": extra} for extra in extras] or [{"extra": ""}]
        if requirement.marker is None or any(requirement.marker.evaluate(marker) for marker in markers):
            needs(requirement.name, tuple(sorted(requirement.extras)), seen)

seen = set()
needs("accord-rl", ("api",), seen)
allowed = {name for name, _ in seen}
owners = metadata.packages_distributions()

class OnlyTheApiExtra(MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        top = fullname.partition(".")[0]
        if top in owners and not {canonicalize_name(owner) for owner in owners[top]} & allowed:
            raise ModuleNotFoundError(f"No module named {fullname!r} in the api extra", name=fullname)
        return None

sys.meta_path.insert(0, OnlyTheApiExtra())
import services.api.app
heavy = {"torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "scipy", "numpy"} & set(sys.modules)
assert not heavy, f"imported by the API: {sorted(heavy)}"
"""


def test_the_api_starts_with_the_api_extra_alone():
    """Packages that the `api` extra does not bring are hidden, then the API is imported."""
    if not (ROOT / "services" / "api" / "app.py").exists():
        pytest.skip("services/api/app.py is not there")
    result = subprocess.run([sys.executable, "-c", SLIM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_light_language_is_light():
    light = (
        "ids",
        "types",
        "errors",
        "events",
        "metrics",
        "logs",
        "plugins",
        "requests",
        "config.job",
        "config.settings",
    )
    heavy = {"numpy", "torch", "ray", "redis", "fastapi", "diffusers", "transformers"}
    code = (
        f"import sys; [__import__('accord.' + name) for name in {light!r}]; "
        f"found = {heavy!r} & set(sys.modules); assert not found, found"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_every_package_is_in_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    present = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}
    assert present == listed
