"""Admin port: liveness, readiness and metrics.

It is plain WSGI, as three routes need no framework.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST

from clothing_gateway.context import CONTEXT
from clothing_gateway.errors import MethodNotAllowed, NotFound
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web.requests import NOSNIFF

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROUTES = ("/healthz", "/readyz", "/metrics")
_REASONS = {200: "200 OK", 404: "404 Not Found", 405: "405 Method Not Allowed", 503: "503 Service Unavailable"}


def create_admin(
    not_ready: Callable[[], str | None], not_alive: Callable[[], str | None], metrics: Metrics
) -> WSGIApplication:
    """The WSGI application of the admin port.

    ``not_ready`` and ``not_alive`` return a reason, or None.
    """
    metrics.ready.set_function(lambda: not_ready() is None)

    def respond(path: str, method: str, start: float) -> tuple[int, dict[str, str], bytes]:
        if path not in ROUTES:
            return (
                404,
                NotFound().headers(),
                NotFound("Not found; see /healthz, /readyz and /metrics.").body(""),
            )
        if method not in ("GET", "HEAD"):
            return 405, MethodNotAllowed("GET", "HEAD").headers(), MethodNotAllowed().body("")
        if path == "/metrics":
            return 200, {"Content-Type": CONTENT_TYPE_LATEST}, metrics.render(start)
        reason, status = (not_ready(), "not ready") if path == "/readyz" else (not_alive(), "not alive")
        state: dict[str, str] = {"status": "ok"} if reason is None else {"status": status, "reason": reason}
        return 200 if reason is None else 503, {"Content-Type": "application/json"}, json.dumps(state).encode() + b"\n"

    def admin(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        status, headers, body = respond(environ["PATH_INFO"], method, environ[CONTEXT].start)
        start_response(_REASONS[status], [*headers.items(), NOSNIFF, ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    return admin
