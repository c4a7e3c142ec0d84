"""What a client of TensorFlow Serving relies on. Runs against any server: `make conformance`."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from conformance_target import NARROW_THREADS, SIGNATURE, Target, configuration, is_portable, tensor, values
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2

CLOSE = 1e-4  # of the largest score: batches are added up in another order than single photos


def assert_close(got: Any, wanted: Any) -> None:
    assert np.shape(got) == np.shape(wanted)
    assert np.abs(np.asarray(got) - wanted).max() <= CLOSE * max(1.0, np.abs(wanted).max())


def refused(call: Any, message: Any, timeout: float = 60) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=timeout)
    error: Any = caught.value
    return error.code().name, error.details()


def eventually(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


# Model and metadata


def test_metadata(target: Target) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = target.model
    spec = target.prediction.GetModelMetadata(request, timeout=60).model_spec
    assert (spec.name, spec.version.value) == (target.model, max(target.available()))
    signature = target.signature()
    assert signature.method_name == "tensorflow/serving/predict"
    for info in (*signature.inputs.values(), *signature.outputs.values()):
        assert info.name.endswith(tuple(f":{number}" for number in range(10)))
        assert info.tensor_shape.dim[0].size == -1  # any number of photos


@pytest.mark.parametrize(("fields", "name"), [([], ""), (["graph"], ""), (["signature_def"], "nobody")])
def test_metadata_refused(target: Target, fields: list[str], name: str) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = name or target.model
    code, _ = refused(target.prediction.GetModelMetadata, request)
    assert code == ("NOT_FOUND" if name else "INVALID_ARGUMENT")


def test_status(target: Target) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = target.model
    statuses = target.models.GetModelStatus(request, timeout=60).model_version_status
    versions = [status.version for status in statuses]
    assert versions == sorted(versions, reverse=True)
    assert all(status.status.error_code == 0 for status in statuses if status.state == status.AVAILABLE)
    request.model_spec.version_label = "nobody"
    ignoring = target.models.GetModelStatus(request, timeout=60).model_version_status
    assert [status.version for status in ignoring] == versions  # a label is ignored, known or not
    request.model_spec.version.value = max(versions)
    (status,) = target.models.GetModelStatus(request, timeout=60).model_version_status
    assert (status.version, status.state) == (max(versions), status.AVAILABLE)
    request.model_spec.version.value = 987654321
    assert refused(target.models.GetModelStatus, request)[0] == "NOT_FOUND"
    request.model_spec.name = "nobody"
    assert refused(target.models.GetModelStatus, request)[0] == "NOT_FOUND"


def test_health(target: Target) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    try:
        answer = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
    except grpc.RpcError as error:
        without: Any = error
        if target.started or without.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise  # ours is started with it
        pytest.skip("the server runs without --enable_grpc_healthcheck_service")
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


# Predict


def test_predict(target: Target) -> None:
    array = target.rows(2)
    answer = target.predict(array)
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (target.model, max(target.available()), SIGNATURE)
    outputs = target.signature().outputs
    assert set(answer.outputs) == set(outputs)
    for name, output in answer.outputs.items():
        assert output.dtype == outputs[name].dtype
        sizes = [dimension.size for dimension in output.tensor_shape.dim]
        wanted = [dimension.size for dimension in outputs[name].tensor_shape.dim]
        assert sizes == [2, *(have if want < 0 else want for have, want in zip(sizes[1:], wanted[1:], strict=True))]
        assert not output.tensor_content  # values, unless --enable_serialization_as_tensor_content
        assert np.isfinite(values(output)).all()


def test_a_photo_scores_the_same_alone_and_with_others(target: Target) -> None:
    array = target.rows(5)
    together = target.scores(array)
    assert_close(np.concatenate([target.scores(array[row : row + 1]) for row in range(5)]), together)
    assert_close(target.scores(array), together)


def test_input_as_values(target: Target) -> None:
    array = target.rows(1)
    assert_close(target.scores(array, as_values=True), target.scores(array))


def test_version_output_filter_and_default_signature(target: Target) -> None:
    array = target.rows(1)
    message, output = target.request(array), min(target.signature().outputs)
    message.model_spec.version.value = max(target.available())
    message.model_spec.signature_name = ""
    message.output_filter.append(output)
    answer = target.prediction.Predict(message, timeout=60)
    assert list(answer.outputs) == [output]
    assert_close(values(answer.outputs[output]), target.scores(array))


def test_concurrent_clients_get_their_own_scores(target: Target) -> None:
    """Fewer calls at a time than the server has threads: none is refused."""
    if not target.started:
        pytest.skip("the number of the server's threads isn't known")
    array = target.rows(8)
    wanted = target.scores(array)

    def ask(number: int) -> None:
        first = number % 8
        rows = slice(first, first + 1 + number % 2)
        assert_close(target.scores(array[rows]), wanted[rows])

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(64)))


def test_photos_of_another_size_are_computed(target: Target) -> None:
    """Sessions check no shapes, only the graph does; the gateway has to check sizes itself."""
    _, info = target.input()
    sizes = [dimension.size for dimension in info.tensor_shape.dim]
    if not target.started or len(sizes) != 4 or target.model != "clothing-model":
        pytest.skip("whether the model's graph takes photos of another size isn't known")
    array = target.rows(1)
    wider = np.concatenate([array, array[:, :, :1]], axis=2)
    assert target.scores(wider).shape == target.scores(array).shape
    code, text = target.http(f"/v1/models/{target.model}:predict", {"instances": array[:, :1, :1].tolist()})
    assert code == 200, text


def other_model(message: Any) -> None:
    message.model_spec.name = "nobody"


def no_model(message: Any) -> None:
    message.model_spec.name = ""


def other_version(message: Any) -> None:
    message.model_spec.version.value = 987654321


def other_label(message: Any) -> None:
    message.model_spec.version_label = "nobody"


def other_signature(message: Any) -> None:
    message.model_spec.signature_name = "nobody"


def no_input(message: Any) -> None:
    message.inputs.clear()


def extra_input(message: Any) -> None:
    message.inputs["extra"].CopyFrom(tensor(np.zeros((1, 1), np.float32)))


def other_input(message: Any) -> None:
    ((name, value),) = message.inputs.items()
    message.inputs["other"].CopyFrom(value)
    del message.inputs[name]


def other_output(message: Any) -> None:
    message.output_filter.append("nobody")


def output_twice(message: Any) -> None:
    message.output_filter.extend(["nobody", "nobody"])


def other_dtype(message: Any) -> None:
    ((_, value),) = message.inputs.items()
    value.Clear()
    value.dtype = types_pb2.DT_INT64
    value.tensor_shape.dim.add(size=1)
    value.int64_val.append(1)


def other_rank(message: Any) -> None:
    ((_, value),) = message.inputs.items()
    was = value.dtype
    value.Clear()
    value.CopyFrom(tensor(np.zeros((1, 2), {types_pb2.DT_UINT8: np.uint8}.get(was, np.float32))))


def content_too_short(message: Any) -> None:
    ((_, value),) = message.inputs.items()
    content, text = value.tensor_content[:-4], value.string_val
    value.tensor_content = content or b"\x00"
    del text[:]


@pytest.mark.parametrize(
    ("change", "code", "details"),
    [
        (other_model, "NOT_FOUND", r"Servable not found for request: Latest\(nobody\)"),
        (no_model, "INVALID_ARGUMENT", "no name specified"),
        (other_version, "NOT_FOUND", r"Servable not found for request: Specific\(.*, 987654321\)"),
        (other_label, "INVALID_ARGUMENT", "Unrecognized servable version label: nobody"),
        (other_signature, "FAILED_PRECONDITION", 'Serving signature key "nobody" not found'),
        (no_input, "INVALID_ARGUMENT", "input size does not match signature: 0!=1"),
        (extra_input, "INVALID_ARGUMENT", "input size does not match signature: 2!=1"),
        (other_input, "INVALID_ARGUMENT", "not found in request"),
        (other_output, "INVALID_ARGUMENT", "output tensor alias not found in signature: nobody"),
        (output_twice, "INVALID_ARGUMENT", "output tensor alias"),
        (other_dtype, "INVALID_ARGUMENT", ""),
        (other_rank, "INVALID_ARGUMENT", ""),
        (content_too_short, "INVALID_ARGUMENT", "tensor parsing error"),
    ],
)
def test_refused(target: Target, change: Callable[[Any], None], code: str, details: str) -> None:
    message = target.request(target.rows(1))
    change(message)
    got = refused(target.prediction.Predict, message)
    assert got[0] == code, got
    assert re.search(details, got[1]), got
    assert_close(target.scores(target.rows(1)), target.scores(target.rows(1)))  # and it serves on


def test_deadline(target: Target) -> None:
    assert refused(target.prediction.Predict, target.request(target.rows(4)), timeout=0.001)[0] == "DEADLINE_EXCEEDED"


def test_reload(target: Target) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    assert refused(target.models.HandleReloadConfigRequest, request)[0] == "INVALID_ARGUMENT"
    if not target.base_path:
        pytest.skip("a server that others use is not given another configuration")
    version = max(target.available())
    text_format.Parse(
        f'model_config_list {{ config {{ name: "{target.model}" base_path: "{target.base_path}" '
        f'model_platform: "tensorflow" version_labels {{ key: "stable" value: {version} }} }} }}',
        request.config,
    )
    assert target.models.HandleReloadConfigRequest(request, timeout=60).status.error_code == 0
    message = target.request(target.rows(1))
    message.model_spec.version_label = "stable"
    assert target.prediction.Predict(message, timeout=60).model_spec.version.value == version
    assert target.available() == [version]


# REST


def test_rest_status_and_metadata(target: Target) -> None:
    code, text = target.http(f"/v1/models/{target.model}")
    assert code == 200
    newest = json.loads(text)["model_version_status"][0]
    assert (newest["version"], newest["state"]) == (str(max(target.available())), "AVAILABLE")
    assert newest["status"] == {"error_code": "OK", "error_message": ""}
    code, text = target.http(f"/v1/models/{target.model}/metadata")
    assert code == 200
    name, info = target.input()
    shown = json.loads(text)["metadata"]["signature_def"]["signature_def"][SIGNATURE]["inputs"][name]
    assert (shown["name"], shown["dtype"]) == (info.name, types_pb2.DataType.Name(info.dtype))
    assert shown["tensor_shape"]["dim"][0]["size"] == "-1"


def test_rest_predict(target: Target) -> None:
    array = target.rows(2)
    rows = [{"b64": base64.b64encode(row).decode()} for row in array] if array.dtype == object else array.tolist()
    wanted = target.scores(array)
    for path in (f"/v1/models/{target.model}", f"/v1/models/{target.model}/versions/{max(target.available())}"):
        code, text = target.http(f"{path}:predict", {"instances": rows})
        assert code == 200, text
        predictions = json.loads(text)["predictions"]
        first = min(target.signature().outputs)
        assert_close([row[first] if isinstance(row, dict) else row for row in predictions], wanted)
    name, _ = target.input()
    code, text = target.http(
        f"/v1/models/{target.model}:predict", {"inputs": {name: rows}, "signature_name": SIGNATURE}
    )
    assert code == 200, text
    outputs = json.loads(text)["outputs"]
    assert_close(outputs[min(outputs)] if isinstance(outputs, dict) else outputs, wanted)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("nobody", None, 404),
        ("nobody:predict", {"instances": [1]}, 404),
        ("{model}/versions/987654321", None, 404),
        ("{model}:predict", b"{", 400),
        ("{model}:predict", {}, 400),
        ("{model}:predict", {"instances": []}, 400),
        ("{model}:predict", {"instances": [1], "inputs": [1]}, 400),
        ("{model}:predict", {"instances": [1], "signature_name": "nobody"}, 400),
        ("{model}:nonsense", {}, 400),
        ("{model}:classify", {}, 400),
        ("{model}:classify", {"examples": [{"x": 1}]}, 400),
        ("{model}:regress", {"examples": [{"x": 1}]}, 400),
        ("nobody:classify", {"examples": [{"x": 1}]}, 404),
        ("{model}/metadata?query", None, 400),
        ("{model}?query", None, 404),
        ("{model}:predict", {"instances": nested(300)}, 400),  # 50,000 end the real one
    ],
    ids=lambda value: re.sub(r"[\[\]]{9,}", "[…]", str(value)),
)
def test_rest_refused(target: Target, path: str, body: Any, code: int) -> None:
    got, text = target.http(f"/v1/models/{path.format(model=target.model)}", body)
    assert (got, bool(json.loads(text)["error"])) == (code, True), text


def test_json_nested_50000_deep(target: Target, record_property: Callable[[str, object], None]) -> None:
    record_property(
        "note",
        "TensorFlow Serving parses by recursion and ends with SIGSEGV (tensorflow/serving#4116; 2.19.1 did), so it is "
        "not asked. The portable server answers 400, as its first version did: in this the two differ on purpose.",
    )
    if not is_portable():
        pytest.skip("it would end the server: tensorflow/serving#4116")
    code, text = target.http(f"/v1/models/{target.model}:predict", b'{"instances": ' + b"[" * 50_000)
    assert (code, json.loads(text)["error"]) == (400, "JSON Parse error: nested too deeply")
    body = b'{"instances": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    assert target.http(f"/v1/models/{target.model}:predict", body)[0] == 400
    assert target.available()


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH"])
def test_rest_methods(target: Target, method: str) -> None:
    assert target.http(f"/v1/models/{target.model}", method=method)[0] == 400
    assert target.http("/elsewhere", method=method)[0] == 404
    code, _ = target.http("/monitoring/prometheus/metrics", method=method)
    assert code == 200 or (code == 404 and not target.started)  # whatever the method


def test_rest_metrics_page_by_post_and_with_a_query(target: Target) -> None:
    if not target.started:
        pytest.skip("whether the server has a metrics page isn't known")
    assert target.http("/monitoring/prometheus/metrics", b"")[0] == 200
    assert target.http("/monitoring/prometheus/metrics?query")[0] == 400


def test_metrics(target: Target) -> None:
    def page() -> str:
        code, text = target.http("/monitoring/prometheus/metrics")
        if code == 404 and not target.started:
            pytest.skip("the server runs without a monitoring_config_file")
        assert code == 200
        return text

    def number(pattern: str) -> float:
        found = re.search(rf"^{pattern} (\S+)$", page(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    model = re.escape(f'model_name="{target.model}"')
    names = [
        rf":tensorflow:serving:request_count\{{{model},status=\"OK\"\}}",
        rf":tensorflow:serving:request_latency_count\{{{model},API=\"Predict\",entrypoint=\"GRPC\"\}}",
        rf":tensorflow:serving:runtime_latency_count\{{{model},API=\"Predict\",runtime=\"TF1\"\}}",
    ]
    if target.batching:
        names += [
            r":tensorflow:serving:batching_session:wrapped_run_count\{\}",
            r":tensorflow:serving:batching_session:queuing_latency_count\{thread_pool_name=\"\"\}",
        ]
    array = target.rows(1)
    before = [number(name) for name in names]
    target.scores(array)
    after = [number(name) for name in names]
    assert all(now > was for was, now in zip(before, after, strict=True)), dict(zip(names, after, strict=True))
    assert 'le="+Inf"' in page()


# A server with few threads: of N threads N-1 serve calls, and the next call is refused


class Held:
    """Calls that keep all of a narrow server's threads busy for seconds: large batches of one repeated value."""

    def __init__(self, target: Target) -> None:
        self.target = target
        started = time.monotonic()
        target.prediction.Predict(self._request(8), timeout=120)
        photo = (time.monotonic() - started) / 8
        rows = min(256, max(32, int(1.5 / photo)))
        calls = NARROW_THREADS - 1
        self.calls = [target.prediction.Predict.future(self._request(rows), timeout=300) for _ in range(calls)]
        time.sleep(0.3)  # in which they arrive; a probe between them would take a thread of theirs
        self.error = self.wait_for_refusal()

    def _request(self, rows: int) -> Any:
        target = self.target
        message = target.request(target.rows(1))
        ((_, value),) = message.inputs.items()
        if value.string_val:
            value.string_val.extend([value.string_val[0]] * (rows - 1))
        else:
            value.tensor_content = b""
            (value.float_val if value.dtype == types_pb2.DT_FLOAT else value.int_val).append(1)
        value.tensor_shape.dim[0].size = rows
        return message

    def probe(self) -> Any:
        """The error of GetModelMetadata, or None where it is answered."""
        try:
            self.target.metadata()
        except grpc.RpcError as error:
            return error
        return None

    def wait_for_refusal(self) -> Any:
        found: list[Any] = []
        eventually(
            lambda: found.append(self.probe()) or found[-1] is not None, "a call is refused for want of a thread"
        )
        return found[-1]

    def wait_for_room(self) -> None:
        eventually(lambda: self.probe() is None, "the threads are free again")


def assert_refused_for_threads(error: Any) -> None:
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() in ("", "Server Threadpool Exhausted")  # until 2.19, and from 2.20


def test_calls_beyond_the_threads_are_refused_at_once(narrow: Target) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    one = narrow.request(narrow.rows(1))
    held = Held(narrow)
    assert_refused_for_threads(held.error)
    with pytest.raises(grpc.RpcError) as caught:
        narrow.prediction.Predict(one, timeout=60)
    assert_refused_for_threads(caught.value)
    with pytest.raises(grpc.RpcError) as caught:
        narrow.states()
    assert_refused_for_threads(caught.value)
    answer = health_pb2_grpc.HealthStub(narrow.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert narrow.http(f"/v1/models/{narrow.model}")[0] == 200  # REST has threads of its own
    assert not any(call.done() for call in held.calls), (
        "the calls ended before the others were refused: hold them longer"
    )
    for call in held.calls:
        call.result()
    held.wait_for_room()
    assert "RESOURCE_EXHAUSTED" not in narrow.http("/monitoring/prometheus/metrics")[1]  # no metric counts a refusal


def test_cancelled_calls_keep_their_threads(narrow: Target) -> None:
    held = Held(narrow)
    for call in held.calls:
        assert call.cancel()
    time.sleep(0.2)  # in which the server hears of it
    assert_refused_for_threads(held.probe())
    held.wait_for_room()


# Versions and labels; each case leaves the model with versions 1 and 2, and the label stable at 2


def reload(target: Target, **given: Any) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(configuration(target.base_path, target.model, **given), request.config)
    assert target.models.HandleReloadConfigRequest(request, timeout=120).status.error_code == 0


@pytest.fixture
def versions(narrow: Target) -> Iterator[Target]:
    yield narrow
    reload(narrow)
    eventually(
        lambda: {narrow.states("versions")[version] for version in (1, 2)} == {"AVAILABLE"}, "both versions are back"
    )


def test_status_ignores_a_label_and_metadata_resolves_it(versions: Target) -> None:
    for label in ("stable", "nobody"):
        code, text = versions.http(f"/v1/models/versions/labels/{label}")
        assert code == 200, text
        assert {each["version"] for each in json.loads(text)["model_version_status"]} >= {"1", "2"}
    code, text = versions.http("/v1/models/versions/labels/stable/metadata")
    assert (code, json.loads(text)["model_spec"]["version"]) == (200, "2")
    assert versions.http("/v1/models/versions/labels/nobody/metadata")[0] == 400


def test_status_lists_unloaded_versions(versions: Target) -> None:
    reload(versions, versions=[2])
    eventually(lambda: versions.states("versions")[1] == "END", "version 1 is unloaded")
    assert versions.states("versions")[2] == "AVAILABLE"
    assert versions.states("versions", version={"value": 1}) == {1: "END"}


def test_the_lowest_of_several_unwanted_versions_is_unloaded_at_once(versions: Target) -> None:
    """Not when the new version is up: it is broken, and never will be."""
    reload(versions, versions=[3], label=0)
    wanted = {1: "END", 2: "AVAILABLE", 3: "END"}
    eventually(lambda: versions.states("versions") == wanted, "version 1 is unloaded, and 3 has failed")
    assert versions.metadata("versions").model_spec.version.value == 2


def test_version_missing_on_the_volume_unloads_the_serving_one(versions: Target) -> None:
    reload(versions, versions=[9], label=0)
    eventually(lambda: set(versions.states("versions").values()) == {"END"}, "all versions are unloaded")
    assert versions.http("/v1/models/versions/metadata")[0] == 404


def test_jit_compile_is_refused(narrow: Target) -> None:
    """XLA is off unless --xla_cpu_compilation_enabled is given: the model loads, and each of its calls fails."""
    assert narrow.states("compiled") == {1: "AVAILABLE"}
    message = narrow.request(narrow.rows(1))
    message.model_spec.name = "compiled"
    code, _ = refused(narrow.prediction.Predict, message)
    assert code not in {"RESOURCE_EXHAUSTED", "NOT_FOUND", "UNAVAILABLE"}
