"""The two routes that take photos: what a request asks for, who may ask, and the answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from werkzeug.wrappers import Request
from werkzeug.wsgi import get_input_stream

from clothing_gateway.errors import BadRequest, GatewayError, NoPhoto, Overloaded, TooManyPhotos, UnsupportedMediaType
from clothing_gateway.limits.admission import Place, Places
from clothing_gateway.pipeline import Answer, Classifier, Source, Ticket, ranked
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web import multipart
from clothing_gateway.web.auth import Clients
from clothing_gateway.web.requests import PLACE, Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

PREDICT, CLASSIFY = "/predict", "/classify"
ROUTES = frozenset({PREDICT, CLASSIFY})

# As Flask's jsonify writes it, so that /predict is byte for byte the course's.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Photos:
    """POST /predict and POST /classify."""

    def __init__(
        self, settings: Settings, classifier: Classifier, places: Places, metrics: Metrics, clients: Clients
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._classifier = classifier
        self._places = places
        self._metrics = metrics

    def answer(self, route: str, environ: WSGIEnvironment, ticket: Ticket) -> Reply:
        """The answer of either route, or the error that there is instead."""
        return self._predict(environ, ticket) if route == PREDICT else self._classify(environ, ticket)

    def _predict(self, environ: WSGIEnvironment, ticket: Ticket) -> Reply:
        """The course's route."""
        answer, _ = self._ask(environ, ticket, several=False)
        scores = answer.photos[0]
        if isinstance(scores, GatewayError):
            raise scores
        # The course's gateway answers with Flask's jsonify of a dict, which sorts the keys.
        return _reply(dict(sorted(zip(self._settings.labels, scores.tolist(), strict=True))), answer)

    def _classify(self, environ: WSGIEnvironment, ticket: Ticket) -> Reply:
        top = _top(environ)
        answer, listed = self._ask(environ, ticket, several=True)
        photos: list[dict[str, object]] = []
        for outcome in answer.photos:
            if not isinstance(outcome, GatewayError):
                photos.append({"predictions": ranked(self._settings.labels, outcome, top)})
            elif listed:
                self._metrics.count_error(outcome.code)
                ticket.cause = "; ".join(filter(None, (ticket.cause, outcome.cause))) or None
                photos.append({"error": outcome.problem(ticket.request_id)})
            else:
                raise outcome
        model = {"name": answer.model.name, "version": str(answer.version)}
        return _reply({"model": model, "photos": photos} if listed else {"model": model, **photos[0]}, answer)

    def _ask(self, environ: WSGIEnvironment, ticket: Ticket, *, several: bool) -> tuple[Answer, bool]:
        """The answer for the request's photos, and whether it asked for a list of them."""
        client = self._clients.admit(environ)
        ticket.key_name = client.key_name
        self._clients.take(client, 1)
        place: Place = environ.get(PLACE) or self._places.place()
        more = 0
        try:
            if not place.held:
                raise Overloaded
            ticket.deadline.require("begin")
            sources, listed = _sources(environ, self._settings.max_photos)
            if listed and not several:
                raise BadRequest("POST /predict takes one photo; POST /classify takes several.")
            if len(sources) > 1:
                self._clients.take(client, len(sources) - 1)
                self._places.take(len(sources) - 1)
                more = len(sources) - 1
            return self._classifier.classify(sources, ticket), listed
        finally:
            self._places.leave(more)
            place.leave()


def _reply(value: object, answer: Answer) -> Reply:
    """A JSON answer, with its model in the headers, also where the body has the course's form."""
    body = _encode(value).encode("ascii") + b"\n"
    headers = (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Model-Name", quote(answer.model.name)),  # a header takes no more than ASCII
        ("X-Model-Version", str(answer.version)),
    )
    return Reply(200, headers, body)


def _sources(environ: WSGIEnvironment, limit: int) -> tuple[list[Source], bool]:
    """The request's photos, and whether they came as a list: then the answer is one, too."""
    content_type: str = environ.get("CONTENT_TYPE", "")
    kind = content_type.partition(";")[0].strip().lower()
    sources: list[Source]
    listed = False
    if kind == "application/json":
        sources, listed = _from_json(_body(environ))
    elif kind == "multipart/form-data":
        sources = [data for data in multipart.files(content_type, _body(environ), "image") if data]
        listed = len(sources) > 1
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = _body(environ)
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


def _body(environ: WSGIEnvironment) -> bytes:
    return get_input_stream(environ).read()


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


def _top(environ: WSGIEnvironment) -> int | None:
    if not environ.get("QUERY_STRING"):
        return None
    given = Request(environ, populate_request=False).args.get("top")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) > 0):
        raise BadRequest("top must be a whole number above 0.")
    return int(given)
