"""A single GPU: Pending servers, upgrades by recreate and inPlace, hot reload."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest
import urllib3
from kube import NAMESPACE, ModelVolume, advertised_gpus, clusters, has_gpus, image, load_balancer
from steady import Load, PhotoHost, Steady, Table, steady_release

import processes
from processes import PNG, SAMPLE

HERE = f"{NAMESPACE}-gpu"
VALUES = (
    "server.gpu.enabled=true,server.replicas=1,server.drainSeconds=1",
    "model.source.type=pvc,model.source.pvc.storageClassName=,model.source.pvc.size=1Gi",
    "model.source.pvc.accessModes={ReadWriteMany}",
)


@pytest.fixture(scope="module")
def volume(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[ModelVolume]:
    """A namespace with a volume that holds version 1 of the model."""
    if has_gpus(cluster):
        pytest.skip("this cluster has GPUs, and the scenarios want one that has exactly one")
    cluster.tag("clothing-model", tags["clothing-model"], f"{tags['clothing-model']}-gpu")
    with (
        steady_release(cluster, tags, HERE),
        ModelVolume(
            cluster, image(cluster, tags, "clothing-model"), HERE, "steady-clothing-classifier-models"
        ) as volume,
    ):
        volume.add_version(1)
        yield volume


@pytest.fixture(scope="module")
def advertise(volume: ModelVolume) -> Iterator[Callable[[int], None]]:
    with advertised_gpus(volume.cluster) as advertise:
        yield advertise


class OnGpu(Steady):
    """The release on a GPU, with its model on the volume."""

    def reach(self, host: PhotoHost, *values: str, timeout: str = "5m") -> None:
        """Install or upgrade, and wait."""
        tag = f"server.image.tag={self.tags['clothing-model']}-gpu"
        super().reach(host, *VALUES, tag, *values, timeout=timeout)


@pytest.fixture(scope="module")
def release(cluster: clusters.Cluster, tags: dict[str, str], volume: ModelVolume) -> OnGpu:
    return OnGpu("steady", cluster, tags, HERE)


def test_notes_explain_a_pending_gpu_server(
    release: OnGpu, photo_host: PhotoHost, advertise: Callable[[int], None]
) -> None:
    """The commands of the notes show the scheduler's message; once there is a GPU, the server starts."""
    with pytest.raises(clusters.ClusterError):
        release.reach(photo_host, timeout="5s")
    notes = release.cluster.helm("get", "notes", release.name, "--namespace", HERE)
    assert "If a server stays Pending, no node has 1 free nvidia.com/gpu" in notes
    wanted = ("  kubectl get nodes", f"  kubectl --namespace {HERE} describe pods")
    script = ["bash", "-euc", "\n".join(line for line in notes.splitlines() if line.startswith(wanted))]
    environment = release.cluster.process_environment()

    def said() -> bool:
        shown = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout
        return "Insufficient nvidia.com/gpu" in shown and "GPUS" in shown

    processes.wait_for("the scheduler's message", said, 60)
    assert [pod["status"]["phase"] for pod in release.pods("server")] == ["Pending"]
    advertise(1)
    release.kubectl("rollout", "status", f"deployment/{release.server}", "--timeout=180s")
    release.kubectl("rollout", "status", f"deployment/{release.gateway}", "--timeout=60s")


def test_surge_is_refused_with_advice(release: OnGpu, photo_host: PhotoHost, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(clusters.ClusterError):
        release.reach(photo_host, "server.rollout.mode=surge")
    said = capfd.readouterr().err
    assert "the new server would wait for a GPU that the old one holds" in said
    assert "recreate or inPlace" in said


@pytest.mark.parametrize("mode", ["recreate", "inPlace"])
def test_single_gpu_moves_to_the_new_server(release: OnGpu, photo_host: PhotoHost, table: Table, mode: str) -> None:
    """The old server stops first. Meanwhile clients get 503 with Retry-After and no other error."""
    base = load_balancer(release.cluster, HERE, release.gateway)
    release.wait_for_the_model()
    before = release.pods("server")
    # A pause, as a client that heeds Retry-After has it: else there were only refusals to count.
    with Load(base, photo_host, pause_seconds=0.2) as load:
        release.reach(photo_host, f"server.rollout.mode={mode},server.podAnnotations.changed={mode}")
        (after,) = release.pods("server")
        assert after["metadata"]["uid"] != before[0]["metadata"]["uid"]
        load.wait_until_sent(100)
    outcome = load.outcome
    note = f"{outcome.refused} refused (503 with Retry-After), no other error"
    table.add(f"one GPU: helm upgrade, {mode}", outcome, note)
    assert set(outcome.causes) <= {"503"}, outcome.causes
    assert outcome.silent == 0


def test_hot_reload_keeps_the_gpu(release: OnGpu, photo_host: PhotoHost, volume: ModelVolume, table: Table) -> None:
    """The running server loads a new version."""
    base = load_balancer(release.cluster, HERE, release.gateway)
    release.reach(photo_host, "server.rollout.mode=hotReload,server.rollout.pollSeconds=1")
    release.wait_for_the_model()
    http = urllib3.PoolManager(timeout=30, retries=False)
    before = release.pod_ids()

    def version() -> str:
        answer = http.request("POST", f"{base}/predict", body=SAMPLE.read_bytes(), headers=PNG)
        return str(answer.headers.get("X-Model-Version", ""))

    processes.wait_for("version 1", lambda: version() == "1", 60)
    with Load(base, photo_host) as load:
        volume.add_version(2)
        processes.wait_for("version 2", lambda: version() == "2", 120)
        load.wait_until_sent(100)
        assert release.pod_ids() == before
    table.add("one GPU: a new version by hot reload", load.outcome, "no pod restarted")
    assert load.outcome.failed == 0, load.outcome.causes
