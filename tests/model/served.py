"""What the tests share: generated models, `clothing-model serve` processes, requests to them."""

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

import grpc
import numpy as np
import pytest

from clothing_model.server.flags import Flags
from model_factory import expected, photos

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
            with urllib.request.urlopen(request, timeout=60) as answer:
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

    def start(*flags: str, env: dict[str, str] | None = None, wrapper: Sequence[str] = ()) -> Server:
        port, rest_port = free_port(), free_port()
        log = folder / f"serve-{len(servers)}.log"
        command: Sequence[str] = [
            *wrapper, sys.executable, "-m", "clothing_model", "serve", f"--port={port}", f"--rest_api_port={rest_port}",
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


def request(made: Made, count: int = 2, **changes: Any) -> Any:
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import predict_pb2

    message = predict_pb2.PredictRequest()
    message.model_spec.name = changes.get("model", made.name)
    message.model_spec.signature_name = changes.get("signature", "serving_default")
    array = changes.get("array", photos(made.size)[:count])
    dtype = {"float32": 1, "float64": 2, "uint8": 4}[str(array.dtype)]
    tensor = tensor_pb2.TensorProto(dtype=dtype, tensor_content=array.tobytes())
    for size in changes.get("shape", array.shape):
        tensor.tensor_shape.dim.add(size=size)
    for name in changes.get("inputs", [made.input_name]):
        message.inputs[name].CopyFrom(tensor)
    return message


def scores_of(made: Made) -> np.ndarray[Any, Any]:
    return expected(made.version.parents[2] / "made" / made.name)


@dataclass(frozen=True)
class Refusal:
    code: grpc.StatusCode
    details: str


def refused(call: Any, message: Any, timeout: float = 60) -> Refusal:
    """A call that must fail, and how it did."""
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=timeout)
    error: Any = caught.value
    return Refusal(error.code(), error.details())


def manager_of(tmp_path: Path, load: Any, **given: Any) -> Any:
    from tensorflow_serving.config import model_server_config_pb2

    from clothing_model.server.manager import Manager
    from clothing_model.server.servable import Settings

    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name="m", base_path=str(tmp_path), model_platform="tensorflow")
    settings = Flags(**{"model_base_path": str(tmp_path), "enable_model_warmup": False, **given})
    manager = Manager(settings, Settings.of(settings), load)
    manager.configure(config)
    return manager


class FakeServable:
    """Stands for TensorFlow, where only the order of events counts."""

    def __init__(self, name: str, version: int, path: Path, _: Any) -> None:
        if (path / "broken").exists():
            raise RuntimeError("broken")
        self.name, self.version, self.closed = name, version, False

    def close(self) -> None:
        self.closed = True
