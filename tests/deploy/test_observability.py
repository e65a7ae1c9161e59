"""Dashboard, rules and alerts use metrics that exist, with the labels they have; who reads the files finds them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from accord.metrics import TABLE

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
FILES = ROOT / "helm" / "files"
DASHBOARD = FILES / "accord.json"
COMPOSE = ROOT / "deploy" / "docker" / "compose.yaml"

SERIES = {
    name: metric
    for metric in TABLE
    for name in (
        [f"{metric.name}_bucket", f"{metric.name}_sum", f"{metric.name}_count"]
        if metric.kind == "histogram"
        else [metric.name]
    )
}


@cache
def _rules():
    files = [yaml.safe_load((FILES / name).read_text()) for name in ("rules.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def _alerts():
    return [rule for rule in _rules() if "alert" in rule]


def _panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def _expressions():
    for rule in _rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in _panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


EXPRESSIONS = list(_expressions())


FOREIGN = {
    "ray_serve_deployment_replica_healthy", "ray_serve_autoscaling_target_replicas",
    "ray_serve_deployment_processing_latency_ms_bucket", "ray_serve_replica_processing_queries",
}  # fmt: skip


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_series_exists_with_its_labels(where, expression):
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    names = set(re.findall(r"(?<![\w:])accord_\w+(?![\w:])", expression))
    foreign = set(re.findall(r"(?<!\w)ray_\w+", expression))
    assert foreign <= FOREIGN, where
    assert names or foreign or any(name in expression for name in recorded), f"{where} uses no metric"
    for name in names:
        assert name in SERIES, f"{where}: {name} is not in accord/metrics.py"
    for name, matchers in re.findall(r"(?<![\w:])(accord_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
            assert label in SERIES[name].labels, f"{where}: {name} has no label {label}"


def test_counters_end_in_total_and_names_are_unique():
    names = [metric.name for metric in TABLE]
    assert len(names) == len(set(names))
    for metric in TABLE:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name


def test_no_metric_is_left_unseen():
    """A metric that neither dashboard nor alert looks at is noise; take it out or show it."""
    text = "\n".join(expression for _, expression in EXPRESSIONS)
    unseen = [metric.name for metric in TABLE if not re.search(rf"{metric.name}(_bucket|_sum|_count)?\b", text)]
    assert unseen == []


def test_every_metric_is_set_by_somebody():
    """What shows a number of a step is set from the table: tests/unit/services/runner/test_training_metrics.py."""
    sources = "\n".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    assert [metric.name for metric in TABLE if not metric.number and f'"{metric.name}"' not in sources] == []


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_rays_series_are_rays(name):
    """The installed Ray defines them; `ray_` is the prefix it exports under."""
    found = importlib.util.find_spec("ray")
    if found is None or not found.submodule_search_locations:
        pytest.skip("ray is not installed")
    private = Path(found.submodule_search_locations[0]) / "serve" / "_private"
    plain = name.removeprefix("ray_").removesuffix("_bucket")
    assert any(f'"{plain}"' in path.read_text() for path in private.glob("*.py"))


def test_dashboard_is_one_that_provisions():
    board = json.loads(DASHBOARD.read_text())
    assert board["uid"] == "accord"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    assert board["templating"]["list"][0]["type"] == "datasource"
    for panel in _panels():
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]


def test_panels_do_not_overlap():
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("alert", _alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_leads_to_its_page_of_the_runbook(alert):
    file, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^##+ (.+)$", (ROOT / file).read_text(), flags=re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert anchor in {heading.lower().strip() for heading in headings}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]


def test_every_alert_has_a_unit_test():
    tests = (PROMETHEUS / "alerts_test.yml").read_text()
    firing = {
        case["alertname"]
        for group in yaml.safe_load(tests)["tests"]
        for case in group.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert firing == {alert["alert"] for alert in _alerts()}


def test_every_file_that_prometheus_reads_is_there_on_the_host_and_in_the_container():
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    scrapes = [source for scrape in config["scrape_configs"] for source in scrape["file_sd_configs"]]
    read = [*config["rule_files"], *(file for source in scrapes for file in source["files"])]
    compose = yaml.safe_load(COMPOSE.read_text())
    mounted = {item["target"]: item["source"] for item in compose["services"]["prometheus"]["configs"]}
    place = Path("/etc/prometheus/prometheus.yml")
    assert compose["configs"][mounted[str(place)]] == {"file": "../prometheus/prometheus.yml"}
    for file in (file for file in read if not file.startswith("/")):
        assert (PROMETHEUS / file).is_file(), file
        source = compose["configs"][mounted[os.path.normpath(place.parent / file)]]
        if "file" in source:
            assert (COMPOSE.parent / source["file"]).samefile(PROMETHEUS / file)
    assert {Path(file).name for file in config["rule_files"]} == {file.name for file in FILES.glob("*.yml")}


def test_grafana_gets_the_dashboard_and_the_address_that_its_source_reads():
    compose = yaml.safe_load(COMPOSE.read_text())
    grafana = compose["services"]["grafana"]
    files = {item["target"]: COMPOSE.parent / compose["configs"][item["source"]]["file"] for item in grafana["configs"]}
    assert files["/var/lib/grafana/dashboards/accord.json"].samefile(DASHBOARD)
    source = files["/etc/grafana/provisioning/datasources/prometheus.yaml"].read_text()
    assert set(re.findall(r"\$\{(\w+)\}", source)) == set(grafana["environment"])
    assert all(file.is_file() for file in files.values())


def _promtool(*arguments):
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not on PATH (Debian's prometheus package has it)")
    return subprocess.run([tool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=150)


def test_promtool_accepts_configuration_and_rules():
    result = _promtool("check", "config", "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_unit_tests_of_the_alerts_pass():
    result = _promtool("test", "rules", "alerts_test.yml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_parses_every_panel(tmp_path):
    """Each panel's expression, its variables filled in, as a recording rule."""
    rules = []
    for index, (_, expression) in enumerate(EXPRESSIONS):
        if expression.startswith("label_values"):
            continue
        for variable, value in {"$__rate_interval": "1m", "$__range": "1h", "$job_id": ".*", "$reward": "sync"}.items():
            expression = expression.replace(variable, value)
        rules.append({"record": f"panel:{index}:check", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    result = _promtool("check", "rules", str(file))
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_finds_our_names_clean():
    """The exposition of every metric in the table passes Prometheus' own lint."""
    lines = []
    for metric in TABLE:
        labels = ",".join(f'{label}="x"' for label in metric.labels)
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        if metric.kind == "histogram":
            inner = f"{labels}," if labels else ""
            lines += [f'{metric.name}_bucket{{{inner}le="+Inf"}} 1']
            lines += [f"{metric.name}_sum{{{labels}}} 1", f"{metric.name}_count{{{labels}}} 1"]
        else:
            lines += [f"{metric.name}{{{labels}}} 1"]
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not on PATH (Debian's prometheus package has it)")
    result = subprocess.run([tool, "check", "metrics"], input="\n".join(lines) + "\n", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
