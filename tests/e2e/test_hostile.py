"""Honest clients beside hostile ones: errors, throughput for the report, the gateway's memory and CPU."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube import NAMESPACE, clusters, load_balancer
from steady import (
    CLIENTS,
    FULL,
    TOLERANCE,
    PhotoHost,
    Steady,
    Table,
    attack,
    hostile,
    one_after_another,
    outcome_of,
    programs,
    steady_release,
)

HERE = f"{NAMESPACE}-hostile"
# Rounds with the attack and without it, in turns: a machine's slow minute slows both.
ROUNDS, SECONDS = (15, 10) if FULL else (6, 4)
# The ratio of the throughputs is for the report: other work on the machine changes it. The CPU that the attack alone
# costs the gateway doesn't depend on other work: at most a twentieth of a core.
CORES = 0.05
# The attacker's slow photo server is on the photo host's address.
SLOW_PORT = 9555
MUST_HAVE = ("huge", "pixels", "text")


def memory(release: Steady, pod: str) -> tuple[int, int]:
    """Peak bytes of a pod's cgroup, and its limit, by cgroup v2 or v1."""
    two, one = "memory.peak memory.max", "memory/memory.max_usage_in_bytes memory/memory.limit_in_bytes"
    files = f"cd /sys/fs/cgroup; cat {two} 2>/dev/null || cat {one}"
    peak, limit = release.kubectl("exec", pod, "--", "sh", "-c", files).split()[-2:]
    return int(peak), int(limit)


def cpu_seconds(release: Steady, pod: str) -> float:
    """CPU seconds of a pod's first process, in ticks of 10 ms."""
    fields = release.kubectl("exec", pod, "--", "cat", "/proc/1/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.fixture(scope="module")
def release(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[Steady]:
    with steady_release(cluster, tags, HERE) as release:
        ports = f"gateway.fetch.allowedPorts={{80,443,{photo_host.address.rpartition(':')[2]},{SLOW_PORT}}}"
        release.reach(photo_host, "gateway.replicas=1,server.replicas=1", ports)
        yield release


def test_hostile_clients_do_not_affect_honest_ones(
    release: Steady, photo_host: PhotoHost, table: Table, tmp_path: Path
) -> None:
    target = f"{load_balancer(release.cluster, HERE, release.gateway)}/predict"
    photos = tmp_path / "photos.json"
    photos.write_text(json.dumps(photo_host.listing(target.removesuffix("/predict"), photo_host.small)))
    flags = ["-clients", str(CLIENTS), "-seconds", str(SECONDS), "-tolerance", str(TOLERANCE), "-moments"]
    answers: dict[str, Counter[str]] = {}
    rounds: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    programs.load(target, photos, *flags)  # the first round is another one
    for number in range(ROUNDS):
        for attacked in (number % 2 == 0, number % 2 == 1):
            if attacked:
                with attack(target, answers):
                    time.sleep(1)
                    measured = programs.load(target, photos, *flags)
            else:
                time.sleep(1)
                measured = programs.load(target, photos, *flags)
            rounds[attacked].append(measured)
    (gateway,) = release.pods("gateway")
    pod = gateway["metadata"]["name"]
    with attack(target, answers):  # alone
        time.sleep(1)
        start, before = time.monotonic(), cpu_seconds(release, pod)
        time.sleep(SECONDS)
        cores = (cpu_seconds(release, pod) - before) / (time.monotonic() - start)
    calm = [outcome_of([one], float(one["seconds"])).per_second for one in rounds[False]]  # type: ignore[arg-type]
    under = [outcome_of([one], float(one["seconds"])).per_second for one in rounds[True]]  # type: ignore[arg-type]
    ratios = [one / other for one, other in zip(under, calm, strict=True)]
    outcome = one_after_another([([one], SECONDS) for one in rounds[True]])
    peak, limit = memory(release, pod)
    ratio = statistics.median(ratios)
    table.add(
        "hostile clients (tests/load/attacker)", outcome,
        f"{ratio:.1%} of the throughput without them ({min(ratios):.1%} to {max(ratios):.1%} in {ROUNDS} rounds), "
        f"alone they cost the gateway {cores:.3f} cores; its memory {peak >> 20} MiB of {limit >> 20} at most",
    )  # fmt: skip
    print(f"\nanswered: {answers}")
    assert outcome.failed == 0, outcome.causes
    for kind, counted in answers.items():
        assert set(counted) <= hostile.ANSWERS[kind], (kind, counted)
    assert all(answers[kind] for kind in MUST_HAVE), answers
    assert cores <= CORES
    assert peak < limit
    assert all(status["restartCount"] == 0 for status in gateway["status"]["containerStatuses"])


def test_no_kind_of_attack_affects_honest_clients(
    release: Steady, photo_host: PhotoHost, table: Table, tmp_path: Path
) -> None:
    target = f"{load_balancer(release.cluster, HERE, release.gateway)}/predict"
    photos = tmp_path / "photos.json"
    photos.write_text(json.dumps(photo_host.listing(target.removesuffix("/predict"), photo_host.small)))
    flags = ["-clients", "2", "-seconds", str(SECONDS), "-tolerance", str(TOLERANCE), "-moments"]
    listen = f"{photo_host.address.rpartition(':')[0]}:{SLOW_PORT}"
    answers: dict[str, Counter[str]] = {}
    calm = outcome_of([programs.load(target, photos, *flags)], SECONDS)
    outcomes = {}
    measured = []
    for kind in hostile.KINDS:
        # tests/load has the others: the admin port is open to the cluster's own pods only, and connections with large
        # heads, unfinished bodies and costly photos take the share of their client's address, which the honest clients
        # here have as well.
        if kind not in ("admin", "fields", "unfinished", *hostile.COSTLY):
            with attack(target, answers, (kind,), listen):
                time.sleep(1)
                measured.append(programs.load(target, photos, *flags))
            outcomes[kind] = outcome_of([measured[-1]], SECONDS)
    (gateway,) = release.pods("gateway")
    peak, limit = memory(release, gateway["metadata"]["name"])
    slowest = max(outcomes, key=lambda kind: outcomes[kind].p99_ms)
    table.add(
        "hostile clients, one kind of attack after another", one_after_another([([one], SECONDS) for one in measured]),
        f"{len(outcomes)} kinds; p99 at most {outcomes[slowest].p99_ms:.0f} ms ({slowest}), {calm.p99_ms:.0f} without "
        f"an attack; the gateway's memory {peak >> 20} MiB of {limit >> 20} at most",
    )  # fmt: skip
    print(f"\nanswered: {answers}")
    assert {kind: outcome.causes for kind, outcome in outcomes.items() if outcome.failed} == {}
    for kind, counted in answers.items():
        assert set(counted) <= hostile.ANSWERS[kind], (kind, counted)
    assert peak < limit
    assert all(status["restartCount"] == 0 for status in gateway["status"]["containerStatuses"])
