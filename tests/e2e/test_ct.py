"""The ci files of the charts, and the examples that need no cloud, installed by chart-testing under Pod Security."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import ct
import pytest
from kube import NAMESPACE, ModelVolume, advertised_gpus, clusters, has_gpus, image, make_namespace
from test_locked_down import certificates

from processes import ROOT

# Several of them install concurrently (make e2e), each in a namespace of its own.
CT = f"{NAMESPACE}-ct{os.environ.get('PYTEST_XDIST_WORKER', '')}"
EXAMPLES = ROOT / "Chart-values-examples"
# The other examples want a cloud's load balancer, disks or buckets, a real GPU, KEDA or a registry.
NO_CLOUD = (
    "autoscaling",
    "canary",
    "gateway-api",
    "high-availability",
    "ingress-tls",
    "kind",
    "locked-down",
    "minikube",
    "pvc-models",
    "quota",
)
FILES = [
    *sorted((ROOT / "charts").glob("*/ci/*-values.yaml")),
    *(EXAMPLES / f"{name}.yaml" for name in NO_CLOUD),
]
# An upgrade is two more installations and four more tests, so it is of the defaults and, by Helm 4, of what scales
# itself: Helm 4 applies on the server's side, and refuses to take a field that an autoscaler has set.
UPGRADED = {"default-values.yaml": "helm", "scaled-values.yaml": "helm4"}
FILES.sort(key=lambda file: file.name not in UPGRADED)  # those that take longest begin first
# An example is for a cluster with room, and for clients who mustn't notice: a test has neither.
SMALL_AND_FAST = [
    "server.resources.requests.cpu=100m",
    "gateway.resources.requests.cpu=50m",
    "server.maxConnectionAgeSeconds=5",
    "server.drainSeconds=1",
    "gateway.drain.delaySeconds=1",
]


@pytest.fixture(scope="module")
def restricted(cluster: clusters.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace that enforces Pod Security "restricted", with the Secrets that locked-down.yaml names."""
    make_namespace(cluster, CT)
    pairs = certificates(tmp_path_factory.mktemp("certificates"), "model-server")
    for name, files in zip(("model-server-tls", "gateway-tls"), pairs.values(), strict=True):
        of_files = [f"--from-file={key}={file}" for key, file in files.items()]
        cluster.kubectl("--namespace", CT, "create", "secret", "generic", name, *of_files)
    keys = ["--from-literal=keys=shop correct-horse-battery", "--from-literal=test-key=correct-horse-battery"]
    cluster.kubectl("--namespace", CT, "create", "secret", "generic", "gateway-keys", *keys)
    yield CT
    cluster.kubectl("delete", "namespace", CT, "--wait=false")


def settings_for(cluster: clusters.Cluster, tags: dict[str, str], file: Path) -> list[str]:
    if "ping" in file.parts:
        repository = image(cluster, tags, "clothing-ping").rpartition(":")[0]
        return [f"image.repository={repository}", f"image.tag={tags['clothing-ping']}"]
    images = [setting for setting in cluster.image_values(tags) if setting != "--set"]
    return images + (SMALL_AND_FAST if file.parent == EXAMPLES else [])


# Those whose model lies on a volume; canary.yaml says nothing of where it lies, and the image has one version only.
ON_A_VOLUME = {
    "pvc-values.yaml": [],
    "pvc-models.yaml": [],
    "canary.yaml": [
        f"model.source.{setting}"
        for setting in ("type=pvc", "pvc.existingClaim=models", "pvc.accessModes={ReadWriteMany}")
    ],
}
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: models}
spec: {accessModes: [ReadWriteMany], storageClassName: "", resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture(scope="module")
def claim(cluster: clusters.Cluster, tags: dict[str, str], restricted: str) -> Iterator[None]:
    """The claim "models", with two versions of the model on its volume."""
    with ModelVolume(cluster, image(cluster, tags, "clothing-model"), CT, "models") as volume:
        volume.add_version(1)
        volume.add_version(2)
        cluster.kubectl("--namespace", CT, "apply", "--filename=-", input=CLAIM)
        yield


@pytest.fixture
def gpu(cluster: clusters.Cluster, tags: dict[str, str]) -> Iterator[list[str]]:
    """A node with a real or advertised GPU, and the model's image under a GPU tag."""
    real = has_gpus(cluster)
    if not real and isinstance(cluster, clusters.Existing):
        pytest.skip("no node of this cluster has a GPU")
    tag = f"{tags['clothing-model']}-gpu"
    cluster.tag("clothing-model", tags["clothing-model"], tag)
    with contextlib.nullcontext() if real else advertised_gpus(cluster) as advertise:
        if advertise:
            advertise(1)
        yield [f"server.image.tag={tag}"]


def helm_test_pods(cluster: clusters.Cluster, namespace: str) -> list[str]:
    """The pods of helm test that ran, by their events."""
    names = "--output=jsonpath={.items[*].involvedObject.name}"
    events = cluster.kubectl("--namespace", namespace, "get", "events", "--field-selector=reason=Started", names)
    return [name for name in events.split() if "-test" in name]


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT).with_suffix("")) for file in FILES])
def test_ct_installs_and_upgrades(
    request: pytest.FixtureRequest,
    cluster: clusters.Cluster,
    tags: dict[str, str],
    restricted: str,
    file: Path,
    tmp_path: Path,
) -> None:
    chart = "clothing-classifier" if file.parent == EXAMPLES else file.parts[-3]
    ct.repository(tmp_path, chart, file)
    before, started = len(helm_test_pods(cluster, restricted)), time.monotonic()
    helm = UPGRADED.get(file.name, "") if chart == "clothing-classifier" else ""
    upgrade = ["--upgrade"] if helm else []
    settings = settings_for(cluster, tags, file)
    if file.name in ON_A_VOLUME:
        request.getfixturevalue("claim")
        settings += ON_A_VOLUME[file.name]
    if file.name == "gpu-values.yaml":
        settings += request.getfixturevalue("gpu")
    if file.name == "gateway-api.yaml" and not cluster.kubectl(
        "get", "customresourcedefinitions", "httproutes.gateway.networking.k8s.io", "--ignore-not-found"
    ):
        pytest.skip("this cluster has no Gateway API")
    said = ct.install(cluster, tmp_path, restricted, settings, *upgrade, helm=helm or "helm")
    print(f"\nct install {' '.join(upgrade)} {chart} with {file.name}: {time.monotonic() - started:.0f} s")
    assert "All charts installed successfully" in said
    # ct passes over an upgrade whose first half fails. Both upgrades are tested before and after, a plain one once.
    assert len(helm_test_pods(cluster, restricted)) - before >= (5 if upgrade else 1), said
