"""POST /predict and POST /classify: parsing, admission, and the response."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from clothing_gateway.context import RequestContext
from clothing_gateway.errors import (
    BadRequest,
    GatewayError,
    NoPhoto,
    Overloaded,
    TooManyPhotos,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
from clothing_gateway.fetch.response import COMPRESSIONS, tokens
from clothing_gateway.image.decode import is_image
from clothing_gateway.limits.admission import Slots
from clothing_gateway.pipeline import Answer, Classifier, Source, result
from clothing_gateway.settings import Settings
from clothing_gateway.web import multipart
from clothing_gateway.web.rate_limit import Clients
from clothing_gateway.web.requests import Reply

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# As Flask's jsonify writes it, so that /predict is byte for byte the course's.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Photos:
    """The two routes that take photos."""

    def __init__(self, settings: Settings, classifier: Classifier, slots: Slots, clients: Clients) -> None:
        self._settings = settings
        self._classifier = classifier
        self._slots = slots
        self._clients = clients
        self._model_name = quote(settings.model_name)  # a header takes no more than ASCII

    def predict(self, environ: WSGIEnvironment, context: RequestContext) -> Reply:
        """POST /predict, the course's route: one photo, a score for each label."""
        answer, _ = self._ask(environ, context, several=False)
        scores = answer.photos[0]
        if isinstance(scores, GatewayError):
            raise scores
        # The course's gateway answers with Flask's jsonify of a dict, which sorts the keys.
        return self._reply(dict(sorted(zip(self._settings.labels, scores.tolist(), strict=True))), answer)

    def classify(self, environ: WSGIEnvironment, context: RequestContext) -> Reply:
        """POST /classify: one photo or several, labels ranked by probability."""
        top = _top(environ)
        answer, listed = self._ask(environ, context, several=True)
        photos: list[dict[str, object]] = []
        for outcome in answer.photos:
            if not isinstance(outcome, GatewayError):
                photos.append(result(self._settings.labels, outcome, answer.model.output, top))
            elif listed:
                context.metrics.count_error(outcome.code)
                context.cause = "; ".join(filter(None, (context.cause, outcome.cause))) or None
                photos.append({"error": outcome.problem(context.request_id)})
            else:
                raise outcome
        output = answer.model.output
        model: dict[str, object] = {"name": answer.model.name, "version": str(answer.version), "scores": output.scores}
        if output.limit is not None:
            model["threshold"] = output.limit
        return self._reply({"model": model, "photos": photos} if listed else {"model": model, **photos[0]}, answer)

    def _ask(self, environ: WSGIEnvironment, context: RequestContext, *, several: bool) -> tuple[Answer, bool]:
        """The answer for the request's photos, and whether it sent a list of them."""
        if context.client is None:  # another server runs the application
            context.client = self._clients.admit(
                environ.get("REMOTE_ADDR", ""), environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_X_FORWARDED_FOR")
            )
        slot = context.slot = context.slot or self._slots.slot(context.client.identity)
        try:
            if not slot.held:
                raise Overloaded
            context.deadline.require("start")
            sources, listed = _sources(environ, self._settings.max_photos)
            if listed and not several:
                raise BadRequest("POST /predict takes one photo; POST /classify takes several.")
            if len(sources) > 1:
                self._clients.limit(context.client, len(sources) - 1)
                slot.grow(len(sources) - 1)
            return self._classifier.classify(sources, context), listed
        finally:
            context.release()

    def _reply(self, value: object, answer: Answer) -> Reply:
        """A JSON response, with its model in the headers.

        The headers have it also where the body has the course's form.
        """
        body = _encode(value).encode("ascii") + b"\n"
        headers = (
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Model-Name", self._model_name),
            ("X-Model-Version", str(answer.version)),
        )
        return Reply(200, headers, body)


def _sources(environ: WSGIEnvironment, limit: int) -> tuple[list[Source], bool]:
    """The request's photos, and whether they are a list: then so is the response."""
    content_type: str = environ.get("CONTENT_TYPE", "")
    kind = content_type.partition(";")[0].strip().lower()
    encoding = environ.get("HTTP_CONTENT_ENCODING")
    if encoding and (compressions := COMPRESSIONS & tokens(encoding)):  # never inflated: a kilobyte may hold a gigabyte
        raise UnsupportedEncoding(f"The body is compressed ({min(compressions)}); send it as it is.")
    read: Callable[[], bytes] = environ["wsgi.input"].read
    sources: list[Source]
    listed = False
    if kind == "application/json":
        sources, listed = _from_json(read())
    elif kind == "multipart/form-data":
        sources = list(multipart.files(content_type, read(), "image"))
        listed = len(sources) > 1
    else:
        sources = [_from_body(kind, read())]
    if not sources:
        raise NoPhoto
    if len(sources) > limit:
        raise TooManyPhotos(f"{len(sources)} photos in one request; send {limit} at most.")
    return sources, listed


def _from_body(kind: str, data: bytes) -> bytes:
    """Return a photo that is the body, detected by its first bytes.

    Its Content-Type doesn't count: curl calls it a form, and other clients send none.
    """
    if kind.startswith("image/") or kind == "application/octet-stream" or is_image(data):
        if not data:
            raise NoPhoto
        return data
    if kind:
        raise UnsupportedMediaType
    if data:
        raise UnsupportedMediaType("Missing Content-Type; send application/json, multipart/form-data or image/….")
    raise NoPhoto


def _from_json(data: bytes) -> tuple[list[Source], bool]:
    if not data:
        raise NoPhoto
    try:
        body: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest('The body must be {"url": "https://…"} or {"urls": ["https://…", …]}.')
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
    values = parse_qs(environ["QUERY_STRING"], keep_blank_values=True).get("top")
    if values is None:
        return None
    given = values[0]
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) > 0):
        raise BadRequest("top must be a whole number above 0.")
    return int(given)
