"""The routes: HTTP on one side, the classifier on the other."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from importlib import resources
from io import BytesIO
from typing import IO, Any
from urllib.parse import quote

from flask import Flask, Request, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from clothing_gateway import errors
from clothing_gateway.admission import Places
from clothing_gateway.classifier import Answer, Classifier, Source, Ticket, ranked
from clothing_gateway.clients import Clients
from clothing_gateway.deadline import Deadline, client_timeout_seconds
from clothing_gateway.errors import BadRequest, GatewayError, NoPhoto, TooManyPhotos, UnsupportedMediaType
from clothing_gateway.metrics import Metrics
from clothing_gateway.settings import Settings

logger = logging.getLogger(__name__)
access = logging.getLogger("clothing_gateway.access")

# Where the server notes when a request's first byte came (time.monotonic).
RECEIVED = "clothing_gateway.received"
# Where the server puts the function that says whether the client has closed its connection.
HAS_LEFT = "clothing_gateway.has_left"
# What a client's X-Request-Id may be made of, so that it can stand in a header, a log line and gRPC metadata.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class PhotoRequest(Request):
    """A request whose uploads stay in memory: they are there already, and a read-only root has no place for files."""

    def _get_file_stream(self, *_: object, **__: object) -> IO[bytes]:
        return BytesIO()


def request_id_of(given: str | None) -> str:
    """The client's request id where it is one, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def log_request(ticket: Ticket, method: str, path: str, status: int, **more: object) -> None:
    """Write a request's line: the path without its query, which may hold what nobody should read."""
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
    # A refusal that an operator must act on stands out; what clients do wrong does not.
    level = logging.ERROR if status in (500, 502) else logging.INFO
    access.log(level, "%s %s %d", method, path, status, extra=extra | more)


class _Routes:
    """The application's functions, with what they work with."""

    def __init__(
        self, settings: Settings, classifier: Classifier, places: Places, metrics: Metrics, clients: Clients
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._classifier = classifier
        self._places = places
        self._metrics = metrics
        self._openapi = resources.files("clothing_gateway").joinpath("openapi.yaml").read_bytes()

    def begin(self) -> None:
        """Give each request its ticket."""
        start = request.environ.get(RECEIVED) or time.monotonic()
        headers, timeout = request.headers, self._settings.request_timeout_seconds
        g.ticket = ticket = Ticket(request_id_of(headers.get("X-Request-Id")), start, Deadline.after(timeout, start))
        allowed = client_timeout_seconds(headers.get("X-Request-Timeout-Ms"), headers.get("grpc-timeout"))
        if allowed is not None and allowed < timeout:
            ticket.deadline = Deadline.after(allowed, start)
        ticket.has_left = request.environ.get(HAS_LEFT, ticket.has_left)
        ticket.selected = headers.get("X-Model-Version")

    def end(self, response: Response) -> Response:
        """Name the request, count it, log it."""
        ticket: Ticket = g.ticket
        response.headers["X-Request-Id"] = ticket.request_id
        # The route, never the path: paths are a client's to choose, and each new one would be a new time series.
        route = request.url_rule.rule if request.url_rule else "none"
        self._metrics.requests.labels(route, response.status_code).observe(time.monotonic() - ticket.start)
        log_request(ticket, request.method, request.path, response.status_code)
        return response

    def refuse(self, error: GatewayError) -> Response:
        """Any error of the tree."""
        ticket: Ticket = g.ticket
        ticket.cause = error.cause
        self._metrics.errors.labels(error.code).inc()
        return Response(error.body(ticket.request_id), error.status, error.headers())

    def refuse_http(self, error: HTTPException) -> Response:
        """What Flask and werkzeug refuse: no such route or method, a form that can't be read."""
        response = self.refuse(errors.from_status(error.code or 500))
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    def fail(self, error: Exception) -> Response:
        """What nobody thought of."""
        logger.error("unexpected error", exc_info=error, extra={"request_id": g.ticket.request_id})
        return self.refuse(GatewayError())

    def predict(self) -> Response:
        """POST /predict, the course's route."""
        answer, _ = self._classify_request(several=False)
        scores = answer.photos[0]
        if isinstance(scores, GatewayError):
            raise scores
        # The course's gateway answers with Flask's jsonify of a dict, which sorts the keys.
        response = jsonify(dict(sorted(zip(self._settings.labels, scores.tolist(), strict=True))))
        return _named(response, answer)

    def classify(self) -> Response:
        """POST /classify."""
        top = _top(request.args.get("top"))
        answer, listed = self._classify_request(several=True)
        photos: list[dict[str, object]] = []
        for outcome in answer.photos:
            if not isinstance(outcome, GatewayError):
                photos.append({"predictions": ranked(self._settings.labels, outcome, top)})
            elif listed:
                self._metrics.errors.labels(outcome.code).inc()
                g.ticket.cause = "; ".join(filter(None, (g.ticket.cause, outcome.cause))) or None
                photos.append({"error": outcome.problem(g.ticket.request_id)})
            else:
                raise outcome
        model = {"name": answer.model.name, "version": str(answer.version)}
        response = jsonify({"model": model, "photos": photos} if listed else {"model": model, **photos[0]})
        return _named(response, answer)

    def ping(self) -> Response:
        """GET /ping."""
        return Response("PONG", mimetype="text/plain")

    def openapi(self) -> Response:
        """GET /openapi.yaml."""
        return Response(self._openapi, mimetype="application/yaml")

    def _classify_request(self, *, several: bool) -> tuple[Answer, bool]:
        """The answer for the request's photos, and whether it asked for a list of them."""
        ticket: Ticket = g.ticket
        client = self._clients.admit(request.environ)
        ticket.key_name = client.key_name
        self._clients.take(client, 1)
        self._places.take()
        taken = 1
        try:
            ticket.deadline.require("begin")
            sources, listed = _sources(request, self._settings.max_photos)
            if listed and not several:
                raise BadRequest("POST /predict takes one photo; POST /classify takes several.")
            if len(sources) > 1:
                self._clients.take(client, len(sources) - 1)
                self._places.take(len(sources) - 1)
                taken = len(sources)
            return self._classifier.classify(sources, ticket), listed
        finally:
            self._places.leave(taken)


def _named(response: Response, answer: Answer) -> Response:
    """The answer with its model in the headers, also where the body has the course's form."""
    response.headers["X-Model-Name"] = quote(answer.model.name)  # a header takes no more than ASCII
    response.headers["X-Model-Version"] = str(answer.version)
    return response


def create_app(settings: Settings, classifier: Classifier, places: Places, metrics: Metrics, clients: Clients) -> Flask:
    """The WSGI application."""
    app = Flask(__name__, static_folder=None)
    app.request_class = PhotoRequest
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.json.sort_keys = False  # type: ignore[attr-defined]
    routes = _Routes(settings, classifier, places, metrics, clients)
    app.before_request(routes.begin)
    app.after_request(routes.end)
    app.register_error_handler(GatewayError, routes.refuse)
    app.register_error_handler(HTTPException, routes.refuse_http)
    app.register_error_handler(Exception, routes.fail)
    app.post("/predict")(routes.predict)
    app.post("/classify")(routes.classify)
    app.get("/ping")(routes.ping)
    app.get("/openapi.yaml")(routes.openapi)
    return app


def _sources(request: Request, limit: int) -> tuple[list[Source], bool]:
    """The request's photos, and whether they came as a list: then the answer is one, too."""
    kind = request.mimetype
    sources: list[Source]
    listed = False
    if kind == "application/json":
        sources, listed = _from_json(request.get_data(cache=False))
    elif kind == "multipart/form-data":
        # Not read(), which copies the file once more; PhotoRequest has made each stream a BytesIO.
        files = [file.stream.getvalue() for file in request.files.getlist("image")]  # type: ignore[attr-defined]
        sources = [data for data in files if data]
        listed = len(sources) > 1
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = request.get_data(cache=False)
        sources = [data] if data else []
    elif kind:
        raise UnsupportedMediaType
    else:
        sources = []
    if not sources:
        raise NoPhoto
    if len(sources) > limit:
        raise TooManyPhotos(f"The request has {len(sources)} photos, and this gateway takes {limit} at a time.")
    return sources, listed


def _from_json(data: bytes) -> tuple[list[Source], bool]:
    if not data:
        raise NoPhoto
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body must be a JSON object, {"url": "https://…"} or {"urls": ["https://…", …]}.')
    url, urls = body.get("url"), body.get("urls")
    if url is not None and urls is not None:
        raise BadRequest('Send "url" or "urls", not both.')
    if urls is not None:
        if not isinstance(urls, list) or not all(isinstance(one, str) and one for one in urls):
            raise BadRequest('"urls" must be a list of strings.')
        return list(urls), True
    if url is None:
        raise NoPhoto
    if not isinstance(url, str) or not url:
        raise BadRequest('"url" must be a string.')
    return [url], False


def _top(given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) > 0):
        raise BadRequest("top must be a whole number above 0.")
    return int(given)
