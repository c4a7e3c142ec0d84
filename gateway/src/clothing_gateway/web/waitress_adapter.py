"""Everything of waitress that this package leans on, in one place.

waitress 3.0 promises neither the hooks that are overridden here nor the attributes that are read. ``LEANED_ON`` lists
them by class, and tests/gateway/web/test_waitress_adapter.py compares the list with the installed waitress: where a
new release changes one, that test names it, and this module is what to adapt. No other module imports waitress.

waitress itself loses requests at SIGTERM (Pylons/waitress#198, #269; a change is proposed in #499).
"""

from __future__ import annotations

import email.utils
import errno
import functools
import logging
import re
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

from clothing_gateway import errors
from clothing_gateway.context import CONTEXT, Client
from clothing_gateway.errors import (
    BadRequest,
    GatewayError,
    HeadersTooLarge,
    Overloaded,
    RequestTooSlow,
    TooManyBytes,
)
from clothing_gateway.limits.admission import Slot
from clothing_gateway.limits.workers import Workers
from clothing_gateway.web.chunked import ChunkedBody
from clothing_gateway.web.limits import Connections, Pace, Pauses, PortLimits
from clothing_gateway.web.rate_limit import client_address
from clothing_gateway.web.requests import Lifecycle

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger = logging.getLogger(__name__)

# The attributes and methods of waitress 3.0 that are overridden, called, read or set here, by class.
LEANED_ON: dict[type, str] = {
    HTTPRequestParser: (
        "body_bytes_received body_rcv chunked close command completed content_length empty error expect_continue "
        "header_bytes_received headers headers_finished parse_header path received version"
    ),
    WSGITask: (
        "build_response_header channel complete content_bytes_written content_length execute get_environment has_body "
        "request response_headers set_close_on_finish start_time status write wrote_header"
    ),
    ErrorTask: "channel content_length execute request response_headers set_close_on_finish status write",
    HTTPChannel: (
        "_fileno add_channel addr del_channel error_task_class handle_close last_activity parser_class readable "
        "received request requests requests_lock send server service socket task_class total_outbufs_len will_close "
        "writable write_soon"
    ),
    TcpWSGIServer: (
        "_fileno _map accept active_channels add_task adj del_channel effective_port handle_accept maintenance "
        "pull_trigger readable set_socket_options socket task_dispatcher trigger"
    ),
}

_NO_LIMIT = 1 << 62
# The only transfer coding that is accepted, and only once.
_CHUNKED = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r?(\n|\Z)", re.IGNORECASE)
# The first byte of a TLS ClientHello (RFC 8446, 5.1); no method of HTTP begins with it.
_TLS_HANDSHAKE = b"\x16"
# Events taken from the kernel in one call.
_EVENTS = 64
# Bytes that are read of a refused body: a photo that is too large is so by some megabytes, and its client is to see
# 413. A gigabyte costs half a second of CPU: where the head announces one, nothing of the body is read.
_DISCARDED_BYTES = 16 << 20
# How long nothing is accepted when the process or the machine has no file descriptor left.
_EXHAUSTED_SECONDS = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Idle connections that are looked at to evict one: some may have received a request a moment ago.
_EVICTION_CANDIDATES = 8
# Combined once: an operation on flags of an enum takes as long as the system call.
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class _Refusal:
    """An error of ours where waitress keeps one of its own."""

    def __init__(self, error: GatewayError) -> None:
        self.error = error
        self.code = error.status


class _Discard:
    """A buffer that keeps nothing."""

    def append(self, data: bytes) -> None:
        """Drop the data."""

    def close(self) -> None:
        """Do nothing."""

    def __len__(self) -> int:
        return 0


class _Request(HTTPRequestParser):
    """One request while it is received.

    A refused body is read on and discarded: if the connection were closed before the client has sent it all, the
    client's system would drop the response, and the client would see a reset instead of 413. But a body is cut that is
    longer than what a client may send by mistake.
    """

    error: Any
    body_rcv: Any
    completed: bool
    expect_continue: bool

    def __init__(self, channel: _Channel, adj: Adjustments) -> None:
        super().__init__(adj)
        self.started = time.monotonic()
        self.cut = False  # whether the rest of the body won't be read
        self.last = False  # whether the connection closes after its response
        self.slot: Slot | None = None
        self.client: Client | None = None
        self.json = False  # whether it has URLs
        self.slotted = False  # whether it needs an in-flight slot
        self.owner = channel.client  # whose share of the byte budget it uses
        self._largest = channel.server.limits.max_body_bytes
        self._channel = channel
        self._limits: PortLimits = channel.server.limits
        self._reserved = 0
        self._head = 0  # reserved bytes of the head
        self._discarded = 0

    @property
    def pauses(self) -> bool:
        """Whether the connection pauses with this request (limits.Pauses)."""
        return self.cut or (self.slot is not None and not self.slot.held)

    def received(self, data: bytes) -> int:
        in_body = self.headers_finished
        if not self.header_bytes_received and self._is_rejected(data):
            return len(data)
        consumed: int = super().received(data)
        if not in_body and self._is_refused(consumed):
            return len(data)
        if isinstance(self.body_rcv, ChunkedBody) and self.body_rcv.error:
            self.error = _Refusal(BadRequest("The chunked body is malformed.", cause=self.body_rcv.error))
        if not in_body and self.headers_finished and self.error is None and not self.empty:
            self._admit()
        self._count_body(consumed, in_body=in_body)
        if self.cut:
            self.completed = True
            return len(data)
        return consumed

    def _count_body(self, count: int, *, in_body: bool) -> None:
        """Apply the body's limits to its length, or to bytes of it that have arrived."""
        if self.error is None and self.headers_finished:
            largest = self._largest
            if (self.body_bytes_received if in_body else self.content_length) > largest:
                self.refuse(TooManyBytes(f"The body is too large; send {largest} bytes at most."))
                self.cut = not self.completed and self.content_length > largest + _DISCARDED_BYTES
            elif in_body:
                if self._limits.budget.reserve(count, self.owner):
                    self._reserved += count
                else:
                    self.refuse(Overloaded(cause="GATEWAY_MAX_BUFFERED_BYTES are in use"))
        elif in_body and isinstance(self.error, _Refusal):
            self._discarded += count
            self.cut = not self.completed and self._discarded > _DISCARDED_BYTES

    def _is_rejected(self, data: bytes) -> bool:
        """Whether a request is complete with its first bytes: one too many, or one of TLS."""
        requests = self._channel.requests
        if len(requests) >= self._limits.max_pipelined or (requests and requests[-1].error):
            # Dropped, and so is what follows: the client sends again what was not answered (RFC 9112, 9.3.2). Behind a
            # refused request, which closes the connection, nothing is answered.
            requests[-1].last = True
            self.completed = self.empty = True
        elif data.startswith(_TLS_HANDSHAKE):
            # Answered at once: a client that gets HTTP says so, one that gets silence waits for its timeout.
            self.error = _Refusal(BadRequest("This port speaks plain HTTP; use http:// in its URL."))
            self.completed = self.cut = True
        return self.completed

    def _is_refused(self, count: int) -> bool:
        """Count a part of the head; whether it ends the request.

        Empty lines in place of a head do, and a head beyond its client's share.
        """
        channel, limits = self._channel, self._limits
        if self.empty:
            channel.empty_lines += 1
            if channel.empty_lines <= limits.max_empty_lines:
                return False
            self.empty = False
            self.error = _Refusal(BadRequest("Empty lines arrived in place of a request; send a request."))
        elif self.error is not None:
            return False
        elif limits.heads.reserve(count, channel.client):
            self._head += count
            if self.headers_finished:
                channel.empty_lines = 0
            return False
        else:
            self.refuse(Overloaded(cause="too many bytes of requests' heads wait"))
        self.completed = self.cut = True
        return True

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the head; ambiguous framing of the body closes the connection.

        waitress accepts Transfer-Encoding beside Content-Length, twice, or in HTTP/1.0, and a proxy may read it
        otherwise: one's body is the other's next request, request smuggling (RFC 9112, section 6.1).
        """
        # Beside the fields there are the request line and the head's end.
        if header_plus.count(b"\n") > self._limits.max_fields + 2:
            super().parse_header(b"GET / HTTP/1.0\r\n")  # as waitress does with a head of too many bytes
            self.error = _Refusal(HeadersTooLarge())
            return
        try:
            super().parse_header(header_plus)
        except ValueError:  # a length of more than 4,300 digits
            raise ParsingError("a number that is none") from None
        encodings = header_plus.lower().count(b"transfer-encoding") if self.chunked else 0
        if "TRANSFER_ENCODING" in self.headers or (
            self.chunked and ("CONTENT_LENGTH" in self.headers or encodings > 1 or not _CHUNKED.search(header_plus))
        ):
            raise ParsingError("a body with two lengths")
        if self.chunked:
            self.body_rcv = ChunkedBody(self.body_rcv.getbuf())

    def _admit(self) -> None:
        """Authenticate the client, apply its rate limit and choose the body's limit.

        None of the body is kept before.
        """
        limits, headers = self._limits, self.headers
        self.json = headers.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() == "application/json"
        if self.json:
            self._largest = min(self._largest, limits.max_json_bytes)
        # As in the WSGI environment, where a path begins with one slash.
        self.slotted = (self.command, "/" + self.path.lstrip("/")) in limits.slotted
        if self.slotted and limits.clients is not None:
            try:
                self.client = limits.clients.admit(
                    str(self._channel.addr[0]), headers.get("AUTHORIZATION"), headers.get("X_FORWARDED_FOR")
                )
            except GatewayError as error:
                self.refuse(error)
            else:
                self.owner = self.client.identity

    def refuse(self, error: GatewayError) -> None:
        """Answer with an error instead of running the application."""
        self.error = _Refusal(error)
        self._release()
        if self.expect_continue:  # the client waits for 100 before it sends its body, and gets the error instead
            self.expect_continue = False
            self.completed = True
        elif self.body_rcv is not None:
            self.body_rcv.getbuf().close()
            self.body_rcv.buf = _Discard()

    def close(self) -> None:
        super().close()
        self._release()
        if self.slot is not None:
            self.slot.release()

    def _release(self) -> None:
        self._limits.budget.release(self._reserved, self.owner)
        self._limits.heads.release(self._head, self._channel.client)
        self._reserved = self._head = 0


@functools.lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    """A second of Unix time as RFC 9110, section 5.6.7 writes it."""
    return email.utils.formatdate(second, usegmt=True)


class _Task(WSGITask):
    """A request for the application."""

    wrote_header: bool

    def execute(self) -> None:
        if self.request.last or self.channel.server.draining:
            self.set_close_on_finish()  # while draining, the client's next request goes to another pod
        super().execute()

    def build_response_header(self) -> bytes:
        """Build the response's head, in common cases at a fifth of waitress's cost.

        Common are those where only the date is to be added.
        """
        request = self.request
        if (
            request.version != "1.1"
            or not self.has_body
            or self.content_length is None  # as in the application's own header
            or request.headers.get("CONNECTION", "").lower() == "close"
            or self.channel.server.adj.ident
        ):
            head: bytes = super().build_response_header()
            return head
        lines = [f"HTTP/1.1 {self.status}", f"Date: {_http_date(int(self.start_time))}"]
        lines += [f"{name}: {value}" for name, value in self.response_headers]
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def write(self, data: bytes) -> None:
        """Send head and body at once where the body is whole: apart they are two packets."""
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
        request: _Request = self.request
        lifecycle: Lifecycle = self.channel.server.lifecycle
        environ[CONTEXT] = lifecycle.begin(environ, request.started, self.channel, request.slot, request.client)
        return environ


class _ErrorTask(ErrorTask):
    """Task for a request that never reaches the application.

    Its response is like the application's own.
    """

    def execute(self) -> None:
        request = self.request
        lifecycle: Lifecycle = self.channel.server.lifecycle
        error = request.error.error if isinstance(request.error, _Refusal) else errors.from_status(request.error.code)
        environ = {f"HTTP_{name}": value for name, value in request.headers.items()}
        context = lifecycle.begin(environ, request.started, self.channel, client=request.client)
        reply = lifecycle.refusal(context, error)
        method, path = getattr(request, "command", "-"), getattr(request, "path", "-")
        headers = lifecycle.end(context, method, path, path if request.slotted else "none", reply.status)
        self.status = reply.status_line
        self.response_headers.extend((*reply.headers, *headers))
        self.set_close_on_finish()
        self.content_length = len(reply.body)
        self.write(reply.body)


class _Channel(HTTPChannel):
    """One client's connection; a ``context.Connection``."""

    task_class = _Task
    error_task_class = _ErrorTask
    request: _Request | None

    def __init__(self, server: Server, *args: object, **kwargs: object) -> None:
        self.parser_class = functools.partial(_Request, self)
        self.client = ""  # the peer's address, of IPv6 its /64
        self.silent = True  # whether nothing has arrived
        self.empty_lines = 0  # since the last request
        self.opened = self.taken = time.monotonic()  # taken: when the client last took bytes, or a response began
        super().__init__(server, *args, **kwargs)

    def client_gone(self) -> bool:
        """Whether the client has closed the connection; nothing is read from it.

        waitress's own client_disconnected needs channel_request_lookahead, which buffers further requests.
        """
        try:
            return not self.socket.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except (OSError, AttributeError):  # reset, or closed on our side
            return True

    def has_arrived(self) -> bool:
        """Whether anything has arrived that has not been read yet."""
        try:
            return bool(self.socket.recv(1, _PEEK))
        except OSError:
            return False

    @property
    def workers(self) -> Workers:
        """The threads that answer this port's requests."""
        workers: Workers = self.server.task_dispatcher
        return workers

    @property
    def idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not self.requests and self.request is None and not self.total_outbufs_len

    @property
    def descriptor(self) -> int | None:
        """The socket's file descriptor while the connection is open."""
        number: int | None = self._fileno
        return number

    def add_channel(self, map: object = None) -> None:  # noqa: A002 - waitress's name
        super().add_channel(map)
        self.server.watch(self)

    def del_channel(self, map: object = None) -> None:  # noqa: A002 - waitress's name
        with self.server.arming:
            super().del_channel(map)
            self.server.connections.discard(self)

    def readable(self) -> bool:
        return self not in self.server.pauses.paused and bool(super().readable())

    def writable(self) -> bool:
        if self in self.server.pauses.paused and not self.total_outbufs_len and not self.will_close:
            return False  # all is sent, and the connection closes after its pause
        return bool(super().writable())

    def received(self, data: bytes) -> bool:
        self.silent = False
        with self.server.arming:
            self.server.connections.set_busy(self)
        return bool(super().received(data))

    def send(self, data: bytes, do_close: bool = True) -> int:  # noqa: FBT001, FBT002 - waitress's signature
        sent: int = super().send(data, do_close=do_close)
        if sent:
            self.taken = time.monotonic()
        return sent

    def service(self) -> None:
        if self.requests[0].pauses:
            self.server.pause(self)
        super().service()
        self.server.arm(self)

    def write_soon(self, data: Any) -> int:  # noqa: ANN401 - waitress's word
        if not self.total_outbufs_len:
            self.taken = time.monotonic()
        written: int = super().write_soon(data)
        if self.total_outbufs_len:
            self.server.arm(self)  # the client reads slowly: the event loop sends the rest
        return written

    def handle_close(self) -> None:
        """Close the connection, and release the requests behind the one in progress.

        waitress forgets them where a worker's write is what finds the connection closed. The first is the worker's.
        """
        with self.requests_lock:
            self.will_close = True  # no more is received
            waiting = self.requests[1:]
            del self.requests[1:]
            if self.request is not None:
                waiting.append(self.request)
                self.request = None
        for request in waiting:
            request.close()
        super().handle_close()

    def maintain(self, now: float, timeout: float) -> None:
        """Close a stalled or idle connection; answer a late request with 408.

        ``now`` is on the clock of ``time.monotonic``; ``timeout`` is a request's, in seconds.
        """
        limits: PortLimits = self.server.limits
        request = self.request
        if self.total_outbufs_len and now - self.taken > limits.stalled_seconds:
            self.handle_close()  # at once, as end() would wait for the client; wakes a worker that writes
        elif request is not None:
            self._end_late(request, now, timeout, limits.head_seconds)
        elif not self.requests:
            if self.silent:
                late = now - self.opened > limits.first_byte_seconds
            else:
                late = time.time() - self.last_activity > limits.idle_seconds
            if late:
                self.end()

    def _end_late(self, request: _Request, now: float, timeout: float, head_timeout: float) -> None:
        age = now - request.started
        if age < timeout and (request.headers_finished or age < head_timeout):
            return
        with self.requests_lock:
            if self.request is not request or self.requests:
                return
            if not request.headers_finished:
                self.end()  # too little has arrived for a response
                return
            if request.error is None:
                request.refuse(RequestTooSlow())
            request.completed = request.cut = True
            self.requests.append(request)
            self.request = None
            self.server.add_task(self)

    def end(self) -> None:
        """Close the connection at the event loop's next turn."""
        self.will_close = True
        self.server.arm(self)


class Server(TcpWSGIServer):
    """A listening socket, its connections and its event loop."""

    def __init__(
        self,
        application: WSGIApplication,
        sock: socket.socket,
        limits: PortLimits,
        lifecycle: Lifecycle,
        *,
        threads: int,
        concurrency: int,
    ) -> None:
        self.limits = limits
        self.lifecycle = lifecycle
        self.pauses: Pauses[_Channel] = Pauses()
        self.pace: Pace[_Channel] = Pace()
        # Used with ``arming`` held.
        self.connections: Connections[_Channel] = Connections(limits.max_connections, limits.max_connections_per_client)
        self.draining = False
        # Held while a connection's next events are chosen and registered with epoll, and while it is unregistered.
        self.arming = threading.Lock()
        self._epoll: select.epoll | None = None
        self._accepts = True
        self._accepts_again = 0.0  # after the file descriptors were exhausted
        self.turned = time.monotonic()  # when the event loop last ran
        adjustments = Adjustments(
            threads=threads,
            # Counted here, as waitress stops accepting at its limit, where an idle connection could be closed.
            connection_limit=_NO_LIMIT,
            # select() ends at file descriptor 1024.
            asyncore_use_poll=True,
            # A photo in few reads: each costs a turn of the event loop.
            recv_bytes=64 * 1024,
            # Bodies stay in memory, within the budget: a read-only root has no place for temporary files.
            inbuf_overflow=_NO_LIMIT,
            # rate_limit.py decides whether to trust X-Forwarded-For.
            clear_untrusted_proxy_headers=False,
            # Checked by _Request, which discards what it refuses.
            max_request_body_size=_NO_LIMIT,
            max_request_header_size=64 * 1024,
            # What one connection's responses may buffer before a worker waits for the client.
            outbuf_high_watermark=1 << 20,
            # How often late requests and idle connections are looked for.
            cleanup_interval=1,
            ident="",
        )
        super().__init__(
            application,
            map={},
            _sock=sock,
            dispatcher=Workers(threads, concurrency),
            adj=adjustments,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
            bind_socket=False,
        )
        if hasattr(select, "epoll"):
            self._epoll = select.epoll()
            self._epoll.register(self.socket, select.EPOLLIN)
            self._epoll.register(self.trigger._fileno, select.EPOLLIN)  # noqa: SLF001 - it has no public one

    @property
    def port(self) -> int:
        """The port, also where the kernel chose one."""
        return int(self.effective_port)

    @property
    def channels(self) -> list[_Channel]:
        """The open connections."""
        return list(self.active_channels.values())

    def add_task(self, task: _Channel) -> None:
        """Enqueue a connection's request.

        A photo's slot is acquired or denied here, before the request waits for a thread, so that those that wait have
        one; its client's share counts. Whatever is no photo with a slot is answered at once, in its client's pace.
        """
        request, limits = task.requests[0], self.limits
        if limits.slots is not None and request.error is None and request.slotted:
            if request.json and limits.fetching is not None and not limits.slots.full(request.owner):
                request.slot = limits.fetching.slot(request.owner)
            else:
                request.slot = limits.slots.slot(request.owner)
        if request.slot is None and self.pace.holds(task, task.client):
            self.wake()  # the loop's turn may be meant to last longer
        else:
            self._start(task)

    def _start(self, task: _Channel) -> None:
        request = task.requests[0]
        urgent = request.slot is None or not request.slot.held
        self.task_dispatcher.add_task(task, urgent=urgent, client=request.owner)

    def watch(self, channel: _Channel) -> None:
        """Wait for a new connection's first request."""
        if self._epoll is not None:
            self._epoll.register(channel.socket, select.EPOLLIN | select.EPOLLONESHOT)

    def arm(self, channel: _Channel) -> None:
        """Wait for a connection's next events, from whatever thread changed them.

        Each event is reported once (EPOLLONESHOT), and none while a request is being answered. waitress asks every
        connection before every turn of its loop which events it waits for, and wakes the loop after every response to
        ask again, which costs 0.2 ms a response at 8 connections, and more at more.
        """
        if self._epoll is None:
            if channel.idle:
                with self.arming:
                    self.connections.set_idle(channel)
            self.wake()
            return
        with self.arming:
            if self._map.get(channel.descriptor) is not channel:
                return  # closed meanwhile
            if channel.idle:
                self.connections.set_idle(channel)
            events = select.EPOLLIN if channel.readable() else 0
            if channel.writable():
                events |= select.EPOLLOUT
            if events:
                self._epoll.modify(channel.socket, events | select.EPOLLONESHOT)

    def pause(self, channel: _Channel) -> None:
        """Read nothing from a connection for a moment, from any thread."""
        if self.pauses.add(channel):
            self.wake()  # the loop's turn may be meant to last longer

    def pull_trigger(self) -> None:
        """Do nothing where waitress would wake the loop: the connection is armed instead."""

    def wake(self) -> None:
        """End the event loop's turn."""
        self.trigger.pull_trigger()

    def maintenance(self, now: float) -> None:
        """Look after every connection, once a second; waitress calls it from ``readable``."""
        del now
        clock = time.monotonic()
        for channel in self.channels:
            channel.maintain(clock, self.lifecycle.timeout_seconds)

    def readable(self) -> bool:
        """Whether a connection can be accepted now, if need be in place of an idle one."""
        return bool(super().readable()) and not self.connections.full and time.monotonic() >= self._accepts_again

    def handle_accept(self) -> None:
        """Accept a connection, unless none fits; it then waits in the kernel."""
        if not self.connections.full:
            self._accept()

    def _accept(self) -> bool:
        """Accept a connection; return whether there was one.

        Over a limit an idle connection is closed in its favour.
        """
        try:
            accepted = self.accept()
            if accepted is None:
                return False
            conn, addr = accepted
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._accepts_again = time.monotonic() + _EXHAUSTED_SECONDS
                logger.error("accepting paused: %s", error.strerror)  # noqa: TRY400 - the trace is always the same
            return False
        client = client_address(str(addr[0]), None, ())
        with self.arming:
            by_client, crowded = self.connections.crowded_by(client), self.connections.crowded
            candidates = self.connections.idle(_EVICTION_CANDIDATES, client if by_client else None)
        if (by_client or crowded) and not self._evict(candidates) and by_client:
            conn.close()
            return True
        try:
            self.set_socket_options(conn)
        except OSError:  # the client has already disconnected (macOS)
            conn.close()
            return True
        channel = _Channel(self, conn, addr, self.adj, map=self._map)
        channel.client = client
        with self.arming:
            self.connections.add(channel, client)
        return True

    def _evict(self, candidates: list[_Channel]) -> bool:
        """Close the first connection that is still idle; whether there was one."""
        for channel in candidates:
            if channel.idle and not channel.has_arrived():
                channel.handle_close()
                return True
        return False

    def stop_accepting(self) -> None:
        """Accept the connections in the kernel's queue, and close the listening socket."""
        ready = select.poll()
        ready.register(self.socket, select.POLLIN)
        while ready.poll(0) and self._accept():
            pass
        self.del_channel()
        # Not close(), which closes the trigger as well, by which the workers wake the loop.
        self.socket.close()

    def shut_down_workers(self) -> None:
        """Cancel queued requests, and stop the threads."""
        self.task_dispatcher.shutdown(cancel_pending=True, timeout=1)

    def _resume(self, seconds: float) -> float:
        """Resume connections that are due; seconds until the next, at most ``seconds``."""
        for channel in self.pauses.resume():
            self.arm(channel)
        for channel in self.pace.due():
            self._start(channel)
        return self.pace.seconds(self.pauses.seconds(seconds))

    def turn(self, seconds: float) -> None:
        """Handle the events of one turn, waiting for them up to ``seconds``."""
        self.turned = time.monotonic()
        if self.pauses.due or self.pace.held:
            seconds = self._resume(seconds)
        if self._epoll is None:
            wasyncore.loop(timeout=seconds, use_poll=True, map=self._map, count=1)
            return
        if self._map.get(self._fileno) is self:  # not closed yet
            accepts = self.readable()  # which calls maintenance, too
            if accepts != self._accepts:
                self._accepts = accepts
                self._epoll.modify(self.socket, select.EPOLLIN if accepts else 0)
        accept = None
        for descriptor, events in self._epoll.poll(max(seconds, 0), _EVENTS):
            one = self._map.get(descriptor)
            if one is self:
                accept = events  # last, as a new connection may get the descriptor of one that closes in this turn
            elif one is not None:
                wasyncore.readwrite(one, events)
                # A connection that has a request is armed after its response.
                if isinstance(one, _Channel) and (not one.requests or one.total_outbufs_len):
                    self.arm(one)
        if accept is not None:
            wasyncore.readwrite(self, accept)
