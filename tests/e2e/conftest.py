"""Fixtures of the end-to-end tests: the cluster, the release, a photo server inside the cluster.

`make e2e` has started the cluster and loaded the images (scripts/clusters.py); here they are used. What failed is kept:
logs, events and descriptions of all pods, and what the cluster's own daemons logged, go to e2e-report/.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import steady
import urllib3
from kube import NAMESPACE, PHOTO_SERVER, RELEASE, REPORT, Release, clusters, image, load_balancer, make_namespace

import processes


def pytest_configure() -> None:
    steady.progress = os.dup(2)


@pytest.fixture(scope="session")
def cluster() -> clusters.Cluster:
    return clusters.find()


@pytest.fixture(scope="session")
def tags() -> dict[str, str]:
    if not clusters.TAGS.is_file():
        pytest.exit("no images are loaded: run `make e2e`, which does that first", 2)
    return dict(json.loads(clusters.TAGS.read_text()))


@pytest.fixture(scope="session")
def namespace(cluster: clusters.Cluster, tags: dict[str, str]) -> Iterator[str]:
    """The namespace of the tests, with a photo server at http://photos/."""
    make_namespace(cluster, NAMESPACE)
    photos = [processes.SAMPLE, *processes.dataset_photos(5)]
    files = [f"--from-file={photo.name}={photo}" for photo in photos]
    cluster.kubectl("--namespace", NAMESPACE, "create", "configmap", "photos", *files)
    manifest = PHOTO_SERVER.replace("IMAGE", image(cluster, tags, "clothing-gateway"))
    cluster.kubectl("--namespace", NAMESPACE, "apply", "--filename=-", input=manifest)
    cluster.kubectl("--namespace", NAMESPACE, "rollout", "status", "deployment/photos", "--timeout=120s")
    yield NAMESPACE
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="session")
def release(cluster: clusters.Cluster, tags: dict[str, str], namespace: str) -> Release:
    """The chart, installed with its defaults and a load balancer."""
    installed = Release(RELEASE, cluster, tags)
    assert "port-forward" in installed.apply()
    return installed


@pytest.fixture(scope="session")
def http() -> urllib3.PoolManager:
    return urllib3.PoolManager(timeout=30, retries=False)


@pytest.fixture(scope="session")
def gateway(cluster: clusters.Cluster, namespace: str, release: Release) -> str:
    """Base URL of the gateway's LoadBalancer."""
    return load_balancer(cluster, namespace, release.gateway)


@pytest.fixture(scope="session")
def photo_host(cluster: clusters.Cluster) -> Iterator[steady.PhotoHost]:
    """A photo server outside the cluster, for the scenarios under load."""
    with steady.photo_host(cluster) as host:
        yield host


@pytest.fixture(scope="session")
def table() -> steady.Table:
    """The table of measurements under load."""
    return steady.TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if steady.TABLE.rows:
        terminalreporter.section("what clients saw")
        terminalreporter.write(steady.TABLE.markdown())


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Publish the table of a full run that passed every scenario under load."""
    whole = {Path(argument).resolve() for argument in session.config.args} == {Path(__file__).parent}
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not session.config.option.keyword
    if steady.FULL and whole and ended and steady.TABLE.holds:
        steady.TABLE.write(steady.PUBLISHED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.failed and "table" in getattr(item, "fixturenames", ()):
        steady.TABLE.holds = False
    if report.failed and "cluster" in getattr(item, "fixturenames", ()):
        folder = REPORT / item.name
        folder.mkdir(parents=True, exist_ok=True)
        _collect(clusters.find(), folder)
    return report


def _collect(cluster: clusters.Cluster, folder: Path) -> None:
    names = cluster.kubectl("get", "namespaces", "--output=jsonpath={.items[*].metadata.name}").split()
    for namespace in (name for name in names if name.startswith(NAMESPACE)):
        (folder / namespace).mkdir(exist_ok=True)
        for name, arguments in {
            "objects": ("get", "all", "--output=wide"),
            "events": ("get", "events", "--sort-by=.lastTimestamp"),
            "pods": ("describe", "pods"),
            "gateway": ("logs", "--selector=app.kubernetes.io/component=gateway", "--tail=500", "--prefix"),
            "server": ("logs", "--selector=app.kubernetes.io/component=server", "--tail=500", "--prefix"),
        }.items():
            with contextlib.suppress(clusters.ClusterError):
                said = cluster.kubectl("--namespace", namespace, *arguments)
                (folder / namespace / f"{name}.txt").write_text(said)
    with contextlib.suppress(clusters.ClusterError):
        cluster.report(folder / "cluster")
