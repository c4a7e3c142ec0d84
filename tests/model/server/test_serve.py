"""`clothing-model serve` answers as TensorFlow Serving does: over real sockets, from a real process."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import grpc
import numpy as np
import pytest
from served import MODELS, Made, Server, refused, request, scores_of

from model_factory import photos

# Answers


@pytest.mark.parametrize("name", MODELS)
def test_predict_equals_keras(server: Server, models: dict[str, Made], name: str) -> None:
    made = models[name]
    answer = server.prediction().Predict(request(made), timeout=60)
    output = answer.outputs[made.output_name]
    assert [dimension.size for dimension in output.tensor_shape.dim] == [2, made.classes]
    got = np.array(output.float_val, np.float32).reshape(2, made.classes)
    assert np.abs(got - scores_of(made)).max() < 1e-4
    assert (answer.model_spec.name, answer.model_spec.version.value) == (name, 1)
    assert answer.model_spec.signature_name == "serving_default"
    assert list(answer.outputs) == [made.output_name]


def test_float_val_and_output_filter(server: Server, models: dict[str, Made]) -> None:
    """As the course's notebook sends it, value by value, and as tf.make_tensor_proto shortens a constant."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    made = models["course"]
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "course"
    message.inputs["input_8"].CopyFrom(tf.make_tensor_proto(photos(96)[:1].tolist(), tf.float32))
    message.inputs["input_8"].ClearField("tensor_content")
    message.inputs["input_8"].float_val.extend(photos(96)[:1].ravel().tolist())
    message.output_filter.append("dense_7")
    answer = server.prediction().Predict(message, timeout=60)
    assert np.allclose(answer.outputs["dense_7"].float_val, scores_of(made)[0], atol=1e-4)
    del message.inputs["input_8"].float_val[1:]  # one value stands for all
    assert len(server.prediction().Predict(message, timeout=60).outputs["dense_7"].float_val) == 10


def test_metadata(server: Server) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "kitchen"
    answer = server.prediction().GetModelMetadata(message, timeout=60)
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("kitchen", 1)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert [d.size for d in signature.inputs["input_28"].tensor_shape.dim] == [-1, 64, 64, 3]
    assert [d.size for d in signature.outputs["dense_18"].tensor_shape.dim] == [-1, 20]
    for change, code in {"none": "INVALID_ARGUMENT", "field": "INVALID_ARGUMENT", "name": "NOT_FOUND"}.items():
        wrong = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        wrong.model_spec.name = "kitchen"
        if change == "none":
            wrong.ClearField("metadata_field")
        elif change == "field":
            wrong.metadata_field.append("graph")
        else:
            wrong.model_spec.name = "bathroom"
        assert refused(server.prediction().GetModelMetadata, wrong).code.name == code


def test_status(server: Server) -> None:
    from tensorflow_serving.apis import get_model_status_pb2

    stub = server.model_service()
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "course"
    (status,) = stub.GetModelStatus(message, timeout=60).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, status.AVAILABLE, 0)
    message.model_spec.version.value = 9
    error = refused(stub.GetModelStatus, message)
    assert (error.code, error.details) == (grpc.StatusCode.NOT_FOUND, "Could not find version 9 of model course")
    message.model_spec.name = "nobody"
    message.model_spec.ClearField("version_choice")
    error = refused(stub.GetModelStatus, message)
    assert error.details == "Could not find any versions of model nobody"


def test_health(server: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(server.channel())
    for service in ("", "ModelService", "PredictionService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert refused(stub.Check, health_pb2.HealthCheckRequest(service="other")).code == grpc.StatusCode.NOT_FOUND


# Refusals, in TensorFlow Serving's words (predict_util.cc, basic_manager.cc, server_core.cc)


@pytest.mark.parametrize(
    ("changes", "code", "details"),
    [
        ({"model": "nobody"}, "NOT_FOUND", r"Servable not found for request: Latest\(nobody\)"),
        ({"model": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ({"signature": "other"}, "FAILED_PRECONDITION", 'Serving signature key "other" not found.'),
        ({"inputs": ["input_8", "x"]}, "INVALID_ARGUMENT",
         (r"input size does not match signature: 2!=1 len\(\{input_8,x\}\) != len\(\{input_8\}\). Sent extra: \{x\}. "
          r"Missing but required: \{\}.")),
        ({"inputs": []}, "INVALID_ARGUMENT", r"input size does not match signature: 0!=1 .*required: \{input_8\}."),
        ({"inputs": ["input_9"]}, "INVALID_ARGUMENT",
         (r"Signature input alias: input_8\(feed name: serving_default_input_8:0\) not found in request and no default "
          r"value provided. Inputs expected to be in the request \{input_9\}")),
        ({"array": np.zeros((1, 96, 96, 3), np.uint8)}, "INVALID_ARGUMENT",
         r"Expects arg\[0\] to be float32 but uint8 is provided"),
        ({"shape": (2, 96, 96, 4)}, "INVALID_ARGUMENT", "tensor parsing error: input_8"),
        ({"shape": (2, 96, -96, 3)}, "INVALID_ARGUMENT", "tensor parsing error: input_8"),
        ({"array": np.zeros((1, 96, 3), np.float32)}, "INVALID_ARGUMENT", "Cannot feed value of shape"),
    ],
)  # fmt: skip
def test_refused_predict(
    server: Server, models: dict[str, Made], changes: dict[str, Any], code: str, details: str
) -> None:
    error = refused(server.prediction().Predict, request(models["course"], **changes))
    assert error.code.name == code
    assert re.match(details, error.details)
    assert len(error.details) <= 1024 + len("...TRUNCATED")


def test_refused_version_label_and_filter(server: Server, models: dict[str, Made]) -> None:
    message = request(models["course"])
    message.model_spec.version.value = 3
    error = refused(server.prediction().Predict, message)
    assert error.code == grpc.StatusCode.NOT_FOUND
    assert error.details == "Servable not found for request: Specific(course, 3)"
    message.model_spec.version_label = "canary"
    error = refused(server.prediction().Predict, message)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details == "Unrecognized servable version label: canary"
    for names, text in {
        ("other",): "output tensor alias not found",
        ("dense_7", "dense_7"): "duplicate output",
    }.items():
        message = request(models["course"])
        message.output_filter.extend(names)
        assert text in refused(server.prediction().Predict, message).details


def test_examples_are_refused(server: Server) -> None:
    """A photo classifier has no signature for tf.Example; the codes are upstream's."""
    from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

    stub = server.prediction()
    calls = (
        (stub.Classify, classification_pb2.ClassificationRequest(), "classification"),
        (stub.Regress, regression_pb2.RegressionRequest(), "regression"),
    )
    for call, message, kind in calls:
        assert refused(call, message).details == "Missing ModelSpec"
        message.model_spec.name = "nobody"
        assert refused(call, message).code is grpc.StatusCode.NOT_FOUND
        message.model_spec.name = "course"
        error = refused(call, message)
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details == f"No {kind} inputs found in SignatureDef: serving_default"
        message.model_spec.signature_name = "other"
        assert refused(call, message).details == "No signature was found with the name: other"
    several = inference_pb2.MultiInferenceRequest()
    several.tasks.add().model_spec.name = "course"
    assert refused(stub.MultiInference, several).code is grpc.StatusCode.INVALID_ARGUMENT


def test_deadline(server: Server, models: dict[str, Made]) -> None:
    """Forty large photos take fifty milliseconds; two may be answered before gRPC looks at its clock."""
    many = request(models["exported"], array=np.tile(photos(224)[:1], (40, 1, 1, 1)))
    error = refused(server.prediction().Predict, many, timeout=0.001)
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.prediction().Predict(request(models["exported"]), timeout=60).outputs


def test_large_messages(server: Server, models: dict[str, Made]) -> None:
    """Above gRPC's own limit of 4 MiB, in one request."""
    array = np.tile(photos(224)[:1], (10, 1, 1, 1))
    message = request(models["exported"], array=array)
    assert message.ByteSize() > 5 << 20
    answer = server.prediction().Predict(message, timeout=120)
    assert len(answer.outputs["output_0"].float_val) == 200


# REST


def test_rest_status_and_metadata(server: Server) -> None:
    code, text = server.http("/v1/models/course")
    assert code == 200
    assert json.loads(text)["model_version_status"] == [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
    assert server.http("/v1/models/course/versions/1")[0] == 200
    code, text = server.http("/v1/models/kitchen/metadata")
    document = json.loads(text)
    assert code == 200
    assert document["model_spec"] == {"name": "kitchen", "signature_name": "", "version": "1"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["input_28"]["dtype"] == "DT_FLOAT"
    assert [each["size"] for each in signature["inputs"]["input_28"]["tensor_shape"]["dim"]] == ["-1", "64", "64", "3"]


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("/v1/models/course/versions/9", 404, "Could not find version 9 of model course"),
        ("/v1/models/nobody/metadata", 404, "Servable not found for request: Latest(nobody)"),
        ("/v1/models/course/versions/9/metadata", 404, "Servable not found for request: Specific(course, 9)"),
        ("/v1/models/course/labels/canary/metadata", 400, "Unrecognized servable version label: canary"),
        ("/v1/models", 400, "Missing model name in request."),
        ("/v1/other", 400, "Malformed request: GET /v1/other"),
        ("/v1/models/course/metadata?x", 400, "Malformed request: GET /v1/models/course/metadata?x"),
        ("/v1/models/course?x", 404, "Could not find any versions of model course?x"),
    ],
)
def test_rest_refusals(server: Server, path: str, code: int, message: str) -> None:
    got, text = server.http(path)
    assert (got, json.loads(text)) == (code, {"error": message})


def test_rest_other_paths(server: Server) -> None:
    assert server.http("/")[0] == 404
    assert server.http("/v2/health")[0] == 404


def test_rest_predict(server: Server, models: dict[str, Made]) -> None:
    made = models["late-keras2"]
    instances = photos(made.size).tolist()
    for body, key in (
        ({"instances": instances}, "predictions"),
        ({"instances": [{made.input_name: each} for each in instances]}, "predictions"),
        ({"inputs": instances, "signature_name": "serving_default"}, "outputs"),
        ({"inputs": {made.input_name: instances}}, "outputs"),
    ):
        code, text = server.http(f"/v1/models/{made.name}/versions/1:predict", body)
        assert code == 200
        assert np.abs(np.array(json.loads(text)[key]) - scores_of(made)).max() < 1e-4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "Is not object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"inputs": [], "instances": []}, "expecting only one of"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": 1}, "Expecting 'instances' to be an list/array"),
        ({"instances": [[1, 2], [3]]}, "not all of one length"),
        ({"instances": ["photo"]}, "is not of expected type: float"),
        ({"instances": [{"other": [1]}]}, "keys must be equal to: input_8"),
        ({"inputs": {"other": [1]}}, "Missing named input: input_8"),
        ({"instances": [1.0], "signature_name": "other"}, 'Serving signature name: "other" not found'),
        ({"instances": [1.0], "signature_name": 5}, "must be a string value"),
    ],
)
def test_rest_predict_refusals(server: Server, body: Any, message: str) -> None:
    code, text = server.http("/v1/models/course:predict", body)
    assert code == 400
    assert message in json.loads(text)["error"]


def test_metrics(server: Server, models: dict[str, Made]) -> None:
    def value(line: str) -> float:
        _, text = server.http("/monitoring/prometheus/metrics")
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    count = ':tensorflow:serving:request_count{model_name="course",status="OK"}'
    missing = ':tensorflow:serving:request_count{model_name="course",status="NOT_FOUND"}'
    latency = ':tensorflow:serving:request_latency_count{model_name="course",API="Predict",entrypoint="GRPC"}'
    runtime = ':tensorflow:serving:runtime_latency_bucket{model_name="course",API="Predict",runtime="TF1",le="+Inf"}'
    before = [value(line) for line in (count, missing, latency, runtime)]
    server.prediction().Predict(request(models["course"]), timeout=60)
    wrong = request(models["course"])
    wrong.model_spec.version.value = 3
    refused(server.prediction().Predict, wrong)
    assert [value(line) for line in (count, missing, latency, runtime)] == [
        before[0] + 1, before[1] + 1, before[2] + 1, before[3] + 1,
    ]  # fmt: skip
    page = server.http("/monitoring/prometheus/metrics")[1]
    assert page.startswith("# TYPE :tensorflow:serving:model_warmup_latency histogram\n")
    assert f'model_path="{models["course"].version}",status="OK"' in page  # the warm-up of each model ran
    sizes = re.findall(
        r':request_latency_bucket\{model_name="course",API="Predict",entrypoint="GRPC",le="(.*?)"\}', page
    )
    assert (len(sizes), sizes[0], sizes[1], sizes[-1]) == (34, "10", "18", "+Inf")


def test_many_clients_at_a_time(server: Server, models: dict[str, Made]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stub, message = server.prediction(), request(models["kitchen"])
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: stub.Predict(message, timeout=120), range(64)))
    for answer in answers:
        got = np.array(answer.outputs["dense_18"].float_val).reshape(2, 20)
        assert np.abs(got - scores_of(models["kitchen"])).max() < 1e-4
    assert time.monotonic() - started < 120
