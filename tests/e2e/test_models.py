"""Where the model comes from, and how a new version of it comes to running servers: in a namespace of its own."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator

import processes
import pytest
import urllib3
from kube import NAMESPACE, ModelVolume, Release, clusters, image, load_balancer, make_namespace
from processes import PNG, SAMPLE
from test_release import Asking

HERE = f"{NAMESPACE}-models"
# Packs the image's model into the same bytes each time, and offers it.
STORE = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: store}
spec:
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
        - name: store
          image: IMAGE
          command:
            - sh
            - -c
            - tar -C /models/clothing-model -cf /tmp/model.tar 1 && cd /tmp && exec python3 -m http.server 8000
          readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}
          securityContext:
            allowPrivilegeEscalation: false
            runAsNonRoot: true
            runAsUser: 65532
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Service
metadata: {name: store}
spec:
  selector: {app: store}
  ports: [{port: 80, targetPort: 8000}]
"""
SMALL = ("server.resources.requests.cpu=50m", "gateway.resources.requests.cpu=20m")


@pytest.fixture(scope="module")
def volume(cluster: clusters.Cluster, tags: dict[str, str]) -> Iterator[ModelVolume]:
    """A namespace with a store of archives, and a volume with version 1 of the model."""
    make_namespace(cluster, HERE)
    model = image(cluster, tags, "clothing-model")
    try:
        with ModelVolume(cluster, model, HERE, "reload-clothing-classifier-models") as volume:
            cluster.kubectl("--namespace", HERE, "apply", "--filename=-", input=STORE.replace("IMAGE", model))
            cluster.kubectl("--namespace", HERE, "rollout", "status", "deployment/store", "--timeout=120s")
            volume.add_version(1)
            yield volume
    finally:
        cluster.kubectl("delete", "namespace", HERE, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def models(volume: ModelVolume) -> clusters.Cluster:
    """The cluster, with that namespace."""
    return volume.cluster


def install(release: Release, *values: str, timeout: str = "5m") -> None:
    settings = [argument for value in (*SMALL, *values) for argument in ("--set", value)]
    images = release.cluster.image_values(release.tags)
    release.helm("upgrade", str(clusters.CHART), "--install", "--wait", *images, *settings, timeout=timeout)


def versions_of(http: urllib3.PoolManager, gateway: str, requests: int) -> Counter[str]:
    """How many requests each version of the model answered."""
    seen: Counter[str] = Counter()
    for _ in range(requests):
        answer = http.request("POST", f"{gateway}/predict", body=SAMPLE.read_bytes(), headers=PNG)
        assert answer.status == 200, answer.data
        seen[answer.headers["X-Model-Version"]] += 1
    return seen


def complaint(release: Release) -> str:
    """What an init container of the release's servers said when it failed, as `kubectl describe` shows it."""
    for pod in release.pods("server"):
        for status in pod["status"].get("initContainerStatuses", []):
            for state in (status["state"], status.get("lastState", {})):
                if message := state.get("terminated", {}).get("message"):
                    return str(message)
    return ""


def is_portable(release: Release) -> bool:
    """Whether the model image has our own server, which can take TensorFlow Serving's manners with signals."""
    return bool(release.kubectl("exec", "deployment/store", "--", "sh", "-c", "command -v clothing-model || true"))


def test_versions_come_to_a_running_server(models: clusters.Cluster, volume: ModelVolume, tags: dict[str, str]) -> None:
    """docs/canary.md by hot reload: a second version, a share for it, promotion, rollback. No server restarts, and no
    request fails. In the end the server goes at once, though it ignores SIGTERM as TensorFlow Serving does."""
    release = Release("reload", models, tags, HERE)
    source = (
        "model.source.type=pvc,model.source.pvc.storageClassName=,model.source.pvc.size=1Gi",
        "model.source.pvc.accessModes={ReadWriteMany}",
        "server.rollout.mode=hotReload,server.rollout.pollSeconds=1,model.versionLabel=stable,gateway.replicas=2",
        "server.drainSeconds=2",
    )
    steps = {
        "first": "model.versions={1},model.versionLabels.stable=1",
        "canary": "model.versions={1,2},model.versionLabels.stable=1,model.versionLabels.canary=2,"
        "model.canary.versionLabel=canary,model.canary.weight=30",
        "promoted": "model.versions={1,2},model.versionLabels.stable=2",
        "settled": "model.versions={2},model.versionLabels.stable=2",
        "loaded again": "model.versions={1,2},model.versionLabels.stable=2",
        "rolled back": "model.versions={1,2},model.versionLabels.stable=1",
    }
    if is_portable(release):
        source += ("server.extraArgs={--handle_signals=false}",)
    install(release, *source, steps["first"])
    gateway = load_balancer(models, HERE, release.gateway)
    # Connections are kept, as a gateway's end is another test's matter.
    http = urllib3.PoolManager(timeout=30, retries=False)
    before = release.pods("server")

    def reach(step: str, expected: set[str]) -> None:
        install(release, *source, steps[step])
        # The kubelet looks at a ConfigMap about once a minute, and at once when its pod changes.
        name = before[0]["metadata"]["name"]
        release.kubectl(
            "annotate", "pod", name, f"clothing-classifier/looked-at={step.replace(' ', '-')}", "--overwrite"
        )
        processes.wait_for(step, lambda: set(versions_of(http, gateway, 20)) == expected, 120)

    volume.add_version(2)
    with Asking(http, gateway) as asking:
        assert versions_of(http, gateway, 20) == {"1": 20}
        reach("canary", {"1", "2"})
        share = versions_of(http, gateway, 200)
        reach("promoted", {"2"})
        for step in ("settled", "loaded again"):
            reach(step, {"2"})
        loaded = f"/api/v1/namespaces/{HERE}/pods/{before[0]['metadata']['name']}:8501/proxy/v1/models/clothing-model"
        processes.wait_for("both versions to be loaded", lambda: available(models, loaded) == {"1", "2"}, 60)
        reach("rolled back", {"1"})
    assert not asking.failed, f"{len(asking.failed)} of {asking.sent} failed: {asking.failed[:3]}"
    assert 30 < share["2"] < 90, share
    after = release.pods("server")
    assert [pod["metadata"]["uid"] for pod in after] == [pod["metadata"]["uid"] for pod in before]
    assert all(status["restartCount"] == 0 for pod in after for status in pod["status"]["containerStatuses"])
    print(f"\n{asking.sent} requests, none failed; the canary's share of 30 % was {share['2'] / 2:.0f} %")

    started = time.monotonic()
    release.kubectl("delete", "pod", after[0]["metadata"]["name"], "--wait", "--timeout=60s")
    took = time.monotonic() - started
    print(f"the server was gone after {took:.1f} s, 2 of which it drained")
    assert took < 2 + 3
    release.helm("uninstall", "--wait")
    assert "models" in release.kubectl("get", "persistentvolumeclaims", "--output=name")


def available(cluster: clusters.Cluster, path: str) -> set[str]:
    statuses = json.loads(cluster.kubectl("get", "--raw", path))["model_version_status"]
    return {status["version"] for status in statuses if status["state"] == "AVAILABLE"}


def test_a_model_is_downloaded_and_another_archive_is_not_taken(models: clusters.Cluster, tags: dict[str, str]) -> None:
    release = Release("fetched", models, tags, HERE)
    sha256 = release.kubectl("exec", "deployment/store", "--", "sha256sum", "/tmp/model.tar").split()[0]
    archive = "model.source.download.archives[0]"
    source = ("model.source.type=download", f"{archive}.url=http://store/model.tar")
    install(release, *source, f"{archive}.sha256={sha256},{archive}.version=7,model.version=7")
    gateway = load_balancer(models, HERE, release.gateway)
    http = urllib3.PoolManager(timeout=30, retries=False)
    assert versions_of(http, gateway, 3) == {"7": 3}
    with pytest.raises(clusters.ClusterError):
        install(release, *source, f"{archive}.sha256={'0' * 64},{archive}.version=8,model.version=7", timeout="20s")
    said = processes.wait_for("the download to fail", lambda: complaint(release), 60)
    assert f"error: http://store/model.tar has the SHA-256 {sha256}, and {'0' * 64} is asked for" in said
    assert versions_of(http, gateway, 3) == {"7": 3}
    release.helm("uninstall")


def test_a_model_that_is_not_in_the_image_is_named(models: clusters.Cluster, tags: dict[str, str]) -> None:
    release = Release("misnamed", models, tags, HERE)
    with pytest.raises(clusters.ClusterError):
        install(release, "model.name=flowers", timeout="10s")
    said = processes.wait_for("the preflight to fail", lambda: complaint(release), 60)
    assert "there is no folder /models/flowers, and /models has: clothing-model" in said
    assert "Set model.name to the folder's name" in said
    release.helm("uninstall")


def test_a_server_without_a_gpu_to_run_on_says_so(models: clusters.Cluster, tags: dict[str, str]) -> None:
    nodes = json.loads(models.kubectl("get", "nodes", "--output=json"))["items"]
    if any(node["status"]["allocatable"].get("nvidia.com/gpu", "0") != "0" for node in nodes):
        pytest.skip("this cluster has GPUs")
    release = Release("gpu", models, tags, HERE)
    with pytest.raises(clusters.ClusterError):
        install(release, "server.gpu.enabled=true", f"server.image.tag={tags['clothing-model']}-gpu", timeout="5s")

    def said() -> str:
        conditions = [each for pod in release.pods("server") for each in pod["status"].get("conditions", [])]
        return " ".join(each.get("message", "") for each in conditions)

    assert "Insufficient nvidia.com/gpu" in processes.wait_for("the scheduler's word", said, 30)
    release.helm("uninstall")
