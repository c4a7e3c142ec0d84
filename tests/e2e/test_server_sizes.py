"""Model servers of 250m to 2 CPU before fast and slow models, at full in-flight.

The clients wait as long as a 503's Retry-After. Where the server can answer all photos in flight in time none fails;
where it can't clients get 503 with Retry-After and no other error. Gateways and servers stay ready throughout.

In the full form all of LIMITS x MODELS, in the short form one server before a fast and a slow model.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import programs
import pytest
import urllib3
from kube import NAMESPACE, ModelVolume, clusters, image, load_balancer, make_namespace
from PIL import Image
from steady import FULL, TIMEOUT, TOLERANCE, PhotoHost, Steady, Table, one_after_another, outcome_of, say

import processes

HERE = f"{NAMESPACE}-sizes"
LIMITS = {"2": 2.0, "1": 1.0, "500m": 0.5, "250m": 0.25} if FULL else {"500m": 0.5}
MODELS = (12, 50, 200, 400) if FULL else (12, 400)  # CPU milliseconds of a photo; Xception takes 200 to 400
CLIENTS = 32  # the gateway's in-flight limit, by default
REQUEST_SECONDS = 20  # gateway.requestTimeoutSeconds, by default
# Where all in flight needs less than this part of it the server has the capacity; the rest is for the machine, which
# runs the clients and the cluster as well.
ENOUGH = 0.5
LOAD_SECONDS = 8 if FULL else 5
# Where this machine is idle for less of the time, a server may have got less than its limit, and has that capacity.
IDLE = 0.05
VALUES = (
    "gateway.replicas=1,server.replicas=1,server.drainSeconds=1,server.maxConnectionAgeSeconds=5",
    "model.source.type=pvc,model.source.pvc.storageClassName=,model.source.pvc.size=1Gi",
    "model.source.pvc.accessModes={ReadWriteMany}",
)
PROBE_LEVEL = 64


@dataclass(frozen=True)
class Sized:
    """A release whose model takes as long as its photo is bright."""

    release: Steady
    base: str
    folder: Path

    def photo(self, level: int) -> Path:
        """A photo of one grey."""
        path = self.folder / f"{level}.jpg"
        Image.new("RGB", (64, 64), (level, level, level)).save(path, quality=95)
        return path

    def cpu_seconds(self) -> float:
        """CPU time that the server has used, by its cgroup of version 2 or 1."""
        (pod,) = self.release.pods("server")
        read = "cat /sys/fs/cgroup/cpu.stat 2>/dev/null || cat /sys/fs/cgroup/cpuacct/cpuacct.usage"
        name = pod["metadata"]["name"]
        first, *_ = self.release.kubectl("exec", name, "--container=server", "--", "sh", "-c", read).splitlines()
        return int(first.split()[1]) / 1e6 if first.startswith("usage_usec") else int(first) / 1e9

    def cpu_of(self, level: int, photos: int = 10) -> float:
        """CPU seconds of a photo."""
        body, before = self.photo(level).read_bytes(), self.cpu_seconds()
        for _ in range(photos):
            answer = urllib3.request("POST", f"{self.base}/predict", body=body, headers={"Content-Type": "image/jpeg"})
            assert answer.status == 200, answer.data
        return (self.cpu_seconds() - before) / photos

    def state(self) -> list[tuple[str, int, str]]:
        """Each container's restarts, and since when its pod has been ready."""
        return sorted(
            (pod["metadata"]["name"], status["restartCount"], condition["lastTransitionTime"])
            for pod in self.release.pods()
            for status in pod["status"]["containerStatuses"]
            for condition in pod["status"]["conditions"]
            if condition["type"] == "Ready" and condition["status"] == "True"
        )

    def errors(self) -> dict[str, int]:
        """The gateway's errors by code, until now."""
        (pod,) = self.release.pods("gateway")
        path = f"/api/v1/namespaces/{HERE}/pods/{pod['metadata']['name']}:9697/proxy/metrics"
        lines = self.release.cluster.kubectl("get", "--raw", path).splitlines()
        found = [line.partition("} ") for line in lines if line.startswith("gateway_errors_total{")]
        return {name.partition('code="')[2].strip('"'): int(float(count)) for name, _, count in found}


def machine_seconds() -> tuple[float, float]:
    """CPU time of this machine by /proc/stat: idle, and all."""
    ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return float(ticks[3] + ticks[4]), float(sum(ticks))


@pytest.fixture(scope="module")
def sized(
    cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sized]:
    """The release, with the first of the limits."""
    folder = tmp_path_factory.mktemp("sizes")
    maker = [processes.MODEL_BIN / "python", processes.ROOT / "tests/e2e/slow_model.py", folder / "model"]
    subprocess.run(maker, check=True, capture_output=True)
    make_namespace(cluster, HERE)
    release = Steady("sized", cluster, dict(tags), HERE)
    try:
        claim = "sized-clothing-classifier-models"
        with ModelVolume(cluster, image(cluster, tags, "clothing-model"), HERE, claim) as volume:
            volume.add_model(1, folder / "model")
            release.reach(photo_host, *VALUES, f"server.resources.limits.cpu={next(iter(LIMITS))}")
            yield Sized(release, load_balancer(cluster, HERE, release.gateway), folder)
    finally:
        cluster.kubectl("delete", "namespace", HERE, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def level_seconds(sized: Sized) -> float:
    """CPU seconds of a level of grey on this machine."""
    return (sized.cpu_of(PROBE_LEVEL) - sized.cpu_of(1)) / (PROBE_LEVEL - 1)


@pytest.mark.parametrize("limit", LIMITS)
def test_server_of_a_size(
    sized: Sized, level_seconds: float, photo_host: PhotoHost, table: Table, tmp_path: Path, limit: str
) -> None:
    release = sized.release
    release.reach(photo_host, *VALUES, f"server.resources.limits.cpu={limit}")
    release.settle()
    release.wait_for_the_model()
    # The gateway's mean duration of a call is that of the slowest model, which no real model follows with a fast one.
    sized.cpu_of(1, photos=20)
    rounds, notes, wrong = [], [], []
    for milliseconds in MODELS:
        level = min(max(round(milliseconds / 1000 / level_seconds), 1), 255)
        photos = tmp_path / "photos.json"
        scores = list(range(len(processes.LABELS)))
        photos.write_text(json.dumps([{"path": str(sized.photo(level)), "url": "", "scores": scores}]))
        needed = CLIENTS * level * level_seconds / LIMITS[limit]  # seconds for all that is in flight
        before, errors = sized.state(), sized.errors()
        used, (idle, total) = sized.cpu_seconds(), machine_seconds()
        # All slots are full, and each client is answered or refused at least once.
        seconds = LOAD_SECONDS + min(needed, REQUEST_SECONDS)
        flags = ["-clients", str(CLIENTS), "-seconds", str(seconds), "-patient", "-moments", "-timeout", TIMEOUT]
        measured = programs.load(f"{sized.base}/predict", photos, *flags, "-tolerance", str(TOLERANCE))
        took = float(measured["seconds"])  # type: ignore[arg-type]
        used, (idle, total) = sized.cpu_seconds() - used, (machine_seconds()[0] - idle, machine_seconds()[1] - total)
        given = LIMITS[limit] if idle > IDLE * total else min(LIMITS[limit], used / took)
        rounds.append(([measured], took))
        outcome = outcome_of([measured], took)
        note = f"{milliseconds} ms a photo, {needed:.1f} s for {CLIENTS}: {outcome.per_second:.1f}/s"
        if outcome.refused:
            note += f" and {outcome.refused} times 503 with Retry-After"
        if given < LIMITS[limit]:
            note += f" (the machine was full: it got {given:.2f} CPU)"
        say(f"{limit}: {note}")
        notes.append(note)
        codes = {code for code, count in sized.errors().items() if count > errors.get(code, 0)}
        suffices = needed * LIMITS[limit] / given < ENOUGH * REQUEST_SECONDS
        if not codes <= (set() if suffices else {"model-busy", "overloaded"}):
            wrong.append(f"{note}; error codes {codes}")
        if not set(outcome.causes) <= (set() if suffices else {"503"}) or outcome.silent:
            wrong.append(f"{note}; {outcome.causes}, {outcome.silent} without Retry-After")
        if sized.state() != before:
            wrong.append(f"{note}; {before} became {sized.state()}")
    scenario = f"{CLIENTS} polite clients, a server of {limit} CPU, {MODELS[0]} to {MODELS[-1]} ms a photo"
    table.add(scenario, one_after_another(rounds), "; ".join([*notes, "ready throughout"]))
    assert wrong == []
