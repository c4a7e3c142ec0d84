"""A photo in, its classes out, on a real cluster: in the order of a release's life."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Self

import processes
import pytest
import urllib3
from kube import Release, clusters, image, load_balancer, make_namespace, objects, port_forward
from processes import LABELS, PNG, SAMPLE

Http = urllib3.PoolManager


def upload(http: Http, gateway: str, photo: Path) -> dict[str, float]:
    kind = "image/png" if photo.suffix == ".png" else "image/jpeg"
    answer = http.request("POST", f"{gateway}/predict", body=photo.read_bytes(), headers={"Content-Type": kind})
    assert answer.status == 200, answer.data
    return dict(answer.json())


class Asking:
    """Uploads, one after the other, while it lasts; none may fail."""

    def __init__(self, http: Http, gateway: str) -> None:
        self.sent = 0
        self.failed: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(http, gateway))

    def _ask(self, http: Http, gateway: str) -> None:
        while not self._done.is_set():
            self.sent += 1
            try:
                answer = http.request("POST", f"{gateway}/predict", body=SAMPLE.read_bytes(), headers=PNG)
            except urllib3.exceptions.HTTPError as error:
                self.failed.append(repr(error))
                continue
            if answer.status != 200:
                self.failed.append(f"{answer.status} {answer.data[:200]!r}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


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
    for host in ("photos", f"photos.{namespace}.svc.cluster.local"):
        answer = http.request("POST", f"{gateway}/predict", json={"url": f"http://{host}/{photo.name}"})
        assert answer.status == 200, answer.data
        assert answer.json() == upload(http, gateway, photo)


def test_cluster_addresses_are_not_fetched(cluster: clusters.Cluster, gateway: str, http: Http) -> None:
    api = cluster.kubectl("get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}")
    for host in ("kubernetes.default.svc.cluster.local", "169.254.169.254", api, "localhost"):
        answer = http.request("POST", f"{gateway}/predict", json={"url": f"http://{host}/photo.jpg"})
        assert answer.status == 400, (host, answer.data)
        assert api not in answer.data.decode()


def test_load_balancer_scores_equal_tensorflows(gateway: str, http: Http) -> None:
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


def test_the_curl_of_the_notes_works_as_it_is_printed(
    release: Release, gateway: str, http: Http, tmp_path: Path
) -> None:
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


def test_the_doctor_of_the_notes_looks_from_inside_the_pod(release: Release) -> None:
    """In the container as it is: no root, nothing that can be written, the pod's own environment and limits."""
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


def test_upgrade_under_requests_and_two_servers_that_share_them(release: Release, gateway: str, http: Http) -> None:
    """An upgrade that replaces every pod and doubles them: no request fails, and the gateway finds the new servers."""
    with Asking(http, gateway) as asking:
        release.apply("server.replicas=2", "gateway.replicas=2", "gateway.requestTimeoutSeconds=15")
        release.kubectl("rollout", "status", f"deployment/{release.server}", "--timeout=180s")
        servers = [pod["metadata"]["name"] for pod in release.pods("server")]
        assert len(servers) == 2
        processes.wait_for("both servers to answer", lambda: all(release.predictions(pod) > 0 for pod in servers))
    assert not asking.failed, f"{len(asking.failed)} of {asking.sent} failed: {asking.failed[:3]}"
    assert asking.sent > 50
    print(f"\n{asking.sent} requests, none failed")


def test_a_drain_takes_one_gateway_at_a_time_and_is_never_blocked(release: Release, gateway: str, http: Http) -> None:
    """What `kubectl drain` asks for each pod: the second waits until the first is replaced, and no request fails."""

    def evict(pod: str) -> bool:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{release.namespace}/pods/{pod}/eviction"
        try:
            release.cluster.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))
        except clusters.ClusterError:
            return False
        return True

    first, second = (pod["metadata"]["name"] for pod in release.pods("gateway"))
    with Asking(http, gateway) as asking:
        assert evict(first)
        assert not evict(second)
        processes.wait_for("the second to be let go", lambda: evict(second), 60)
        release.kubectl("rollout", "status", f"deployment/{release.gateway}", "--timeout=60s")
    assert not asking.failed, f"{len(asking.failed)} of {asking.sent} failed: {asking.failed[:3]}"


def test_labels_that_do_not_fit_stop_an_upgrade_and_say_why(release: Release, gateway: str, http: Http) -> None:
    """The rollout halts at a gateway that is not ready, the old ones go on answering, and a rollback mends it."""
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


def test_second_release_that_scales_itself_and_uninstalls_that_leave_nothing(
    cluster: clusters.Cluster, tags: dict[str, str], namespace: str, release: Release, gateway: str, http: Http
) -> None:
    second = Release("second", cluster, tags)
    second.apply(
        "gateway.service.type=ClusterIP", "gateway.autoscaling.enabled=true", "gateway.autoscaling.minReplicas=1",
        "server.autoscaling.enabled=true",
    )  # fmt: skip
    with port_forward(cluster, namespace, f"service/{second.gateway}", "18080:80") as base:
        assert upload(http, base, SAMPLE) == upload(http, gateway, SAMPLE)
    if cluster.kubectl("get", "apiservices", "v1beta1.metrics.k8s.io", "--ignore-not-found"):
        for scaled in (second.gateway, second.server):  # each finds the load of its pods, so it could act on it
            wait = ["wait", f"horizontalpodautoscaler/{scaled}", "--for=condition=ScalingActive", "--timeout=120s"]
            second.kubectl(*wait)
    for one in (second, release):
        if one is release:  # the other is gone, and this one doesn't mind
            assert set(upload(http, gateway, SAMPLE)) == set(LABELS)
        one.helm("uninstall", "--wait")

        def nothing_left(name: str = one.name) -> bool:
            return not [each for each in objects(cluster, namespace) if f"/{name}" in each]

        processes.wait_for(f"nothing left of {one.name}", nothing_left, 60)
