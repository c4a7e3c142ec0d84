"""Limits of a port, and pauses of connections; independent of the HTTP server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container
from dataclasses import dataclass
from typing import Generic, TypeVar

from clothing_gateway.limits.admission import ByteBudget, Slots

# How long a connection is paused. A client that heeds Retry-After never notices; a hundred that retry immediately would
# take half of the CPU from the photos in flight.
PAUSE_SECONDS = 0.25

_Connection = TypeVar("_Connection")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a port accepts."""

    max_body_bytes: int
    budget: ByteBudget
    # In-flight slots, and the requests (method and path) that need one.
    slots: Slots | None = None
    slotted: Container[tuple[str, str]] = ()


class Pauses(Generic[_Connection]):
    """Paused connections, which are neither read nor closed for ``PAUSE_SECONDS``, in the order in which they resume.

    Two kinds are paused: one whose photo was denied a slot, so that a client that retries immediately waits; and one
    whose body is not read to its end, so that the client has the time to read the response before the connection's end
    resets it.
    """

    def __init__(self) -> None:
        self._paused: set[_Connection] = set()
        self._due: deque[tuple[float, _Connection]] = deque()

    def __contains__(self, connection: _Connection) -> bool:
        return connection in self._paused

    def add(self, connection: _Connection) -> bool:
        """Pause a connection; whether no other was paused. From any thread."""
        first = not self._due
        self._paused.add(connection)
        self._due.append((time.monotonic() + PAUSE_SECONDS, connection))
        return first

    def resume(self) -> list[_Connection]:
        """End the pauses that are over; their connections."""
        now = time.monotonic()
        resumed: list[_Connection] = []
        while self._due and self._due[0][0] <= now:
            connection = self._due.popleft()[1]
            self._paused.discard(connection)
            resumed.append(connection)
        return resumed

    def seconds(self, longest: float) -> float:
        """Seconds until the next pause is over, at most ``longest``."""
        return min(longest, self._due[0][0] - time.monotonic()) if self._due else longest
