"""An Ingress and an HTTPRoute, where the cluster has Contour."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import urllib3
from kube import Release, clusters, port_forward
from steady import Load, PhotoHost, Table

import processes
from processes import PNG, SAMPLE

ROUTES = pytest.mark.parametrize(
    ("host", "path"), [("ingress.example.com", ""), ("route.example.com", "/photos")], ids=["Ingress", "HTTPRoute"]
)


@pytest.fixture(scope="module")
def proxy(cluster: clusters.Cluster) -> str:
    """Base URL of Contour's Envoy, for the Ingress class and the Gateway named contour."""
    classes = cluster.kubectl("get", "ingressclasses", "--output=name").split()
    if "ingressclass.networking.k8s.io/contour" not in classes:
        pytest.skip(
            "this cluster has no Ingress class contour: run `tests/cluster/cluster ingress`, or install Contour"
        )
    path = "--output=jsonpath={.status.loadBalancer.ingress[0].ip}"
    return f"http://{cluster.kubectl('--namespace', 'projectcontour', 'get', 'service', 'envoy', path)}"


@pytest.fixture(scope="module")
def routed(release: Release, proxy: str, photo_host: PhotoHost) -> Iterator[str]:
    """The release with an Ingress for one host and an HTTPRoute for a path of another; the proxy's base URL."""
    release.apply(
        "gateway.ingress.enabled=true", "gateway.ingress.className=contour", "gateway.ingress.controller=contour",
        "gateway.ingress.hosts={ingress.example.com}",
        "gateway.httpRoute.enabled=true", "gateway.httpRoute.parentRefs[0].name=contour",
        "gateway.httpRoute.parentRefs[0].namespace=projectcontour", "gateway.httpRoute.hostnames={route.example.com}",
        "gateway.httpRoute.path=/photos", *photo_host.values,
        # The chart refuses a load balancer that is open to all beside them; without one its address would be lost.
        "gateway.service.loadBalancerSourceRanges={203.0.113.0/24}",
    )  # fmt: skip
    yield proxy
    release.apply()


@ROUTES
def test_photos_pass_the_route(routed: str, release: Release, http: urllib3.PoolManager, host: str, path: str) -> None:
    def through(body: bytes) -> urllib3.BaseHTTPResponse:
        return http.request("POST", f"{routed}{path}/predict", body=body, headers=PNG | {"Host": host})

    answer = processes.wait_for(
        f"{host} to be routed", lambda: (got := through(SAMPLE.read_bytes())).status not in (404, 503) and got, 30
    )
    assert answer.status == 200, answer.data
    with port_forward(release.cluster, release.namespace, f"service/{release.gateway}", "18081:80") as base:
        direct = http.request("POST", f"{base}/predict", body=SAMPLE.read_bytes(), headers=PNG)
    assert answer.json() == direct.json()
    # So large a body is the gateway's to take or refuse, not the proxy's. The PNG ends before the zeros.
    assert through(SAMPLE.read_bytes() + bytes(11 << 20)).status == 200


@ROUTES
def test_large_photos_under_load(
    request: pytest.FixtureRequest, routed: str, photo_host: PhotoHost, table: Table, host: str, path: str
) -> None:
    """A phone's photos, 12 megapixels in 2 MB, by all clients concurrently."""
    with Load(routed, photo_host, photos=photo_host.large, name=host, path=f"{path}/predict") as load:
        pass
    table.add(f"12-megapixel photos through an {request.node.callspec.id}", load.outcome, "Contour with Envoy")
    assert load.outcome.failed == 0, load.outcome.causes


def test_route_is_accepted(routed: str, release: Release) -> None:
    route = json.loads(release.kubectl("get", "httproute", release.gateway, "--output=json"))
    conditions = {one["type"]: one["status"] for one in route["status"]["parents"][0]["conditions"]}
    assert conditions == {"Accepted": "True", "ResolvedRefs": "True"}
