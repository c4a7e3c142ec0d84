"""Connection limits of a port: by client, by idleness, and pauses.

They are independent of the HTTP server.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Container
from dataclasses import dataclass
from typing import Generic, TypeVar

from clothing_gateway.limits.admission import ByteBudget, Slots
from clothing_gateway.web.rate_limit import Clients

# How long a connection is paused. A client that heeds Retry-After never notices; a hundred that retry immediately would
# take half of the CPU from the photos in flight.
PAUSE_SECONDS = 0.25

_Connection = TypeVar("_Connection")


@dataclass(frozen=True, kw_only=True)
class PortLimits:
    """What a port accepts."""

    max_body_bytes: int
    budget: ByteBudget
    max_connections: int
    max_connections_per_client: int
    # JSON takes ten times its size in memory to parse, and holds the GIL: eight URLs of 4 kB have room twice.
    max_json_bytes: int = 64 * 1024
    # The client of a request that needs a slot, and its rate limit.
    clients: Clients | None = None
    # In-flight slots, and the requests (method and path) that need one.
    slots: Slots | None = None
    # Slots of requests with URLs, in place of these until their photos have been fetched.
    fetching: Slots | None = None
    slotted: Container[tuple[str, str]] = ()
    # A connection on which nothing arrives. Browsers open some in advance, and open them again.
    first_byte_seconds: float = 10
    # A request's head: clients send it in one packet.
    head_seconds: float = 10
    # An idle connection. Longer than the 60 s of most load balancers, so that they close idle connections first.
    idle_seconds: float = 120
    # A response of which the client takes no byte.
    stalled_seconds: float = 10
    # Requests that are received before the first of them is answered; at least 2, so that the last has not started when
    # it is known to be the last. Clients that pipeline send a few.
    max_pipelined: int = 16


class Connections(Generic[_Connection]):
    """A port's open connections: count, count by client, and idle ones.

    The longest idle is first.

    Over a limit an idle connection is evicted in favour of the new one: clients reopen those, by RFC 9112, 9.3.1.
    """

    def __init__(self, limit: int, per_client: int) -> None:
        self._limit = limit
        self._per_client = per_client
        self._clients: dict[_Connection, str] = {}
        self._counts: Counter[str] = Counter()
        self._idle: OrderedDict[_Connection, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def full(self) -> bool:
        """Whether no connection can be accepted, not even in place of an idle one."""
        return len(self._clients) >= self._limit and not self._idle

    @property
    def crowded(self) -> bool:
        """Whether the next connection takes an idle one's place."""
        return len(self._clients) >= self._limit

    def crowded_by(self, client: str) -> bool:
        """Whether a client has as many connections as it may."""
        return self._counts[client] >= self._per_client

    def add(self, connection: _Connection, client: str) -> None:
        """Count a new connection."""
        self._clients[connection] = client
        self._counts[client] += 1
        self._idle[connection] = None

    def discard(self, connection: _Connection) -> None:
        """Forget a connection; a no-op where it is unknown."""
        client = self._clients.pop(connection, None)
        self._idle.pop(connection, None)
        if client is not None:
            self._counts[client] -= 1
            if not self._counts[client]:
                del self._counts[client]

    def set_idle(self, connection: _Connection) -> None:
        """The connection has no request, from now on."""
        if connection in self._clients:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def set_busy(self, connection: _Connection) -> None:
        """The connection receives a request."""
        self._idle.pop(connection, None)

    def idle(self, most: int, client: str | None = None) -> list[_Connection]:
        """The longest idle connections, of one client or of all, at most so many."""
        found: list[_Connection] = []
        for connection in self._idle:
            if client is None or self._clients[connection] == client:
                found.append(connection)
                if len(found) == most:
                    break
        return found


class Pauses(Generic[_Connection]):
    """Paused connections, in the order in which they resume.

    They are neither read nor closed for ``PAUSE_SECONDS``.

    Two kinds are paused: one whose photo was denied a slot, so that a client that retries immediately waits; and one
    whose body is not read to its end, so that the client has the time to read the response before the connection's end
    resets it.
    """

    def __init__(self) -> None:
        # Attributes, as the event loop reads them at every turn.
        self.paused: set[_Connection] = set()
        self.due: deque[tuple[float, _Connection]] = deque()  # when each pause ends

    def add(self, connection: _Connection) -> bool:
        """Pause a connection; whether no other was paused. From any thread."""
        first = not self.due
        self.paused.add(connection)
        self.due.append((time.monotonic() + PAUSE_SECONDS, connection))
        return first

    def resume(self) -> list[_Connection]:
        """End the pauses that are over; their connections."""
        now = time.monotonic()
        resumed: list[_Connection] = []
        while self.due and self.due[0][0] <= now:
            connection = self.due.popleft()[1]
            self.paused.discard(connection)
            resumed.append(connection)
        return resumed

    def seconds(self, longest: float) -> float:
        """Seconds until the next pause is over, at most ``longest``."""
        return min(longest, self.due[0][0] - time.monotonic()) if self.due else longest
