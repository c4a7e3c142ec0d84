"""A failed request: one of gRPC's status codes with TensorFlow Serving's message."""

import grpc

_LIMIT = 1024
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


class RequestError(Exception):
    """What a client gets instead of an answer."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message if len(message) <= _LIMIT else f"{message[:_LIMIT]}...TRUNCATED"


def invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)


def deadline_exceeded(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def unavailable(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.UNAVAILABLE, message)


def from_number(number: int, message: str) -> RequestError:
    """TensorFlow's error codes are gRPC's."""
    return RequestError(_BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN), message)
