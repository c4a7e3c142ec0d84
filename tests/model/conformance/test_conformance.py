"""What a client of TensorFlow Serving relies on. Runs against any server: `make conformance`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from conformance_target import SIGNATURE, Target, tensor, values
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
        if target.base_path or without.code() is not grpc.StatusCode.UNIMPLEMENTED:
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


def test_clients_at_a_time_get_their_own(target: Target) -> None:
    array = target.rows(8)
    wanted = target.scores(array)

    def ask(number: int) -> None:
        first = number % 8
        rows = slice(first, first + 1 + number % 2)
        assert_close(target.scores(array[rows]), wanted[rows])

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(64)))


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
    ],
)
def test_rest_refused(target: Target, path: str, body: Any, code: int) -> None:
    got, text = target.http(f"/v1/models/{path.format(model=target.model)}", body)
    assert (got, bool(json.loads(text)["error"])) == (code, True), text


def test_metrics(target: Target) -> None:
    def page() -> str:
        code, text = target.http("/monitoring/prometheus/metrics")
        if code == 404 and not target.base_path:
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
