"""Fault tolerance under load: killed, hung and overloaded servers, deleted pods."""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from kube import NAMESPACE, clusters, load_balancer
from steady import FULL, Load, PhotoHost, Steady, Table, one_after_another, steady_release

import processes

HERE = f"{NAMESPACE}-failures"
# As TensorFlow Serving, which has no handler for SIGTERM; the flag is the portable server's, and TensorFlow Serving
# passes over what it doesn't know.
VALUES = ("server.flags.handle_signals=false", "server.drainSeconds=2", "gateway.drain.delaySeconds=3")
# Found by a flag that the chart sets. Its own command line has the flag in other letters.
SIGNAL = """
for process in /proc/[0-9]*; do
  if tr '\\0' ' ' <"$process/cmdline" | grep -q -- '[-]-rest_api_port='; then kill -SIGNAL "${process#/proc/}"; fi
done
"""
# Photos that a gateway takes at a time, by default. So many clients are its capacity, and four times as many offer more
# than three times as much: a connection that was refused rests for a quarter of a second.
PLACES = 32
# In turns: what a server of a fifth of a core takes for a photo changes by a tenth from one ten seconds to the next,
# with and without a flood, as it finds a cold cache after each 80 ms away from its core.
FULL_ROUNDS = 5 if FULL else 4
FULL_SECONDS = 9 if FULL else 6


@pytest.fixture(scope="module")
def release(cluster: clusters.Cluster, tags: dict[str, str], photo_host: PhotoHost) -> Iterator[Steady]:
    with steady_release(cluster, tags, HERE) as release:
        release.reach(photo_host, *VALUES)
        yield release


@pytest.fixture(scope="module")
def base(release: Steady) -> str:
    return load_balancer(release.cluster, HERE, release.gateway)


def names(release: Steady, component: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in release.pods(component)]


def send_signal(release: Steady, pod: str, name: str) -> None:
    """Send a signal to the model server's process."""
    release.kubectl("exec", pod, "--container=server", "--", "sh", "-c", SIGNAL.replace("SIGNAL", name))


def seconds_until(what: str, probe: Callable[[], object], limit: float) -> float:
    """A stopwatch."""
    started = time.monotonic()
    processes.wait_for(what, probe, limit)
    return time.monotonic() - started


def answered(release: Steady, pod: str) -> float:
    """Predict calls that a server has answered; 0 where it doesn't answer."""
    with contextlib.suppress(clusters.ClusterError):
        return release.predictions(pod)
    return 0


def state(release: Steady, pod: str, path: str) -> str:
    return release.kubectl("get", "pod", pod, f"--output=jsonpath={{.status.{path}}}")


def is_ready(release: Steady, pod: str) -> bool:
    return state(release, pod, 'conditions[?(@.type=="Ready")].status') == "True"


def test_killed_server_costs_no_request(release: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """SIGKILL to a busy process: its calls are retried on the other server."""
    killed, *_ = names(release, "server")
    release.wait_until_connected()
    with Load(base, photo_host) as load:
        before = processes.wait_for("calls to it", lambda: answered(release, killed), 30)
        send_signal(release, killed, "KILL")
        # Its counts begin anew.
        away = seconds_until("it to answer again", lambda: 0 < answered(release, killed) < before, 120)
    table.add("SIGKILL of one of two servers", load.outcome, f"it answers again after {away:.0f} s")
    assert load.outcome.failed == 0, load.outcome.causes


def test_hung_server_costs_no_request(release: Steady, base: str, photo_host: PhotoHost, table: Table) -> None:
    """SIGSTOP: the connection stays open and silent. A ping detects it, and the calls are retried elsewhere."""
    hung, *_ = names(release, "server")
    release.wait_until_connected()
    with Load(base, photo_host) as load:
        send_signal(release, hung, "STOP")
        try:
            stopped = time.monotonic()
            processes.wait_for("the hung server to be taken out", lambda: not is_ready(release, hung), 60)
            out = time.monotonic() - stopped
            load.wait_until_sent(100, 60)
        finally:
            send_signal(release, hung, "CONT")
        before = release.predictions(hung)
        processes.wait_for("it to answer again", lambda: answered(release, hung) > before, 120)
    note = f"out of its Service after {out:.0f} s"
    table.add("SIGSTOP of one of two servers", load.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes
    assert load.outcome.longest_wait_seconds < 20


@dataclass(frozen=True)
class End:
    """Seconds from a pod's deletion to its process's end and to its removal."""

    process: float  # until its process had ended; by the cluster's clock, which counts whole ones
    pod: float  # until it was no longer there; from when a watch told of the one until it told of the other


EVENTS = (
    "{.type} {.object.metadata.deletionTimestamp} {.object.metadata.deletionGracePeriodSeconds} "
    '{.object.status.containerStatuses[0].state.terminated.finishedAt}{"\\n"}'
)


def delete(release: Steady, pod: str) -> End:
    """Delete a pod and measure its end."""
    watch = ["kubectl", "--namespace", HERE, "get", "pod", pod, "--watch", "--output-watch-events"]
    environment = release.cluster.process_environment()
    begun = told = ended = 0.0
    with subprocess.Popen(
        [*watch, f"--output=jsonpath={EVENTS}"], env=environment, stdout=subprocess.PIPE, text=True
    ) as events:
        assert events.stdout is not None
        assert events.stdout.readline().startswith("ADDED")
        # Beside, as the command itself takes a moment to end.
        threading.Thread(target=release.kubectl, args=("delete", "pod", pod, "--wait=false")).start()
        try:
            for line in events.stdout:
                kind, *seen = line.split()
                if len(seen) > 1 and not begun:  # at the end the kubelet deletes it once more, without grace
                    begun, told = dt.datetime.fromisoformat(seen[0]).timestamp() - int(seen[1]), time.monotonic()
                if len(seen) > 2:
                    ended = dt.datetime.fromisoformat(seen[2]).timestamp()
                if kind == "DELETED":
                    return End(ended - begun, time.monotonic() - told)
        finally:
            events.terminate()
    raise AssertionError(f"{pod} was not deleted")


@pytest.mark.parametrize(("component", "served"), [("server", 2), ("gateway", 3)])
def test_deleted_pod_ends_after_its_drain(
    release: Steady, base: str, photo_host: PhotoHost, table: Table, component: str, served: int
) -> None:
    """A deleted pod is gone, with its GPU, at most three seconds after its drain."""
    doomed, *_ = names(release, component)
    with Load(base, photo_host) as load:
        end = delete(release, doomed)
    what = {"server": "server.drainSeconds", "gateway": "gateway.drain.delaySeconds"}[component]
    words = " that ignores SIGTERM" if component == "server" else ""
    note = f"its process ends {end.process - served:.0f} s, the pod is gone {end.pod - served:.1f} s after {what}"
    table.add(f"a {component}{words} is deleted", load.outcome, note)
    assert load.outcome.failed == 0, load.outcome.causes
    assert end.process - served <= 3
    # Most of it is the cluster's time to notice, which grows on a machine that is busy with more than this.
    assert end.pod - served < (3 if FULL else 5)


def test_overloaded_server_returns_503_and_drops_no_call(
    release: Steady, base: str, photo_host: PhotoHost, table: Table
) -> None:
    """Over a server's capacity, requests get a score or 503 with Retry-After, and no refused photo a call.

    Throughput and latency beside those at capacity are in the report: a busy machine changes them.
    """
    # A fifth of a core, so that neither the gateway nor the load generator is what is full.
    release.reach(photo_host, *VALUES, "gateway.replicas=1,server.replicas=1,server.resources.limits.cpu=200m")
    release.settle()  # the servers before this one have a whole core, and answer until they are gone
    before = release.pods()
    rounds: dict[int, list[tuple[list[dict[str, object]], float]]] = {PLACES: [], 4 * PLACES: []}
    calls = sum(release.calls().values())
    for _ in range(FULL_ROUNDS):
        for clients, measured in rounds.items():
            # So many refusals come quickly that their number alone would end it at once.
            with Load(base, photo_host, clients=clients, requests=0, forms=("raw",)) as load:
                time.sleep(FULL_SECONDS)
            measured.append((load.measured, load.seconds))
    calls = sum(release.calls().values()) - calls
    able, flooded = map(one_after_another, rounds.values())
    times = flooded.requests / flooded.seconds / able.per_second
    note = (
        f"{times:.1f} times the capacity of {able.per_second:.0f}/s offered, {flooded.per_second:.0f}/s answered "
        f"({flooded.per_second / able.per_second:.0%}), the rest 503 with Retry-After; "
        f"p99 {flooded.p99_ms / able.p99_ms:.2f} times that at capacity"
    )
    table.add("a server is full", flooded, note)
    assert able.failed == 0, able.causes
    assert set(flooded.causes) == {"503"}, flooded.causes
    assert flooded.silent == 0
    assert 0 < flooded.failed < flooded.requests
    # Not one call for a photo that was refused. Each load asks for each photo's scores before it begins.
    asked_before = len(photo_host.small.files) * len(rounds) * FULL_ROUNDS
    assert calls == asked_before + able.requests + flooded.requests - flooded.failed
    after = release.pods()
    assert [pod["metadata"]["uid"] for pod in after] == [pod["metadata"]["uid"] for pod in before]
    assert all(status["restartCount"] == 0 for pod in after for status in pod["status"]["containerStatuses"])
