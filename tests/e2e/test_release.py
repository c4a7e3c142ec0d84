"""A release's life on a real cluster: install, classify, helm test, upgrade, rollback, uninstall."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import urllib3
from kube import Release, clusters, image, load_balancer, make_namespace, objects, port_forward

import processes
from processes import LABELS, SAMPLE

Http = urllib3.PoolManager


def upload(http: Http, gateway: str, photo: Path) -> dict[str, float]:
    kind = "image/png" if photo.suffix == ".png" else "image/jpeg"
    answer = http.request("POST", f"{gateway}/predict", body=photo.read_bytes(), headers={"Content-Type": kind})
    assert answer.status == 200, answer.data
    return dict(answer.json())


def test_pods_are_restricted_and_ready(release: Release) -> None:
    pods = release.pods()
    assert {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} == {"gateway", "server"}
    for pod in pods:
        assert all(status["ready"] and status["restartCount"] == 0 for status in pod["status"]["containerStatuses"])
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["automountServiceAccountToken"] is False


def test_photo_by_url_from_inside_the_cluster(gateway: str, http: Http, namespace: str) -> None:
    photo = SAMPLE if not (real := processes.dataset_photos(5)) else real[0]
    url = f"http://photos.{namespace}.svc.cluster.local/{photo.name}"
    answer = http.request("POST", f"{gateway}/predict", json={"url": url})
    assert answer.status == 200, answer.data
    assert answer.json() == upload(http, gateway, photo)
    # A name is taken as it is, never with the pod's search domains: http://redis is not the cluster's.
    answer = http.request("POST", f"{gateway}/predict", json={"url": f"http://photos/{photo.name}"})
    assert answer.json()["code"] in ("address-not-allowed", "photo-server-failed"), answer.data


def test_cluster_addresses_are_not_fetched(cluster: clusters.Cluster, gateway: str, http: Http) -> None:
    api = cluster.kubectl("get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}")
    for host in ("kubernetes.default.svc.cluster.local", "169.254.169.254", api, "localhost"):
        answer = http.request("POST", f"{gateway}/predict", json={"url": f"http://{host}/photo.jpg"})
        assert answer.status == 400, (host, answer.data)
        assert api not in answer.data.decode()


def test_scores_through_the_load_balancer_equal_tensorflow(gateway: str, http: Http) -> None:
    photos = processes.dataset_photos(120)
    if not photos:
        pytest.skip(f"no photos at {processes.DATASET}; set CLOTHING_DATASET")
    expected = processes.reference_scores(processes.DEMO_MODEL / "1", photos)
    worst, right = 0.0, 0
    for photo in photos:
        scores = upload(http, gateway, photo)
        right += max(scores, key=scores.__getitem__) == photo.parent.name
        worst = max(worst, *(abs(scores[label] - score) for label, score in zip(LABELS, expected[photo], strict=True)))
    print(f"\n{len(photos)} photos: largest difference of a score {worst:.2e}, {right / len(photos):.3f} right")
    assert len(photos) >= 100
    assert worst < 1e-4
    assert right / len(photos) > 0.8


def test_curl_of_the_notes_works(release: Release, gateway: str, http: Http, tmp_path: Path) -> None:
    notes = release.cluster.helm("get", "notes", release.name, "--namespace", release.namespace)
    wanted = ("  export GATEWAY=", "  curl --form image=@photo.jpg")
    script = "\n".join(line for line in notes.splitlines() if line.startswith(wanted))
    (tmp_path / "photo.jpg").write_bytes(SAMPLE.read_bytes())
    printed = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env=release.cluster.process_environment(),
        capture_output=True,
        check=True,
    )
    assert json.loads(printed.stdout) == upload(http, gateway, SAMPLE)


def test_doctor_of_the_notes_runs_in_the_pod(release: Release) -> None:
    """The doctor runs in the container: not root, read-only, with the pod's environment and limits."""
    notes = release.cluster.helm("get", "notes", release.name, "--namespace", release.namespace)
    (command,) = [line for line in notes.splitlines() if "clothing-gateway doctor" in line]
    printed = subprocess.run(
        ["bash", "-euc", f"{command} --json"],
        env=release.cluster.process_environment(),
        capture_output=True,
        check=True,
    )
    answer = json.loads(printed.stdout)
    found = {check["check"]: check["state"] for check in answer["checks"]}
    assert answer["healthy"] is True
    assert found["predict"] == found["gateway"] == found["memory"] == "ok", answer


@pytest.mark.parametrize("ports", ["8080:80", "9696:9696"], ids=["service-8080-80", "pod-9696"])
def test_port_forward(cluster: clusters.Cluster, namespace: str, release: Release, http: Http, ports: str) -> None:
    what = f"{'service' if ports.endswith(':80') else 'deployment'}/{release.gateway}"
    with port_forward(cluster, namespace, what, ports) as base:
        assert set(upload(http, base, SAMPLE)) == set(LABELS)
        assert http.request("GET", f"{base}/ping").data.strip() == b"PONG"


def test_helm_test(release: Release) -> None:
    assert "Phase:          Succeeded" in release.helm("test", timeout="3m")


def test_wrong_labels_stop_an_upgrade_with_the_reason(release: Release, gateway: str, http: Http) -> None:
    """The rollout stops at a gateway that is not ready, the old ones keep answering, and a rollback fixes it."""
    with pytest.raises(clusters.ClusterError):
        release.apply("model.labels={cat,dog}", timeout="30s")
    assert set(upload(http, gateway, SAMPLE)) == set(LABELS)
    logs = release.kubectl("logs", "--selector=app.kubernetes.io/component=gateway", "--tail=-1")
    assert "gives 10 scores, and GATEWAY_LABELS names 2 labels" in logs
    release.helm("rollback", "--wait", timeout="3m")
    assert set(upload(http, gateway, SAMPLE)) == set(LABELS)


def test_ping_chart(cluster: clusters.Cluster, tags: dict[str, str], http: Http) -> None:
    make_namespace(cluster, "ping-e2e")
    try:
        repository = image(cluster, tags, "clothing-ping").rpartition(":")[0]
        cluster.helm(
            "install", "ping", str(processes.ROOT / "charts/ping"), "--namespace", "ping-e2e", "--wait", "--timeout=2m",
            "--set", f"image.repository={repository},image.tag={tags['clothing-ping']}",
        )  # fmt: skip
        base = load_balancer(cluster, "ping-e2e", "ping")
        answer = processes.wait_for("PONG", lambda: http.request("GET", f"{base}/ping"), 30)
        assert answer.status == 200
        assert answer.data.strip() == b"PONG"
        assert "Succeeded" in cluster.helm("test", "ping", "--namespace", "ping-e2e", "--timeout", "2m")
    finally:
        cluster.kubectl("delete", "namespace", "ping-e2e", "--wait=false")


def test_second_release_autoscales_and_uninstall_leaves_nothing(
    cluster: clusters.Cluster, tags: dict[str, str], namespace: str, release: Release, gateway: str, http: Http
) -> None:
    second = Release("second", cluster, tags)
    second.apply(
        "gateway.service.type=ClusterIP", "gateway.autoscaling.enabled=true", "gateway.autoscaling.minReplicas=1",
        "server.autoscaling.enabled=true",
    )  # fmt: skip
    with port_forward(cluster, namespace, f"service/{second.gateway}", "18080:80") as base:
        assert upload(http, base, SAMPLE) == upload(http, gateway, SAMPLE)
    for one in (second, release):
        if one is release:  # the other is gone, and this one doesn't mind
            assert set(upload(http, gateway, SAMPLE)) == set(LABELS)
        one.helm("uninstall", "--wait")

        def nothing_left(name: str = one.name) -> bool:
            return not [each for each in objects(cluster, namespace) if f"/{name}" in each]

        processes.wait_for(f"nothing left of {one.name}", nothing_left, 60)
