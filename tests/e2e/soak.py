"""Half an hour of steady load: memory and descriptors of gateway and server stay flat, and no request fails.

`make soak` runs this, on the cluster and with the images of `make e2e`, which leaves it out by its name. Beside the
load, which is a bounded one, each minute begins with what leaks are made of: hostile clients for ten seconds, requests
that are refused, and clients that leave in the middle.

SOAK_MINUTES (30) is how long it lasts. The first fifth is a warm-up, in which heaps and pools come to their size. Of
the rest the two halves are compared, at what 95 % of their samples stay below: the heaps breathe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import stats  # of tests/load, where steady has looked
import urllib3
from kube import NAMESPACE, REPORT, clusters, load_balancer
from steady import (
    PUBLISHED,
    Load,
    Outcome,
    PhotoHost,
    Steady,
    attack,
    hostile,
    machine,
    say,
    steady_release,
)

HERE = f"{NAMESPACE}-soak"
LONG_MINUTES = 30
MINUTES = int(os.environ.get("SOAK_MINUTES", str(LONG_MINUTES)))
# Eight clients, each with so long a pause: some 17 photos a second, which leave two cores half idle; and one of 12
# megapixels every two seconds.
CLIENTS, PAUSE_SECONDS = 8, 0.4
LARGE_CLIENTS, LARGE_PAUSE_SECONDS = 2, 4.0
ATTACK_SECONDS = 10
EVERY_SECONDS = 5.0
WARM_UP = 0.2
MEMORY_SHARE = 0.05
# The pools of connections to photo servers and clients breathe by a few.
DESCRIPTORS = 5
REFUSED_TIMES = 10
# How the two containers' processes are found, among all that share their namespace; the commands that look have other
# letters themselves.
PROCESS = {"gateway": "[c]lothing-gateway serve", "server": "[-]-rest_api_port="}
# The process's own pages, its descriptors, and what its cgroup holds (versions 2, or 1). Pages of files are left out:
# the kernel drops those that were not used for long, and reads them again.
LOOK = """
for process in /proc/[0-9]*; do
  if tr '\\0' ' ' <"$process/cmdline" | grep -q -- 'PROCESS'; then
    grep -E '^(Pss_Anon|SwapPss):' "$process/smaps_rollup"
    echo "descriptors: $(ls "$process/fd" | wc -l)"
  fi
done
cd /sys/fs/cgroup
echo "used: $(cat memory.current 2>/dev/null || cat memory/memory.usage_in_bytes)"
cat memory.stat memory/memory.stat 2>/dev/null | grep -E '^(in)?active_file '
"""


@dataclass(frozen=True)
class Sample:
    """A sample of a pod: its cgroup's memory without page cache, its process's memory, its open descriptors."""

    seconds: float
    cgroup_mib: float
    process_mib: float
    descriptors: float


QUANTITIES = {
    "cgroup_mib": "cgroup, MiB", "process_mib": "process, MiB", "descriptors": "descriptors",
}  # fmt: skip


@dataclass
class Watched:
    """The one pod of a tier, with its samples."""

    release: Steady
    component: str
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        (pod,) = self.release.pods(self.component)
        self.pod = pod["metadata"]["name"]

    def look(self, seconds: float) -> None:
        """Take a sample."""
        script = LOOK.replace("PROCESS", PROCESS[self.component])
        with contextlib.suppress(clusters.ClusterError, KeyError):  # kubectl may lose an answer: the next one will do
            seen = self.release.kubectl("exec", self.pod, f"--container={self.component}", "--", "sh", "-c", script)
            found = {name: int(number) for name, number in re.findall(r"^(\w+):? +(\d+)", seen, re.MULTILINE)}
            cgroup = (found["used"] - found["active_file"] - found["inactive_file"]) / (1 << 20)
            process = (found["Pss_Anon"] + found["SwapPss"]) / (1 << 10)
            self.samples.append(Sample(seconds, cgroup, process, found["descriptors"]))

    def values(self, quantity: str, since: float = 0, until: float = float("inf")) -> list[float]:
        """One quantity over time."""
        return [float(getattr(one, quantity)) for one in self.samples if since <= one.seconds < until]

    def halves(self, quantity: str) -> tuple[float, float]:
        """What 95 % of the samples stay below in the first and in the second half after the warm-up."""
        return stats.halves(self.values(quantity, since=WARM_UP * self.samples[-1].seconds))

    def grown(self) -> list[str]:
        """What has grown, in words."""
        found = []
        for quantity, words in QUANTITIES.items():
            first, second = self.halves(quantity)
            most = DESCRIPTORS if quantity == "descriptors" else MEMORY_SHARE * first
            if second - first > most:
                found.append(f"{self.component}: {words}: {first:.1f} in the first half, {second:.1f} in the second")
        return found

    @property
    def restarts(self) -> int:
        """How often its containers were restarted; that it is still the one pod of its tier is seen, too."""
        (pod,) = self.release.pods(self.component)
        assert pod["metadata"]["name"] == self.pod
        return sum(int(one["restartCount"]) for one in pod["status"]["containerStatuses"])


@pytest.fixture
def release(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[Steady]:
    with steady_release(cluster, tags, HERE, name="soak") as release:
        release.reach(photo_host, "gateway.replicas=1,server.replicas=1")
        yield release


def refused(base: str, host: PhotoHost) -> Counter[str]:
    """Send requests that must be refused; returns the unexpected answers."""
    photo = host.small.files[0].read_bytes()
    jpeg, as_json = {"Content-Type": "image/jpeg"}, {"Content-Type": "application/json"}
    asked: list[tuple[str, bytes, dict[str, str], int]] = [
        ("/predict", b"no photo", jpeg, 415),
        ("/predict", photo[: len(photo) // 2], jpeg, 422),
        ("/predict", b"{}", as_json, 400),
        ("/predict", b'{"url": "http://169.254.169.254/latest/"}', as_json, 400),
        ("/predict", json.dumps({"url": f"http://{host.address}/none.jpg"}).encode(), as_json, 424),
        ("/nothing", b"", {}, 404),
    ]
    http = urllib3.PoolManager(timeout=60, retries=False)
    otherwise: Counter[str] = Counter()
    for path, body, headers, expected in asked * REFUSED_TIMES:
        status = http.request("POST", f"{base}{path}", body=body, headers=headers).status
        if status != expected:
            otherwise[f"{path} {body[:40]!r}: {status}, not {expected}"] += 1
    http.clear()
    return otherwise


def leave(base: str, host: PhotoHost) -> None:
    """Clients that disconnect during their upload and while they wait for the answer."""
    where = urllib3.util.parse_url(base)
    assert where.host is not None
    photo = host.small.files[0].read_bytes()
    head = f"POST /predict HTTP/1.1\r\nHost: {where.host}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}"
    request = head.encode() + b"\r\n\r\n" + photo
    for sent in (len(request) // 2, len(request)):
        for _ in range(REFUSED_TIMES):
            with socket.create_connection((where.host.strip("[]"), where.port or 80), 30) as connection:
                connection.sendall(request[:sent])
            time.sleep(0.05)  # one after the other: what many take at once is a matter for the hostile ones


def answered(release: Steady, pod: str) -> Counter[str]:
    """The gateway's answers by status, by its own metrics."""
    metrics = release.kubectl("get", "--raw", f"/api/v1/namespaces/{HERE}/pods/{pod}:9697/proxy/metrics")
    counted: Counter[str] = Counter()
    for status, number in re.findall(
        r'^gateway_request_duration_seconds_count\{.*status="(\d+)"\} (\S+)$', metrics, re.MULTILINE
    ):
        counted[status] += int(float(number))
    return counted


@dataclass(frozen=True)
class Report:
    """The report of the run."""

    loads: dict[str, Outcome]
    statuses: Counter[str]
    watched: list[Watched]

    def markdown(self) -> str:
        """The tables, as they stand in the docs."""
        how = (
            f"`make soak`, {dt.datetime.now(dt.UTC).date().isoformat()}, {machine()}. One gateway, one server. "
            "How it is made, and what is done beside the load: tests/e2e/soak.py."
        )
        count = ", ".join(f"{number:,} with {status}" for status, number in sorted(self.statuses.items()))
        columns = [f"{pod.component}: {words}" for pod in self.watched for words in QUANTITIES.values()]
        lines = [
            f"# Soak: {MINUTES} minutes of steady load",
            "",
            how,
            "",
            "| clients | requests | failed | p50 ms | p99 ms | longest time with no answer, s |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *(self._load(words, outcome) for words, outcome in self.loads.items()),
            "",
            f"By its own metrics the gateway has answered {count}; the refusals are those that were provoked.",
            "",
            "What 95 % of the samples stay below, in the two halves after the warm-up:",
            "",
            "| | first half | second | change |",
            "| --- | ---: | ---: | ---: |",
            *(self._change(pod, quantity) for pod in self.watched for quantity in QUANTITIES),
            "",
            "Over time, the median of each minute:",
            "",
            f"| minute | {' | '.join(columns)} |",
            "| ---: " * (1 + len(columns)) + "|",
            *(self._minute(number) for number in range(1, 1 + MINUTES)),
        ]
        return "\n".join(lines) + "\n"

    @staticmethod
    def _load(words: str, seen: Outcome) -> str:
        return (
            f"| {words} | {seen.requests:,} | {seen.failed:,} | {seen.p50_ms:.0f} | {seen.p99_ms:.0f} "
            f"| {seen.longest_wait_seconds:.1f} |"
        )

    @staticmethod
    def _change(pod: Watched, quantity: str) -> str:
        first, second = pod.halves(quantity)
        change = f"{second - first:+.0f}" if quantity == "descriptors" else f"{second / first - 1:+.1%}"
        digits = 0 if quantity == "descriptors" else 1
        return f"| {pod.component}: {QUANTITIES[quantity]} | {first:.{digits}f} | {second:.{digits}f} | {change} |"

    def _minute(self, number: int) -> str:
        cells = []
        for pod in self.watched:
            for quantity in QUANTITIES:
                values = pod.values(quantity, since=(number - 1) * 60, until=number * 60)
                cells.append(f"{statistics.median(values):.0f}" if values else "")
        return "| " + " | ".join([str(number), *cells]) + " |"


def test_memory_and_descriptors_stay_flat(release: Steady, photo_host: PhotoHost) -> None:
    base = load_balancer(release.cluster, HERE, release.gateway)
    watched = [Watched(release, component) for component in PROCESS]
    attacked: dict[str, Counter[str]] = {}
    otherwise: Counter[str] = Counter()
    small = Load(base, photo_host, clients=CLIENTS, requests=0, pause_seconds=PAUSE_SECONDS)
    large = Load(
        base, photo_host, clients=LARGE_CLIENTS, requests=0, photos=photo_host.large, pause_seconds=LARGE_PAUSE_SECONDS
    )
    with small, large:
        start = time.monotonic()
        for minute in range(1, 1 + MINUTES):
            with attack(f"{base}/predict", attacked):
                time.sleep(ATTACK_SECONDS)
            otherwise += refused(base, photo_host)
            leave(base, photo_host)
            while (seconds := time.monotonic() - start) < 60 * minute:
                for pod in watched:
                    pod.look(seconds)
                time.sleep(max(0.0, min(EVERY_SECONDS, 60 * minute - (time.monotonic() - start))))
            now = "; ".join(
                f"{pod.component} {pod.samples[-1].process_mib:.0f} MiB, {pod.samples[-1].descriptors:.0f} descriptors"
                for pod in watched
            )
            sent, failed = small.sent + large.sent, small.failed + large.failed
            say(f"minute {minute} of {MINUTES}: {sent:,} requests, {failed} failed; {now}")
            if failed:
                break
    report = Report(
        {
            f"{CLIENTS}, photos as people have them": small.outcome,
            f"{LARGE_CLIENTS}, photos of 12 megapixels": large.outcome,
        },
        answered(release, watched[0].pod),
        watched,
    )
    REPORT.mkdir(exist_ok=True)
    samples = {pod.component: [dataclasses.asdict(one) for one in pod.samples] for pod in watched}
    (REPORT / "soak.json").write_text(json.dumps(samples) + "\n")
    assert small.outcome.failed == 0, small.outcome.causes
    assert large.outcome.failed == 0, large.outcome.causes
    (REPORT / "soak.md").write_text(report.markdown())
    assert not otherwise
    for kind, counted in attacked.items():
        assert set(counted) <= hostile.ANSWERS[kind], (kind, counted)
    assert not [status for status in report.statuses if status >= "500"], report.statuses
    assert [pod.restarts for pod in watched] == [0, 0]
    assert not [words for pod in watched for words in pod.grown()]
    if MINUTES >= LONG_MINUTES:
        (PUBLISHED / "soak.md").write_text(report.markdown())
