"""What every request has, whichever way it comes: a ticket, an answer or a refusal, a count, a log line."""

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
from clothing_gateway.deadline import Deadline, client_timeout_seconds
from clothing_gateway.errors import GatewayError
from clothing_gateway.pipeline import Ticket
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry import tracing
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import Tracer

logger = logging.getLogger(__name__)
access = logging.getLogger("clothing_gateway.access")

# Where the server notes when a request's first byte came (time.monotonic).
RECEIVED = "clothing_gateway.received"
# Where the server puts the function that says whether the client has closed its connection.
HAS_LEFT = "clothing_gateway.has_left"
# Where the server puts the place that the request's first photo found, or not, when the request had come.
PLACE = "clothing_gateway.place"
# Where the server puts the function that lets another request begin while this one waits for somebody else.
WAITING = "clothing_gateway.waiting"
# What a client's X-Request-Id may be made of, so that it can stand in a header, a log line and gRPC metadata.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

Environ = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, before any library's form of it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def status_line(self) -> str:
        """The status with its phrase, as WSGI wants it."""
        try:
            return f"{self.status} {http.HTTPStatus(self.status).phrase}"
        except ValueError:  # 499
            return f"{self.status} Client Closed Request"


def request_id_of(given: str | None) -> str:
    """The client's request id where it is one, else a new one."""
    if given and _REQUEST_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(128):032x}"  # a name, no secret: uuid4 asks the kernel for each


def log_request(ticket: Ticket, method: str, path: str, status: int) -> None:
    """Write a request's line: the path without its query, which may hold what nobody should read."""
    # A refusal that an operator must act on stands out; what clients do wrong does not.
    level = logging.ERROR if status in (500, 502) else logging.INFO
    if not access.isEnabledFor(level):
        return
    extra: dict[str, object] = {
        "request_id": ticket.request_id,
        "method": method,
        "path": path,
        "status": status,
        "milliseconds": round((time.monotonic() - ticket.start) * 1000, 1),
    }
    if ticket.photos:
        extra |= {"photos": ticket.photos, "bytes": ticket.bytes, "pixels": ticket.pixels}
    if ticket.stages:
        extra["stages"] = {stage: round(seconds * 1000, 1) for stage, seconds in ticket.stages.items()}
    if ticket.key_name:
        extra["key"] = ticket.key_name
    if ticket.cause:
        extra["cause"] = ticket.cause
    # Not access.log: where in the code a request's line is written is always here, and costs as much to find out as
    # the line itself.
    record = logging.LogRecord(access.name, level, __file__, 0, "%s %s %d", (method, path, status), None)
    vars(record).update(extra)
    access.handle(record)


class Exchange:
    """The begin and the end of every request."""

    def __init__(self, settings: Settings, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._timeout = settings.request_timeout_seconds
        self._metrics = metrics

    def ticket(self, environ: Environ) -> Ticket:
        """A new request's ticket, with the time that every request has."""
        start = environ.get(RECEIVED) or time.monotonic()
        ticket = Ticket(request_id_of(environ.get("HTTP_X_REQUEST_ID")), start, Deadline.after(self._timeout, start))
        ticket.has_left = environ.get(HAS_LEFT, ticket.has_left)
        ticket.waiting = environ.get(WAITING, ticket.waiting)
        if self._tracer is not None:
            ticket.trace = self._tracer.begin(environ, start)
            ticket.traced = ticket.trace.metadata
        elif "HTTP_TRACEPARENT" in environ:
            ticket.traced = tuple(tracing.received(environ).items())
        return ticket

    def read(self, ticket: Ticket, environ: Environ) -> None:
        """What the client's headers say about the request, or BadRequest."""
        allowed = client_timeout_seconds(environ.get("HTTP_X_REQUEST_TIMEOUT_MS"), environ.get("HTTP_GRPC_TIMEOUT"))
        if allowed is not None and allowed < self._timeout:
            ticket.deadline = Deadline.after(allowed, ticket.start)
        ticket.selected = environ.get("HTTP_X_MODEL_VERSION")

    def refusal(self, ticket: Ticket, error: Exception) -> Reply:
        """The answer for whatever went wrong."""
        if isinstance(error, GatewayError):
            refused = error
        elif isinstance(error, HTTPException):  # what Flask and werkzeug refuse: no such route, a form with too much
            refused = errors.from_status(error.code or 500)
        else:  # what nobody thought of
            logger.error("unexpected error", exc_info=error, extra={"request_id": ticket.request_id})
            refused = GatewayError()
        ticket.cause = refused.cause
        self._metrics.count_error(refused.code)
        body = refused.body(ticket.request_id)
        return Reply(refused.status, (*refused.headers().items(), ("Content-Length", str(len(body)))), body)

    def end(self, ticket: Ticket, method: str, path: str, route: str, status: int) -> list[tuple[str, str]]:
        """Count the request, and log it; the headers that its answer has, whatever it is.

        The route, never the path, is counted: paths are a client's to choose, and each would be a new time series.
        """
        self._metrics.observe_request(route, status, time.monotonic() - ticket.start)
        if ticket.trace is not None:
            ticket.trace.end(method, route, status, ticket.request_id)
        log_request(ticket, method, path, status)
        headers = [("X-Request-Id", ticket.request_id)]
        if ticket.stages:  # https://www.w3.org/TR/server-timing/: browsers show it beside the request
            timing = [f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in ticket.stages.items()]
            headers.append(("Server-Timing", ", ".join(timing)))
        return headers
