"""The server under test, and how it is asked.

Needs grpcio, NumPy, pytest and TensorFlow Serving's messages, no code of the model package.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 180
SIGNATURE = "serving_default"
PHOTO = ROOT / "charts/clothing-classifier/files/photo.png"  # for models that decode photos themselves
DTYPES = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_UINT8: np.uint8}
THREADS = 64  # of the servers that the suite starts: no case but those of a narrow one has as many calls at a time
NARROW_THREADS = 4
BATCHING = """max_batch_size { value: 8 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""


@dataclass
class Target:
    """A running server. `base_path` is known only of one that the suite has started."""

    address: str
    rest_address: str | None
    model: str
    batching: bool = False
    base_path: str = ""
    started: bool = False  # by the suite, with flags that it knows

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1)])
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def available(self) -> list[int]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        statuses = self.models.GetModelStatus(request, timeout=10).model_version_status
        return [status.version for status in statuses if status.state == status.AVAILABLE]

    def wait(self, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
        deadline = time.monotonic() + (START_SECONDS if process else 15)
        while True:
            try:
                if self.available():
                    return
                problem = f"no version of {self.model} is available"
            except grpc.RpcError as error:
                problem = str(error)
            text = log.read_text("utf-8", "replace")[-3000:] if log else ""
            assert process is None or process.poll() is None, f"the server ended with {process.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"{self.address}: {problem}\n{text}"
            time.sleep(0.3)

    def states(self, model: str = "", **spec: Any) -> dict[int, str]:
        """The name of each version's state."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": model or self.model, **spec})
        statuses = self.models.GetModelStatus(request, timeout=10).model_version_status
        return {status.version: status.State.Name(status.state) for status in statuses}

    def metadata(self, model: str = "") -> Any:
        """The answer to GetModelMetadata."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = model or self.model
        return self.prediction.GetModelMetadata(request, timeout=60)

    def signature(self) -> Any:
        found = get_model_metadata_pb2.SignatureDefMap()
        assert self.metadata().metadata["signature_def"].Unpack(found)
        return found.signature_def[SIGNATURE]

    def input(self) -> tuple[str, Any]:
        """The one input's name and TensorInfo."""
        ((name, info),) = self.signature().inputs.items()
        return name, info

    def rows(self, count: int) -> np.ndarray[Any, Any]:
        """So many different inputs of the model's own kind."""
        _, info = self.input()
        if info.dtype == types_pb2.DT_STRING:
            return np.array([PHOTO.read_bytes()] * count, object)
        assert info.dtype in DTYPES, (
            f"an input of type {types_pb2.DataType.Name(info.dtype)} is not known to this suite"
        )
        shape = [dimension.size if dimension.size > 0 else 96 for dimension in info.tensor_shape.dim[1:]]
        noise = np.random.default_rng(7).uniform(-1, 1, (count, *shape))
        return noise.astype(np.float32) if info.dtype == types_pb2.DT_FLOAT else ((noise + 1) * 127).astype(np.uint8)

    def request(self, array: np.ndarray[Any, Any], as_values: bool = False) -> Any:
        name, _ = self.input()
        message = predict_pb2.PredictRequest()
        message.model_spec.name = self.model
        message.model_spec.signature_name = SIGNATURE
        message.inputs[name].CopyFrom(tensor(array, as_values))
        return message

    def predict(self, array: np.ndarray[Any, Any], **options: Any) -> Any:
        return self.prediction.Predict(self.request(array, **options), timeout=120)

    def scores(self, array: np.ndarray[Any, Any], **options: Any) -> np.ndarray[Any, Any]:
        outputs = self.predict(array, **options).outputs
        return values(outputs[min(outputs)])

    def http(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, str]:
        """Status code and text of a request: POST where there is a body, else GET, or another method."""
        if self.rest_address is None:
            pytest.skip("no REST API: TF_SERVING_REST_ADDRESS=host:port names it")
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.rest_address}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def tensor(array: np.ndarray[Any, Any], as_values: bool = False) -> Any:
    shape = {"dim": [{"size": size} for size in array.shape]}
    if array.dtype == object:
        return tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=array.ravel().tolist())
    kind = next(code for code, dtype in DTYPES.items() if array.dtype == dtype)
    if not as_values:
        return tensor_pb2.TensorProto(dtype=kind, tensor_shape=shape, tensor_content=array.tobytes())
    field = "float_val" if kind == types_pb2.DT_FLOAT else "int_val"
    return tensor_pb2.TensorProto(dtype=kind, tensor_shape=shape, **{field: array.ravel().tolist()})


def values(output: Any) -> np.ndarray[Any, Any]:
    shape = [dimension.size for dimension in output.tensor_shape.dim]
    return np.array(output.float_val, np.float32).reshape(shape)


def is_portable() -> bool:
    """Whether the server under test is the portable one that the suite starts."""
    return not (os.environ.get("TF_SERVING_ADDRESS") or os.environ.get("TF_SERVING_IMAGE"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def open_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), 5):
            return True
    except OSError:
        return False


@contextmanager
def given(address: str, model: str) -> Iterator[Target]:
    """A server that runs already."""
    rest = os.environ.get("TF_SERVING_REST_ADDRESS", "")
    if not rest:
        usual = f"{address.rpartition(':')[0]}:8501"
        rest = usual if open_port(usual) else ""
    target = Target(address, rest or None, model)
    target.wait()
    with target.channel:
        yield target


def model_folder() -> Path:
    """The folder of the versions that the suite's own servers serve."""
    return Path(os.environ.get("TF_SERVING_MODEL_PATH") or ROOT / "model-image/demo-model/clothing-model").resolve()


@contextmanager
def started(folder: Path, model: str, batching: bool) -> Iterator[Target]:
    """A server of our own with one model: TF_SERVING_IMAGE by Docker, or the portable server of this environment."""
    (folder / "batching.config").write_text(BATCHING)
    flags = [f"--model_name={model}", "--model_base_path={models}", f"--grpc_max_threads={THREADS}"]
    if batching:
        flags += ["--enable_batching=true", "--batching_parameters_file={settings}/batching.config"]
    with _server(folder, model, model_folder(), f"/models/{model}", flags) as target:
        target.batching = batching
        yield target


@contextmanager
def started_narrow(folder: Path, model: str) -> Iterator[Target]:
    """A server with few threads and three models: ``model``, ``versions`` with versions 1, 2 and 3, and ``compiled``.

    Version 3 is broken. ``compiled`` has functions with jit_compile=True.
    """
    newest = max((each for each in model_folder().iterdir() if each.name.isdigit()), key=lambda each: int(each.name))
    models = folder / "models"
    for name, versions in ((model, [1]), ("versions", [1, 2, 3]), ("compiled", [1])):
        for version in versions:
            shutil.copytree(newest, models / name / str(version))
    (models / "versions/3/saved_model.pb").write_bytes(b"broken")
    must_compile(models / "compiled/1")
    (folder / "models.config").write_text(configuration("{models}", model, compiled=True))
    flags = ["--model_config_file={settings}/models.config", f"--grpc_max_threads={NARROW_THREADS}",
             "--file_system_poll_wait_seconds=1", "--max_num_load_retries=0",
             "--allow_version_labels_for_unavailable_models=true"]  # fmt: skip
    with _server(folder, model, models, "/models", flags) as target:
        yield target


def configuration(
    models: str, model: str, versions: Iterable[int] = (1, 2), label: int = 2, compiled: bool = True
) -> str:
    """A ModelServerConfig in text form for the models of ``started_narrow``."""
    policy = " ".join(f"versions: {version}" for version in versions)
    one = 'config {{ name: "{0}" base_path: "{1}/{0}" model_platform: "tensorflow" {2} }}\n'
    labels = f'version_labels {{ key: "stable" value: {label} }}' if label else ""
    return "model_config_list {\n" + "".join(
        (
            one.format(model, models, ""),
            one.format("versions", models, f"model_version_policy {{ specific {{ {policy} }} }} {labels}"),
            one.format("compiled", models, "") if compiled else "",
        )
    ) + "}\n"  # fmt: skip


def must_compile(version: Path) -> None:
    """Mark the model's function as tf.function(jit_compile=True) does, and leave out its warm-up requests."""
    message = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    library = message.meta_graphs[0].graph_def.library
    called = set()
    for function in library.function:
        for node in function.node_def:
            if "signature_wrapper" in function.signature.name and "f" in node.attr:
                node.attr["_XlaMustCompile"].b = True
                called.add(node.attr["f"].func.name)
    assert called
    for function in library.function:
        if function.signature.name in called:
            function.attr["_XlaMustCompile"].b = True
    (version / "saved_model.pb").write_bytes(message.SerializeToString())
    (version / "assets.extra/tf_serving_warmup_requests").unlink(missing_ok=True)


@contextmanager
def _server(folder: Path, model: str, models: Path, inside: str, flags: list[str]) -> Iterator[Target]:
    """Start a server; {models} and {settings} in flags and files are the paths as the server sees them."""
    image = os.environ.get("TF_SERVING_IMAGE", "")
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }\n")
    port, rest_port = free_port(), free_port()
    places = {"{models}": inside if image else str(models), "{settings}": "/settings" if image else str(folder)}
    for file in folder.glob("*.config"):
        file.write_text(filled(file.read_text(), places))
    flags = [
        *(filled(flag, places) for flag in flags), "--enable_grpc_healthcheck_service=true",
        f"--monitoring_config_file={places['{settings}']}/monitoring.config",
    ]  # fmt: skip
    name = f"conformance-{uuid.uuid4().hex[:12]}"
    if image:
        folder.chmod(0o755)  # the image may run as another user
        command = [
            "docker", "run", "--rm", "--name", name,
            "--publish", f"127.0.0.1:{port}:8500", "--publish", f"127.0.0.1:{rest_port}:8501",
            "--mount", f"type=bind,source={models},target={inside},readonly",
            "--mount", f"type=bind,source={folder},target=/settings,readonly",
            "--entrypoint", "/usr/bin/tensorflow_model_server", image, "--port=8500", "--rest_api_port=8501", *flags,
        ]  # fmt: skip
    else:
        command = [
            sys.executable, "-m", "clothing_model", "serve", "--listen_host=127.0.0.1", f"--port={port}",
            f"--rest_api_port={rest_port}", *flags,
        ]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    target = Target(f"127.0.0.1:{port}", f"127.0.0.1:{rest_port}", model, base_path=places["{models}"], started=True)
    try:
        target.wait(process, log)
        yield target
    finally:
        target.channel.close()
        if image:  # TensorFlow Serving as PID 1 hears no SIGTERM
            remove = ["docker", "rm", "--force", name]
            subprocess.run(remove, capture_output=True, check=False)
        process.kill()
        process.wait()


def filled(text: str, places: dict[str, str]) -> str:
    """``text`` with each place's name replaced by its path."""
    for name, path in places.items():
        text = text.replace(name, path)
    return text
