"""Traces, at a receiver of OTLP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent import futures

import grpc
import pytest
from fakes import image_bytes
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from clothing_gateway.telemetry import tracing

PHOTO = image_bytes()
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self):
        self.resources = []
        self.spans = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802
        for group in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self):
        self._server.stop(0).wait()


@pytest.fixture
def receiver(stack):
    receiver = Receiver()
    stack.callback(receiver.stop)
    return receiver


def attributes(span):
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_and_its_stages_are_spans_of_the_clients_trace(
    start_gateway, model_server, photo_server, receiver, monkeypatch
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    photo_server.paths["/a"] = PHOTO
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    before = time.time_ns()
    urls = json.dumps({"urls": [f"{photo_server.url}/a", f"{photo_server.url}/gone"]}).encode()
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=b", "X-Request-Id": "one"}
    assert gateway.post("/classify", urls, "application/json", **headers)[0] == 200
    told = model_server.model.metadata[-1]
    assert gateway.post("/predict", b"no photo")[0] == 415
    assert gateway.request("GET", "/secret-path")[0] == 404
    gateway.terminate()
    assert gateway.process.wait(10) == 0  # what is left is sent at the end

    assert receiver.resources[0]["service.name"] == "clothing-gateway"
    assert receiver.resources[0]["deployment.environment"] == "test"
    (request,) = (span for span in receiver.spans if span.name == "POST /classify")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "gateway.request_id": "one",
    }
    assert told["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert told["tracestate"] == "a=b"
    stages = [span for span in receiver.spans if span.parent_span_id == request.span_id]
    assert sorted(span.name for span in stages) == ["decode", "fetch", "fetch", "predict", "wait"]
    for span in stages:
        assert span.trace_id == request.trace_id
        assert before <= request.start_time_unix_nano <= span.start_time_unix_nano + 1_000_000
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano
    others = {span.name: attributes(span)["http.response.status_code"] for span in receiver.spans if span not in stages}
    assert others == {"POST /classify": 200, "POST /predict": 415, "GET none": 404}
    assert not any(span.status.code == Status.STATUS_CODE_ERROR for span in receiver.spans)


def test_unsampled_trace_is_propagated_but_not_exported(start_gateway, model_server, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    gateway = start_gateway(model_server.address)
    assert gateway.post("/predict", PHOTO)[0] == 200
    flags = model_server.model.metadata[-1]["traceparent"].split("-")[3]
    assert int(flags, 16) & 1 == 0
    assert gateway.post("/predict", PHOTO, traceparent=TRACEPARENT)[0] == 200
    assert gateway.stop() == 0
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}


def test_a_failure_of_the_gateways_side_is_an_error(start_gateway, receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    gateway = start_gateway(wait_ready=False)
    assert gateway.post("/predict", PHOTO)[0] == 503
    assert gateway.stop() == 0
    assert [span.status.code for span in receiver.spans] == [Status.STATUS_CODE_ERROR]


def test_unreachable_collector_delays_no_request(start_gateway, model_server, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    gateway = start_gateway(model_server.address)
    for _ in range(5):
        assert gateway.post("/predict", PHOTO)[0] == 200
    start = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({}, {}),
        ({"traceparent": TRACEPARENT, "tracestate": "a=b,c=d"}, {"traceparent": TRACEPARENT, "tracestate": "a=b,c=d"}),
        ({"traceparent": TRACEPARENT, "tracestate": "é"}, {"traceparent": TRACEPARENT}),
        ({"traceparent": TRACEPARENT + "-more"}, {}),
        ({"traceparent": TRACEPARENT.upper()}, {}),
        ({"tracestate": "a=b"}, {}),
        ({"baggage": "a=b", "Cookie": "c", "Authorization": "Bearer x"}, {}),
    ],
)
def test_gateway_without_tracing_propagates_the_clients_trace(start_gateway, model_server, sent, told):
    gateway = start_gateway(model_server.address)
    assert gateway.post("/predict", PHOTO, **sent)[0] == 200
    metadata = model_server.model.metadata[-1]
    assert {name: value for name, value in metadata.items() if name not in ("x-request-id", "user-agent")} == told
    assert set(metadata) - set(told) == {"x-request-id", "user-agent"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"},
    ],
)
def test_traces_are_off_unless_asked_for(environment):
    assert tracing.from_environment(environment, "1") is None


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER=jaeger"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "port 4317"),
    ],
)
def test_invalid_tracing_settings_are_reported(environment, words):
    with pytest.raises(tracing.TracingError, match=words):
        tracing.from_environment(environment, "1")


def test_tracing_is_imported_only_when_on_and_missing_packages_are_reported():
    script = """
import sys
from clothing_gateway.telemetry import tracing
import clothing_gateway.gateway
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
sys.modules["opentelemetry.sdk.trace"] = None
try:
    tracing.from_environment({"OTEL_TRACES_EXPORTER": "otlp"}, "1")
except tracing.TracingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "install clothing-gateway[otel], or set OTEL_TRACES_EXPORTER=none" in done.stdout
