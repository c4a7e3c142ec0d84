"""Test doubles on real sockets: a model server that fails on demand, a photo server, a gateway process."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import io
import json
import os
import queue
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from PIL import Image
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from clothing_gateway.commands.doctor import status

LABELS = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")


def image_bytes(size=(40, 30), kind="JPEG", mode="RGB", seed=1, **save):
    """A picture of seeded noise, coarse enough that codecs don't blow it up."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    small = rng.integers(0, 256, ((size[1] + 3) // 4, (size[0] + 3) // 4, bands), dtype=np.uint8)
    pixels = small.repeat(4, 0).repeat(4, 1)[: size[1], : size[0]]
    image = Image.fromarray(pixels[:, :, 0] if bands == 1 else pixels)
    if image.mode != mode:
        image = (
            image.convert(mode) if mode in ("P", "1", "I;16", "L") else Image.frombytes(mode, size, pixels.tobytes())
        )
    out = io.BytesIO()
    image.save(out, kind, **save)
    return out.getvalue()


@dataclass
class FakeModel(prediction_service_pb2_grpc.PredictionServiceServicer):
    """PredictionService with one model; a score is one of the first numbers of the photo's tensor."""

    name: str = "clothing-model"
    version: int = 1
    others: tuple = ()  # further versions that are loaded
    statuses: tuple | None = None  # (version, state, error) of GetModelStatus; by default what is loaded is available
    labels: dict = field(default_factory=dict)  # version labels
    inputs_of: dict = field(default_factory=dict)  # inputs of a version that has its own
    signature_name: str = "serving_default"
    inputs: dict = field(default_factory=lambda: {"input_8": (types_pb2.DT_FLOAT, (-1, 8, 8, 3))})
    outputs: dict = field(default_factory=lambda: {"dense_7": (types_pb2.DT_FLOAT, (-1, 10))})
    scores: object = None  # a function of the batch instead of the echo
    as_content: bool = False
    answer_outputs: tuple | None = None
    fail: list = field(default_factory=list)  # statuses to abort the next Predict calls with
    fail_metadata: object = None
    fail_probe: object = None
    probes: list = field(default_factory=list)
    method_name: str = ""
    delay: float = 0.0
    calls: list = field(default_factory=list)
    metadata: list = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)  # a call was, or its time ran out
    ended: int = 0  # Predict calls whose work is done

    def GetModelMetadata(self, request, context):  # noqa: N802
        if self.fail_metadata:
            context.abort(*self.fail_metadata)
        version = self._version(request.model_spec, context)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = version
        signatures = get_model_metadata_pb2.SignatureDefMap()
        signature = signatures.signature_def[self.signature_name]
        signature.method_name = self.method_name
        inputs = self.inputs_of.get(version, self.inputs)
        for there, described in ((signature.inputs, inputs), (signature.outputs, self.outputs)):
            for name, (dtype, shape) in described.items():
                there[name].dtype = dtype
                if shape is None:
                    there[name].tensor_shape.unknown_rank = True
                for size in shape or ():
                    there[name].tensor_shape.dim.add().size = size
        response.metadata["signature_def"].Pack(signatures)
        return response

    def GetModelStatus(self, request, context):  # noqa: N802
        if request.model_spec.name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {request.model_spec.name}")
        response = status.message_class()()
        for version, state, error in self.statuses or [
            (one, status.AVAILABLE, "") for one in (self.version, *self.others)
        ]:
            found = response.model_version_status.add(version=version, state=state)
            found.status.error_message = error
        return response

    def _version(self, spec, context):
        """The version asked for, as TensorFlow Serving finds it; words and codes are its own."""
        if spec.name != self.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            if spec.version_label not in self.labels:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {spec.version_label}"
                )
            return self.labels[spec.version_label]
        if choice is None:
            return self.version
        if spec.version.value not in (self.version, *self.others):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {spec.name}")
        return spec.version.value

    def Predict(self, request, context):  # noqa: N802
        if ("x-request-id", "readiness-probe") in context.invocation_metadata():
            return self._probed(request, context)
        self.calls.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.fail:
            failure = self.fail.pop(0)
            context.abort(*(failure if isinstance(failure, tuple) else (failure, "told to fail")))
        self.asked.set()
        end = time.monotonic() + self.delay
        # As TensorFlow Serving up to 2.20 does: a cancelled call keeps its thread until the work is done.
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            if not context.is_active():
                self.cancelled.set()
        self.ended += 1
        return self._answer(request, context)

    def _probed(self, request, context):
        """The gateway's own question before it is ready, apart from the calls that a test counts, delays or fails."""
        self.probes.append(request)
        if self.fail_probe:
            context.abort(*self.fail_probe)
        return self._answer(request, context)

    def _answer(self, request, context):
        ((name, tensor),) = request.inputs.items()
        version = self._version(request.model_spec, context)
        if name not in self.inputs_of.get(version, self.inputs):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"input size does not match signature: Sent extra: {{{name}}}."
            )
        batch = self._read(tensor)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self.name
        response.model_spec.version.value = version
        for output in self.answer_outputs or self.outputs:
            scores = np.asarray(self.scores(batch) if self.scores else self._echo(batch), np.float32)
            answer = response.outputs[output]
            answer.dtype = types_pb2.DT_FLOAT
            for size in scores.shape:
                answer.tensor_shape.dim.add().size = size
            if self.as_content:
                answer.tensor_content = scores.tobytes()
            else:
                answer.float_val.extend(scores.ravel().tolist())
        return response

    def _echo(self, batch):
        width = next(iter(self.outputs.values()))[1][1]
        if isinstance(batch[0], bytes):
            return [[float(byte) for byte in photo[:width]] for photo in batch]
        return [photo.ravel()[:width] for photo in batch]

    @staticmethod
    def _read(tensor):
        if tensor.dtype == types_pb2.DT_STRING:
            return list(tensor.string_val)
        dtype = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_UINT8: np.uint8}[tensor.dtype]
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)


class _Threads(grpc.ServerInterceptor):
    """TensorFlow Serving's grpc_max_threads: N - 1 calls run, and the next is refused at once; health checks never."""

    def __init__(self, threads: int, details: str) -> None:
        self.free = threading.Semaphore(threads - 1)
        self.details = details
        self.refused = 0

    def intercept_service(self, continuation, handler_call_details):
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc.health.v1."):
            return handler

        def run(request, context):
            if not self.free.acquire(blocking=False):
                self.refused += 1
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, self.details)
            try:
                return handler.unary_unary(request, context)
            finally:
                self.free.release()

        return grpc.unary_unary_rpc_method_handler(
            run, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


class ModelServer:
    """A FakeModel behind a real gRPC server on a loopback port, with TensorFlow Serving's limit on calls.

    ``details`` is the text of its refusals: none up to 2.19, "Server Threadpool Exhausted" from 2.20.
    """

    def __init__(
        self,
        model: FakeModel | None = None,
        port: int = 0,
        credentials=None,
        host: str = "127.0.0.1",
        threads: int = 64,
        details: str = "",
        options=(),
    ) -> None:
        self.model = model or FakeModel()
        self.threads = _Threads(threads, details)
        options = [("grpc.max_receive_message_length", 1 << 30), ("grpc.so_reuseport", 0), *options]
        # More threads than calls may run: refusals are answered at once, too.
        pool = futures.ThreadPoolExecutor(threads + 64)
        self._server = grpc.server(pool, options=options, interceptors=[self.threads])
        health = grpc.unary_unary_rpc_method_handler(
            lambda request, context: b"\x08\x01",  # HealthCheckResponse, SERVING
        )
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health})]
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self.model, self._server)
        # tensorflow-protobuf's own module for this service can't be imported (commands/doctor/status.py).
        get_model_status = grpc.unary_unary_rpc_method_handler(
            self.model.GetModelStatus,
            request_deserializer=get_model_metadata_pb2.GetModelMetadataRequest.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        handlers = {"GetModelStatus": get_model_status}
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("tensorflow.serving.ModelService", handlers)]
        )
        address = f"{host}:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(0).wait()


class PhotoServer:
    """HTTP/1.1 on a loopback port, with whatever a test puts at a path."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.paths: dict = {}
        self.asked: list = []
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                outer.connections += 1
                super().setup()

            def do_GET(self):
                outer.asked.append((self.path, dict(self.headers)))
                found = outer.paths.get(self.path)
                if callable(found):
                    found(self)
                elif found is None:
                    self.reply(404, b"no", {})
                else:
                    self.reply(*found) if isinstance(found, tuple) else self.reply(200, found, {})

            def reply(self, status, body, headers):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # a fetcher that cuts a connection is what some tests are about

        self._server = Server((host, port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ConnectProxy:
    """An HTTP proxy that knows nothing but CONNECT, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list = []
        self.status = "200 OK"
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                method, target, _ = self.rfile.readline().decode().split()
                while self.rfile.readline().strip():
                    pass
                outer.asked.append(f"{method} {target}")
                self.wfile.write(f"HTTP/1.1 {outer.status}\r\n\r\n".encode())
                if outer.status != "200 OK":
                    return
                host, _, port = target.rpartition(":")
                with socket.create_connection((host.strip("[]"), int(port))) as there:
                    back = threading.Thread(target=self.pump, args=(there, self.connection), daemon=True)
                    back.start()
                    self.pump(self.connection, there)
                    back.join(5)

            @staticmethod
            def pump(source, sink):
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        sink.sendall(data)
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = self._server.server_address
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class GatewayProcess:
    """``clothing-gateway serve`` as a process of its own, on free ports."""

    def __init__(self, server: str, *, prefix=(), wait_ready=True, **settings) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        environment |= {
            "TF_SERVING_HOST": server,
            "GATEWAY_LISTEN_PORT": "0",
            "GATEWAY_ADMIN_LISTEN_PORT": "0",
            "GATEWAY_DRAIN_DELAY_SECONDS": "0",
            "GATEWAY_MODEL_CHECK_SECONDS": "0.2",
        }
        environment |= {f"GATEWAY_{name.upper()}": str(value) for name, value in settings.items()}
        self.pid: int | None = None
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "clothing_gateway", "serve"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: queue.SimpleQueue = queue.SimpleQueue()
        self.log: list = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            listening = self.wait_for_line("listening")
            self.port, self.admin_port, self.pid = listening["port"], listening["admin_port"], self.process.pid
            if prefix:  # the gateway is the child of unshare
                children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
                self.pid = int(children.read_text().split()[0])
            if wait_ready:
                self.wait_ready()
        except AssertionError:
            self.stop()
            raise

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            with contextlib.suppress(ValueError):
                self.lines.put(json.loads(line))

    def wait_for_line(self, message, timeout=20):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                line = self.lines.get(timeout=0.1)
            except queue.Empty:
                if self.process.poll() is not None and self.lines.empty():
                    break
                continue
            if line["message"].startswith(message):
                return line
        raise AssertionError(f"no line {message!r} in:\n{''.join(self.log)}")

    def wait_ready(self, timeout=20):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.admin("/readyz")[0] == 200:
                return
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.admin('/readyz')}\n{''.join(self.log)}")

    def request(self, method, path, body=None, headers=None, *, port=None, timeout=20):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def post(self, path, body, kind="image/jpeg", **headers):
        status, data, sent = self.request("POST", path, body, {"Content-Type": kind, **headers})
        return status, json.loads(data), sent

    def admin(self, path):
        status, data, _ = self.request("GET", path, port=self.admin_port)
        return status, data.decode()

    def terminate(self, number=signal.SIGTERM):
        os.kill(self.pid, number)

    def stop(self, timeout=20):
        if self.process.poll() is None:
            os.kill(self.pid or self.process.pid, signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._reader.join(5)
            self.process.stderr.close()
        return code


def children(pid):
    """Process ids of a process's children, whichever of its threads started them."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - an iterator would be left open by an error
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def multipart(*parts, boundary="b0undary"):
    """A form of files: (field, file name, data)."""
    body = b""
    for name, filename, data in parts:
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        body += data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class NameServer:
    """A name server that knows one list of IPv4 addresses for each name; with none, it says that there is no such name.

    RFC 1035, as far as one question a message goes.
    """

    def __init__(self):
        self.addresses = []
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def target(self, name, address):
        """gRPC's way to the port of an address, by a name that this server is asked for."""
        return f"dns://127.0.0.1:{self._socket.getsockname()[1]}/{name}:{address.rpartition(':')[2]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()

    def _run(self):
        while True:
            message, client = self._socket.recvfrom(4096)
            if not message:
                return
            end = message.index(b"\0", 12) + 5
            question, kind = message[12:end], message[end - 4 : end - 2]
            addresses = list(self.addresses)
            answers = [
                b"\xc0\x0c\0\1\0\1" + (0).to_bytes(4, "big") + b"\0\4" + socket.inet_aton(one)
                for one in addresses
                if kind == b"\0\1"
            ]
            flags = b"\x81\x80" if addresses else b"\x81\x83"
            self.asked += 1
            self._socket.sendto(
                message[:2]
                + flags
                + b"\0\1"
                + len(answers).to_bytes(2, "big")
                + bytes(4)
                + question
                + b"".join(answers),
                client,
            )
