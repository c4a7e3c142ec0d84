"""Error tree: every error response, with its HTTP status, code and message.

GatewayError                     500  internal-error
├── BadRequest                   400  bad-request
│   ├── NoPhoto                  400  no-photo
│   └── AddressNotAllowed        400  address-not-allowed
├── Unauthorized                 401  unauthorized
├── OriginNotAllowed             403  origin-not-allowed
├── NotFound                     404  not-found
├── MethodNotAllowed             405  method-not-allowed
├── RequestTooSlow               408  request-too-slow
├── TooLarge                     413  too-large
│   ├── TooManyBytes             413  too-many-bytes
│   ├── TooManyPixels            413  too-many-pixels
│   ├── TooManyPhotos            413  too-many-photos
│   └── TooComplex               413  too-complex
├── UnsupportedMediaType         415  unsupported-media-type
│   ├── UnsupportedEncoding      415  unsupported-encoding
│   ├── NotAnImage               415  not-an-image
│   └── UnsupportedImage         415  unsupported-image
├── HostNotAllowed               421  host-not-allowed
├── BrokenImage                  422  broken-image
│   └── DecoderCrashed           422  decoder-crashed
├── PhotoServerFailed            424  photo-server-failed
├── TooManyRequests              429  too-many-requests
├── HeadersTooLarge              431  headers-too-large
├── ClientLeft                   499  client-left
├── NotImplementedByGateway      501  not-implemented
├── ModelRefused                 502  model-refused
│   ├── ModelFailed              502  model-failed
│   ├── ModelOutOfMemory         502  model-out-of-memory
│   └── ModelAnswerUnusable      502  model-answer-unusable
├── Unavailable                  503  unavailable
│   ├── Overloaded               503  overloaded
│   ├── ModelBusy                503  model-busy
│   ├── ModelQueueFull           503  model-queue-full
│   ├── ModelNotReady            503  model-not-ready
│   └── ModelUnavailable         503  model-unavailable
└── OutOfTime                    504  out-of-time

An error's ``detail`` is for the client, at most 12 words: what failed, then what to do. It never holds a resolved
address, a peer's words or a traceback. ``cause`` is for the operator: it is logged, and never sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

PROBLEM_TYPE = "application/problem+json"


class GatewayError(Exception):
    """A request failed; the root of the tree, and by itself an internal error."""

    status = 500
    code = "internal-error"
    title = "Internal error"
    detail = "The gateway failed; report the request id to its operator."
    # Seconds until a retry makes sense; None where a retry would fail the same way.
    retry_after: int | None = None

    def __init__(self, detail: str | None = None, *, cause: str | None = None, retry_after: int | None = None) -> None:
        self.detail = detail or type(self).detail
        self.cause = cause
        if retry_after is not None:
            self.retry_after = retry_after
        super().__init__(self.detail)

    def problem(self, request_id: str) -> dict[str, object]:
        """The problem details object of RFC 9457."""
        return {
            "type": f"urn:clothing-gateway:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }

    def body(self, request_id: str) -> bytes:
        """The problem details object, encoded."""
        return json.dumps(self.problem(request_id)).encode() + b"\n"

    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        headers = {"Content-Type": PROBLEM_TYPE}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


class BadRequest(GatewayError):
    """The request is malformed."""

    status = 400
    code = "bad-request"
    title = "Bad request"
    detail = "The request is malformed; GET /openapi.yaml describes what is valid."


class NoPhoto(BadRequest):
    """The request has no photo."""

    code = "no-photo"
    title = "No photo"
    detail = 'Send JSON {"url": …}, a form file "image", or an image body.'


class AddressNotAllowed(BadRequest):
    """The photo's URL is not allowed.

    Every reason but a misspelled URL has one message, so that it reveals no network.
    """

    code = "address-not-allowed"
    title = "Address not allowed"
    detail = "The photo's address is not allowed; use a public http(s) URL."


class Unauthorized(GatewayError):
    """The API key is missing or invalid; only where GATEWAY_KEYS_FILE is set."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"
    detail = "Missing or invalid API key; send Authorization: Bearer KEY."

    def headers(self) -> dict[str, str]:
        """Headers of the response (RFC 6750, section 3)."""
        return super().headers() | {"WWW-Authenticate": "Bearer"}


class OriginNotAllowed(GatewayError):
    """A browser's cross-origin request from an origin that is not allowed.

    GATEWAY_ALLOWED_ORIGINS names those that are.
    """

    status = 403
    code = "origin-not-allowed"
    title = "Origin not allowed"
    detail = "Pages of this origin may not send photos; ask the operator."


class NotFound(GatewayError):
    """No such route."""

    status = 404
    code = "not-found"
    title = "Not found"
    detail = "Not found; GET /openapi.yaml lists the routes."


class MethodNotAllowed(GatewayError):
    """The route has other methods, which the Allow header lists."""

    status = 405
    code = "method-not-allowed"
    title = "Method not allowed"
    detail = "Method not allowed; use one of the Allow header."

    def __init__(self, *allowed: str) -> None:
        super().__init__()
        self._allowed = allowed

    def headers(self) -> dict[str, str]:
        """Headers of the response (RFC 9110, section 15.5.6)."""
        return super().headers() | {"Allow": ", ".join(sorted(self._allowed))}


class RequestTooSlow(GatewayError):
    """The request did not arrive in time."""

    status = 408
    code = "request-too-slow"
    title = "Request too slow"
    detail = "The request did not arrive in time; retry on a faster connection."


class TooLarge(GatewayError):
    """A part of the request exceeds a limit."""

    status = 413
    code = "too-large"
    title = "Too large"
    detail = "The request is too large; send less."


class TooManyBytes(TooLarge):
    """The body or the fetched photo has too many bytes.

    The limits are GATEWAY_MAX_BODY_BYTES and GATEWAY_FETCH_MAX_BYTES.
    """

    code = "too-many-bytes"
    title = "Too many bytes"


class TooManyPixels(TooLarge):
    """The photo has too many pixels.

    It exceeds GATEWAY_MAX_PIXELS, GATEWAY_MAX_SIDE_PIXELS or the decoders' memory.
    """

    code = "too-many-pixels"
    title = "Too many pixels"


class TooManyPhotos(TooLarge):
    """The request exceeds GATEWAY_MAX_PHOTOS."""

    code = "too-many-photos"
    title = "Too many photos"


class TooComplex(TooLarge):
    """The photo's file has too many parts (scans, segments, chunks, comments)."""

    code = "too-complex"
    title = "Too complex"
    detail = "The file has too many parts; save it without metadata."


class UnsupportedMediaType(GatewayError):
    """The body's Content-Type is not supported."""

    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"
    detail = "Unsupported Content-Type; send application/json, multipart/form-data or image/…."


class UnsupportedEncoding(UnsupportedMediaType):
    """The body is compressed (Content-Encoding)."""

    code = "unsupported-encoding"
    title = "Unsupported content encoding"
    detail = "The body is compressed; send it as it is."

    def headers(self) -> dict[str, str]:
        """Headers of the response (RFC 9110, section 15.5.16)."""
        return super().headers() | {"Accept-Encoding": "identity"}


class NotAnImage(UnsupportedMediaType):
    """The file has none of the supported formats."""

    code = "not-an-image"
    title = "Not an image"
    detail = "The photo is no JPEG, PNG, WebP, GIF or BMP file."


class UnsupportedImage(UnsupportedMediaType):
    """The file is of an unsupported kind of its format, such as compressed BMP."""

    code = "unsupported-image"
    title = "Unsupported kind of image"
    detail = "Unsupported kind of image; save the photo as JPEG."


class HostNotAllowed(GatewayError):
    """The request's Host is not a name of this gateway (RFC 9110, section 15.5.20).

    GATEWAY_ALLOWED_HOSTS names those that are.
    """

    status = 421
    code = "host-not-allowed"
    title = "Host not allowed"
    detail = "This gateway has other names; use one, or ask the operator."


class BrokenImage(GatewayError):
    """The file has a supported format and can't be decoded."""

    status = 422
    code = "broken-image"
    title = "Broken image"
    detail = "The image file is damaged or cut off; send it again."


class DecoderCrashed(BrokenImage):
    """The process that decoded the photo crashed over it."""

    code = "decoder-crashed"
    title = "Decoder crashed"
    detail = "The photo crashed its decoder; save it as JPEG, and retry."


class PhotoServerFailed(GatewayError):
    """The fetch of the photo failed."""

    status = 424
    code = "photo-server-failed"
    title = "The photo's server failed"
    detail = "The photo could not be fetched; retry, or upload it."


class TooManyRequests(GatewayError):
    """The client exceeds its rate limit."""

    status = 429
    code = "too-many-requests"
    title = "Too many requests"
    detail = "Rate limit exceeded; retry after the seconds in Retry-After."
    retry_after = 1


class HeadersTooLarge(GatewayError):
    """The request's head exceeds its limit."""

    status = 431
    code = "headers-too-large"
    title = "Headers too large"
    detail = "The request's headers are too large; send fewer or shorter ones."


class ClientLeft(GatewayError):
    """The client disconnected before the response.

    Only the log and the metrics have it.
    """

    status = 499  # nginx's; HTTP has none for a response that is never sent
    code = "client-left"
    title = "Client left"
    detail = "The client closed the connection before the response."


class NotImplementedByGateway(GatewayError):
    """The request uses a part of HTTP that is not implemented."""

    status = 501
    code = "not-implemented"
    title = "Not implemented"
    detail = "Unsupported Transfer-Encoding; send chunked or a Content-Length."


class ModelRefused(GatewayError):
    """The model server rejected the call: a name, shape or version doesn't fit."""

    status = 502
    code = "model-refused"
    title = "The model refused"
    detail = "The model server rejected the photo; the operator's log says why."


class ModelFailed(ModelRefused):
    """Inference failed."""

    code = "model-failed"
    title = "The model failed"
    detail = "Inference failed on the model server; retry once."


class ModelOutOfMemory(ModelRefused):
    """The model server or its GPU ran out of memory; a retry would need as much again."""

    code = "model-out-of-memory"
    title = "The model ran out of memory"
    detail = "The model server ran out of memory; send fewer photos per request."


class ModelAnswerUnusable(ModelRefused):
    """The model's output does not have one score per label."""

    code = "model-answer-unusable"
    title = "Unusable answer of the model"
    detail = "The model's output does not have one score per label."


class Unavailable(GatewayError):
    """Temporarily unavailable; a retry makes sense."""

    status = 503
    code = "unavailable"
    title = "Unavailable"
    detail = "The gateway is unavailable; retry later."
    retry_after = 1


class Overloaded(Unavailable):
    """A limit of concurrent work is reached."""

    code = "overloaded"
    title = "Overloaded"
    detail = "The gateway is at capacity; retry later."


class ModelBusy(Unavailable):
    """The model servers are busy.

    No thread became free in time, or a call beside others did not end in time.
    """

    code = "model-busy"
    title = "Model busy"
    detail = "All model servers are busy; retry later."


class ModelQueueFull(Unavailable):
    """The model servers' batching queue is full."""

    code = "model-queue-full"
    title = "Model queue full"
    detail = "The model servers' queue is full; retry later."


class ModelNotReady(Unavailable):
    """No loaded model fits the configuration; /readyz on the admin port says why."""

    code = "model-not-ready"
    title = "Model not ready"
    detail = "No model is ready that fits the configuration; retry later."
    retry_after = 5


class ModelUnavailable(Unavailable):
    """The model server can't be reached."""

    code = "model-unavailable"
    title = "Model unavailable"
    detail = "The model server can't be reached; retry later."


class OutOfTime(GatewayError):
    """The request's deadline has expired."""

    status = 504
    code = "out-of-time"
    title = "Out of time"
    detail = "The request's deadline expired; retry with more time."


def all_errors() -> Iterator[type[GatewayError]]:
    """All classes of the tree, the root first."""
    pending: list[type[GatewayError]] = [GatewayError]
    while pending:
        error = pending.pop(0)
        yield error
        pending[:0] = error.__subclasses__()


# Refusals of waitress and werkzeug, by status; any other is a bad request or an internal error.
_BY_STATUS: dict[int, type[GatewayError]] = {
    400: BadRequest,
    404: NotFound,
    405: MethodNotAllowed,
    413: TooLarge,
    415: UnsupportedMediaType,
    431: HeadersTooLarge,
    501: NotImplementedByGateway,
}


def from_status(status: int) -> GatewayError:
    """The error for a refusal of the HTTP layers below the application."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]()
    return BadRequest() if 400 <= status < 500 else GatewayError()
