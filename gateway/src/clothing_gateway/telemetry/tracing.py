"""OpenTelemetry traces, enabled by OTEL_ variables.

A request has a span, and below it one for each stage of its photos.

The packages are an extra, clothing-gateway[otel], and are imported only when they are asked for. Without them, too, the
trace that a request belongs to is told to the model server.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider

Metadata = tuple[tuple[str, str], ...]

# W3C Trace Context, sections 3.2 and 3.3; what else a client sends there does not go on.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# What the end of the process waits for a collector that does not answer.
_FLUSH_SECONDS = 2.0


class TracingError(Exception):
    """Traces are asked for and can't be made; the text says why."""


def received(environ: Mapping[str, Any]) -> dict[str, str]:
    """A request's trace context by header name; empty where there is none."""
    parent, state = environ.get("HTTP_TRACEPARENT"), environ.get("HTTP_TRACESTATE")
    if not parent or not _TRACEPARENT.fullmatch(parent):
        return {}
    return {"traceparent": parent} | ({"tracestate": state} if state and _TRACESTATE.fullmatch(state) else {})


class Trace:
    """One request's span."""

    def __init__(self, tracer: Any, parent: Context, began: float) -> None:  # noqa: ANN401 - imported only when asked for
        from opentelemetry import propagate, trace

        self._tracer = tracer
        # The span's clock is the wall's, the request's is time.monotonic.
        start = time.time_ns() - int((time.monotonic() - began) * 1e9)
        self._span = tracer.start_span("request", parent, kind=trace.SpanKind.SERVER, start_time=start)
        self._context = trace.set_span_in_context(self._span)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, self._context)
        # The trace context for the model server, so that its spans are below this one.
        self.metadata: Metadata = tuple(carrier.items())

    def stage(self, name: str, seconds: float) -> None:
        """A stage that has just ended; from any thread."""
        end = time.time_ns()
        self._tracer.start_span(name, self._context, start_time=end - int(seconds * 1e9)).end(end)

    def end(self, method: str, route: str, status: int, request_id: str) -> None:
        """The request has its answer."""
        from opentelemetry import trace

        span = self._span
        if span.is_recording():
            span.update_name(f"{method} {route}")
            # The names of OpenTelemetry's semantic conventions for HTTP.
            span.set_attribute("http.request.method", method)
            span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            span.set_attribute("gateway.request_id", request_id)
            if status >= 500:
                span.set_status(trace.StatusCode.ERROR)
        span.end()


class Tracer:
    """Makes traces, and sends them by OTLP."""

    def __init__(self, provider: TracerProvider, version: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("clothing_gateway", version)

    def begin(self, environ: Mapping[str, Any], began: float) -> Trace:
        """A request's trace: a part of the client's, where it names one."""
        from opentelemetry import propagate

        return Trace(self._tracer, propagate.extract(received(environ)), began)

    def close(self) -> None:
        """Send what is left, unless that takes long."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(_FLUSH_SECONDS)


def from_environment(environment: Mapping[str, str], version: str) -> Tracer | None:
    """A tracer by the OTEL_ variables; None where they enable no traces.

    Raises TracingError.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environment.get(name) for name in _ENDPOINTS) else "none"
    )
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter != "otlp":
        raise TracingError(f"OTEL_TRACES_EXPORTER={exporter}: traces are sent by otlp only; none sends none")
    protocol = next(filter(None, (environment.get(name) for name in _PROTOCOLS)), "grpc")
    if protocol != "grpc":
        raise TracingError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: traces are sent over grpc only; collectors take it on port 4317"
        )
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            f"OTEL_ variables ask for traces, and the packages for them are missing ({error}): install "
            "clothing-gateway[otel], or set OTEL_TRACES_EXPORTER=none"
        ) from None
    ours = Resource({SERVICE_NAME: "clothing-gateway", SERVICE_VERSION: version})
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
    provider = TracerProvider(resource=Resource.create().merge(ours).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider, version)
