"""Zero failed requests under steady load: upgrades, restarts, deletions, drains, scaling, autoscaling."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
import scraping
from kube import NAMESPACE, Release, clusters, load_balancer
from steady import REQUESTS, TIERS, Load, PhotoHost, Steady, Table, steady_release

import processes

HERE = f"{NAMESPACE}-steady"
# How far each of three servers may be from a third of the calls.
SPREAD_POINTS = 5
SPREAD_SECONDS = 60
LOOK_REQUESTS = 400
# The autoscaler looks every 15 s, at metrics that are some 15 s old.
SCALED_SECONDS = 60


def shares(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Each server's percentage of the calls between two samples."""
    calls = {pod: after[pod] - before.get(pod, 0) for pod in after}
    return {pod: 100 * count / max(1, sum(calls.values())) for pod, count in calls.items()}


def is_even(found: dict[str, float], servers: int) -> bool:
    return len(found) == servers and all(abs(one - 100 / servers) <= SPREAD_POINTS for one in found.values())


def words(found: dict[str, float]) -> str:
    return " / ".join(f"{one:.0f}" for one in sorted(found.values())) + " %"


@dataclass
class Replicas:
    """Wanted and existing pods of each Deployment of a release, change by change, as a context manager."""

    release: Release
    seen: list[tuple[float, str, int, int]] = field(default_factory=list)  # when, Deployment, wanted, ready

    def __enter__(self) -> Self:
        columns = r'jsonpath={.metadata.name} {.spec.replicas} {.status.readyReplicas}{"\n"}'
        selector = f"--selector=app.kubernetes.io/instance={self.release.name}"
        command = ["kubectl", "--namespace", self.release.namespace, "get", "deployments", selector]
        self._process = subprocess.Popen(
            [*command, "--watch", f"--output={columns}"],
            env=self.release.cluster.process_environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()
        return self

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            name, wanted, *ready = line.split()
            self.seen.append((time.monotonic(), name, int(wanted), int(ready[0]) if ready else 0))

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with self._process:
            self._thread.join()

    def all_want(self, pods: int) -> bool:
        """Whether each Deployment wants so many now."""
        latest = {name: wanted for _, name, wanted, _ in self.seen}
        return bool(latest) and set(latest.values()) == {pods}

    def fewest(self, since: float) -> int:
        """The fewest that any Deployment wanted after a moment."""
        return min((wanted for when, _, wanted, _ in self.seen if when >= since), default=0)

    def took(self, since: float, pods: int, *, ready: bool = False) -> float:
        """Seconds from a moment until the last Deployment wanted so many for the first time, or had them ready."""
        first: dict[str, float] = {}
        for when, name, wanted, there in self.seen:
            if when >= since and (there if ready else wanted) == pods:
                first.setdefault(name, when)
        return max(first.values()) - since


@pytest.fixture(scope="module")
def steady(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[Steady]:
    with steady_release(cluster, tags, HERE) as release:
        release.reach(photo_host)
        yield release


@pytest.fixture(scope="module")
def base(steady: Steady) -> str:
    return load_balancer(steady.cluster, HERE, steady.gateway)


@pytest.mark.parametrize("tier", TIERS)
def test_upgrade_to_a_new_image(steady: Steady, base: str, photo_host: PhotoHost, table: Table, tier: str) -> None:
    image = {"gateway": "clothing-gateway", "server": "clothing-model"}[tier]
    new = f"{steady.tags[image]}-new"
    steady.cluster.tag(image, steady.tags[image], new)
    before = {one: steady.pod_ids(one) for one in TIERS}
    with Load(base, photo_host) as load:
        started = time.monotonic()
        steady.tags[image] = new
        steady.reach(photo_host)
        steady.settle()
        took = time.monotonic() - started
        for one in TIERS:
            assert steady.pod_ids(one).isdisjoint(before[one]) is (one == tier)
    table.add(f"helm upgrade: the {tier}'s image", load.outcome, f"all replaced after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes


def test_upgrade_of_the_chart_only(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """An upgrade that doesn't change the pod templates restarts no pod."""
    before = steady.pod_ids()
    with Load(base, photo_host) as load:
        steady.reach(photo_host, "gateway.service.annotations.changed=yes")
        load.wait_until_sent(100)
        assert steady.pod_ids() == before
    table.add("helm upgrade: nothing in the pods", load.outcome, "no pod restarted")
    assert load.outcome.failed == 0, load.outcome.causes


@pytest.mark.parametrize("tier", TIERS)
def test_deleted_pod(steady: Steady, base: str, photo_host: PhotoHost, table: Table, tier: str) -> None:
    pod = steady.pods(tier)[0]["metadata"]["name"]
    with Load(base, photo_host) as load:
        started = time.monotonic()
        steady.kubectl("delete", "pod", pod)
        gone = time.monotonic() - started
        steady.settle(tier)
        took = time.monotonic() - started
    table.add(f"kubectl delete pod: a {tier}", load.outcome, f"gone after {gone:.0f} s, replaced after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes


def test_rollout_restart(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    before = steady.pod_ids()
    with Load(base, photo_host) as load:
        started = time.monotonic()
        steady.kubectl("rollout", "restart", *(steady.deployment(tier) for tier in TIERS))
        steady.settle()
        took = time.monotonic() - started
        assert not before & steady.pod_ids()
    table.add("kubectl rollout restart: both tiers at once", load.outcome, f"all replaced after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes


def test_eviction_of_every_pod(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """The budgets allow one eviction per tier, and block no drain: the second follows when the first is replaced."""
    pods = {tier: [pod["metadata"]["name"] for pod in steady.pods(tier)] for tier in TIERS}
    with Load(base, photo_host) as load:
        started = time.monotonic()
        for tier in TIERS:
            first, second = pods[tier]
            assert steady.evict(first)
            assert not steady.evict(second)
        for tier in TIERS:
            processes.wait_for(f"the second {tier} to be let go", lambda pod=pods[tier][1]: steady.evict(pod), 120)
        steady.settle()
        took = time.monotonic() - started
    table.add("every pod evicted, one of each tier at a time", load.outcome, f"all replaced after {took:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes


def test_node_drain(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    nodes = json.loads(steady.cluster.kubectl("get", "nodes", "--output=json"))["items"]
    open_ones = [
        node["metadata"]["name"]
        for node in nodes
        if not any(taint["effect"] != "PreferNoSchedule" for taint in node["spec"].get("taints", []))
    ]
    if len(open_ones) < 2:
        pytest.skip("a drain needs a second node that takes pods; test_eviction_of_every_pod has the budgets")
    homes = [pod["spec"]["nodeName"] for pod in steady.pods()]
    node = max(open_ones, key=homes.count)
    try:
        with Load(base, photo_host) as load:
            started = time.monotonic()
            selector = f"--pod-selector=app.kubernetes.io/instance={steady.name}"  # others' pods stay
            steady.cluster.kubectl(
                "drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s"
            )
            steady.settle()
            took = time.monotonic() - started
            assert node not in [pod["spec"]["nodeName"] for pod in steady.pods()]
    finally:
        steady.cluster.kubectl("uncordon", node)
    note = f"{homes.count(node)} of {len(homes)} pods moved within {took:.0f} s"
    table.add("kubectl drain of a node", load.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes


def test_scaled_by_hand(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    with Load(base, photo_host) as load:
        started = time.monotonic()
        steady.kubectl("scale", "--replicas=3", *(steady.deployment(tier) for tier in TIERS))
        steady.settle()
        up = time.monotonic() - started
        started = time.monotonic()
        steady.reach(photo_host, "gateway.replicas=1", "server.replicas=1")
        steady.settle()
        down = time.monotonic() - started
        assert len(steady.pods()) == len(TIERS)
    note = f"up after {up:.0f} s, down after {down:.0f} s"
    table.add("kubectl scale: from 2 to 3 of each tier; helm upgrade: to 1", load.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes


def test_calls_spread_over_new_servers(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """New servers get their share of existing clients' calls, and of one client's on one connection."""
    steady.reach(photo_host, "server.replicas=1")
    steady.settle()
    with Load(base, photo_host) as load:
        started = time.monotonic()
        steady.reach(photo_host, "server.replicas=3")
        processes.wait_for("calls to each server", lambda: min(steady.calls().values()) > 0)
    table.add("helm upgrade: from 1 to 3 servers", load.outcome)
    assert load.outcome.failed == 0, load.outcome.causes

    found: dict[str, float] = {}
    while not is_even(found, 3):  # a short look first, so that a minute has several
        for requests in (LOOK_REQUESTS, REQUESTS):
            # Servers count exactly while nobody asks them.
            took, before = time.monotonic() - started, steady.calls()
            with Load(base, photo_host, requests=requests) as load:
                pass
            found = shares(before, steady.calls())
            assert load.outcome.failed == 0, load.outcome.causes
            assert took <= SPREAD_SECONDS, found
            if not is_even(found, 3):
                break
    note = f"begun {took:.0f} s after the first was alone; their parts: {words(found)}"
    table.add("three servers: all clients", load.outcome, note)

    before = steady.calls()
    with Load(base, photo_host, clients=1, forms=("raw",)) as load:
        pass
    found = shares(before, steady.calls())
    table.add("three servers: one client on one connection", load.outcome, f"their parts: {words(found)}")
    assert load.outcome.failed == 0, load.outcome.causes
    assert load.outcome.connections == 1
    assert is_even(found, 3), found


@dataclass(frozen=True)
class Autoscaler:
    """The servers' autoscaler and its metric; the gateways always have a HorizontalPodAutoscaler by CPU."""

    name: str
    by: str
    settings: tuple[str, ...] = ()
    down_seconds: float = 180


@pytest.fixture(params=["hpa", "keda"])
def autoscaler(
    request: pytest.FixtureRequest, steady: Steady, photo_host: PhotoHost, tmp_path: Path
) -> Iterator[Autoscaler]:
    if not steady.cluster.kubectl("get", "apiservices", "v1beta1.metrics.k8s.io", "--ignore-not-found"):
        pytest.skip("this cluster has no metrics API")
    if request.param == "hpa":
        yield Autoscaler("HorizontalPodAutoscaler", "both tiers by their CPU")
        return
    if not steady.cluster.kubectl("get", "crd", "scaledobjects.keda.sh", "--ignore-not-found"):
        pytest.skip("this cluster has no KEDA")
    with scraping.prometheus(steady, tmp_path, photo_host.address.rpartition(":")[0]) as address:
        settings = (
            "server.autoscaling.keda.enabled=true",
            f"server.autoscaling.keda.prometheusAddress={address}",
            "server.autoscaling.keda.targetCallsPerSecond=10",
            "server.autoscaling.keda.pollingIntervalSeconds=5",
            "server.autoscaling.targetCPUUtilizationPercentage=null",
        )
        # The rate is one over two minutes, which have to pass.
        yield Autoscaler("KEDA", "servers by their calls in Prometheus, gateways by their CPU", settings, 300)


def test_autoscaling(steady: Steady, base: str, photo_host: PhotoHost, table: Table, autoscaler: Autoscaler) -> None:
    """Scales up with the load, and down when only two slow clients are left."""
    settings = [
        f"{tier}.autoscaling.{value}"
        for tier in TIERS
        for value in (
            "enabled=true",
            "minReplicas=2",
            "maxReplicas=3",
            "behavior.scaleDown.stabilizationWindowSeconds=15",
        )
    ]
    with Replicas(steady) as replicas:
        steady.reach(photo_host, *settings, *autoscaler.settings)
        # A Deployment whose manifest has no replicas any more falls to one, until the autoscaler has spoken.
        processes.wait_for("the autoscalers' minimum", lambda: replicas.all_want(2), 120)
        steady.settle()
        began = time.monotonic()
        with Load(base, photo_host) as load:
            processes.wait_for("a third pod of each tier", lambda: replicas.all_want(3), 180)
            steady.settle()
        up, ready = replicas.took(began, 3), replicas.took(began, 3, ready=True)
        ended = time.monotonic()
        with Load(base, photo_host, clients=2, pause_seconds=0.5, requests=0) as few:
            processes.wait_for("two pods of each tier", lambda: replicas.all_want(2), autoscaler.down_seconds)
            steady.settle()
        down = replicas.took(ended, 2)
        assert replicas.fewest(began) == 2
    note = f"{up:.0f} s after the load's rise, ready after {ready:.0f} s"
    table.add(f"{autoscaler.name}: from 2 to 3, {autoscaler.by}", load.outcome, note)
    note = f"{down:.0f} s after the load's fall, never fewer"
    table.add(f"{autoscaler.name}: back to 2", few.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes
    assert few.outcome.failed == 0, few.outcome.causes
    assert up <= SCALED_SECONDS
