"""Connection limits of a port: by client, by idleness, pauses, and pace.

They are independent of the HTTP server.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from clothing_gateway.limits.admission import ByteBudget, Slots
from clothing_gateway.web.rate_limit import Clients

# How long a connection is paused. A client that heeds Retry-After never notices; a hundred that retry immediately would
# take half of the CPU from the photos in flight.
PAUSE_SECONDS = 0.25

# Cheap requests of one client (pages, /ping, what is refused at its head), which no rate limit counts: so many at once,
# and then each second. Each takes 0.3 ms of CPU, so 22 bytes of a pipelined GET cost as much as 5 kB of a photo. A page
# view has four, a load balancer's health check one each second.
CHEAP_AT_ONCE = 400
CHEAP_PER_SECOND = 200
_MAX_CLIENTS = 10_000

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
    # Heads of requests that have not been answered: a client may have 64 kB of them on each connection.
    heads: ByteBudget = field(default_factory=lambda: ByteBudget(16 << 20, 8 << 20))
    # As many as http.client, Apache httpd and gunicorn take: 64 kB of empty ones take 2 MB of memory, 10 ms to parse.
    max_fields: int = 100
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
    # Empty lines between requests, of which RFC 9112, 2.2, has a server ignore one.
    max_empty_lines: int = 16


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


class Pace(Generic[_Connection]):
    """Start times of clients' cheap requests: some at once, then so many each second.

    It is the generic cell rate algorithm of ATM. A connection whose request has to wait is held until then, and neither
    read nor answered. From any thread.
    """

    def __init__(self, per_second: float = CHEAP_PER_SECOND, at_once: float = CHEAP_AT_ONCE) -> None:
        self._interval = 1 / per_second
        self._slack = at_once / per_second
        self._ends: OrderedDict[str, float] = OrderedDict()
        self.held: list[tuple[float, int, _Connection]] = []  # start, order and connection; a heap
        self._count = 0
        self._lock = threading.Lock()

    def holds(self, connection: _Connection, client: str) -> bool:
        """Count a client's request; whether it waits until ``due`` returns it."""
        now = time.monotonic()
        with self._lock:
            start = max(self._ends.get(client, 0.0), now - self._slack) + self._interval
            self._ends[client] = start
            self._ends.move_to_end(client)
            while len(self._ends) > _MAX_CLIENTS or next(iter(self._ends.values())) < now - self._slack:
                self._ends.popitem(last=False)
            if start <= now:
                return False
            self._count += 1
            heapq.heappush(self.held, (start, self._count, connection))
            return True

    def due(self) -> list[_Connection]:
        """Connections whose request starts now."""
        now = time.monotonic()
        found: list[_Connection] = []
        with self._lock:
            while self.held and self.held[0][0] <= now:
                found.append(heapq.heappop(self.held)[2])
        return found

    def seconds(self, longest: float) -> float:
        """Seconds until a connection is due, at most ``longest``."""
        with self._lock:
            return min(longest, self.held[0][0] - time.monotonic()) if self.held else longest
