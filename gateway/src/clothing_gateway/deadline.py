"""Request deadline: one point in time, passed to every step of a request."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from clothing_gateway.errors import BadRequest, OutOfTime

# grpc-timeout = 1*8DIGIT unit (gRPC over HTTP/2, "Requests").
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on the clock of ``time.monotonic``, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float, start: float | None = None) -> Deadline:
        """The deadline ``seconds`` after ``start``, by default after now."""
        return cls((time.monotonic() if start is None else start) + seconds)

    def remaining(self) -> float:
        """Seconds left; zero or less after the deadline."""
        return self.at - time.monotonic()

    def require(self, step: str) -> float:
        """Seconds left for a step, or OutOfTime naming the step that can't start."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise OutOfTime(f"The request's deadline expired before it could {step}.")
        return left

    def sooner(self, seconds: float) -> Deadline:
        """This deadline, or the one ``seconds`` from now if that comes first."""
        return Deadline(min(self.at, time.monotonic() + seconds))


def client_timeout_seconds(milliseconds: str | None, grpc_timeout: str | None) -> float | None:
    """The client's timeout by ``X-Request-Timeout-Ms`` and ``grpc-timeout``.

    Where both are sent, it is the shorter one.
    """
    allowed: list[float] = []
    if milliseconds is not None:
        if not (milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) <= 9 and int(milliseconds)):
            raise BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0.")
        allowed.append(int(milliseconds) / 1000)
    if grpc_timeout is not None:
        match = _GRPC_TIMEOUT.fullmatch(grpc_timeout)
        if match is None or int(match[1]) == 0:
            raise BadRequest("grpc-timeout must be 1 to 8 digits above 0 and a unit out of H, M, S, m, u, n.")
        allowed.append(int(match[1]) * _GRPC_UNITS[match[2]])
    return min(allowed, default=None)
