"""Request lifecycle: context, response or error, metrics, access log."""

from __future__ import annotations

import http
import logging
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from werkzeug.exceptions import HTTPException

from clothing_gateway import errors
from clothing_gateway.context import CONTEXT, Client, Connection, Detached, RequestContext
from clothing_gateway.deadline import Deadline, client_timeout_seconds
from clothing_gateway.errors import GatewayError, MethodNotAllowed
from clothing_gateway.limits.admission import Slot
from clothing_gateway.telemetry import tracing
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import Tracer
from clothing_gateway.web.cors import Origins
from clothing_gateway.web.hosts import Hosts

logger = logging.getLogger(__name__)
access = logging.getLogger("clothing_gateway.access")

# What a client's X-Request-Id may be made of, so that it can stand in a header, a log line and gRPC metadata.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# A head has up to 64 kB, and a log line needs less.
_LOGGED_CHARACTERS = 1000
_DETACHED = Detached()
_STATUS_LINES = {int(one): f"{one.value} {one.phrase}" for one in http.HTTPStatus} | {499: "499 Client Closed Request"}
# No browser takes a response for another type than its Content-Type.
NOSNIFF = ("X-Content-Type-Options", "nosniff")

Environ = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, independent of any library's form of it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def status_line(self) -> str:
        """The status with its phrase, as WSGI wants it."""
        return _STATUS_LINES[self.status]


def request_id_of(given: str | None) -> str:
    """The client's request id where it is valid, else a new one."""
    if given and _REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(128):032x}"  # a name, no secret: uuid4 asks the kernel for each


def log_request(context: RequestContext, method: str, path: str, status: int) -> None:
    """Write a request's access log line.

    It has the path without its query, which may hold secrets.
    """
    # An error that an operator must act on stands out; a client's does not.
    level = logging.ERROR if status in (500, 502) else logging.INFO
    if not access.isEnabledFor(level):
        return
    method, path = method[:_LOGGED_CHARACTERS], path[:_LOGGED_CHARACTERS]
    extra: dict[str, object] = {
        "request_id": context.request_id,
        "method": method,
        "path": path,
        "status": status,
        "milliseconds": round((time.monotonic() - context.start) * 1000, 1),
    }
    if context.photos:
        extra |= {"photos": context.photos, "bytes": context.bytes, "pixels": context.pixels}
    if context.stages:
        extra["stages"] = {stage: round(seconds * 1000, 1) for stage, seconds in context.stages.items()}
    if context.client is not None and context.client.key_name:
        extra["key"] = context.client.key_name
    if context.cause:
        extra["cause"] = context.cause
    # Not access.log: the caller's line in the code is always this one, and finding it out costs as much as the log
    # line itself.
    record = logging.LogRecord(access.name, level, __file__, 0, "%s %s %d", (method, path, status), None)
    vars(record).update(extra)
    access.handle(record)


class Lifecycle:
    """Start and end of every request, of the server, the routes or Flask."""

    def __init__(
        self,
        timeout_seconds: float,
        metrics: Metrics,
        tracer: Tracer | None = None,
        origins: Origins | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._metrics = metrics
        self._tracer = tracer
        self.origins = origins or Origins()
        self.hosts = hosts or Hosts()

    def begin(
        self,
        environ: Environ,
        start: float | None = None,
        connection: Connection = _DETACHED,
        slot: Slot | None = None,
        client: Client | None = None,
    ) -> RequestContext:
        """Create a request's context; ``start`` is its first byte's time.

        The time is of ``time.monotonic``, by default now.
        """
        if start is None:
            start = time.monotonic()
        context = RequestContext(
            request_id_of(environ.get("HTTP_X_REQUEST_ID")),
            start,
            Deadline.after(self.timeout_seconds, start),
            self._metrics,
            connection,
            slot,
        )
        context.client = client
        context.origin = environ.get("HTTP_ORIGIN")
        if self._tracer is not None:
            context.trace = self._tracer.begin(environ, start)
            context.trace_metadata = context.trace.metadata
        elif "HTTP_TRACEPARENT" in environ:
            context.trace_metadata = tuple(tracing.received(environ).items())
        return context

    def context(self, environ: Environ) -> RequestContext:
        """The request's context: the server's, or a new one under another server."""
        context: RequestContext | None = environ.get(CONTEXT)
        return self.begin(environ) if context is None else context

    def read(self, context: RequestContext, environ: Environ) -> None:
        """Take the client's timeout and model version from its headers, or BadRequest."""
        allowed = client_timeout_seconds(environ.get("HTTP_X_REQUEST_TIMEOUT_MS"), environ.get("HTTP_GRPC_TIMEOUT"))
        if allowed is not None and allowed < self.timeout_seconds:
            context.deadline = Deadline.after(allowed, context.start)
        context.model_version = environ.get("HTTP_X_MODEL_VERSION")

    def refusal(self, context: RequestContext, error: Exception) -> Reply:
        """The response for an error, which is counted."""
        if isinstance(error, GatewayError):
            refused = error
        elif isinstance(error, HTTPException):  # Flask's and werkzeug's
            methods = getattr(error, "valid_methods", None)
            refused = MethodNotAllowed(*methods) if methods else errors.from_status(error.code or 500)
        else:
            logger.error("unexpected error", exc_info=error, extra={"request_id": context.request_id})
            refused = GatewayError()
        context.cause = refused.cause
        self._metrics.count_error(refused.code)
        body = refused.body(context.request_id)
        return Reply(refused.status, (*refused.headers().items(), ("Content-Length", str(len(body)))), body)

    def end(self, context: RequestContext, method: str, path: str, route: str, status: int) -> list[tuple[str, str]]:
        """Observe, trace and log a request; the headers that every response has.

        The route, never the path, is a label: paths are a client's to choose, and each would be a new time series.
        """
        self._metrics.observe_request(route, status, time.monotonic() - context.start)
        if context.trace is not None:
            context.trace.end(method, route, status, context.request_id)
        log_request(context, method, path, status)
        headers = [("X-Request-Id", context.request_id), NOSNIFF, *self.origins.headers(context.origin)]
        if context.stages:  # https://www.w3.org/TR/server-timing/: browsers show it beside the request
            timing = [f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in context.stages.items()]
            headers.append(("Server-Timing", ", ".join(timing)))
        return headers
