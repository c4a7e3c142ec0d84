"""Generated models, converted once for the session, and real `clothing-model serve` processes to ask."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from model_factory import make_model

from clothing_model.cli import main
from clothing_model.quiet import quiet_tensorflow

quiet_tensorflow()

START_SECONDS = 180  # TensorFlow's import alone takes 20 s on a busy machine


@dataclass(frozen=True)
class Made:
    """A model of the factory, and what `convert` made of it."""

    name: str
    kind: str
    input_name: str
    output_name: str
    size: int
    classes: int
    source: Path
    version: Path


MODELS: dict[str, tuple[str, str, str, int, int]] = {
    "course": ("keras2", "input_8", "dense_7", 96, 10),
    "kitchen": ("keras2", "input_28", "dense_18", 64, 20),
    "late-keras2": ("keras2-keras", "input_1", "dense", 64, 6),
    "keras3": ("keras3", "photo", "scores", 96, 10),
    "keras3-h5": ("keras3-h5", "input_layer", "dense", 64, 10),
    "exported": ("savedmodel", "inputs", "output_0", 224, 20),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each kind of file, converted by the command into models/NAME/1."""
    folder = tmp_path_factory.mktemp("converted")
    made = {}
    for seed, (name, (kind, input_name, output_name, size, classes)) in enumerate(MODELS.items()):
        source = make_model(folder / "made" / name, kind, input_name, output_name, size, classes, seed)
        assert main(["convert", str(source), "--name", name, "--output", str(folder / "models")]) == 0
        version = folder / "models" / name / "1"
        made[name] = Made(name, kind, input_name, output_name, size, classes, source, version)
    return made


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A `clothing-model serve` process."""

    process: subprocess.Popen[bytes]
    port: int
    rest_port: int
    log: Path
    _channels: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.text}"
            assert time.monotonic() < deadline, f"{what} did not come within {seconds} s:\n{self.text}"
            time.sleep(0.1)

    def listens(self, port: int | None = None) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port or self.port)) == 0

    def wait_until_up(self) -> Server:
        self.wait_for(lambda: self.listens(self.rest_port), "the server's port")
        return self

    def channel(self, **options: Any) -> Any:
        import grpc

        limits = [("grpc.max_receive_message_length", -1), *options.items()]
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=limits)
        self._channels.append(channel)
        return channel

    def prediction(self) -> Any:
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel())

    def model_service(self) -> Any:
        from tensorflow_serving.apis import model_service_pb2_grpc

        return model_service_pb2_grpc.ModelServiceStub(self.channel())

    def http(self, path: str, body: Any = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def terminate(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Starter = Callable[..., Server]


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    servers: list[Server] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> Server:
        port, rest_port = free_port(), free_port()
        log = folder / f"serve-{len(servers)}.log"
        command: Sequence[str] = [
            sys.executable, "-m", "clothing_model", "serve", f"--port={port}", f"--rest_api_port={rest_port}",
            "--listen_host=127.0.0.1", *flags,
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})})
        servers.append(Server(process, port, rest_port, log))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Starter]:
    """Starts servers that end with the test."""
    with starter(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def server(models: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with all the models, health and metrics, for the tests that only ask."""
    folder = tmp_path_factory.mktemp("server")
    config = "".join(
        f'config {{ name: "{made.name}" base_path: "{made.version.parent}" model_platform: "tensorflow" }}\n'
        for made in models.values()
    )
    (folder / "models.config").write_text(f"model_config_list {{\n{config}}}\n")
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }\n")
    with starter(folder) as start:
        yield start(
            f"--model_config_file={folder / 'models.config'}",
            f"--monitoring_config_file={folder / 'monitoring.config'}",
            "--enable_grpc_healthcheck_service=true",
            "--file_system_poll_wait_seconds=0",
            "--max_num_load_retries=0",
            "--enable_profiler=false",
        ).wait_until_up()
