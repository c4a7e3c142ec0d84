"""A release with network policies, mTLS and API keys, beside the default release."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
from kube import NAMESPACE, PHOTO_SERVER, Release, clusters, image, make_namespace, port_forward

import processes
from processes import PNG, SAMPLE

WALLED = f"{NAMESPACE}-walled"
METADATA = "169.254.169.254"
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()
    print("open")
except OSError as error:
    print("closed:", error)
"""
# Whether the gateway finds the model server ready: by plain text, by TLS, by TLS with a certificate of its own.
HANDSHAKES = """
import grpc, sys
from pathlib import Path
folder = Path("/etc/clothing-gateway/server-tls")
ca, key, certificate = (( folder / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
for channel in (
    grpc.insecure_channel(sys.argv[1]),
    grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(ca)),
    grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(ca, key, certificate)),
):
    try:
        grpc.channel_ready_future(channel).result(timeout=5)
        print("ready")
    except grpc.FutureTimeoutError:
        print("refused")
"""


def certificates(folder: Path, server: str) -> dict[str, dict[str, Path]]:
    """A certificate authority with the certificates of server and gateway, as files of their Secrets."""

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca")
    for name in (server, "gateway"):
        (folder / "names").write_text(f"subjectAltName=DNS:{name}")
        openssl(f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
        openssl(
            f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.crt"
        )
    return {
        secret: {"ca.crt": folder / "ca.crt", "tls.crt": folder / f"{name}.crt", "tls.key": folder / f"{name}.key"}
        for secret, name in (("server-tls", server), ("gateway-tls", "gateway"))
    }


@dataclass(frozen=True)
class Walled:
    """The release, and a pod beside it that is not part of it."""

    release: Release

    def connect(self, deployment: str, host: str, port: int) -> str:
        return self.release.kubectl(
            "exec", f"deploy/{deployment}", "--", "python3", "-c", CONNECT, host, str(port)
        ).strip()

    def address(self, component: str) -> str:
        return str(self.release.pods(component)[0]["status"]["podIP"])


@pytest.fixture(scope="module")
def walled(
    cluster: clusters.Cluster, tags: dict[str, str], release: Release, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Walled]:
    second = Release(release.name, cluster, tags, WALLED)  # the same name: only the namespace tells them apart
    make_namespace(cluster, WALLED)
    second.kubectl("create", "configmap", "photos", f"--from-file={SAMPLE.name}={SAMPLE}")
    manifest = PHOTO_SERVER.replace("IMAGE", image(cluster, tags, "clothing-gateway"))
    cluster.kubectl("--namespace", WALLED, "apply", "--filename=-", input=manifest)
    second.kubectl("rollout", "status", "deployment/photos", "--timeout=120s")
    folder = tmp_path_factory.mktemp("certificates")
    for secret, files in certificates(folder, f"{second.server}-headless").items():
        second.kubectl(
            "create", "secret", "generic", secret, *(f"--from-file={key}={file}" for key, file in files.items())
        )
    second.kubectl(
        "create",
        "secret",
        "generic",
        "keys",
        "--from-literal=keys=shop correct-horse-battery",
        "--from-literal=test-key=correct-horse-battery",
    )
    photos = second.kubectl("get", "pods", "--selector=app=photos", "--output=jsonpath={.items[0].status.podIP}")
    second.apply(
        "networkPolicy.enabled=true",
        f"gateway.fetch.allowedNetworks={{{photos}/32}}", "gateway.fetch.allowedPorts={80,8000}",
        "server.tls.secretName=server-tls", "gateway.serverTls.secretName=gateway-tls", "gateway.serverTls.mutual=true",
        "gateway.keys.secretName=keys", "gateway.service.type=ClusterIP",
        f"test.photoUrl=http://{photos}:8000/{SAMPLE.name}", "test.maxSeconds=10",
        "server.resources.requests.cpu=100m", "gateway.resources.requests.cpu=50m",
    )  # fmt: skip
    yield Walled(second)
    cluster.kubectl("delete", "namespace", WALLED, "--wait=false")


@pytest.fixture
def metadata(cluster: clusters.Cluster, tmp_path: Path) -> Iterator[bool]:
    """Whether each node has a fake metadata service, on the project's own cluster."""
    with contextlib.ExitStack() as stack:
        for name in cluster.nodes if isinstance(cluster, clusters.Own) else ():
            node = [cluster.command, "exec", name]
            address = [f"{METADATA}/32", "dev", "lo"]
            subprocess.run([*node, "ip", "address", "replace", *address], check=True)
            stack.callback(subprocess.run, [*node, "ip", "address", "delete", *address], check=True)
            serve = [sys.executable, "-m", "http.server", "80", "--bind", METADATA, "--directory", str(tmp_path)]
            process = subprocess.Popen([*node, *serve], start_new_session=True, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
        yield isinstance(cluster, clusters.Own)


def test_network_policy_allows_other_pods_the_gateway_only(walled: Walled) -> None:
    """Labels don't help: the stranger's are Prometheus's."""
    walled.release.kubectl("label", "pods", "--selector=app=photos", "app.kubernetes.io/name=prometheus", "--overwrite")
    # A Service that was just made reaches each node's rules within seconds.
    name = walled.release.gateway
    processes.wait_for(name, lambda: walled.connect("photos", name, 80) == "open", 30)
    for component, port in (("server", 8500), ("server", 8501), ("gateway", 9697)):
        assert walled.connect("photos", walled.address(component), port).startswith("closed"), (component, port)


def test_without_network_policy_other_pods_reach_server_and_admin_port(walled: Walled, release: Release) -> None:
    """The control of the test before: without policies the connections succeed."""
    for component, port in (("server", 8500), ("gateway", 9697)):
        found = release.pods(component)[0]["status"]["podIP"]
        assert walled.connect("photos", found, port) == "open", (component, port)


def test_network_policy_allows_the_gateway_dns_and_server_only(
    walled: Walled, release: Release, metadata: bool
) -> None:
    gateway, server = walled.release.gateway, f"{walled.release.server}-headless"
    # By its name, so DNS answers; that of one node may say for some seconds that a name isn't there yet.
    processes.wait_for(server, lambda: walled.connect(gateway, server, 8500) == "open", 20)
    assert walled.connect(gateway, walled.address("server"), 8501).startswith("closed")
    others = [("kubernetes.default.svc", 443), (release.pods("gateway")[0]["status"]["podIP"], 9696)]
    others += [(METADATA, 80)] if metadata else []
    for host, port in others:
        processes.wait_for(f"{host}", lambda at=(host, port): walled.connect("photos", *at) == "open", 20)
        assert walled.connect(gateway, host, port).startswith("closed"), (host, port)
    assert walled.connect(gateway, METADATA, 80).startswith("closed")


def test_mtls_accepts_only_the_gateways_certificate(walled: Walled) -> None:
    server = f"{walled.release.server}-headless:8500"
    answer = walled.release.kubectl(
        "exec", f"deploy/{walled.release.gateway}", "--", "python3", "-c", HANDSHAKES, server
    )
    assert answer.split() == ["refused", "refused", "ready"]


def test_url_and_upload_with_an_api_key(
    cluster: clusters.Cluster, walled: Walled, http: urllib3.PoolManager, gateway: str
) -> None:
    photos = walled.release.kubectl(
        "get", "pods", "--selector=app=photos", "--output=jsonpath={.items[0].status.podIP}"
    )
    with port_forward(cluster, WALLED, f"service/{walled.release.gateway}", "18081:80") as base:
        key = {"Authorization": "Bearer correct-horse-battery"}
        url = f"http://{photos}:8000/{SAMPLE.name}"
        by_address = http.request("POST", f"{base}/predict", json={"url": url}, headers=key)
        assert by_address.status == 200, by_address.data
        uploaded = http.request("POST", f"{base}/predict", body=SAMPLE.read_bytes(), headers=PNG | key)
        other_release = http.request("POST", f"{gateway}/predict", body=SAMPLE.read_bytes(), headers=PNG)
        assert by_address.json() == uploaded.json() == other_release.json()
        assert http.request("POST", f"{base}/predict", body=SAMPLE.read_bytes(), headers=PNG).status == 401
        api = http.request("POST", f"{base}/predict", json={"url": "https://kubernetes.default.svc/"}, headers=key)
        assert api.status == 400


def test_helm_test_passes_the_network_policies(walled: Walled) -> None:
    assert "Phase:          Succeeded" in walled.release.helm("test", timeout="3m")
