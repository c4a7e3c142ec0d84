"""Request context: one request's id, deadline, slot, stages and trace.

It exists from the request's first byte to its log line.

The server makes one for each request and passes it on in the WSGI environment (``CONTEXT``); routes, pipeline and
telemetry take it from there. Nothing in it knows HTTP.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import ClientLeft
from clothing_gateway.limits.admission import Slot
from clothing_gateway.limits.workers import Workers
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import Metadata, Trace

# The one key of ours in a request's WSGI environment.
CONTEXT = "clothing_gateway.context"

# No client disconnects sooner, and the look at its connection is a system call, at which another thread takes the GIL.
_GRACE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Client:
    """Who sent a request."""

    identity: str  # the key of its limits: its API key's holder, or its address
    key_name: str | None  # its API key's holder


class Connection(Protocol):
    """What a request may ask of the connection on which it arrived."""

    def client_gone(self) -> bool:
        """Whether the client has closed the connection."""

    @property
    def workers(self) -> Workers | None:
        """The threads of which one answers the request."""


class Detached:
    """No connection: the caller is in this process, and stays."""

    workers: Workers | None = None

    def client_gone(self) -> bool:
        """Never."""
        return False


_DETACHED = Detached()


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request: identity, limits, and observations.

    The observations are for its metrics, log line, trace and Server-Timing header.

    ``start`` is on the clock of ``time.monotonic``; stages are in seconds, summed over the request's photos.
    """

    request_id: str
    start: float
    deadline: Deadline
    metrics: Metrics
    connection: Connection = _DETACHED
    slot: Slot | None = None  # the server's: in flight for an upload, of fetching for URLs; or denied
    working: list[Slot] = field(default_factory=list)  # in-flight slots of fetched photos
    trace: Trace | None = None
    trace_metadata: Metadata = ()  # the trace context for the model server
    model_version: str | None = None  # requested by the client
    origin: str | None = None  # of the page that sent it, where a browser says so
    client: Client | None = None  # once it is known and its rate limit counted
    cause: str | None = None  # an error's cause, for the log
    photos: int = 0
    bytes: int = 0
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def owner(self) -> str:
        """The client whose shares of limits the request uses."""
        return "" if self.client is None else self.client.identity

    @property
    def metadata(self) -> Metadata:
        """Metadata of the Predict call."""
        return (("x-request-id", self.request_id), *self.trace_metadata)

    def client_gone(self) -> bool:
        """Whether the client has closed its connection."""
        return self.connection.client_gone()

    def require_client(self) -> None:
        """Raise ClientLeft if the client has disconnected."""
        if time.monotonic() - self.start > _GRACE_SECONDS and self.connection.client_gone():
            raise ClientLeft

    def blocking(self) -> AbstractContextManager[object]:
        """Release this worker's concurrency permit while it blocks on I/O."""
        workers = self.connection.workers
        return nullcontext() if workers is None else workers.blocking()

    def release(self) -> None:
        """Release all of the request's slots."""
        if self.slot is not None:
            self.slot.release()
        self.release_fetched()

    def release_fetched(self) -> None:
        """Release the in-flight slots of fetched photos."""
        while self.working:
            self.working.pop().release()

    def stage(self, name: str) -> Stage:
        """Time a block as a stage (``telemetry.metrics.STAGES``), also when it fails."""
        return Stage(self, name)

    def record(self, stage: str, seconds: float) -> None:
        """Add one photo's time in a stage; thread-safe.

        Photos of one request run in parallel.
        """
        self.metrics.observe_stage(stage, seconds)
        with self._lock:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        if self.trace is not None:
            self.trace.stage(stage, seconds)


class Stage:
    """Context manager that records the time of its block.

    It is a class, as a generator costs three times as much.
    """

    __slots__ = ("_context", "_name", "_start")

    def __init__(self, context: RequestContext, name: str) -> None:
        self._context = context
        self._name = name

    def __enter__(self) -> None:
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._context.record(self._name, perf_counter() - self._start)
