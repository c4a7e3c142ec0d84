"""waitress, with what it lacks: limits before the body is in memory, one start of the clock, and an orderly end.

This leans on attributes of waitress 3.0 that it does not promise (``_map``, ``active_channels``, ``total_outbufs_len``,
``requests``); pyproject.toml keeps it below 3.1, and tests/gateway/test_gateway.py runs it for real. waitress itself
loses requests at SIGTERM (Pylons/waitress#198, #269; a change is proposed in #499).
"""

from __future__ import annotations

import functools
import http
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

from clothing_gateway import errors
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import GatewayError, Overloaded, RequestTooSlow, TooManyBytes
from clothing_gateway.limits.admission import ByteBudget, Place, Places
from clothing_gateway.pipeline import Ticket
from clothing_gateway.web.requests import HAS_LEFT, PLACE, RECEIVED, WAITING, log_request, request_id_of
from clothing_gateway.web.workers import Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_NO_LIMIT = 1 << 62
# The only transfer coding that is taken, and only once.
_CHUNKED = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r?(\n|\Z)", re.IGNORECASE)
# How long the loop sleeps at most: how late a change from another thread is noticed that nobody announces.
_TICK_SECONDS = 1.0
# Taken from the kernel at a time.
_EVENTS = 64
# How long a connection is not read after a photo on it was refused for want of a place. A client that heeds Retry-After
# never notices; a hundred that ask again at once would take half of the CPU from the photos that have a place. So long,
# too, a connection stays open on which a body is not read to its end: the answer is on its way, and a client that still
# sends has the time to notice it before its system is told that nobody listens.
_REST_SECONDS = 0.25
# What is read of a body that is refused: a photo that is too large is so by some megabytes, and its client is to see
# 413. A gigabyte costs half a second of CPU: where its head says that it is one, nothing of it is read.
_SWALLOWED_BYTES = 16 << 20
# How long the last threads have, once the end can't wait, to put away what they have answered.
_SETTLE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a listener takes."""

    max_body_bytes: int
    request_timeout_seconds: float
    budget: ByteBudget
    # For photos that are worked on, and which requests (method and path) need one.
    places: Places | None = None
    takes_place: Callable[[str, str], bool] = lambda method, path: False
    # Told of each request that is refused here, before the application: (status, seconds since its first byte).
    refused: Callable[[GatewayError, float], None] = lambda error, seconds: None


class _Refusal:
    """An error of ours where waitress keeps one of its own."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error
        self.code = error.status


class _Nowhere:
    """A buffer that keeps nothing."""

    def append(self, data: bytes) -> None:
        """Drop the data."""

    def close(self) -> None:
        """Do nothing."""

    def __len__(self) -> int:
        return 0


class _Parser(HTTPRequestParser):
    """One request on its way in.

    A body that is refused is read on all the same, and thrown away: if the connection were closed before the client has
    sent it all, the client's system would drop the answer, and the client would see a reset instead of 413. But only
    for so many bytes as a client may send that takes it for a photo; a body that has more is cut.
    """

    error: Any
    completed: bool
    expect_continue: bool

    def __init__(self, limits: Limits, adj: Adjustments) -> None:
        super().__init__(adj)
        self.started = time.monotonic()
        self._limits = limits
        self._reserved = 0
        self._swallowed = 0
        self.cut = False  # whether the rest of the body is still to come, and won't be read
        self.place: Place | None = None

    def received(self, data: bytes) -> int:
        in_body = self.headers_finished
        consumed: int = super().received(data)
        if self.error is None and self.headers_finished:
            largest = self._limits.max_body_bytes
            if (self.body_bytes_received if in_body else self.content_length) > largest:
                self.refuse(TooManyBytes(f"The request's body has more than {largest} bytes."))
                self.cut = not self.completed and self.content_length > largest + _SWALLOWED_BYTES
            elif in_body:
                if self._limits.budget.reserve(consumed):
                    self._reserved += consumed
                else:
                    self.refuse(Overloaded(cause="GATEWAY_MAX_BUFFERED_BYTES are in use"))
        elif in_body and isinstance(self.error, _Refusal):
            self._swallowed += consumed
            self.cut = not self.completed and self._swallowed > _SWALLOWED_BYTES
        if self.cut:
            self.completed = True
            return len(data)
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head; a body whose end could be found in two ways is refused, and the connection ends with it.

        waitress takes Transfer-Encoding beside Content-Length, twice, or in HTTP/1.0, and a proxy before it may read
        them otherwise: what is this body to one of them is a next request to the other (RFC 9112, section 6.1).
        """
        super().parse_header(header_plus)
        encodings = header_plus.lower().count(b"transfer-encoding") if self.chunked else 0
        if "TRANSFER_ENCODING" in self.headers or (
            self.chunked and ("CONTENT_LENGTH" in self.headers or encodings > 1 or not _CHUNKED.search(header_plus))
        ):
            raise ParsingError("a body with two lengths")

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error instead of handing the request on."""
        self.error = _Refusal(error)
        self._release()
        if self.expect_continue:  # the client waits to be told before it sends its body, and is told this instead
            self.expect_continue = False
            self.completed = True
        elif self.body_rcv is not None:
            self.body_rcv.getbuf().close()
            self.body_rcv.buf = _Nowhere()

    def close(self) -> None:
        super().close()
        self._release()
        if self.place is not None:
            self.place.leave()

    def _release(self) -> None:
        self._limits.budget.release(self._reserved)
        self._reserved = 0


def _has_left(channel: HTTPChannel) -> bool:
    """Whether the client has closed its connection, seen without taking anything from it.

    waitress's own client_disconnected needs channel_request_lookahead, which reads further requests into memory.
    """
    try:
        return not channel.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:  # reset, or closed on our side
        return True


class _Task(WSGITask):
    """A request for the application."""

    wrote_header: bool

    def execute(self) -> None:
        if self.channel.server.draining:
            self.set_close_on_finish()  # the client's next request goes to another pod
        super().execute()

    def write(self, data: bytes) -> None:
        """Send the head together with the body where that is whole: apart they are two packets."""
        if self.complete and not self.wrote_header:
            head: bytes = self.build_response_header()
            self.wrote_header = True
            if self.has_body and self.content_length == len(data):
                self.content_bytes_written = len(data)
                self.channel.write_soon(head + data)
                return
            self.channel.write_soon(head)
        super().write(data)

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[RECEIVED] = self.request.started
        environ[HAS_LEFT] = functools.partial(_has_left, self.channel)
        environ[WAITING] = self.channel.server.task_dispatcher.waiting
        if self.request.place is not None:
            environ[PLACE] = self.request.place
        return environ


class _ErrorTask(ErrorTask):
    """A request that never reaches the application: a problem+json answer like the application's own."""

    def execute(self) -> None:
        request = self.request
        error = request.error.error if isinstance(request.error, _Refusal) else errors.from_status(request.error.code)
        started = getattr(request, "started", time.monotonic())
        ticket = Ticket(
            request_id_of(request.headers.get("X_REQUEST_ID")), started, Deadline.after(0, started), cause=error.cause
        )
        body = error.body(ticket.request_id)
        self.status = f"{error.status} {http.HTTPStatus(error.status).phrase}"
        self.response_headers.extend({**error.headers(), "X-Request-Id": ticket.request_id}.items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.server.limits.refused(error, time.monotonic() - started)
        log_request(ticket, getattr(request, "command", "-"), getattr(request, "path", "-"), error.status)
        self.write(body)


class _Channel(HTTPChannel):
    """One client's connection."""

    task_class = _Task
    error_task_class = _ErrorTask
    request: _Parser | None

    def __init__(self, server: Listener, *args: object, **kwargs: object) -> None:
        self.parser_class = functools.partial(_Parser, server.limits)
        self.refused = False  # whether the request at work found no place
        self.resting = False
        super().__init__(server, *args, **kwargs)

    @property
    def idle(self) -> bool:
        """Whether nothing is being received, worked on, or sent."""
        return not self.requests and self.request is None and not self.total_outbufs_len

    @property
    def descriptor(self) -> int | None:
        """The socket's, while the connection is open."""
        number: int | None = self._fileno
        return number

    def add_channel(self, map: object = None) -> None:  # noqa: A002 - waitress's name
        super().add_channel(map)
        self.server.watch(self)

    def del_channel(self, map: object = None) -> None:  # noqa: A002 - waitress's name
        with self.server.arming:
            super().del_channel(map)

    def readable(self) -> bool:
        return not self.resting and bool(super().readable())

    def writable(self) -> bool:
        if self.resting and not self.total_outbufs_len and not self.will_close:
            return False  # all is sent, and it is closed after its rest
        return bool(super().writable())

    def service(self) -> None:
        cut = self.requests[0].cut
        self.resting |= cut  # from before the moment in which it could be closed
        super().service()
        if self.refused or cut:
            self.refused = False
            self.server.rest(self)
        self.server.arm(self)

    def write_soon(self, data: Any) -> int:  # noqa: ANN401 - waitress's word
        written: int = super().write_soon(data)
        if self.total_outbufs_len:
            self.server.arm(self)  # the client takes its answer in pieces: the loop sends the rest
        return written

    def handle_close(self) -> None:
        with self.requests_lock:
            request, self.request = self.request, None
        if request is not None:
            request.close()  # it will never be whole: its bytes are free again
        super().handle_close()

    def end_late_request(self, now: float, timeout: float) -> None:
        """Answer a request that has not arrived whole in its time."""
        request = self.request
        if request is None or now - request.started < timeout:
            return
        with self.requests_lock:
            if self.request is not request or self.requests:
                return
            if not request.headers_finished:
                self.end()  # too little is known of it to answer
                return
            if request.error is None:
                request.refuse(RequestTooSlow())
            request.completed = request.cut = True
            self.requests.append(request)
            self.request = None
            self.server.add_task(self)

    def end(self) -> None:
        """Close the connection at the loop's next turn."""
        self.will_close = True
        self.server.arm(self)


class Listener(TcpWSGIServer):
    """One port, its connections, and the threads that answer them."""

    channel_class = _Channel

    def __init__(
        self,
        application: WSGIApplication,
        sock: socket.socket,
        limits: Limits,
        *,
        threads: int,
        at_once: int,
        max_connections: int,
    ) -> None:
        self.limits = limits
        self.draining = False
        adjustments = Adjustments(
            threads=threads,
            connection_limit=max_connections,
            # select() ends at file descriptor 1024.
            asyncore_use_poll=True,
            # A photo in few pieces: each costs a turn of the loop.
            recv_bytes=64 * 1024,
            # Bodies stay in memory, within the budget: a read-only root has no place for temporary files.
            inbuf_overflow=_NO_LIMIT,
            # X-Forwarded-For is for clients.py to believe, or not.
            clear_untrusted_proxy_headers=False,
            # Checked by _Parser, which reads on what it refuses.
            max_request_body_size=_NO_LIMIT,
            max_request_header_size=64 * 1024,
            # Longer than the 60 s of most load balancers, so that it is they who end an idle connection.
            channel_timeout=120,
            # How often late requests are looked for.
            cleanup_interval=1,
            ident="",
        )
        super().__init__(
            application,
            map={},
            _sock=sock,
            dispatcher=Workers(threads, at_once),
            adj=adjustments,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )
        # Held while what a connection waits for is decided and told to epoll, and while one is given up.
        self.arming = threading.Lock()
        self._epoll: select.epoll | None = None
        self._accepts = True
        self._resting: deque[tuple[float, _Channel]] = deque()  # in the order in which they end
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(self.socket, select.EPOLLIN)
            self._epoll.register(self.trigger._fileno, select.EPOLLIN)  # noqa: SLF001 - it has no public one

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for."""
        return int(self.effective_port)

    def add_task(self, task: _Channel) -> None:
        """Have a connection's request answered.

        A photo's place is taken or refused here, before the request waits for a thread, so that those that wait have
        one. Whatever is no photo with a place is answered at once.
        """
        request, limits = task.requests[0], self.limits
        if limits.places is not None and request.error is None and limits.takes_place(request.command, request.path):
            request.place = limits.places.place()
            task.refused = not request.place.held
        self.task_dispatcher.add_task(task, urgent=request.place is None or not request.place.held)

    def watch(self, channel: _Channel) -> None:
        """Wait for a new connection's first request."""
        if self._epoll is not None:
            self._epoll.register(channel.socket, select.EPOLLIN | select.EPOLLONESHOT)

    def arm(self, channel: _Channel) -> None:
        """Wait for what a connection can do next, in whatever thread that changed.

        Each event is told once (EPOLLONESHOT), and none while a request is worked on. waitress asks every connection
        before every turn of its loop what it waits for, and wakes the loop after every answer to have it ask again,
        which costs 0.2 ms an answer at 8 connections, and more at more.
        """
        if self._epoll is None:
            self.wake()
            return
        with self.arming:
            if self._map.get(channel.descriptor) is not channel:
                return  # closed meanwhile
            events = select.EPOLLIN if channel.readable() else 0
            if channel.writable():
                events |= select.EPOLLOUT
            if events:
                self._epoll.modify(channel.socket, events | select.EPOLLONESHOT)

    def rest(self, channel: _Channel) -> None:
        """Read nothing from a connection for a while."""
        channel.resting = True
        first = not self._resting
        self._resting.append((time.monotonic() + _REST_SECONDS, channel))
        if first:
            self.wake()  # its turn may be meant to last longer

    def _end_rests(self) -> float:
        """Read again from those that have rested; seconds until the next has."""
        now = time.monotonic()
        while self._resting:
            due, channel = self._resting[0]
            if due > now:
                return due - now
            self._resting.popleft()
            channel.resting = False
            self.arm(channel)
        return _TICK_SECONDS

    def pull_trigger(self) -> None:
        """Do nothing where waitress would wake the loop: the connection is armed instead."""

    def wake(self) -> None:
        """End the loop's turn."""
        self.trigger.pull_trigger()

    def maintenance(self, now: float) -> None:
        """Close idle connections, and answer requests that don't arrive."""
        clock, oldest = time.monotonic(), now - self.adj.channel_timeout
        for channel in list(self.active_channels.values()):
            if not channel.requests and channel.last_activity < oldest:
                channel.end()
            else:
                channel.end_late_request(clock, self.limits.request_timeout_seconds)

    def serve(self, stop: threading.Event, until: float | None = None) -> None:
        """Serve until told to stop (``wake`` makes it look at once) or until a moment (time.monotonic)."""
        while not stop.is_set():
            left = _TICK_SECONDS if until is None else min(_TICK_SECONDS, until - time.monotonic())
            if left <= 0:
                break
            self._turn(left)

    def stop_accepting(self) -> None:
        """Take in the connections that the kernel has already made, and close the port."""
        ready = select.poll()
        ready.register(self.socket, select.POLLIN)
        while ready.poll(0):
            self.handle_accept()
        self.del_channel()
        # Not close(), which ends the trigger, too, by which the threads wake the loop.
        self.socket.close()

    def drain(self, stop: threading.Event, until: float) -> int:
        """Finish what has been received or is being received; how many connections were cut off in work."""
        self.draining = True
        while self.active_channels and not stop.is_set() and time.monotonic() < until:
            for channel in list(self.active_channels.values()):
                if channel.idle:
                    channel.end()
            self._turn(0.1)
        # A thread whose answer the client already has may not have put the request away yet: that one isn't cut off.
        settled = time.monotonic() + _SETTLE_SECONDS
        while (cut := self._in_work()) and time.monotonic() < settled:
            self._turn(_SETTLE_SECONDS / 10)
        self.task_dispatcher.shutdown(cancel_pending=True, timeout=1)
        return cut

    def _in_work(self) -> int:
        return sum(not channel.idle for channel in list(self.active_channels.values()))

    def _turn(self, seconds: float) -> None:
        if self._resting:
            seconds = min(seconds, self._end_rests())
        if self._epoll is None:
            wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)
            return
        if self._map.get(self._fileno) is self:  # not closed yet
            accepts = self.readable()  # which looks after late requests and idle connections, too
            if accepts != self._accepts:
                self._accepts = accepts
                self._epoll.modify(self.socket, select.EPOLLIN if accepts else 0)
        for descriptor, events in self._epoll.poll(seconds, _EVENTS):
            one = self._map.get(descriptor)
            if one is not None:
                wasyncore.readwrite(one, events)
                if isinstance(one, _Channel):
                    self.arm(one)
