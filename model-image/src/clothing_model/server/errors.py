"""A failed request: one of gRPC's status codes with TensorFlow Serving's message."""

from __future__ import annotations

import grpc

_LIMIT = 1024
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """The error response of a request: gRPC status code and message."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message if len(message) <= _LIMIT else f"{message[:_LIMIT]}...TRUNCATED"


def invalid(message: str) -> RequestError:
    """INVALID_ARGUMENT: the request is wrong."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> RequestError:
    """NOT_FOUND: no such model, version or file."""
    return RequestError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> RequestError:
    """FAILED_PRECONDITION: the server's state doesn't allow it."""
    return RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)


def deadline_exceeded(message: str) -> RequestError:
    """DEADLINE_EXCEEDED: the client's deadline passed."""
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def unavailable(message: str) -> RequestError:
    """UNAVAILABLE: retry later."""
    return RequestError(grpc.StatusCode.UNAVAILABLE, message)


def from_number(number: int, message: str) -> RequestError:
    """Status code from a TensorFlow error number; both use gRPC's codes."""
    return RequestError(_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN), message)
