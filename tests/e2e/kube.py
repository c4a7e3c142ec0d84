"""Helpers of the end-to-end tests: namespaces, releases, addresses, port-forwards."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

import processes

sys.path.insert(0, str(processes.ROOT / "scripts"))

import clusters

# Another one lets two runs share a cluster.
NAMESPACE = os.environ.get("E2E_NAMESPACE", "clothing-e2e")
RELEASE = "shop"
REPORT = processes.ROOT / "e2e-report"
PHOTO_SERVER = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: photos}
spec:
  selector: {matchLabels: {app: photos}}
  template:
    metadata: {labels: {app: photos}}
    spec:
      automountServiceAccountToken: false
      containers:
        - name: photos
          image: IMAGE
          command: [python3, -m, http.server, "8000", --directory, /photos]
          readinessProbe: {tcpSocket: {port: 8000}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            runAsNonRoot: true
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
          volumeMounts: [{name: photos, mountPath: /photos}]
      volumes: [{name: photos, configMap: {name: photos}}]
---
apiVersion: v1
kind: Service
metadata: {name: photos}
spec:
  selector: {app: photos}
  ports: [{port: 80, targetPort: 8000}]
"""
# Fills a folder of the node that is a volume. It is root, which its namespace alone allows.
FILLER = """
apiVersion: v1
kind: Pod
metadata: {name: filler}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - name: filler
      image: IMAGE
      command: [sh, -c, "rm -rf /volume/* && mkdir /volume/clothing-model && touch /tmp/ready && sleep 3600"]
      readinessProbe: {exec: {command: [ls, /tmp/ready]}, periodSeconds: 1}
      securityContext: {runAsUser: 0}
      volumeMounts: [{name: volume, mountPath: /volume}]
  volumes: [{name: volume, hostPath: {path: /tmp/NAME, type: DirectoryOrCreate}}]
"""
VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {name: NAME}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: NAME, name: CLAIM}
  hostPath: {path: /tmp/NAME}
"""


@dataclass(frozen=True)
class ModelVolume:
    """A volume for one claim of a namespace, while it lasts, which many pods can mount: a folder of the node."""

    cluster: clusters.Cluster
    image: str  # of a model, from which versions are copied
    namespace: str
    claim: str

    def __enter__(self) -> Self:
        filler = FILLER.replace("IMAGE", self.image).replace("NAME", self.namespace)
        volume = VOLUME.replace("NAME", self.namespace).replace("CLAIM", self.claim)
        self.cluster.kubectl("create", "namespace", f"{self.namespace}-filler")
        self._filler("apply", "--filename=-", input=filler)
        self.cluster.kubectl("apply", "--filename=-", input=volume)
        self._filler("wait", "pod/filler", "--for=condition=Ready", "--timeout=120s")
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.kubectl("delete", "namespace", f"{self.namespace}-filler", "--wait=false", "--ignore-not-found")
        self.cluster.kubectl("delete", "persistentvolume", self.namespace, "--wait=false", "--ignore-not-found")

    def add_version(self, version: int) -> None:
        """Put a version on the volume, as a whole: a server that looks for new versions never sees half of one."""
        base = "/volume/clothing-model"
        commands = f"cp -r /models/clothing-model/1 {base}/.copy && mv {base}/.copy {base}/{version}"
        self._filler("exec", "filler", "--", "sh", "-c", commands)

    def add_model(self, version: int, files: Path) -> None:
        """Put the files of another model on the volume as a version."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(files, str(version))
        unpack = "base64 --decode | tar --extract --directory=/volume/clothing-model"
        text = base64.b64encode(archive.getvalue()).decode()
        self._filler("exec", "--stdin", "filler", "--", "sh", "-c", unpack, input=text)

    def _filler(self, *arguments: str, **options: object) -> None:
        self.cluster.kubectl("--namespace", f"{self.namespace}-filler", *arguments, **options)


@contextlib.contextmanager
def advertised_gpus(cluster: clusters.Cluster) -> Iterator[Callable[[int], None]]:
    """Advertise GPUs on a node: scheduling is real then, the device is not."""
    node = cluster.kubectl("get", "nodes", "--output=jsonpath={.items[0].metadata.name}")

    def advertise(count: int) -> None:
        status = json.dumps({"status": {"capacity": {"nvidia.com/gpu": str(count)}}})
        cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "--patch", status)

    try:
        yield advertise
    finally:
        advertise(0)


def has_gpus(cluster: clusters.Cluster) -> bool:
    """Whether a node has GPUs of its own."""
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    return any(node["status"]["allocatable"].get("nvidia.com/gpu", "0") != "0" for node in nodes)


def image(cluster: clusters.Cluster, tags: dict[str, str], name: str) -> str:
    return f"{cluster.registry}/{name}:{tags[name]}".removeprefix("/")


def as_upstream(cluster: clusters.Cluster) -> tuple[str, ...]:
    """Values that switch the portable server's signal handlers off, as TensorFlow Serving has none."""
    return () if cluster.has_official_server else ("server.flags.handle_signals=false",)


def make_namespace(cluster: clusters.Cluster, name: str) -> None:
    """An empty namespace that enforces Pod Security "restricted"."""
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=180s")
    cluster.kubectl("create", "namespace", name)
    levels = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn", "audit")]
    cluster.kubectl("label", "namespace", name, *levels)


def objects(cluster: clusters.Cluster, namespace: str) -> set[str]:
    """Names of all objects in a namespace, without events, which the cluster deletes."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list", "--output=name").split()
    wanted = ",".join(kind for kind in kinds if not re.match(r"events|.*metrics\.k8s\.io|.*projectcontour", kind))
    return set(cluster.kubectl("--namespace", namespace, "get", wanted, "--output=name", "--ignore-not-found").split())


@dataclass(frozen=True)
class Release:
    """A release of the chart with the built images, allowed to fetch from its namespace's photo server."""

    name: str
    cluster: clusters.Cluster
    tags: dict[str, str]
    namespace: str = NAMESPACE

    @property
    def gateway(self) -> str:
        """Name of the gateway's Service and Deployment."""
        return f"{self.name}-clothing-classifier-gateway"

    @property
    def server(self) -> str:
        """Name of the model server's Service and Deployment."""
        return f"{self.name}-clothing-classifier-server"

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the namespace; its output."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments)

    def helm(self, verb: str, *arguments: str, timeout: str = "5m") -> str:
        """``helm VERB NAME`` in the namespace; its output."""
        return self.cluster.helm(verb, self.name, *arguments, "--namespace", self.namespace, "--timeout", timeout)

    def apply(self, *values: str, timeout: str = "5m") -> str:
        """Install or upgrade, with the values given as for ``--set``, and wait."""
        address = self.kubectl("get", "service", "photos", "--output=jsonpath={.spec.clusterIP}")
        network = f"{address}/{128 if ':' in address else 32}"
        return self.upgrade(f"gateway.fetch.allowedNetworks={{{network}}}", *values, timeout=timeout)

    def upgrade(self, *values: str, timeout: str = "5m") -> str:
        """Install or upgrade with a load balancer and the values given as for ``--set``, and wait."""
        settings = ("gateway.service.type=LoadBalancer", *values)
        arguments = [argument for value in settings for argument in ("--set", value)]
        images = self.cluster.image_values(self.tags)
        return self.helm("upgrade", str(clusters.CHART), "--install", "--wait", *images, *arguments, timeout=timeout)

    def pods(self, *components: str) -> list[dict[str, Any]]:
        """The release's pods of these components (of all, where none is named) that are not being deleted."""
        selector = f"--selector=app.kubernetes.io/instance={self.name}"
        found = json.loads(self.kubectl("get", "pods", selector, "--output=json"))["items"]
        return [
            pod
            for pod in found
            if "deletionTimestamp" not in pod["metadata"]
            and (not components or pod["metadata"]["labels"]["app.kubernetes.io/component"] in components)
        ]

    @property
    def threads(self) -> int:
        """gRPC threads of a model server: it runs one call less, and refuses the next."""
        arguments = self.kubectl("get", f"deployment/{self.server}", "--output=jsonpath={..containers[0].args}")
        found = re.search(r"--grpc_max_threads=(\d+)", arguments)
        assert found, arguments
        return int(found[1])

    def predictions(self, pod: str) -> float:
        """Predict calls over gRPC that a model server has answered, by its own metrics."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8501/proxy/monitoring/prometheus/metrics"
        wanted = (":tensorflow:serving:request_latency_count", 'API="Predict"', 'entrypoint="GRPC"')
        lines = self.cluster.kubectl("get", "--raw", path).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in wanted))


def load_balancer(cluster: clusters.Cluster, namespace: str, service: str) -> str:
    """Base URL of a LoadBalancer's address; skips where the cluster gives none (plain Kind)."""

    def address() -> str:
        path = "--output=jsonpath={.status.loadBalancer.ingress[0].ip}{.status.loadBalancer.ingress[0].hostname}"
        return cluster.kubectl("--namespace", namespace, "get", "service", service, path).strip()

    try:
        found = processes.wait_for("an address", address, 60)
    except AssertionError:
        pytest.skip(f"this cluster gives service/{service} no LoadBalancer address")
    return f"http://[{found}]" if ":" in found else f"http://{found}"


@contextlib.contextmanager
def port_forward(cluster: clusters.Cluster, namespace: str, what: str, ports: str) -> Iterator[str]:
    """`kubectl port-forward` while it lasts; the base URL on this machine."""
    command = ["kubectl", "--namespace", namespace, "port-forward", what, ports]
    environment = cluster.process_environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("Forwarding from"), f"`{' '.join(command)}` said: {line}"
            yield f"http://127.0.0.1:{ports.partition(':')[0]}"
        finally:
            process.terminate()
