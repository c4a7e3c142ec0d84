"""Nothing is lost while the cluster changes under steady load: upgrades, deletions, drains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kube import NAMESPACE, Release, clusters, load_balancer, make_namespace
from steady import Load, PhotoHost, Table

HERE = f"{NAMESPACE}-steady"
# Two of each, so that one of each can go; little CPU asked for, so that the surge has room on two cores.
VALUES = (
    "gateway.replicas=2", "server.replicas=2",
    "gateway.resources.requests.cpu=20m", "server.resources.requests.cpu=50m",
)  # fmt: skip


class Steady(Release):
    """The release under load."""

    def reach(self, host: PhotoHost, *values: str) -> None:
        """Install or upgrade, and wait."""
        settings = [argument for value in (*VALUES, *host.values, *values) for argument in ("--set", value)]
        images = self.cluster.image_values(self.tags)
        self.helm("upgrade", str(clusters.CHART), "--install", "--wait", *images, *settings)

    def pod_ids(self) -> set[str]:
        """The pods that there are."""
        return {pod["metadata"]["uid"] for pod in self.pods()}


@pytest.fixture(scope="module")
def steady(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[Steady]:
    make_namespace(cluster, HERE)
    release = Steady("steady", cluster, tags, HERE)
    release.reach(photo_host)
    yield release
    cluster.kubectl("delete", "namespace", HERE, "--wait=false")


@pytest.fixture(scope="module")
def base(steady: Steady) -> str:
    return load_balancer(steady.cluster, HERE, steady.gateway)


def test_gateway_image(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    new = f"{steady.tags['clothing-gateway']}-new"
    steady.cluster.tag("clothing-gateway", steady.tags["clothing-gateway"], new)
    before = {pod["metadata"]["uid"] for pod in steady.pods("gateway")}
    with Load(base, photo_host) as load:
        steady.reach(photo_host, f"gateway.image.tag={new}")
        assert not before & steady.pod_ids()
    table.add("helm upgrade: the gateway's image", load.outcome)
    assert load.outcome.failed == 0, load.outcome.causes


def test_chart_only(steady: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """An upgrade that changes nothing of the pods restarts none."""
    steady.reach(photo_host)
    before = steady.pod_ids()
    with Load(base, photo_host) as load:
        steady.reach(photo_host, "gateway.service.annotations.changed=yes")
        load.wait_until_sent(100)
        assert steady.pod_ids() == before
    table.add("helm upgrade: nothing in the pods", load.outcome, "no pod restarted")
    assert load.outcome.failed == 0, load.outcome.causes
