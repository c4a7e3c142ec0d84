"""What a pod of another tenant reaches, by any labels that it chooses for itself."""

from typing import Any

import pytest
from charts import CLASSIFIER, ROOT, Manifest, manifests, name, values_files

# The download of a model needs a way out, which a policy of servers that download must name.
POLICIES = ["--set-json", 'networkPolicy={"enabled":true,"server":{"egress":[{"ports":[{"port":443}]}]}}']
# A metrics scraper must be named (validate.yaml) where a PodMonitor is made.
SCRAPER = ["--set-json", 'networkPolicy.metrics.from=[{"namespaceSelector":{"matchLabels":{"team":"monitoring"}}}]']
TENANT = {"kubernetes.io/metadata.name": "tenant"}


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; Kubernetes reads an empty one as all."""
    assert set(selector) <= {"matchLabels"}, selector
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def admits(peer: Manifest, namespace: dict[str, str]) -> bool:
    """Whether a peer takes in a pod of another namespace, which chooses its own labels but not its namespace's."""
    if "ipBlock" in peer:
        return True
    return "namespaceSelector" in peer and matches(peer["namespaceSelector"], namespace)


def open_ports(objects: list[Manifest], component: str, namespace: dict[str, str]) -> set[Any]:
    """The ports of a component that the policies leave open to pods of another namespace."""
    ports: set[Any] = set()
    chosen = []
    for policy in objects:
        labels = (
            policy["spec"].get("podSelector", {}).get("matchLabels", {}) if policy["kind"] == "NetworkPolicy" else None
        )
        if labels is None or labels.get("app.kubernetes.io/component", component) != component:
            continue
        chosen.append(policy)
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from") or any(admits(peer, namespace) for peer in rule["from"]):
                ports |= {port["port"] for port in rule.get("ports", [{"port": "all"}])}
    assert any("Ingress" in policy["spec"]["policyTypes"] for policy in chosen), (
        f"no policy denies {component} anything"
    )
    return ports


@pytest.mark.parametrize("chart_and_file", [pair for pair in values_files() if pair[0] == CLASSIFIER], ids=name)
def test_pod_labels_do_not_open_the_model_server_or_an_admin_port(chart_and_file):
    """A pod labelled like Prometheus, or like the gateway, in a namespace of another tenant."""
    objects = manifests(CLASSIFIER, "--values", chart_and_file[1], *POLICIES, *SCRAPER)
    assert open_ports(objects, "server", TENANT) == set()
    assert open_ports(objects, "gateway", TENANT) <= {9696}
    # The namespace that is named gets the metrics, which on the model server are the REST API, and no gRPC.
    monitoring = {"team": "monitoring"}
    assert open_ports(objects, "server", monitoring) == {8501}
    assert open_ports(objects, "gateway", monitoring) - {9696} == {9697}


def test_the_locked_down_example_names_its_prometheus_by_a_namespace():
    objects = manifests(CLASSIFIER, "--values", ROOT / "Chart-values-examples/locked-down.yaml")
    assert open_ports(objects, "server", TENANT) == open_ports(objects, "gateway", TENANT) == set()
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    assert open_ports(objects, "server", monitoring) == {8501}
    assert open_ports(objects, "gateway", monitoring) == {9697}


def test_by_default_only_the_gateway_reaches_the_model_server():
    objects = manifests(CLASSIFIER, *POLICIES)
    assert open_ports(objects, "server", TENANT) == set()
    assert open_ports(objects, "gateway", TENANT) == {9696}
    (policy,) = [
        one for one in objects if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-server")
    ]
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8500}]
    (peer,) = rule["from"]
    assert set(peer) == {"podSelector"}, "a peer without a namespace is of the release's own"
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
