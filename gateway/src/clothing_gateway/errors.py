"""Every failure a client can be told of, and what it looks like on the wire.

GatewayError                     500  internal-error
├── BadRequest                   400  bad-request
│   ├── NoPhoto                  400  no-photo
│   └── AddressNotAllowed        400  address-not-allowed
├── Unauthorized                 401  unauthorized
├── NotFound                     404  not-found
├── MethodNotAllowed             405  method-not-allowed
├── RequestTooSlow               408  request-too-slow
├── TooLarge                     413  too-large
│   ├── TooManyBytes             413  too-many-bytes
│   ├── TooManyPixels            413  too-many-pixels
│   └── TooManyPhotos            413  too-many-photos
├── UnsupportedMediaType         415  unsupported-media-type
│   └── NotAnImage               415  not-an-image
├── BrokenImage                  422  broken-image
├── PhotoServerFailed            424  photo-server-failed
├── TooManyRequests              429  too-many-requests
├── HeadersTooLarge              431  headers-too-large
├── ClientLeft                   499  client-left
├── NotImplementedByGateway      501  not-implemented
├── ModelRefused                 502  model-refused
│   ├── ModelFailed              502  model-failed
│   └── ModelAnswerUnusable      502  model-answer-unusable
├── Unavailable                  503  unavailable
│   ├── Overloaded               503  overloaded
│   ├── ModelNotReady            503  model-not-ready
│   └── ModelUnavailable         503  model-unavailable
└── OutOfTime                    504  out-of-time

The message of an error is written for the client: it never holds a resolved address, a peer's words or a traceback.
What only an operator may read goes into ``cause``, which is logged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

PROBLEM_TYPE = "application/problem+json"


class GatewayError(Exception):
    """Anything that ends a request without an answer from the model."""

    status = 500
    code = "internal-error"
    title = "Internal error"
    detail = "The gateway failed at something it should have been able to do. The request id leads to its log line."
    # Seconds after which trying again makes sense; None where trying again would end the same way.
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
        """The problem details object as it is sent."""
        return json.dumps(self.problem(request_id)).encode() + b"\n"

    def headers(self) -> dict[str, str]:
        """The headers that belong to this error."""
        headers = {"Content-Type": PROBLEM_TYPE}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers


class BadRequest(GatewayError):
    """The request can't be understood."""

    status = 400
    code = "bad-request"
    title = "Bad request"
    detail = "The request could not be understood."


class NoPhoto(BadRequest):
    """The request names no photo and carries none."""

    code = "no-photo"
    title = "No photo"
    detail = (
        'Send JSON {"url": "https://…"}, a multipart form with a file named "image", '
        "or the photo itself as the body with its image/… content type."
    )


class AddressNotAllowed(BadRequest):
    """The photo's address may not be fetched; one text for all reasons, so that nobody can map a network with it."""

    code = "address-not-allowed"
    title = "Address not allowed"
    detail = (
        "The photo's address can't be used. It must be an http or https URL on a usual port, whose host is found by "
        "name and lies in the public internet, and so must every address that it redirects to."
    )


class Unauthorized(GatewayError):
    """The request has no key, or one that does not hold; only where keys are asked for."""

    status = 401
    code = "unauthorized"
    title = "Unauthorized"
    detail = "This gateway asks for a key, and the request has none that holds. Send Authorization: Bearer KEY."

    def headers(self) -> dict[str, str]:
        """The headers that belong to this error (RFC 6750, section 3)."""
        return super().headers() | {"WWW-Authenticate": "Bearer"}


class NotFound(GatewayError):
    """No such route."""

    status = 404
    code = "not-found"
    title = "Not found"
    detail = "There is nothing at this path. GET /openapi.yaml lists what there is."


class MethodNotAllowed(GatewayError):
    """The route exists, with another method."""

    status = 405
    code = "method-not-allowed"
    title = "Method not allowed"
    detail = "This path is there, but not for this method. GET /openapi.yaml lists what there is."


class RequestTooSlow(GatewayError):
    """The client did not send its request in time."""

    status = 408
    code = "request-too-slow"
    title = "Request too slow"
    detail = "The request did not arrive whole within the time allowed for it."


class TooLarge(GatewayError):
    """Something about the request exceeds a limit."""

    status = 413
    code = "too-large"
    title = "Too large"
    detail = "A part of the request is larger than this gateway takes."


class TooManyBytes(TooLarge):
    """The body, or the fetched photo, has too many bytes."""

    code = "too-many-bytes"
    title = "Too many bytes"


class TooManyPixels(TooLarge):
    """The photo is small as a file and too large as a picture."""

    code = "too-many-pixels"
    title = "Too many pixels"


class TooManyPhotos(TooLarge):
    """More photos in one request than allowed."""

    code = "too-many-photos"
    title = "Too many photos"


class UnsupportedMediaType(GatewayError):
    """The body's type is none that holds a photo."""

    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"
    detail = "The body must be application/json, multipart/form-data or image/…."


class NotAnImage(UnsupportedMediaType):
    """The bytes begin like none of the accepted formats."""

    code = "not-an-image"
    title = "Not an image"
    detail = "What was sent or fetched is no JPEG, PNG, WebP, GIF or BMP file."


class BrokenImage(GatewayError):
    """The bytes begin like an image and can't be decoded to the end."""

    status = 422
    code = "broken-image"
    title = "Broken image"
    detail = "The file begins like an image, but it is damaged or cut off."


class PhotoServerFailed(GatewayError):
    """The server that has the photo did not give it."""

    status = 424
    code = "photo-server-failed"
    title = "The photo's server failed"
    detail = "The photo could not be fetched from its server."


class TooManyRequests(GatewayError):
    """The client sends more photos than its rate allows; Retry-After says how long it takes until there is room."""

    status = 429
    code = "too-many-requests"
    title = "Too many requests"
    detail = "More photos came from you than you may send in this time. Retry-After says when there is room again."
    retry_after = 1


class HeadersTooLarge(GatewayError):
    """The request's headers are too large."""

    status = 431
    code = "headers-too-large"
    title = "Headers too large"
    detail = "The request's headers are larger than this gateway takes."


class ClientLeft(GatewayError):
    """The client closed its connection before the answer; nobody sees this but the log and the metrics."""

    status = 499  # as nginx has it; HTTP has no status for an answer that nobody gets
    code = "client-left"
    title = "Client left"
    detail = "The client closed the connection before the answer."


class NotImplementedByGateway(GatewayError):
    """The request uses a part of HTTP that is not served."""

    status = 501
    code = "not-implemented"
    title = "Not implemented"
    detail = "The request uses a transfer encoding other than chunked."


class ModelRefused(GatewayError):
    """The model server understood the call and says no: names, shape or version don't fit."""

    status = 502
    code = "model-refused"
    title = "The model refused"
    detail = "The model server refused the prepared photo. The operator's log has the reason."


class ModelFailed(ModelRefused):
    """The model server broke while it worked."""

    code = "model-failed"
    title = "The model failed"
    detail = "The model server failed while it worked on the photo."


class ModelAnswerUnusable(ModelRefused):
    """The model answered something that is no list of scores for the labels."""

    code = "model-answer-unusable"
    title = "Unusable answer of the model"
    detail = "The model's answer is no score for each label. The operator's log has the reason."


class Unavailable(GatewayError):
    """Not now; trying again soon makes sense."""

    status = 503
    code = "unavailable"
    title = "Unavailable"
    detail = "The gateway can't take this request now."
    retry_after = 1


class Overloaded(Unavailable):
    """All places are taken."""

    code = "overloaded"
    title = "Overloaded"
    detail = "The gateway has as much work as it takes at a time."


class ModelNotReady(Unavailable):
    """No model has been found yet that fits the configuration; /readyz on the admin port says why."""

    code = "model-not-ready"
    title = "Model not ready"
    detail = "There is no model to ask yet, or it does not fit the gateway's configuration."
    retry_after = 5


class ModelUnavailable(Unavailable):
    """The model server was there and can't be reached now."""

    code = "model-unavailable"
    title = "Model unavailable"
    detail = "The model server can't be reached."


class OutOfTime(GatewayError):
    """The request's deadline has passed."""

    status = 504
    code = "out-of-time"
    title = "Out of time"
    detail = "The time allowed for this request ran out."


def all_errors() -> Iterator[type[GatewayError]]:
    """Every class of the tree, the root first."""
    pending: list[type[GatewayError]] = [GatewayError]
    while pending:
        error = pending.pop(0)
        yield error
        pending[:0] = error.__subclasses__()


# What waitress and werkzeug refuse on their own, by status. Anything else of theirs is a bad request or our own fault.
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
    """The error that stands for a refusal of the HTTP layers below the application."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]()
    return BadRequest() if 400 <= status < 500 else GatewayError()
