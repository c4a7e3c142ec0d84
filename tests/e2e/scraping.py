"""A Prometheus on this machine, which asks pods that it can't reach by way of the API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import yaml
from kube import Release

TOOLS = processes.ROOT / ".tools/bin"


@contextmanager
def prometheus(release: Release, folder: Path, host: str) -> Iterator[str]:
    """Its address, on the network address ``host``, with the model servers' metrics, labelled as a PodMonitor does."""
    proxy, listen = processes.free_port(), processes.free_port()
    api = f"127.0.0.1:{proxy}"
    pods = {
        "role": "pod", "api_server": f"http://{api}", "namespaces": {"names": [release.namespace]},
        "selectors": [{"role": "pod", "label": "app.kubernetes.io/component=server"}],
    }  # fmt: skip
    name, number = "__meta_kubernetes_pod_name", "__meta_kubernetes_pod_container_port_number"
    path = f"/api/v1/namespaces/{release.namespace}/pods/$1:8501/proxy/monitoring/prometheus/metrics"
    relabelling = [
        {"source_labels": [number], "regex": "8501", "action": "keep"},
        {"source_labels": [name], "target_label": "__metrics_path__", "replacement": path},
        {"source_labels": [name], "target_label": "pod"},
        {"target_label": "namespace", "replacement": release.namespace},
        {"target_label": "__address__", "replacement": api},
    ]
    job = {"job_name": "servers", "kubernetes_sd_configs": [pods], "relabel_configs": relabelling}
    config = {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    commands: tuple[list[str | Path], list[str | Path]] = (
        ["kubectl", "proxy", f"--port={proxy}"],
        [
            TOOLS / "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/series",
            f"--web.listen-address={host}:{listen}", "--log.level=warn",
        ],
    )  # fmt: skip
    environment = release.cluster.process_environment()
    with (
        processes.started(folder / "proxy.log", commands[0], {"http": proxy}, **environment) as to_api,
        processes.started(folder / "prometheus.log", commands[1], {"http": listen}) as server,
    ):
        address = f"http://{host}:{listen}"
        processes.wait_for("kubectl proxy", lambda: to_api.get("/readyz").status == 200, 30)
        ready = lambda: server.http.request("GET", f"{address}/-/ready").status == 200  # noqa: E731
        processes.wait_for("Prometheus", ready, 60)
        yield address
