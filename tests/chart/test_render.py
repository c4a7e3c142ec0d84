import tarfile
from itertools import chain
from pathlib import Path

import pytest
from charts import (
    CHARTS,
    CLASSIFIER,
    KUBERNETES,
    PING,
    Manifest,
    manifests,
    name,
    pods,
    render,
    run,
    tool,
    values_files,
)


def misses_of_restricted(pod: Manifest) -> list[str]:
    """What Pod Security "restricted" has against the pod, and this project besides."""
    spec = pod["spec"]
    misses = [f"pod has {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        misses.append("may run as root")
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        misses.append("no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        misses.append("gets a token")
    if spec.get("enableServiceLinks") is not False:
        misses.append("gets a variable for each Service of the namespace")
    allowed = {
        "configMap",
        "emptyDir",
        "secret",
        "projected",
        "downwardAPI",
        "persistentVolumeClaim",
        "csi",
        "ephemeral",
    }
    misses += [f"volume {volume['name']}" for volume in spec.get("volumes", []) if not allowed & set(volume)]
    for container in chain(spec.get("initContainers", []), spec["containers"]):
        expected = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        if container.get("securityContext") != expected:
            misses.append(f"container {container['name']} is not confined")
        if not container.get("resources", {}).get("limits", {}).get("memory"):
            misses.append(f"container {container['name']} has no memory limit")
    return misses


@pytest.mark.parametrize("chart_and_file", values_files(), ids=name)
def test_every_pod_meets_pod_security_restricted(chart_and_file):
    chart, file = chart_and_file
    found = pods(manifests(chart, "--values", file))
    if file.stem == "openshift":  # which gives each namespace users of its own
        for pod in found.values():
            assert "runAsUser" not in pod["spec"]["securityContext"]
            pod["spec"]["securityContext"]["runAsUser"] = 1000700000
    assert {what: misses_of_restricted(pod) for what, pod in found.items()} == {what: [] for what in found}
    assert any(what.startswith("Pod ") for what in found), "helm test has no pod"


def test_unrestricted_pod_is_detected():
    pod: Manifest = {
        "spec": {"hostPID": True, "volumes": [{"name": "v", "hostPath": {}}], "containers": [{"name": "c"}]}
    }
    assert len(misses_of_restricted(pod)) == 8


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_two_releases_share_nothing(chart):
    def names(release: str) -> set[str]:
        return {f"{m['kind']} {m['metadata']['name']}" for m in manifests(chart, release=release)}

    def labels(release: str) -> list[tuple[str, ...]]:
        return [tuple(pod["metadata"]["labels"].values()) for pod in pods(manifests(chart, release=release)).values()]

    assert not names("one") & names("two")
    assert not set(labels("one")) & set(labels("two"))


def test_services_select_the_pods_of_their_component_only():
    objects = manifests(CLASSIFIER)
    for service in (m for m in objects if m["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        selected = [what for what, pod in pods(objects).items() if selector <= pod["metadata"]["labels"].items()]
        assert selected == [f"Deployment {service['metadata']['name'].removesuffix('-headless')}"]


def test_every_service_port_exists():
    for chart in CHARTS:
        objects = manifests(chart)
        for service in (m for m in objects if m["kind"] == "Service"):
            deployment = service["metadata"]["name"].removesuffix("-headless")
            containers = pods(objects)[f"Deployment {deployment}"]["spec"]["containers"]
            ports = {port["name"] for container in containers for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_templates_leave_no_blank_line():
    for chart, file in values_files():
        lines = render(chart, "--values", file).splitlines()
        assert not [number for number, line in enumerate(lines, 1) if not line.strip()], file


def test_default_render_has_few_lines_and_no_comments():
    lines = render(CLASSIFIER).splitlines()
    assert len(lines) < 400
    assert not [line for line in lines if line.lstrip().startswith("#") and not line.startswith("# Source:")]


@pytest.mark.parametrize("version", KUBERNETES)
def test_pre_stop_uses_sleep_where_kubernetes_has_it(version):
    server = pods(manifests(CLASSIFIER, "--kube-version", version))["Deployment demo-clothing-classifier-server"]
    action = server["spec"]["containers"][0]["lifecycle"]["preStop"]
    assert list(action) == (["exec"] if version == "1.29.0" else ["sleep"])


def test_chart_package_has_all_templates_and_no_tests(tmp_path: Path):
    for chart in CHARTS:
        assert run(tool("helm"), "package", chart, "--destination", tmp_path).returncode == 0
        with tarfile.open(next(tmp_path.glob(f"{chart.name}-*.tgz"))) as package:
            files = {file.split("/", 1)[1] for file in package.getnames()}
        templates = {str(file.relative_to(chart)) for file in (chart / "templates").rglob("*") if file.is_file()}
        assert templates <= files
        assert not [file for file in files if file.startswith(("tests/", "ci/"))]


def test_ping_has_one_pod_and_one_test():
    assert set(pods(manifests(PING))) == {"Deployment demo-ping", "Pod demo-ping-test"}


RELOADING = (
    "--set=model.source.type=pvc,server.rollout.mode=hotReload,model.versionLabel=stable,model.versionLabels.stable=1",
)


@pytest.mark.parametrize(
    "step",
    [
        "model.versions={1,2},model.versionLabels.canary=2",
        "model.versions={1,2},model.versionLabels.canary=2,model.canary.versionLabel=canary,model.canary.weight=10",
        "model.versions={1,2},model.versionLabels.stable=2",
        "model.versionLabels.stable=2",
    ],
)
def test_promotion_by_hot_reload_restarts_no_server(step):
    def server(*values: str) -> tuple[Manifest, Manifest]:
        objects = manifests(CLASSIFIER, *RELOADING, *values)
        found = {m["kind"]: m for m in objects if m["metadata"]["name"] == "demo-clothing-classifier-server"}
        return found["Deployment"], found["ConfigMap"]

    before, config_before = server()
    after, config_after = server(f"--set={step}")
    assert before == after
    assert config_before["data"] != config_after["data"]


@pytest.mark.parametrize("tier", ["gateway", "server"])
def test_more_replicas_restart_no_pod(tier):
    """Pods are added beside those that run: nothing in a pod template follows the number of pods."""
    few, many = (
        {
            manifest["metadata"]["name"]: manifest["spec"]["template"]
            for manifest in manifests(CLASSIFIER, "--set", f"{tier}.replicas={count}")
            if manifest["kind"] == "Deployment"
        }
        for count in (1, 3)
    )
    assert few == many
