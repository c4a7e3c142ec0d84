"""Steady load from outside the cluster during a scenario, and the table of the clients' measurements.

Half of the clients upload photos over connections that they keep; the others send URLs of a photo server on this
machine, and take a new connection for every tenth, so that new pods get theirs. Each sends its next photo when the last
is answered. Every answer is compared with the scores that the same photo had before the load.

`make e2e` sends at least 400 requests through each scenario; `make e2e E2E=full` 3,000, and writes the table into
docs/.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import itertools
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import urllib3
from kube import REPORT, Release, as_upstream, clusters, make_namespace

import processes

sys.path.append(str(processes.ROOT / "tests/load"))

import hostile
import photos as drawn
import programs

FULL = os.environ.get("E2E") == "full"
REQUESTS = 3000 if FULL else 400
CLIENTS = 20
# The same photo gives the same scores but for the order in which a server's threads add floats.
TOLERANCE = 1e-3
# What one answer may take: longer than the gateway's own deadline, so that it is the gateway that ends it.
TIMEOUT = "60s"
PUBLISHED = processes.ROOT / "docs/benchmarks"


# Where progress goes: standard error, in tests as it was before pytest took it to keep what they print (conftest.py).
progress = 2


def say(text: str) -> None:
    """Print progress past pytest's capture."""
    os.write(progress, f"\n    {text}\n".encode())


@dataclass(frozen=True)
class PhotoHost:
    """A photo server on this machine that pods reach, with small photos and photos of 12 megapixels."""

    address: str  # HOST:PORT
    small: drawn.Photos
    large: drawn.Photos

    @property
    def values(self) -> tuple[str, ...]:
        """What a release must be told to fetch from here."""
        host, _, port = self.address.rpartition(":")
        return (f"gateway.fetch.allowedNetworks={{{host}/32}}", f"gateway.fetch.allowedPorts={{80,443,{port}}}")

    def listing(
        self, base: str, photos: drawn.Photos, host: str = "", path: str = "/predict"
    ) -> list[dict[str, object]]:
        """The photos with their addresses and the scores that the gateway gives for each now."""
        http = urllib3.PoolManager(timeout=60, retries=False)
        headers = {"Content-Type": "image/jpeg"} | ({"Host": host} if host else {})
        listed = []
        for file in photos.files:
            answer = http.request("POST", f"{base}{path}", body=file.read_bytes(), headers=headers)
            assert answer.status == 200, answer.data
            scores = [answer.json()[label] for label in processes.LABELS]
            listed.append({"path": str(file), "url": f"http://{self.address}/{file.name}", "scores": scores})
        return listed


@contextmanager
def photo_host(cluster: clusters.Cluster) -> Iterator[PhotoHost]:
    """Start a photo server on the address at which the cluster's nodes reach this machine."""
    programs.build()
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    node = next(one["address"] for one in nodes[0]["status"]["addresses"] if one["type"] == "InternalIP")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node, 9))  # sends nothing: it only chooses the way
        here = probe.getsockname()[0]
    with socket.socket() as probe:
        probe.bind((here, 0))
        address = f"{here}:{probe.getsockname()[1]}"
    small, large = drawn.prepare(processes.ROOT / ".cache/e2e", say, small=8, large=4)
    running = programs.start(
        "photoserver", [programs.BIN / "photoserver", "-listen", address, small.folder, large.folder]
    )
    with programs.stopping(running):
        programs.wait_until(running, lambda: socket.create_connection(address.split(":"), 1).close() is None)
        yield PhotoHost(address, small, large)


TIERS = ("gateway", "server")
# Two of each, so that one of each can go; little CPU asked for, so that a surge has room on two cores.
TWO_OF_EACH = (
    "gateway.replicas=2", "server.replicas=2",
    "gateway.resources.requests.cpu=50m", "server.resources.requests.cpu=100m",
)  # fmt: skip
# After each server a rollout waits (minReadySeconds) for as long as a connection lasts, and 5 s: with the default of
# 30 s half a minute for each.
SOONER = () if FULL else ("server.maxConnectionAgeSeconds=5",)


class Steady(Release):
    """A release under load, that may fetch from the photo server on this machine."""

    def reach(self, host: PhotoHost, *values: str, timeout: str = "5m") -> None:
        """Install or upgrade, and wait."""
        wanted = (*TWO_OF_EACH, *SOONER, *as_upstream(self.cluster), *host.values, *values)
        self.upgrade(*wanted, timeout=timeout)
        server = "TensorFlow Serving" if self.cluster.has_official_server else "the portable server"
        TABLE.servers.add(f"{server} with {self.threads} gRPC threads")

    def deployment(self, tier: str) -> str:
        """``deployment/NAME`` of a tier."""
        return f"deployment/{getattr(self, tier)}"

    def settle(self, *tiers: str) -> None:
        """Wait until the pods of these tiers, else of all, are the new ones, available, and others are gone."""
        for tier in tiers or TIERS:
            self.kubectl("rollout", "status", self.deployment(tier), "--timeout=300s")
        selector = f"--selector=app.kubernetes.io/instance={self.name}"
        ending = ("get", "pods", selector, "--output=jsonpath={.items[*].metadata.deletionTimestamp}")
        processes.wait_for("the old pods to be gone", lambda: time.sleep(0.5) or not self.kubectl(*ending).strip(), 120)

    def wait_for_the_model(self) -> None:
        """Wait until each gateway has found the model: when the only server is back, one is sooner than another."""

        def found() -> bool:
            names = [pod["metadata"]["name"] for pod in self.pods("gateway")]
            path = f"/api/v1/namespaces/{self.namespace}/pods"
            try:
                return all(self.kubectl("get", "--raw", f"{path}/{name}:9697/proxy/readyz") for name in names)
            except clusters.ClusterError:
                return False

        processes.wait_for("each gateway to find the model", found, 60)

    def wait_until_connected(self) -> None:
        """Wait until each channel of each gateway has a connection to each server.

        One that became ready with the first server learns of the second when it next resolves the name, some seconds
        later: where the first is killed until then, it has no other.
        """
        servers = {pod["status"]["podIP"] for pod in self.pods("server")}
        gateways = [pod["metadata"]["name"] for pod in self.pods("gateway")]
        processes.wait_for(
            "each gateway to be connected to each server",
            lambda: all(self._is_connected(name, servers) for name in gateways),
            60,
        )

    def _is_connected(self, gateway: str, servers: set[str]) -> bool:
        """Whether a gateway has as many connections to port 8500 of one server (IPv4) as to that of another."""
        read = ("cat", "/proc/net/tcp", "/proc/net/tcp6")  # gRPC's sockets are IPv6 ones, with mapped addresses
        lines = self.kubectl("exec", gateway, "--container=gateway", "--", *read).splitlines()
        remotes = re.findall(r"([0-9A-F]{8}):2134 01 ", "\n".join(lines))  # little-endian; 01 is ESTABLISHED
        connections = Counter(str(ipaddress.IPv4Address(bytes.fromhex(one)[::-1])) for one in remotes)
        return len({connections[one] for one in servers}) == 1 and all(connections[one] for one in servers)

    def pod_ids(self, *tiers: str) -> set[str]:
        """The pods that there are."""
        return {pod["metadata"]["uid"] for pod in self.pods(*tiers)}

    def calls(self) -> dict[str, float]:
        """Predict calls that each server has answered, asked for at the same time."""
        names = [pod["metadata"]["name"] for pod in self.pods("server")]
        with ThreadPoolExecutor() as pool:
            return dict(zip(names, pool.map(self.predictions, names), strict=True))

    def evict(self, pod: str) -> bool:
        """Ask for a pod's eviction, as `kubectl drain` does; whether the budget allows it."""
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        try:
            self.cluster.kubectl("create", "--raw", path, "--filename=-", input=json.dumps(eviction))
        except clusters.ClusterError:
            return False
        return True


@contextmanager
def steady_release(
    cluster: clusters.Cluster, tags: dict[str, str], namespace: str, name: str = "steady"
) -> Iterator[Steady]:
    """A namespace for a release, which the caller installs; deleted at the end."""
    make_namespace(cluster, namespace)
    try:
        yield Steady(name, cluster, dict(tags), namespace)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@dataclass(frozen=True)
class Outcome:
    """The clients' measurements of a scenario."""

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    longest_wait_seconds: float  # in which no client at all got an answer: an upper bound of the recovery
    causes: dict[str, int]
    refused: int = 0  # of the failed, 503s with Retry-After
    silent: int = 0  # 503s without Retry-After
    versions: dict[str, int] = field(default_factory=dict)  # answers by the model's version
    connections: int = 0
    longest_call_seconds: float = 0  # of a single answered request

    @property
    def per_second(self) -> float:
        """Photos answered in a second."""
        return (self.requests - self.failed) / self.seconds


def outcome_of(measured: list[dict[str, object]], seconds: float) -> Outcome:
    """Merge the measurements of concurrent load generators."""
    latencies = sorted(one for each in measured for one in each["latencies_us"].get("200", []))  # type: ignore[attr-defined]
    moments = sorted(one for each in measured for one in each.get("answered_ms", []))  # type: ignore[attr-defined]
    causes: dict[str, int] = {}
    for each in measured:
        for kind in ("statuses", "errors"):
            for cause, count in each[kind].items():  # type: ignore[attr-defined]
                if cause != "200":
                    causes[cause] = causes.get(cause, 0) + count
        if each["wrong"]:
            causes[f"wrong: {each['first_wrong']}"] = int(each["wrong"])  # type: ignore[call-overload]
    edges = [0, *moments, round(seconds * 1000)]
    versions: Counter[str] = Counter()
    for each in measured:
        versions.update(each.get("counted", {}))  # type: ignore[arg-type]
    silent = sum(int(each["without_retry_after"]) for each in measured)  # type: ignore[call-overload]
    return Outcome(
        requests=sum(int(each["requests"]) for each in measured),  # type: ignore[call-overload]
        failed=sum(causes.values()),
        seconds=seconds,
        p50_ms=latencies[len(latencies) // 2] / 1000 if latencies else float("inf"),
        p99_ms=latencies[min(len(latencies) * 99 // 100, len(latencies) - 1)] / 1000 if latencies else float("inf"),
        longest_wait_seconds=max(after - before for before, after in itertools.pairwise(edges)) / 1000,
        causes=causes,
        refused=causes.get("503", 0) - silent,
        silent=silent,
        versions=dict(versions),
        connections=sum(int(each.get("connections", 0)) for each in measured),  # type: ignore[call-overload]
        longest_call_seconds=latencies[-1] / 1e6 if latencies else float("inf"),
    )


@dataclass
class Load:
    """Clients as a context manager: started on entering, stopped once they have sent enough."""

    base: str
    host: PhotoHost
    clients: int = CLIENTS
    requests: int = REQUESTS
    photos: drawn.Photos | None = None  # the small ones
    name: str = ""  # the Host to ask for
    path: str = "/predict"
    forms: tuple[str, ...] = ("raw", "url")
    keep: int | None = None  # requests over one connection; None: all for uploads, ten for URLs
    pause_seconds: float = 0  # between an answer and the next photo
    _running: list[subprocess.Popen[str]] = field(default_factory=list)
    _sent: dict[int, int] = field(default_factory=dict)
    _failed: dict[int, int] = field(default_factory=dict)
    measured: list[dict[str, object]] = field(default_factory=list)  # by each load generator, once they have ended
    seconds: float = 0  # that they ran for

    @property
    def sent(self) -> int:
        """Requests begun, as of the last second."""
        return sum(self._sent.values())

    @property
    def failed(self) -> int:
        """Requests that have failed, as of the last second."""
        return sum(self._failed.values())

    @property
    def outcome(self) -> Outcome:
        """What the clients saw, once they have ended."""
        assert self.measured, "the load still runs"
        return outcome_of(self.measured, self.seconds)

    def wait_until_sent(self, more: int, seconds: float = 300) -> None:
        """Wait until so many requests more have been sent."""
        wanted = self.sent + more
        processes.wait_for(f"{more} requests", lambda: self.sent >= wanted, seconds)

    def __enter__(self) -> Self:
        photos = self.host.listing(self.base, self.photos or self.host.small, self.name, self.path)
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(photos, file)
        self._file = Path(file.name)
        self._start = time.monotonic()
        for number, form in enumerate(self.forms):
            keep = self.keep if self.keep is not None else {"raw": 0, "url": 10}[form]
            command = [
                str(programs.BIN / "loadgen"), "-target", f"{self.base}{self.path}", "-photos", str(self._file),
                "-form", form, "-clients", str(self.clients // len(self.forms)), "-keep", str(keep), "-moments",
                "-tolerance", str(TOLERANCE), "-timeout", TIMEOUT, "-host", self.name,
                "-count", "X-Model-Version", "-pause", f"{self.pause_seconds}s",
            ]  # fmt: skip
            one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._running.append(one)
            threading.Thread(target=self._follow, args=(number, one), daemon=True).start()
        self.wait_until_sent(2 * self.clients)
        return self

    def _follow(self, number: int, running: subprocess.Popen[str]) -> None:
        assert running.stderr is not None
        for line in running.stderr:
            sent, failed = line.split()
            self._sent[number], self._failed[number] = int(sent), int(failed)

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                processes.wait_for(f"{self.requests} requests", lambda: self.sent >= self.requests, 600)
        finally:
            for one in self._running:
                one.send_signal(signal.SIGTERM)
            self.seconds = time.monotonic() - self._start
            for one in self._running:
                with one, one.stdout as output:  # type: ignore[union-attr]
                    self.measured.append(json.loads(output.read()))
            self._file.unlink()


def one_after_another(rounds: list[tuple[list[dict[str, object]], float]]) -> Outcome:
    """Merge consecutive rounds, each the measurements of its load generators and its seconds."""
    measured: list[dict[str, object]] = []
    before = 0.0
    for generators, seconds in rounds:
        for one in generators:
            moments = [round(before * 1000) + moment for moment in one["answered_ms"]]  # type: ignore[attr-defined]
            measured.append(one | {"answered_ms": moments})
        before += seconds
    return outcome_of(measured, before)


@contextmanager
def attack(
    target: str, answers: dict[str, Counter[str]], kinds: Sequence[str] = hostile.CHEAP, listen: str = ""
) -> Iterator[None]:
    """Run the attacker during the block, and count what it was answered; ``listen`` is where it serves slow photos."""
    command = [programs.BIN / "attacker", "-target", target, "-kinds", ",".join(kinds), "-listen", listen]
    if kinds is hostile.CHEAP:
        # 1,100 that are closed and open again keep a core of this machine busy, which the clients lose in any case.
        command += ["-silent", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            for kind, counted in json.loads(process.stdout.readline()).items():
                answers.setdefault(kind, Counter()).update(counted)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    scenario: str
    outcome: Outcome
    note: str


class Table:
    """The measurements by scenario; written after each line, so that an aborted run keeps them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.holds = True  # until a scenario fails
        self.servers: set[str] = set()  # that scenarios ran with

    def add(self, scenario: str, outcome: Outcome, note: str = "") -> None:
        """Add a line, in the order of the tests."""
        self.rows.append(Row(scenario, outcome, note))
        REPORT.mkdir(exist_ok=True)
        self.write(REPORT)
        say(self._line(self.rows[-1]).strip("| "))

    def write(self, folder: Path) -> None:
        """Write it down, for programs and for people."""
        (folder / "cluster.json").write_text(json.dumps(self._document(), indent=1) + "\n")
        (folder / "cluster.md").write_text(self.markdown())

    def _document(self) -> dict[str, object]:
        return {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": machine(),
            "command": f"make e2e{' E2E=full' if FULL else ''}",
            "servers": sorted(self.servers),
            "scenarios": [dataclasses.asdict(row) for row in self.rows],
        }

    def _line(self, row: Row) -> str:
        one = row.outcome
        return (
            f"| {row.scenario} | {one.requests:,} | {one.failed:,} | {one.p50_ms:.0f} | {one.p99_ms:.0f} "
            f"| {one.longest_call_seconds:.1f} | {one.longest_wait_seconds:.1f} | {row.note} |"
        )

    def markdown(self) -> str:
        """The table as it stands in the docs."""
        document = self._document()
        how = f"`{document['command']}`, {document['date']}, {document['machine']}"
        head = [
            "# Zero failed requests during disruptions: measurements",
            "",
            f"{how}. How the load is made: tests/e2e/steady.py.",
            "",
            f"Model server: {', '.join(sorted(self.servers))}; it refuses a call that finds no thread.",
            "",
            "| while | requests | failed | p50 ms | p99 ms | longest request, s | longest time with no answer, s | |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        return "\n".join([*head, *(self._line(row) for row in self.rows)]) + "\n"


TABLE = Table()


def machine() -> str:
    """This machine's cores and CPU model."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores ({model})"
