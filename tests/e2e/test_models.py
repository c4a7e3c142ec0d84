"""Model sources (volume, download), and new versions by hot reload."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from kube import NAMESPACE, ModelVolume, Release, as_upstream, clusters, image, load_balancer, make_namespace
from steady import FULL, Load, PhotoHost, Table

import processes
from processes import PNG, SAMPLE

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
# The share's bound is four of its standard deviations and more: by chance it is missed once in 10,000 runs.
CANARY_PERCENT = 10
CANARY_REQUESTS, CANARY_POINTS = (2000, 3) if FULL else (800, 4.5)
CONFIG = "/etc/clothing-classifier/models.config"
# How long servers look for a version that is not on the volume yet, once a second.
LATE_SECONDS = 5
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
    release.upgrade(*SMALL, *values, timeout=timeout)


def versions_of(http: urllib3.PoolManager, gateway: str, requests: int) -> Counter[str]:
    """Answered requests by model version."""
    seen: Counter[str] = Counter()
    for _ in range(requests):
        answer = http.request("POST", f"{gateway}/predict", body=SAMPLE.read_bytes(), headers=PNG)
        assert answer.status == 200, answer.data
        seen[answer.headers["X-Model-Version"]] += 1
    return seen


def complaint(release: Release) -> str:
    """The termination message of a failed init container of the servers, as `kubectl describe` shows it."""
    for pod in release.pods("server"):
        for status in pod["status"].get("initContainerStatuses", []):
            for state in (status["state"], status.get("lastState", {})):
                if message := state.get("terminated", {}).get("message"):
                    return str(message)
    return ""


def test_canary_by_hot_reload_promotion_and_rollback(
    models: clusters.Cluster, volume: ModelVolume, tags: dict[str, str], photo_host: PhotoHost, table: Table
) -> None:
    """docs/canary.md by hot reload: a second version, a share for it, promotion, rollback. No server restarts, and no
    request fails. In the end a server goes at once, though it ignores SIGTERM as TensorFlow Serving does."""
    release = Release("reload", models, tags, HERE)
    http = urllib3.PoolManager(timeout=30, retries=False)
    source = (
        "model.source.type=pvc,model.source.pvc.storageClassName=,model.source.pvc.size=1Gi",
        "model.source.pvc.accessModes={ReadWriteMany}",
        "server.rollout.mode=hotReload,server.rollout.pollSeconds=1,model.versionLabel=stable",
        "server.replicas=2,gateway.replicas=2,server.drainSeconds=2",
        *as_upstream(models),
        *photo_host.values,
    )
    steps = {
        "first": "model.versions={1},model.versionLabels.stable=1",
        "canary": "model.versions={1,2},model.versionLabels.stable=1,model.versionLabels.canary=2,"
        f"model.canary.versionLabel=canary,model.canary.weight={CANARY_PERCENT}",
        "promoted": "model.versions={1,2},model.versionLabels.stable=2",
        "settled": "model.versions={2},model.versionLabels.stable=2",
        "loaded again": "model.versions={1,2},model.versionLabels.stable=2",
        "rolled back": "model.versions={1,2},model.versionLabels.stable=1",
    }
    install(release, *source, steps["first"])
    gateway = load_balancer(models, HERE, release.gateway)
    before = release.pods("server")
    names = [pod["metadata"]["name"] for pod in before]

    def reach(step: str, versions: set[str], label: str, version: str, late: int | None = None) -> float:
        """Go to a step; seconds until each server has these versions, and answers with this one for the label.

        A version that is late is put on the volume when the servers know that they should load it.
        """
        started = time.monotonic()
        install(release, *source, steps[step])
        # The kubelet looks at a ConfigMap about once a minute, and at once when its pod changes.
        change = f"clothing-classifier/looked-at={step.replace(' ', '-')}"
        release.kubectl("annotate", "pod", *names, change, "--overwrite")
        if late is not None:
            for name in names:
                read = ("exec", name, "--container=server", "--", "cat", CONFIG)
                processes.wait_for(
                    f"{name}'s configuration", lambda read=read: f"versions: {late}" in release.kubectl(*read), 120
                )
            time.sleep(LATE_SECONDS)
            assert not any(is_at(models, name, versions, label, version) for name in names)
            volume.add_version(late)
        for name in names:
            processes.wait_for(f"{name}: {step}", lambda name=name: is_at(models, name, versions, label, version), 120)
        return time.monotonic() - started

    with Load(gateway, photo_host) as load:
        took = reach("canary", {"1", "2"}, "canary", "2", late=2)
        processes.wait_for("the canary", lambda: "2" in versions_of(http, gateway, 20), 60)
    note = f"after {took:.0f} s, {LATE_SECONDS} of which the version was not on the volume; no server restarted"
    table.add("hot reload: a second version of the model, which comes late", load.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes

    with Load(gateway, photo_host, requests=CANARY_REQUESTS) as load:
        pass
    share = 100 * load.outcome.versions["2"] / load.outcome.requests
    table.add(f"canary of {CANARY_PERCENT} %", load.outcome, f"its share: {share:.1f} %")
    assert load.outcome.failed == 0, load.outcome.causes
    assert abs(share - CANARY_PERCENT) <= CANARY_POINTS, load.outcome.versions

    with Load(gateway, photo_host) as load:
        took = reach("promoted", {"1", "2"}, "stable", "2")
        reach("settled", {"2"}, "stable", "2")
    table.add("the canary promoted, the old version unloaded", load.outcome, f"promoted after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes

    with Load(gateway, photo_host) as load:
        reach("loaded again", {"1", "2"}, "stable", "2")
        took = reach("rolled back", {"1", "2"}, "stable", "1")
    table.add("rolled back: the old version loaded, and stable again", load.outcome, f"after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes
    assert set(versions_of(http, gateway, 20)) == {"1"}

    after = release.pods("server")
    assert [pod["metadata"]["uid"] for pod in after] == [pod["metadata"]["uid"] for pod in before]
    assert all(status["restartCount"] == 0 for pod in after for status in pod["status"]["containerStatuses"])
    started = time.monotonic()
    release.kubectl("delete", "pod", names[0], "--wait", "--timeout=60s")
    took = time.monotonic() - started
    print(f"\nthe server was gone after {took:.1f} s, 2 of which it drained")
    assert took < 2 + 3
    release.helm("uninstall", "--wait")
    assert "models" in release.kubectl("get", "persistentvolumeclaims", "--output=name")


def ask(cluster: clusters.Cluster, server: str, path: str = "") -> dict[str, Any]:
    """A server's REST answer about the model; empty where it has none, as for a label of no version."""
    model = f"/api/v1/namespaces/{HERE}/pods/{server}:8501/proxy/v1/models/clothing-model"
    try:
        return dict(json.loads(cluster.kubectl("get", "--raw", model + path)))
    except clusters.ClusterError:  # 404
        return {}


def is_at(cluster: clusters.Cluster, server: str, versions: set[str], label: str, version: str) -> bool:
    """Whether a server has exactly these versions, and the label is at that one."""
    found = ask(cluster, server).get("model_version_status", [])
    loaded = {one["version"] for one in found if one["state"] == "AVAILABLE"}
    # The status route ignores a label; the metadata route resolves it.
    labelled = ask(cluster, server, f"/labels/{label}/metadata").get("model_spec", {})
    return loaded == versions and labelled.get("version") == version


def test_download_accepts_only_the_pinned_archive(models: clusters.Cluster, tags: dict[str, str]) -> None:
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


def test_missing_model_is_named(models: clusters.Cluster, tags: dict[str, str]) -> None:
    release = Release("misnamed", models, tags, HERE)
    with pytest.raises(clusters.ClusterError):
        install(release, "model.name=flowers", timeout="10s")
    said = processes.wait_for("the preflight to fail", lambda: complaint(release), 60)
    assert "there is no folder /models/flowers, and /models has: clothing-model" in said
    assert "Set model.name to the folder's name" in said
    release.helm("uninstall")
