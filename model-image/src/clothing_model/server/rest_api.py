"""TensorFlow Serving's REST API: status, metadata, predict, and the metrics page."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, get_model_status_pb2, model_pb2

from clothing_model.errors import ModelError
from clothing_model.server import model_info, predict, tensors
from clothing_model.server.errors import RequestError, invalid
from clothing_model.server.examples import refuse_examples
from clothing_model.server.flags import Flags
from clothing_model.server.manager import Manager
from clothing_model.server.metrics import Metrics

log = logging.getLogger(__name__)

_POST = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)", re.IGNORECASE
)
_GET = re.compile(r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?(?:/(metadata))?", re.IGNORECASE)
_NEVER = re.compile(r"(?!)")
_MAX_BODY = 1 << 30  # a gRPC message is at most 2 GiB, and numbers are longer in JSON
_IDLE_SECONDS = 60
_HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499, grpc.StatusCode.INVALID_ARGUMENT: 400, grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404, grpc.StatusCode.ALREADY_EXISTS: 409, grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429, grpc.StatusCode.FAILED_PRECONDITION: 400, grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400, grpc.StatusCode.UNIMPLEMENTED: 501, grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}  # fmt: skip


class RestServer(ThreadingHTTPServer):
    """HTTP server, a thread per connection; `workers` limits concurrent requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, flags: Flags, manager: Manager, metrics: Metrics, metrics_path: str | None) -> None:
        self.flags = flags
        self.manager = manager
        self.metrics = metrics
        self.metrics_path = metrics_path
        self.workers = threading.BoundedSemaphore(flags.rest_threads - 1)  # one thread runs the event loop
        host = flags.listen_host
        if host == "::" and not socket.has_dualstack_ipv6():
            host = "0.0.0.0"  # a node that was started with ipv6.disable=1
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, flags.rest_api_port), RestHandler)
        except OSError as error:
            raise ModelError(f"can't listen on {flags.listen_host}:{flags.rest_api_port}: {error.strerror}") from error

    def server_bind(self) -> None:
        """Bind the socket; :: accepts IPv4 as well."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log a failed connection at debug level, as clients may close theirs."""
        log.debug("connection of %s ended", client_address, exc_info=sys.exception())


class RestHandler(BaseHTTPRequestHandler):
    """Handler of one connection; responses have TensorFlow Serving's form."""

    server: RestServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server_version = "clothing-model"

    def do_GET(self) -> None:
        """Handle a request of any method; path and method select the API."""
        body = self._body()
        if body is None:
            return
        path = self.path.partition("?")[0]
        if path == self.server.metrics_path:
            self._metrics()
        elif not path.lower().startswith("/v1/"):
            self._send(404, b"", "text/html")
        elif self.command == "OPTIONS":
            self._preflight()
        else:
            self._handle(body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET  # noqa: N815 - http.server's names

    def _body(self) -> bytes | None:
        """The request's body; None where the request was rejected."""
        length = self.headers.get("Content-Length", "" if self.command == "POST" else "0")
        if length.isdigit() and int(length) <= _MAX_BODY:
            return self.rfile.read(int(length))
        self.close_connection = True
        code, reason = (413, "too large") if length.isdigit() else (411, "without a Content-Length")
        self._send_error_text(code, f"Malformed request: {self.command} {self.path}: its body is {reason}")
        return None

    def _metrics(self) -> None:
        """Serve the metrics page, for any method; a query string is rejected."""
        if self.path != self.server.metrics_path:
            text = f"Unexpected path: {self.path}. Should be {self.server.metrics_path}"
            self._send(400, text.encode(), "text/plain")
            return
        with self.server.workers:
            self._send(200, self.server.metrics.page().encode(), "text/plain")

    def _preflight(self) -> None:
        allowed = self.headers.get("Origin", "").startswith(("http://", "https://"))
        self._send(200 if allowed else 400, b"", "application/json")

    def _handle(self, body: bytes) -> None:
        started = time.perf_counter()
        name, api, status, answer = "", "", "OK", b""
        # As upstream, of the path with its query: a query is a part of the name, or makes the path a malformed one.
        match = {"GET": _GET, "POST": _POST}.get(self.command, _NEVER).fullmatch(self.path)
        try:
            if match is None:
                raise invalid(f"Malformed request: {self.command} {self.path}")
            name = unquote(match[1] or "")
            spec = _spec(name, match[2], match[3])
            with self.server.workers:
                if self.command == "GET":
                    answer = self._metadata(spec) if match[4] else self._status(spec)
                else:
                    api = match[4].lower()
                    answer = self._predict(spec, body) if api == "predict" else self._examples(spec, api, body)
        except RequestError as error:
            status = error.code.name
            self._send_error_text(_HTTP_STATUS.get(error.code, 500), error.message)
        except RecursionError:
            status = "INVALID_ARGUMENT"
            self._send_error_text(400, "JSON Parse error: nested too deeply")
        except Exception:
            status = "INTERNAL"
            log.exception("%s %s failed", self.command, self.path)
            self._send_error_text(500, "Internal error")
        else:
            self._send(200, answer, "application/json")
            self.server.metrics.request_latency.observe((time.perf_counter() - started) * 1e6, name, api, "REST")
        finally:
            self.server.metrics.requests.increment(name, status)

    def _status(self, spec: Any) -> bytes:
        if not spec.name:
            raise invalid("Missing model name in request.")
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return _json(model_info.status(self.server.manager, request))

    def _metadata(self, spec: Any) -> bytes:
        if not spec.name:
            raise invalid("Missing model name in request.")
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=[model_info.SIGNATURE_DEF]
        )
        response = model_info.metadata(self.server.manager, request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[model_info.SIGNATURE_DEF].Unpack(signatures)
        return (
            b'{\n"model_spec":' + _json(response.model_spec) + b',\n"metadata": {"signature_def": '
            + _json(signatures) + b"}\n}\n"
        )  # fmt: skip

    def _examples(self, spec: Any, api: str, body: bytes) -> NoReturn:
        """Reject :classify and :regress, which take tf.Example.

        Checks are in upstream's order.
        """
        examples = _document(body).get("examples")
        if not isinstance(examples, list) or not examples:
            raise invalid("When method is classify, key 'examples' is expected and was not found")
        request = classification_pb2.ClassificationRequest(model_spec=spec)
        refuse_examples(self.server.manager, request, "classification" if api == "classify" else "regression")

    def _predict(self, spec: Any, body: bytes) -> bytes:
        document = _document(body)
        signature_name = document.get("signature_name", "")
        if not isinstance(signature_name, str):
            raise invalid("'signature_name' key must be a string value.")
        with self.server.manager.use(spec) as servable:
            if (signature_name or "serving_default") not in servable.signatures:
                raise invalid(f'Serving signature name: "{signature_name}" not found in signature def')
            signature = servable.signature(signature_name)
            rows = "instances" in document
            if rows and "inputs" in document:
                raise invalid("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
            if rows:
                arrays = _rows(signature, document["instances"])
            elif "inputs" in document:
                arrays = _columns(signature, document["inputs"])
            else:
                raise invalid("Missing 'inputs' or 'instances' key")
            outputs = predict.compute(
                servable,
                signature,
                {signature.inputs[alias].name: array for alias, array in arrays.items()},
                list(signature.outputs),
                timeout_ms=self.server.flags.rest_api_timeout_in_ms,
                metrics=self.server.metrics,
                model=spec.name,
            )
        return json.dumps(_answer_rows(outputs) if rows else _answer_columns(outputs), indent=4).encode()

    def _send_error_text(self, code: int, message: str) -> None:
        self._send(code, json.dumps({"error": message}, indent=4).encode(), "application/json")

    def _send(self, code: int, body: bytes, content_type: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.server.flags.rest_api_enable_cors_support:
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Access-Control-Allow-Methods", "POST, GET")
            self.send_header("Access-Control-Allow-Headers", "Content-Type")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Requests are logged at debug level."""
        log.debug(format, *args)


def _document(body: bytes) -> dict[str, Any]:
    """A request's JSON object.

    TensorFlow Serving's parser is recursive: 50,000 brackets end the whole server with SIGSEGV, for all clients
    (tensorflow/serving#4116). This server is run by people, too, and refuses them (RecursionError, in _handle).

    Raises:
        RequestError: no JSON, or no object.

    """
    try:
        document = json.loads(body)
    except ValueError as error:
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {str(document)[:256]} Is not object")
    return document


def _spec(name: str, version: str | None, label: str | None) -> Any:
    spec = model_pb2.ModelSpec(name=name)
    if version is not None:
        number = int(version)
        if number >= 1 << 63:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = number
    elif label is not None:
        spec.version_label = unquote(label)
    return spec


def _json(message: Any) -> bytes:
    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return text.encode()


def _dtype(signature: Any, alias: str) -> tf.DType:
    return tf.as_dtype(signature.inputs[alias].dtype)


def _rows(signature: Any, instances: Any) -> dict[str, tensors.Array]:
    """Parse `instances`: a list with one entry per photo.

    An entry is a value, or an object with a value for each input.
    """
    if not isinstance(instances, list):
        raise invalid("Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid("No values in 'instances' array")
    named = isinstance(instances[0], dict) and not tensors.is_base64(instances[0])
    names = sorted(signature.inputs)
    if not named:
        if len(names) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                "tensorinfo_map"
            )
        return {names[0]: tensors.from_json(names[0], instances, _dtype(signature, names[0]))}
    for position, item in enumerate(instances):
        if not isinstance(item, dict):
            raise invalid(f"Expecting object but got list at item {position} of input list")
        if sorted(item) != names:
            raise invalid(
                f"Failed to process element: {position} of 'instances' list. JSON object: {str(item)[:256]} keys must "
                f"be equal to: {','.join(names)}"
            )
    return {
        name: tensors.from_json(name, [item[name] for item in instances], _dtype(signature, name)) for name in names
    }


def _columns(signature: Any, inputs: Any) -> dict[str, tensors.Array]:
    """Parse `inputs`: a whole tensor, or an object with a tensor for each input."""
    names = sorted(signature.inputs)
    if not isinstance(inputs, dict) or tensors.is_base64(inputs):
        if len(names) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        return {names[0]: tensors.from_json(names[0], inputs, _dtype(signature, names[0]))}
    for name in names:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: tensors.from_json(name, inputs[name], _dtype(signature, name)) for name in names}


def _answer_rows(outputs: dict[str, tensors.Array]) -> dict[str, Any]:
    size = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size not in (None, len(array)):
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    columns = {name: tensors.to_json(name, array) for name, array in outputs.items()}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _answer_columns(outputs: dict[str, tensors.Array]) -> dict[str, Any]:
    columns = {name: tensors.to_json(name, array) for name, array in outputs.items()}
    return {"outputs": next(iter(columns.values())) if len(columns) == 1 else columns}


def start(flags: Flags, manager: Manager, metrics: Metrics, metrics_path: str | None) -> RestServer:
    """Start the REST server in a thread of its own."""
    server = RestServer(flags, manager, metrics, metrics_path)
    threading.Thread(target=server.serve_forever, name="rest", daemon=True).start()
    log.info("Exporting HTTP/REST API at:%s:%d ...", flags.listen_host, flags.rest_api_port)
    return server
