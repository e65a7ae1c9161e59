"""The chart renders, lints, and every object it makes is one Kubernetes takes."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="pip install -e '.[dev]' brings helm-python-sdk")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[dev]' brings it")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm"
RAYCLUSTER = json.loads((Path(__file__).parent / "schemas" / "raycluster.json").read_text())
KUBERNETES = ("1.29", "1.37")
FOREIGN = {"ray.io/v1", "monitoring.coreos.com/v1"}


def _kinds(objects):
    return sorted((item["kind"], item["metadata"]["name"]) for item in objects)


def _one(objects, kind, suffix=""):
    return next(item for item in objects if item["kind"] == kind and item["metadata"]["name"].endswith(suffix))


def test_lints_strictly(values):
    report = helm.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects, pods, version):
    checked = 0
    for item in objects:
        if item["apiVersion"] not in FOREIGN:
            kubernetes_validate.validate(item, version, strict=True)
            checked += 1
    for name, template in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "x", **template["metadata"]}
        kubernetes_validate.validate(pod, version, strict=True), name
    assert checked >= 5


def test_raycluster_fits_its_schema(objects):
    for cluster in (item for item in objects if item["kind"] == "RayCluster"):
        jsonschema.validate(cluster, RAYCLUSTER)


def test_the_raycluster_schema_catches_a_misspelt_field(render):
    cluster = copy.deepcopy(_one(render(), "RayCluster"))
    group = cluster["spec"]["workerGroupSpecs"][0]
    group["minReplica"] = group.pop("minReplicas")
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(cluster, RAYCLUSTER)


@pytest.mark.skipif(
    "ACCORD_KUBERAY_CRD" not in os.environ, reason="set ACCORD_KUBERAY_CRD to the operator's own CRD file"
)
def test_raycluster_fits_the_operators_own_crd(objects):
    crd = yaml.safe_load(Path(os.environ["ACCORD_KUBERAY_CRD"]).read_text())
    version = next(entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    for cluster in (item for item in objects if item["kind"] == "RayCluster"):
        jsonschema.validate(cluster, schema)


def _closed(schema: Any) -> Any:
    """The same schema, refusing properties it does not name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema and schema["properties"]:
        metadata = schema.get("type") == "object" and set(schema["properties"]) <= {"name", "namespace"}
        closed.setdefault("additionalProperties", metadata)
    return closed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 3}, "replicas"),
        ({"api": {"replica": 3}}, "replica"),
        ({"api": {"replicas": "3"}}, "replicas"),
        ({"api": {"replicas": 0}}, "replicas"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"store": {"enabled": False}}, "existingSecret"),
        ({"ray": {"workerGroups": []}}, "workerGroups"),
        ({"ray": {"workerGroups": [{"name": "rollout", "minReplicas": 1}]}}, "maxReplicas"),
        ({"runs": {"accessModes": ["ReadOnlyMany"]}}, "accessModes"),
        ({"runner": {"resources": {"requests": {"memory": "much"}}}}, "memory"),
        ({"networkPolicy": {"apiFrom": "everyone"}}, "apiFrom"),
    ],
)
def test_wrong_values_are_refused_by_name(values, words):
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match=words):
        chart.validate_schema(values)


def test_the_schema_is_closed_everywhere_and_names_every_default():
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def walk(rules, tree, where):
        if isinstance(tree, dict) and "properties" in rules:
            assert rules.get("additionalProperties") is False, where
            assert set(tree) <= set(rules["properties"]), where
            for key, value in tree.items():
                walk(rules["properties"][key], value, f"{where}/{key}")

    walk(schema, defaults, "")
    jsonschema.validate(defaults, schema)


def test_nothing_is_rendered_that_is_disabled(render):
    everything = render({"monitoring": {"enabled": True}})
    switches = {
        "RayCluster": {"ray": {"enabled": False}},
        "StatefulSet": {"store": {"enabled": False}, "externalStore": {"existingSecret": "x"}},
        "ServiceMonitor": {},
        "PodMonitor": {},
        "PrometheusRule": {"monitoring": {"enabled": True, "rules": False}},
        "NetworkPolicy": {"networkPolicy": {"enabled": False}},
        "PodDisruptionBudget": {"podDisruptionBudget": {"enabled": False}},
        "ServiceAccount": {"serviceAccount": {"create": False}},
        "PersistentVolumeClaim": {"runs": {"existingClaim": "x"}},
    }
    for kind, values in switches.items():
        assert kind in {item["kind"] for item in everything}, kind
        assert kind not in {item["kind"] for item in render(values)}, kind
    without = render({"monitoring": {"enabled": True, "dashboard": False}})
    assert not [name for kind, name in _kinds(without) if name.endswith("-dashboard")]


def test_without_a_cluster_the_runners_pod_is_one(render):
    runner = _one(render({"ray": {"enabled": False}}), "Deployment", "-runner")["spec"]["template"]["spec"]
    arguments = runner["initContainers"][0]["args"]
    assert {"--head", "--port=6379"} <= set(arguments)
    environment = {entry["name"]: entry.get("value") for entry in runner["containers"][0]["env"]}
    assert environment["RAY_ADDRESS"] == "127.0.0.1:6379"


def test_runner_and_ray_agree_on_address_and_token(render):
    objects = render()
    cluster = _one(objects, "RayCluster")
    runner = _one(objects, "Deployment", "-runner")["spec"]["template"]["spec"]
    address = f"{cluster['metadata']['name']}-head-svc:6379"  # the service KubeRay makes for the head
    node = runner["initContainers"][0]
    environment = {entry["name"]: entry for entry in runner["containers"][0]["env"]}
    assert environment["RAY_ADDRESS"]["value"] == address
    assert f"--address={address}" in node["args"]
    secret = cluster["spec"]["authOptions"]["secretName"]
    for container in (node, runner["containers"][0]):
        token = next(entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN")
        assert token["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "auth_token"}
    assert set(_one(objects, "Secret", "-ray-token")["data"]) == {"auth_token"}
    # A driver finds its Ray node among the processes it sees, and talks to it through files both mount.
    assert runner["shareProcessNamespace"] is True
    shared = {mount["mountPath"] for mount in node["volumeMounts"]}
    assert {"/tmp", "/dev/shm"} <= shared
    assert shared <= {mount["mountPath"] for mount in runner["containers"][0]["volumeMounts"]}


def test_every_process_that_writes_runs_sees_the_same_folder(pods):
    paths = set()
    for name, template in pods.items():
        if name.endswith("-store"):
            continue
        container = template["spec"]["containers"][0]
        claim = next(volume for volume in template["spec"]["volumes"] if volume["name"] == "runs")
        mount = next(mount for mount in container["volumeMounts"] if mount["name"] == "runs")
        runs = next(entry["value"] for entry in container["env"] if entry["name"] == "ACCORD_RUNS_DIR")
        assert mount["mountPath"] == runs
        paths.add((claim["persistentVolumeClaim"]["claimName"], runs))
    assert len(paths) == 1


def test_environment_reaches_settings(render):
    """Every ACCORD_ variable the chart sets is a field of Settings."""
    from accord.config.settings import Settings

    known = {f"ACCORD_{field.upper()}" for field in Settings.model_fields}
    for deployment in (item for item in render() if item["kind"] == "Deployment"):
        for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]:
            if entry["name"].startswith("ACCORD_"):
                assert entry["name"] in known


def test_rewards_are_served_to_others_with_a_secret_alone(render):
    """One port for the runner's setting, the head's pod and the network."""
    closed = render()
    assert "ACCORD_REWARDS_HOST" not in str(closed) and not [name for _, name in _kinds(closed) if "rewards" in name]
    values = {"rewards": {"hosts": ["a.example:8000", "b"], "http": {"existingSecret": "s", "port": 8500}}}
    opened = render(values)
    runner = _one(opened, "Deployment", "-runner")["spec"]["template"]["spec"]["containers"][0]["env"]
    known = {entry["name"]: entry for entry in runner}
    assert known["ACCORD_REWARDS_HOST"]["value"] == "0.0.0.0" and known["ACCORD_REWARDS_PORT"]["value"] == "8500"
    assert known["ACCORD_REWARDS_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "s", "key": "token"}
    (cluster,) = (item for item in opened if item["kind"] == "RayCluster")
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "rewards", "containerPort": 8500} in head["ports"]
    assert {"name": "ACCORD_REWARD_HOSTS", "value": "a.example:8000,b"} in head["env"]
    policy = _one(opened, "NetworkPolicy", "-rewards")["spec"]
    assert policy["ingress"] == [{"ports": [{"port": 8500, "protocol": "TCP"}]}]
    assert policy["podSelector"]["matchLabels"]["ray.io/node-type"] == "head"
    with pytest.raises(helm.HelmError, match=r"needs ray\.enabled"):
        render({**values, "ray": {"enabled": False}})


def test_the_rays_of_chart_image_and_constraints_are_one():
    version = yaml.safe_load((CHART / "values.yaml").read_text())["ray"]["version"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_runbook_links_get_their_base(render):
    values = {"monitoring": {"enabled": True, "runbookBase": "https://git.example/accord/"}}
    rule = _one(render(values), "PrometheusRule")
    alerts = [rule for group in rule["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].startswith("https://git.example/accord/docs/runbook.md#")
