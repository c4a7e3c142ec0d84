"""A Prometheus on this machine that scrapes pods through the API server's proxy."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from kube import Release, clusters

import processes

TOOLS = processes.ROOT / ".tools/bin"
LOOK_SECONDS = 3.0


def _targets(release: Release, api: str) -> str:
    """The running model servers as targets, with the labels of a PodMonitor."""
    names = [pod["metadata"]["name"] for pod in release.pods("server")]
    path = f"/api/v1/namespaces/{release.namespace}/pods/{{}}:8501/proxy/monitoring/prometheus/metrics"
    labels = ({"namespace": release.namespace, "pod": name, "__metrics_path__": path.format(name)} for name in names)
    return json.dumps([{"targets": [api], "labels": one} for one in labels])


@contextmanager
def _following(release: Release, api: str, file: Path) -> Iterator[None]:
    """Update the targets' file: the project's Prometheus is built without Kubernetes discovery."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(LOOK_SECONDS):
            with contextlib.suppress(clusters.ClusterError):  # kubectl may lose an answer: the next one will do
                written = file.with_suffix(".new")
                written.write_text(_targets(release, api))
                written.replace(file)

    file.write_text(_targets(release, api))
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def prometheus(release: Release, folder: Path, host: str) -> Iterator[str]:
    """Start Prometheus on ``host`` with the release's model servers; yields its address."""
    proxy, listen = processes.free_port(), processes.free_port()
    api, targets = f"127.0.0.1:{proxy}", folder / "targets.json"
    job = {"job_name": "servers", "file_sd_configs": [{"files": [str(targets)]}]}
    config = {"global": {"scrape_interval": "5s"}, "scrape_configs": [job]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    to_api: list[str | Path] = ["kubectl", "proxy", f"--port={proxy}"]
    serve: list[str | Path] = [
        TOOLS / "prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/series",
        f"--web.listen-address={host}:{listen}", "--log.level=warn",
    ]  # fmt: skip
    environment = release.cluster.process_environment()
    with (
        processes.started(folder / "proxy.log", to_api, {"http": proxy}, **environment) as reached,
        _following(release, api, targets),
        processes.started(folder / "prometheus.log", serve, {"http": listen}) as server,
    ):
        address = f"http://{host}:{listen}"

        def has_series() -> bool:
            assert server.process.poll() is None, f"Prometheus ended:\n{server.log.read_text()[-3000:]}"
            answer = server.http.request("GET", f"{address}/api/v1/query", fields={"query": "up == 1"})
            return bool(answer.status == 200 and answer.json()["data"]["result"])

        processes.wait_for("kubectl proxy", lambda: reached.get("/readyz").status == 200, 30)
        processes.wait_for("Prometheus", has_series, 60)
        yield address
