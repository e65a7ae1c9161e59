"""The rendered chart, once per values file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
VALUES = {path.stem.removesuffix("-values"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}

Objects = list[dict[str, Any]]


@cache
def _render(values: str) -> Objects:
    helm = pytest.importorskip("helm_python", reason="pip install -e '.[dev]' brings helm-python-sdk")
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(yaml.safe_load(values) or {}, name="rel", namespace="ns")
    manifests = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [item for text in manifests for item in yaml.safe_load_all(text) if item]


@pytest.fixture
def render() -> Callable[..., Objects]:
    """Render the chart with a dictionary of values."""
    return lambda values=None: _render(yaml.safe_dump(values or {}))


@pytest.fixture(params=sorted(VALUES))
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each values file of helm/ci in turn."""
    return yaml.safe_load(VALUES[request.param].read_text()) or {}


@pytest.fixture
def objects(values: dict[str, Any], render: Callable[..., Objects]) -> Objects:
    """What the chart renders for each values file of helm/ci."""
    return render(values)


@pytest.fixture
def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """Every pod the chart asks for, by a name that says where it stands: {metadata, spec}."""
    found: dict[str, dict[str, Any]] = {}
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in {"Deployment", "StatefulSet"}:
            found[name] = item["spec"]["template"]
        if item["kind"] == "RayCluster":
            found[f"{name}/head"] = item["spec"]["headGroupSpec"]["template"]
            for group in item["spec"]["workerGroupSpecs"]:
                found[f"{name}/{group['groupName']}"] = group["template"]
    return found
