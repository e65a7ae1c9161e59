"""What every pod of the chart promises, in every values file of helm/ci."""

from __future__ import annotations

import pytest

pytest.importorskip("helm_python", reason="pip install -e '.[dev]' brings helm-python-sdk")


def _containers(pods):
    for name, template in pods.items():
        spec = template["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{name}/{container['name']}", container


def test_no_container_has_more_rights_than_it_needs(pods, objects):
    contexts = dict(_containers(pods))
    for item in objects:
        if item["kind"] == "RayCluster" and "autoscalerOptions" in item["spec"]:
            contexts["autoscaler"] = item["spec"]["autoscalerOptions"]
    assert len(contexts) >= 2
    for name, container in contexts.items():
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert "privileged" not in context, name


def test_pods_run_as_a_user_and_reach_nothing_of_the_node(pods):
    for name, template in pods.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert not any("hostPath" in volume for volume in spec.get("volumes", [])), name


def test_only_the_autoscaler_gets_a_service_account_token(pods, values):
    autoscaling = values.get("ray", {}).get("autoscaling", True)
    for name, template in pods.items():
        expected = autoscaling and name.endswith("/head")
        assert template["spec"]["automountServiceAccountToken"] is expected, name


def test_every_container_states_its_resources(pods):
    for name, container in _containers(pods):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
        assert "memory" in container["resources"]["limits"], name


def test_a_read_only_root_leaves_a_place_to_write(pods):
    for name, container in _containers(pods):
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/tmp" in mounts, name
        if "accord" in container["image"]:
            home = next(entry["value"] for entry in container["env"] if entry["name"] == "HOME")
            assert home in mounts, name


def test_secrets_come_by_reference_only(objects, pods):
    for name, container in _containers(pods):
        for entry in container.get("env", []):
            if any(word in entry["name"] for word in ("KEY", "TOKEN", "PASSWORD", "REDIS_URL", "REDISCLI_AUTH")):
                assert "secretKeyRef" in entry["valueFrom"], f"{name} {entry['name']}"
    texts = [item for item in objects if item["kind"] == "ConfigMap"]
    assert not [item for item in texts if "requirepass" in str(item["data"])]


def test_probes_are_split_and_liveness_never_asks_the_store(pods):
    for name, template in pods.items():
        if name.startswith("RayCluster"):
            continue  # KubeRay adds the probes of Ray pods
        container = template["spec"]["containers"][0]
        assert {"startupProbe", "livenessProbe"} <= set(container), name
        liveness = container["livenessProbe"]
        if "httpGet" in liveness:
            assert liveness["httpGet"]["path"] == "/healthz", name
        else:
            assert "tcpSocket" in liveness, name
        if name.endswith("-api"):
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_a_pod_outlives_the_grace_it_gives_its_attempt(pods):
    for name, template in pods.items():
        if name.endswith("-runner"):
            environment = {e["name"]: e.get("value") for e in template["spec"]["containers"][0]["env"]}
            assert template["spec"]["terminationGracePeriodSeconds"] >= float(environment["ACCORD_GRACE_S"]) + 30


def test_network_is_closed_by_default(objects, values):
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    deny = next(item for item in policies if item["metadata"]["name"].endswith("-deny"))
    assert sorted(deny["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    assert "ingress" not in deny["spec"]
    for item in policies:
        ports = {port["port"] for rule in item["spec"].get("ingress", []) for port in rule.get("ports", [])}
        open_to_all = any("from" not in rule for rule in item["spec"].get("ingress", []))
        assert not (open_to_all and ports & {"redis", 6379, 8265, 10001, 8000}), item["metadata"]["name"]


def test_two_releases_share_nothing_by_name(render):
    names = [item["metadata"]["name"] for item in render()]
    assert all(name.startswith("rel-") for name in names)
