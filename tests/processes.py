"""Real processes for the tests: the model server, the gateway and a server of photos, each on ports of its own."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import urllib3

ROOT = Path(__file__).resolve().parent.parent
GATEWAY_BIN = ROOT / "gateway/.venv/bin"
MODEL_BIN = ROOT / "model-image/.venv/bin"
DEMO_MODEL = ROOT / "model-image/demo-model/clothing-model"
SAMPLE = ROOT / "charts/clothing-classifier/files/photo.png"
PNG = {"Content-Type": "image/png"}
DATASET = Path(os.environ.get("CLOTHING_DATASET", ROOT.parent / "shared/dataset"))
T = TypeVar("T")
LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
START_SECONDS = 90  # TensorFlow's import on a busy machine


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, probe: Callable[[], T | None], seconds: float = START_SECONDS) -> T:
    """Call ``probe`` until it gives something true; an AssertionError that names ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            if found := probe():
                return found
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


@dataclass
class Running:
    """A process and where it listens."""

    process: subprocess.Popen[bytes]
    log: Path
    ports: dict[str, int]
    http: urllib3.PoolManager = field(default_factory=lambda: urllib3.PoolManager(timeout=30, retries=False))

    def get(self, path: str, port: str = "http") -> urllib3.BaseHTTPResponse:
        return self.http.request("GET", f"http://127.0.0.1:{self.ports[port]}{path}")

    def post(self, path: str, **options: object) -> urllib3.BaseHTTPResponse:
        return self.http.request("POST", f"http://127.0.0.1:{self.ports['http']}{path}", **options)  # type: ignore[arg-type]

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(
                f"did not end within 40 s of SIGTERM; its log:\n{self.log.read_text()[-3000:]}"
            ) from None


@contextlib.contextmanager
def started(log: Path, command: list[str | Path], ports: dict[str, int], **environment: str) -> Iterator[Running]:
    """Run a command, its output in ``log``; it is stopped at the end."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "TF_SERVING_"))}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command], env=inherited | environment, stdout=output, stderr=subprocess.STDOUT
        )
    running = Running(process, log, ports)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def model_server(
    log: Path, base_path: Path, *flags: str, name: str = "clothing-model", port: int = 0, seconds: float = START_SECONDS
) -> Iterator[Running]:
    """``clothing-model serve``, once its model is there, ``seconds`` from now at the latest."""
    ports = {"grpc": port or free_port(), "http": free_port()}
    command = [
        MODEL_BIN / "clothing-model", "serve", f"--port={ports['grpc']}", f"--rest_api_port={ports['http']}",
        f"--model_name={name}", f"--model_base_path={base_path}", "--grpc_max_threads=64", *flags,
    ]  # fmt: skip
    with started(log, command, ports) as server:

        def loaded() -> bool:
            assert server.process.poll() is None, f"the model server ended:\n{log.read_text()[-3000:]}"
            return server.get(f"/v1/models/{name}/metadata").status == 200

        wait_for("the model server", loaded, seconds)
        yield server


@contextlib.contextmanager
def gateway(log: Path, grpc_port: int, **settings: str) -> Iterator[Running]:
    """``clothing-gateway serve``, once it listens; it need not be ready."""
    ports = {"http": free_port(), "admin": free_port()}
    environment = {
        "TF_SERVING_HOST": f"127.0.0.1:{grpc_port}",
        "GATEWAY_LISTEN_PORT": str(ports["http"]),
        "GATEWAY_ADMIN_LISTEN_PORT": str(ports["admin"]),
        "GATEWAY_DRAIN_DELAY_SECONDS": "0",
        **settings,
    }
    with started(log, [GATEWAY_BIN / "clothing-gateway", "serve"], ports, **environment) as server:

        def alive() -> bool:
            assert server.process.poll() is None, f"the gateway ended:\n{log.read_text()[-3000:]}"
            return server.get("/healthz", "admin").status == 200

        wait_for("the gateway", alive)
        yield server


def wait_until_ready(server: Running) -> None:
    """Wait until the gateway says that it is ready."""
    wait_for(f"readiness ({server.log})", lambda: server.get("/readyz", "admin").status == 200)


@contextlib.contextmanager
def photo_server(folder: Path) -> Iterator[int]:
    """The files of ``folder`` over HTTP on loopback; its port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def reference_scores(saved_model: Path, photos: list[Path]) -> dict[Path, list[float]]:
    """What TensorFlow and keras-image-helper give for the photos, in a process of their own."""
    done = subprocess.run(
        [MODEL_BIN / "python", ROOT / "tests/reference_scores.py", saved_model, *photos],
        check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    return {Path(path): scores for path, scores in json.loads(done.stdout).items()}


def dataset_photos(count: int, split: str = "validation") -> list[Path]:
    """Up to ``count`` real photos, spread over the classes; empty where the dataset is missing."""
    photos = sorted((DATASET / split).glob("*/*.jpg"))
    return photos[:: max(1, len(photos) // count)][:count]
