"""The project's own cluster (tests/cluster) behaves as the other tests expect: nodes, DNS, policies, drains."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import urllib3
from kube import NAMESPACE, clusters, image, load_balancer, make_namespace

import processes

NODES = ("clothing-control-plane", "clothing-worker")
PEERS = ("peer-0", "peer-1")
SPACE = f"{NAMESPACE}-nodes"
# One server on each node, with a Service of its own; /hostname says which it is.
PEER = """
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {peer: NAME}}
spec:
  nodeSelector: {kubernetes.io/hostname: NODE}
  terminationGracePeriodSeconds: 0
  containers:
    - name: server
      image: IMAGE
      command: [python3, -um, http.server, "8000", --directory, /etc]
      readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}
      securityContext:
        allowPrivilegeEscalation: false
        runAsNonRoot: true
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  type: LoadBalancer
  selector: {peer: NAME}
  ports: [{port: 80, targetPort: 8000}]
"""
# Of one kind, to be moved from a node.
MOVED = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: moved}
spec:
  replicas: 2
  selector: {matchLabels: {app: moved}}
  template:
    metadata: {labels: {app: moved}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector: {matchLabels: {app: moved}}
      containers:
        - name: server
          image: IMAGE
          command: [python3, -um, http.server, "8000", --directory, /etc]
          readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1}
          securityContext:
            allowPrivilegeEscalation: false
            runAsNonRoot: true
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: moved}
spec: {minAvailable: LEAST, selector: {matchLabels: {app: moved}}}
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends}
spec:
  podSelector: {matchLabels: {peer: TARGET}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {friend: "yes"}}}]}]
"""


class Space:
    """The tests' namespace, with kubectl."""

    def __init__(self, cluster: clusters.Own, picture: str) -> None:
        self.cluster, self.picture = cluster, picture

    def kubectl(self, *arguments: str, **options: object) -> str:
        return self.cluster.kubectl("--namespace", SPACE, *arguments, **options)

    def apply(self, manifest: str, **words: str) -> None:
        for word, value in (words | {"IMAGE": self.picture}).items():
            manifest = manifest.replace(word, value)
        self.kubectl("apply", "--filename=-", input=manifest)

    def fetch(self, pod: str, url: str) -> str:
        """What a pod is answered; an error where it is not."""
        script = f"import urllib.request as u; print(u.urlopen('{url}', timeout=2).read().decode())"
        return self.kubectl("exec", pod, "--", "python3", "-c", script, stderr=subprocess.DEVNULL).strip()

    def reaches(self, pod: str, url: str) -> bool:
        try:
            return bool(self.fetch(pod, url))
        except clusters.ClusterError:
            return False

    def address(self, pod: str) -> str:
        return self.kubectl("get", "pod", pod, "--output=jsonpath={.status.podIP}")

    def where(self, selector: str) -> list[str]:
        """Nodes of the ready pods that a selector matches."""
        ready = (
            '{range .items[?(@.status.containerStatuses[0].ready==true)]}{.spec.nodeName}{" "}'
            '{.metadata.deletionTimestamp}{"\\n"}{end}'
        )
        lines = self.kubectl("get", "pods", f"--selector={selector}", f"--output=jsonpath={ready}").splitlines()
        return sorted(line.strip() for line in lines if len(line.split()) == 1)


@pytest.fixture(scope="module")
def space(cluster: clusters.Cluster, tags: dict[str, str]) -> Iterator[Space]:
    if not isinstance(cluster, clusters.Own):
        pytest.skip("these are tests of tests/cluster, and another cluster is in use")
    nodes = cluster.kubectl("get", "nodes", "--output=name").split()
    if nodes != [f"node/{name}" for name in NODES]:
        pytest.skip(f"these are tests of tests/cluster, and E2E_CLUSTER names another: its nodes are {nodes}")
    make_namespace(cluster, SPACE)
    space = Space(cluster, image(cluster, tags, "clothing-gateway"))
    for node, name in zip(NODES, PEERS, strict=True):
        space.apply(PEER, NAME=name, NODE=node)
    space.kubectl("wait", "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in PEERS))
    yield space
    cluster.kubectl("delete", "namespace", SPACE, "--wait=false")


def test_both_nodes_are_ready_and_measured(space: Space) -> None:
    nodes = [f"node/{name}" for name in NODES]
    space.kubectl("wait", "--for=condition=Ready", *nodes, "--timeout=10s")
    measured = processes.wait_for("metrics of both nodes", lambda: space.kubectl("top", "nodes", "--no-headers"), 60)
    assert {line.split()[0] for line in measured.splitlines()} == set(NODES)


@pytest.mark.parametrize(("source", "target"), [PEERS, PEERS[::-1], PEERS[:1] * 2])
def test_pods_reach_each_other_and_services_by_name(space: Space, source: str, target: str) -> None:
    for url in (f"http://{space.address(target)}:8000/hostname", f"http://{target}.{SPACE}/hostname"):
        # A Service that has just been made comes to each node's name server and rules within seconds.
        processes.wait_for(url, lambda url=url: space.reaches(source, url), 20)
        assert space.fetch(source, url) == target


def test_pod_address_is_not_translated_across_nodes(space: Space) -> None:
    space.fetch("peer-0", f"http://{space.address('peer-1')}:8000/hostname")
    assert space.kubectl("logs", "peer-1").splitlines()[-1].startswith(f"{space.address('peer-0')} ")


@pytest.mark.parametrize("peer", PEERS)
def test_load_balancer_reaches_a_pod_on_either_node(space: Space, http: urllib3.PoolManager, peer: str) -> None:
    base = load_balancer(space.cluster, SPACE, peer)
    answers = [http.request("GET", f"{base}/hostname", headers={"Connection": "close"}) for _ in range(20)]
    assert [(answer.status, answer.data.strip()) for answer in answers] == [(200, peer.encode())] * 20
    assert space.fetch("peer-0", f"{base}/hostname") == peer


@pytest.mark.parametrize(("source", "target"), [PEERS, PEERS[::-1]])
def test_network_policy_is_enforced_across_nodes(space: Space, source: str, target: str) -> None:
    url = f"http://{space.address(target)}:8000/hostname"
    space.apply(POLICY, TARGET=target)
    try:
        processes.wait_for("the policy to refuse", lambda: not space.reaches(source, url), 20)
        assert not space.reaches(source, f"http://{target}.{SPACE}/hostname")
        space.kubectl("label", "pod", source, "friend=yes")
        processes.wait_for("the policy to let a friend in", lambda: space.reaches(source, url), 20)
    finally:
        space.kubectl("delete", "networkpolicy", "friends")
        space.kubectl("label", "pod", source, "friend-")
    processes.wait_for("the policy to be gone", lambda: space.reaches(source, url), 20)


def test_drain_evicts_pods_and_respects_a_disruption_budget(space: Space) -> None:
    worker = NODES[1]
    drain = ("drain", worker, "--pod-selector=app=moved", "--ignore-daemonsets", "--delete-emptydir-data")
    space.apply(MOVED, LEAST="2")
    space.kubectl("rollout", "status", "deployment/moved", "--timeout=60s")
    assert space.where("app=moved") == list(NODES)
    try:
        with pytest.raises(clusters.ClusterError):
            space.kubectl(*drain, "--timeout=5s", stderr=subprocess.STDOUT)
        assert space.where("app=moved") == list(NODES)
        space.apply(MOVED, LEAST="1")
        space.kubectl(*drain, "--timeout=60s")
        processes.wait_for("the pods on one node", lambda: space.where("app=moved") == [NODES[0]] * 2, 60)
    finally:
        space.kubectl("uncordon", worker)
    space.kubectl("rollout", "restart", "deployment/moved")
    space.kubectl("rollout", "status", "deployment/moved", "--timeout=60s")
    assert worker in space.where("app=moved")


def test_dead_daemon_is_named_and_restarted(space: Space) -> None:
    command = space.cluster.command

    def stopped() -> list[str]:
        status = subprocess.run([command, "status"], capture_output=True, text=True, check=False)
        names = [line.split()[0] for line in status.stdout.splitlines() if " stopped; " in line]
        assert status.returncode == (1 if names else 0), status
        return names

    assert stopped() == []
    # By the path of its program it is told from every other process on this machine.
    state = clusters.run(command, "kubeconfig").strip().removesuffix("/kubeconfig")
    subprocess.run(["pkill", "-KILL", "-fx", f"{state}/bin/kube-node kube-proxy .*clothing-worker.*"], check=True)
    processes.wait_for("kube-proxy to be missed", lambda: stopped() == ["worker-kube-proxy"], 20)
    clusters.run(command, "up", stderr=subprocess.DEVNULL)
    assert stopped() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exec", "nowhere", "true"], "which node? One of: control-plane worker"),
        (["load", "localhost/no-such-image:1"], "buildah's store has no image localhost/no-such-image:1"),
        (["gpus", "many"], "how many GPUs?"),
        (["logs", "nobody"], "control-plane-kubelet"),
        (["restart"], "there is no command restart"),
    ],
)
def test_errors_state_the_fix(space: Space, arguments: list[str], said: str) -> None:
    done = subprocess.run([space.cluster.command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr
