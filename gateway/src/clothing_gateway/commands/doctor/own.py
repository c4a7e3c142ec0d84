"""Checks of the gateway: settings, keys, admin port, fetching, memory, CPU."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import urllib3
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from clothing_gateway import __version__, fetch
from clothing_gateway.commands.doctor.chart import values_for
from clothing_gateway.commands.doctor.report import FAIL, OK, SKIPPED, WARNING, Finding
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import GatewayError
from clothing_gateway.fetch.policy import Policy
from clothing_gateway.fetch.resolver import NoAddress, NoAnswer, Resolver
from clothing_gateway.limits import memory
from clothing_gateway.limits.admission import ByteBudget
from clothing_gateway.limits.cgroup import available_cores, memory_limit
from clothing_gateway.settings import MIB, Settings, SettingsError
from clothing_gateway.web.auth import Keys, KeysError

Address = IPv4Address | IPv6Address

CGROUP = Path("/sys/fs/cgroup")
PID_1 = Path("/proc/1/cmdline")

_ADMIN_SECONDS = 3.0
_DNS_SECONDS = 6.0
# An error rate that is no accident, given so many requests that one error alone does not make it.
_MANY_ERRORS, _FEW_REQUESTS = 0.01, 20
# From this share of throttled CPU periods (100 ms) on, requests get visibly slower.
_MUCH_THROTTLED = 0.1
# A name that the IANA keeps for examples (RFC 2606), and that resolves wherever the internet's names do.
_OUTSIDE = "example.com"
_MOST_NAMES = 5
# 169.254.169.254 and its IPv6 sister hand out the node's credentials.
_METADATA = (ip_address("169.254.169.254"), ip_address("fd00:ec2::254"))

# The values behind the errors that are not a client's.
_MEND = {
    "overloaded": "gateway.replicas or gateway.autoscaling, server.replicas or server.autoscaling; gateway.maxInFlight "
    "where the servers are idle",
    "out-of-time": "gateway.requestTimeoutSeconds, gateway.fetch.timeoutSeconds, server.resources.requests.cpu",
    "model-unavailable": "server.replicas, server.drainSeconds",
    "model-busy": "server.flags.grpc_max_threads, server.replicas or server.autoscaling, server.batching.enabled",
    "model-queue-full": "server.replicas or server.autoscaling, server.batching.maxEnqueuedBatches",
    "model-out-of-memory": "server.resources.limits.memory, gateway.predictBatchSize, server.batching.maxBatchSize",
    "model-not-ready": "server.rollout.mode, server.replicas",
    "model-failed": "server.resources.limits.memory",
    "model-refused": "model.inputName, model.imageSize, gateway.predictBatchSize",
    "model-answer-unusable": "model.labels, model.outputName",
    "internal-error": "kubectl logs has the reason, by the request id",
}


def flags_of_the_gateway(cmdline: Path = PID_1) -> list[str]:
    """Flags of the gateway in this container (gateway.extraArgs); none elsewhere.

    The gateway is the container's first process.

    Its environment is that of ``kubectl exec``, too; its flags are to be seen only there.
    """
    try:
        words = cmdline.read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []
    if not any("clothing-gateway" in word or "clothing_gateway" in word for word in words[:4]) or "serve" not in words:
        return []
    return words[words.index("serve") + 1 :]


def load_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None]
) -> tuple[Settings | None, list[Finding]]:
    """Load the settings; None where they are invalid."""
    try:
        settings, sources, warnings = Settings.load(environment, flags)
    except SettingsError as error:
        return None, [
            Finding("settings", FAIL, problem, values_for(problem) or "gateway.extraEnv") for problem in error.problems
        ]
    findings = [Finding("settings", WARNING, warning, "gateway.extraEnv, gateway.extraArgs") for warning in warnings]
    if settings.fetch_timeout_seconds >= settings.request_timeout_seconds:
        findings.append(
            Finding(
                "settings",
                WARNING,
                f"the fetch timeout is {settings.fetch_timeout_seconds:g} s, and the request timeout "
                f"{settings.request_timeout_seconds:g} s: that leaves the model no time",
                "gateway.fetch.timeoutSeconds, gateway.requestTimeoutSeconds",
            )
        )
    if settings.drain_timeout_seconds < settings.request_timeout_seconds:
        findings.append(
            Finding(
                "settings",
                WARNING,
                f"graceful shutdown waits {settings.drain_timeout_seconds:g} s for requests that may take "
                f"{settings.request_timeout_seconds:g} s",
                values_for("GATEWAY_DRAIN_TIMEOUT_SECONDS"),
            )
        )
    given = sum(source != "default" for source in sources.values())
    ok = f"{given} are set, the others at their defaults; all valid"
    return settings, [Finding("settings", OK, ok), *findings]


def keys(settings: Settings) -> Iterator[Finding]:
    """Check the file of API keys, where one is set."""
    if not settings.keys_file:
        return
    try:
        Keys(settings.keys_file)
    except KeysError as error:
        yield Finding("keys", FAIL, str(error), "gateway.keys.secretName: its Secret needs a file `keys`")
    else:
        yield Finding("keys", OK, f"{settings.keys_file} is valid")


def admin_port(address: str, *, in_pod: bool) -> Iterator[Finding]:
    """Check readiness and error counts on a gateway's admin port."""
    http = urllib3.PoolManager(timeout=_ADMIN_SECONDS, retries=False)
    try:
        ready = http.request("GET", f"{address}/readyz")
        metrics = http.request("GET", f"{address}/metrics")
        status = ready.json()
        families = list(text_string_to_metric_families(metrics.data.decode()))
        if metrics.status != 200 or "status" not in status:
            raise ValueError
    except urllib3.exceptions.HTTPError:
        yield Finding(
            "gateway",
            FAIL if in_pod else SKIPPED,
            f"no answer from {address}"
            + (
                ": this pod's gateway is starting, shutting down, or starved of CPU"
                if in_pod
                else ": forward a gateway's admin port with kubectl port-forward deployment/… 9697"
            ),
            "gateway.resources.requests.cpu, gateway.resources.limits.cpu" if in_pod else "",
        )
        return
    except (ValueError, TypeError):
        yield Finding("gateway", FAIL, f"{address} is not a gateway's admin port", "gateway.extraEnv")
        return
    if ready.status != 200:
        reason = str(status.get("reason"))
        yield Finding("gateway", FAIL, f"gateway reports not ready: {reason}", values_for(reason))
    else:
        yield Finding("gateway", OK, "gateway reports ready")
    yield _counted(families)


def _counted(families: Sequence[Metric]) -> Finding:
    requests, errors, version = 0, {}, ""
    for family in families:
        for sample in family.samples:
            if sample.name == "gateway_request_duration_seconds_count" and sample.labels["route"] in (
                "/predict",
                "/classify",
            ):
                requests += int(sample.value)
            elif sample.name == "gateway_errors_total" and sample.value:
                errors[sample.labels["code"]] = int(sample.value)
            elif sample.name == "gateway_build_info":
                version = sample.labels["version"]
    listed = ", ".join(f"{code} {count}" for code, count in sorted(errors.items(), key=lambda one: -one[1]))
    text = f"{requests} photo requests since start; errors: {listed or 'none'}"
    if version != __version__:
        text += f" (gateway version {version}, this command {__version__})"
    bad = [code for code in errors if code in _MEND and errors[code] > _MANY_ERRORS * requests]
    if requests >= _FEW_REQUESTS and bad:
        return Finding("metrics", WARNING, text, "; ".join(f"for {code}: {_MEND[code]}" for code in bad))
    return Finding("metrics", OK, text)


def photos(settings: Settings, photo: str | None, *, in_pod: bool) -> Iterator[Finding]:
    """Check where photos may be fetched from, and whether they can be."""
    opened = settings.fetch_allowed_networks
    everything = [str(one) for one in opened if one.prefixlen == 0]
    metadata = [
        str(one)
        for one in opened
        if one.prefixlen and any(address in one for address in _METADATA) and one.prefixlen < one.max_prefixlen
    ]
    if everything:
        yield Finding(
            "fetch",
            WARNING,
            f"photos may be fetched from {', '.join(everything)}: any client reaches every private address",
            "gateway.fetch.allowedNetworks: name the networks of the photo servers only",
        )
    elif any(str(one) in (f"{address}/32", f"{address}/128") for one in opened for address in _METADATA):
        yield Finding(
            "fetch",
            WARNING,
            "photos may be fetched from the cloud's metadata server, which hands out the node's credentials",
            "gateway.fetch.allowedNetworks",
        )
    elif metadata:
        yield Finding("fetch", OK, f"{', '.join(metadata)} is allowed; the cloud's metadata server within it is not")
    if in_pod:
        yield from _public_pods(settings, _own_addresses())
    if settings.fetch_proxy is not None:
        host, port = settings.fetch_proxy
        try:
            socket.create_connection((host, port), _ADMIN_SECONDS).close()
        except OSError as error:
            yield Finding(
                "fetch",
                FAIL,
                f"the proxy {host}:{port} can't be reached: {error.strerror or error}",
                "gateway.fetch.proxy; networkPolicy.gateway.egress, where networkPolicy.enabled",
            )
    if photo is not None:
        yield _fetched(settings, photo)
        return
    named = [host for host in settings.fetch_allowed_hosts if not host.startswith("*.")][:_MOST_NAMES]
    for host in named or [_OUTSIDE]:
        yield _found(host, outside=not named)


def _own_addresses() -> list[Address]:
    """The addresses that this pod sends from, of either family."""
    found: list[Address] = []
    for family, other in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # RFC 5737, RFC 3849
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((other, 9))  # chooses a route, and sends nothing
            found.append(ip_address(sock.getsockname()[0]))
    return found


def _public_pods(settings: Settings, addresses: Sequence[Address]) -> Iterator[Finding]:
    """Warn of a cluster whose pods have public addresses.

    To the fetch policy such pods are the internet.
    """
    for address in addresses:
        if Policy().forbids(address) is None and not any(address in one for one in settings.fetch_denied_networks):
            yield Finding(
                "fetch",
                WARNING,
                f"this pod's address {address} is a public one: clients can fetch from pods and Services by URL",
                "gateway.fetch.deniedNetworks: the cluster's networks, of pods, Services and nodes",
            )


def _found(host: str, *, outside: bool) -> Finding:
    try:
        Resolver().addresses(host, Deadline.after(_DNS_SECONDS))
    except (NoAddress, NoAnswer) as error:
        words = str(error) or f"no answer within {_DNS_SECONDS:g} s"
        if outside:
            return Finding(
                "fetch",
                WARNING,
                f"internet names don't resolve ({host}: {words}); photos can then be uploaded, or fetched from inside",
                "networkPolicy.dns.to, where networkPolicy.enabled; nothing in an air-gapped cluster",
            )
        return Finding("fetch", WARNING, f"{host}: {words}", "gateway.fetch.allowedHosts")
    return Finding("fetch", OK, f"{host} resolves" + ("; --photo URL tries a whole fetch" if outside else ""))


def _fetched(settings: Settings, photo: str) -> Finding:
    fetcher = fetch.by_settings(settings, ByteBudget(settings.max_buffered_bytes))
    try:
        fetched = fetcher.fetch(photo, Deadline.after(settings.request_timeout_seconds))
    except GatewayError as error:
        cause = error.cause or error.detail
        change = values_for(cause)
        if not change and error.code == "address-not-allowed":
            change = "gateway.fetch.allowedNetworks, if photos are meant to be fetched from there"
        elif not change:
            change = "networkPolicy.gateway.egress, where networkPolicy.enabled; gateway.fetch.proxy"
        return Finding("fetch", FAIL, f"{photo}: {error.status} {error.code}: {cause}", change)
    finally:
        fetcher.close()
    size = len(fetched.data)
    fetched.close()
    return Finding("fetch", OK, f"{photo} was fetched, {size} bytes")


def limits(settings: Settings, *, in_pod: bool, cgroup: Path = CGROUP) -> Iterator[Finding]:
    """Compare the container's memory and CPU limits with what the settings allow."""
    if not in_pod:
        yield Finding("memory", SKIPPED, "a pod's limits are visible inside it only: kubectl exec")
        return
    limit = memory_limit(cgroup / "memory.max")
    most = -(-memory.most_bytes(settings) // MIB)
    killed = _numbers(cgroup / "memory.events").get("oom_kill", 0)
    values = (
        "gateway.resources.limits.memory, or gateway.maxInFlight, or GATEWAY_MAX_BUFFERED_BYTES and "
        "GATEWAY_DECODE_MEMORY_BYTES in gateway.extraEnv"
    )
    if killed:
        yield Finding("memory", WARNING, f"{killed} OOM kills in this container", values)
    if limit is None:
        yield Finding("memory", OK, f"no cgroup memory limit; worst-case usage {most} MiB")
    elif (warning := memory.too_small(settings, limit)) is not None:
        yield Finding("memory", WARNING, warning, values)
    else:
        yield Finding("memory", OK, f"limit {limit // MIB} MiB, worst-case usage {most} MiB")
    yield _cpu(settings, cgroup)


def _cpu(settings: Settings, cgroup: Path) -> Finding:
    cores = available_cores(cgroup / "cpu.max")
    counted = _numbers(cgroup / "cpu.stat")
    periods, throttled = counted.get("nr_periods", 0), counted.get("nr_throttled", 0)
    if periods and throttled > _MUCH_THROTTLED * periods:
        return Finding(
            "cpu",
            WARNING,
            f"throttled by the CPU limit in {100 * throttled / periods:.0f} % of the periods",
            "gateway.resources.limits.cpu: higher, or none; gateway.replicas",
        )
    if settings.decode_slots > cores:
        return Finding(
            "cpu",
            WARNING,
            f"{settings.decode_slots} decode slots on {cores} cores: concurrent decodes only slow each other",
            values_for("GATEWAY_DECODE_SLOTS"),
        )
    return Finding("cpu", OK, f"{cores} cores, {settings.decode_slots} decode slots")


def _numbers(file: Path) -> dict[str, int]:
    """Read a cgroup's file of names and numbers; empty where there is none."""
    try:
        return {name: int(number) for name, number in map(str.split, file.read_text(encoding="ascii").splitlines())}
    except (OSError, ValueError):
        return {}
