"""Prometheus on what the chart tells it: its monitors' relabelling, its rules, and the queries of its dashboard."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from processes import (
    DEMO_MODEL,
    PNG,
    ROOT,
    SAMPLE,
    Running,
    free_port,
    gateway,
    model_server,
    photo_server,
    started,
    wait_for,
    wait_until_ready,
)

TOOLS = ROOT / ".tools/bin"
CHART = ROOT / "charts/clothing-classifier"
NAMESPACE = "photos"
RELEASE = "demo-clothing-classifier"
# As Kubernetes names the pods of Deployments.
PODS = {"gateway": f"{RELEASE}-gateway-5b5ff4b767-8p2fd", "server": f"{RELEASE}-server-557cb496cc-qp5hx"}


@dataclass(frozen=True)
class Monitoring:
    """The chart's objects for monitoring, rendered."""

    monitors: dict[str, dict[str, Any]]
    rules: dict[str, Any]
    dashboard: dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A query of a panel, and what its lines are called."""

    panel: str
    expression: str
    legend: str


def rendered() -> Monitoring:
    """The chart's monitors, rules and dashboard for the release ``demo``."""
    switches = ",".join(f"monitoring.{what}.enabled=true" for what in ("podMonitor", "rules", "dashboard"))
    command = [TOOLS / "helm", "template", "demo", CHART, "--namespace", NAMESPACE, "--set", switches]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    objects = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    monitors = {o["metadata"]["name"].rpartition("-")[2]: o["spec"] for o in objects if o["kind"] == "PodMonitor"}
    rules = next(o["spec"] for o in objects if o["kind"] == "PrometheusRule")
    config = next(o for o in objects if o["metadata"]["name"] == f"{RELEASE}-dashboard")
    return Monitoring(monitors, rules, json.loads(*config["data"].values()))


def targets(dashboard: dict[str, Any], rate_interval: str) -> list[Target]:
    """Each query of the dashboard, with its variables filled in as Grafana does."""
    values = {"namespace": NAMESPACE, "release": RELEASE, "__rate_interval": rate_interval}
    return [
        Target(panel["title"], re.sub(r"\$(\w+)", lambda name: values[name[1]], target["expr"]), target["legendFormat"])
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def _scrape(component: str, monitor: dict[str, Any], port: int) -> dict[str, Any]:
    """What Prometheus's operator makes of a PodMonitor, with a pod that is known."""
    (endpoint,) = monitor["podMetricsEndpoints"]
    relabelings = [
        {re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key): value for key, value in rule.items()}
        for rule in endpoint["metricRelabelings"]
    ]
    labels = {"namespace": NAMESPACE, "pod": PODS[component]}
    return {
        "job_name": component,
        "metrics_path": endpoint["path"],
        "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
        "metric_relabel_configs": relabelings,
    }


@dataclass
class Prometheus:
    """A Prometheus that runs."""

    server: Running

    def api(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of its API."""
        answer = self.server.get(f"/api/v1/{path}?{urlencode(parameters)}")
        assert answer.status == 200, answer.data.decode()
        return answer.json()["data"]

    def value(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        result: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return result


@contextlib.contextmanager
def prometheus(folder: Path, monitoring: Monitoring, ports: dict[str, int], interval: str) -> Iterator[Prometheus]:
    """Prometheus, once it is ready, on the gateway's and the model server's metrics at ``ports``."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(monitoring.rules))
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [_scrape(name, monitoring.monitors[name], port) for name, port in ports.items()],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    listen = free_port()
    command: list[str | Path] = [
        TOOLS / "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address=127.0.0.1:{listen}", "--log.level=warn",
    ]  # fmt: skip
    with started(folder / "prometheus.log", command, {"http": listen}) as server:

        def ready() -> bool:
            assert server.process.poll() is None, f"Prometheus ended:\n{server.log.read_text()[-3000:]}"
            return server.get("/-/ready").status == 200

        wait_for("Prometheus", ready)
        yield Prometheus(server)


@dataclass
class Installation:
    """A gateway, a portable model server and the Prometheus that watches both."""

    gateway: Running
    model: Running
    prometheus: Prometheus
    monitoring: Monitoring
    photo_url: str


@contextlib.contextmanager
def installation(folder: Path, interval: str, **settings: str) -> Iterator[Installation]:
    """All of it, as the chart would set it up, with a model server that batches and a server of one photo."""
    (folder / "monitoring.config").write_text(
        'prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }'
    )
    flags = ["--enable_batching=true", f"--monitoring_config_file={folder}/monitoring.config"]
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(model_server(folder / "model.log", DEMO_MODEL, *flags, seconds=400))
        port = stack.enter_context(photo_server(SAMPLE.parent))
        settings = {
            "GATEWAY_FETCH_ALLOWED_NETWORKS": "127.0.0.0/8", "GATEWAY_FETCH_ALLOWED_PORTS": str(port), **settings
        }  # fmt: skip
        server = stack.enter_context(gateway(folder / "gateway.log", model.ports["grpc"], **settings))
        wait_until_ready(server)
        monitoring = rendered()
        watched = {"gateway": server.ports["admin"], "server": model.ports["http"]}
        watcher = stack.enter_context(prometheus(folder, monitoring, watched, interval))
        yield Installation(server, model, watcher, monitoring, f"http://127.0.0.1:{port}/{SAMPLE.name}")


def load(system: Installation, seconds: float, clients: int) -> Counter[int]:
    """Photos sent and named, broken and missing ones, by so many clients; how many were answered with each status."""
    requests: tuple[dict[str, Any], ...] = (
        *({"body": SAMPLE.read_bytes(), "headers": PNG}, {"json": {"url": system.photo_url}}) * 4,
        {"body": b"no photo", "headers": PNG},
        {"json": {"url": f"{system.photo_url}.gone"}},
    )
    answered: Counter[int] = Counter()
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        for turn in range(number, 1_000_000):
            status = system.gateway.post(("/predict", "/classify")[turn % 3 // 2], **requests[turn % 10]).status
            with lock:
                answered[status] += 1
            if time.monotonic() > end:
                return
            time.sleep(0.02)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered
