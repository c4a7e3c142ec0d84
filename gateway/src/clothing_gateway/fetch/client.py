"""HTTP client for photos whose URL a client chose.

Each hop has the same four steps: parse the URL once, resolve its host once, check every address found, connect to one
of exactly these. Nothing after the check sees the name again but the Host header and TLS, so a name that changes
its address in between gains nothing. Redirects are followed here, hop by hop, and no proxy of the environment is used;
one of the settings is asked to CONNECT to the checked address, never to a name.
"""

from __future__ import annotations

import logging
import math
import re
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urljoin

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from clothing_gateway import __version__
from clothing_gateway.authorities import tls_context
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    AddressNotAllowed,
    ClientLeft,
    GatewayError,
    NotAnImage,
    OutOfTime,
    Overloaded,
    PhotoServerFailed,
    TooManyBytes,
)
from clothing_gateway.fetch.policy import Address, Malformed, NotAllowed, Policy, Target
from clothing_gateway.fetch.resolver import NoAddress, NoAnswer, Resolver
from clothing_gateway.fetch.response import COMPRESSIONS, Answer, BadAnswer, Head
from clothing_gateway.limits.admission import ByteBudget

logger = logging.getLogger(__name__)

# One of a host's addresses may be unreachable (an IPv6 route that leads nowhere): then the next one is tried.
CONNECT_TIMEOUT_SECONDS = 3.0
# Of a host's addresses so many are tried: CloudFront has 12. A DNS answer has room for thousands, and one request would
# open a connection to each.
MAX_ADDRESSES = 16
CHUNK_BYTES = 64 * 1024
# A received piece of at least so many bytes is kept as it is: the page that may stay with it is a quarter more.
_KEPT_BYTES = 16 * 1024
IDLE_CONNECTIONS = 32
IDLE_SECONDS = 15.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Poll interval during a fetch: for a client that has disconnected, and of each read from the photo's server.
_LOOK_SECONDS = 0.1
# A refusal after a lookup is answered at a multiple of this: resolvers answer within it, whether a name exists or not,
# and the time of an answer would tell which internal names do (2.5 ms and 5.6 ms were measured).
_REFUSAL_STEP_SECONDS = 0.05
# Many photo servers answer 403 to the names of HTTP libraries.
USER_AGENT = f"clothing-gateway/{__version__}"
# Servers that negotiate send AVIF to whatever takes image/*. The last is for servers that call a photo something else.
ACCEPT = "image/jpeg,image/png,image/webp,image/gif,image/bmp,*/*;q=0.1"
_WEB_PAGE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html|head)\b", re.IGNORECASE | re.DOTALL
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_Key = tuple[str, str, int, str]
HasLeft = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Limit(Deadline):
    """Deadline of a fetch, and whether its client has disconnected."""

    has_left: HasLeft


class _Hold:
    """Bytes reserved in the memory budget for one photo."""

    def __init__(self, budget: ByteBudget, owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self._held = 0

    def grow(self, count: int) -> None:
        if not self._budget.reserve(count, self._owner):
            raise Overloaded(cause="GATEWAY_MAX_BUFFERED_BYTES are in use")
        self._held += count

    def release(self) -> None:
        self._budget.release(self._held, self._owner)
        self._held = 0


class _Watched:
    """Reads from a connection until the deadline, or until the client disconnects.

    A socket's timeout starts anew with each byte, so a server that drips one byte a second would hold a fetch for ever:
    with urllib3's ``Timeout(total=1.0)`` one lasted 3.6 s. So the clock is read after each piece.
    """

    def __init__(self, sock: socket.socket, limit: _Limit) -> None:
        self._sock = sock
        self._limit = limit
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def __call__(self) -> bytes:
        while True:
            now = time.monotonic()
            left = self._limit.at - now
            if left <= 0:
                raise TimeoutError("the photo was not received in time")
            if now >= self._look_at:
                if self._limit.has_left():
                    raise TimeoutError("the client has disconnected")
                self._look_at = now + _LOOK_SECONDS
            wait = min(left, _LOOK_SECONDS)
            timeout = self._sock.gettimeout()  # None: the kernel's, of _LOOK_SECONDS
            if timeout != wait and (timeout is not None or wait < _LOOK_SECONDS):  # each setting is a system call
                self._sock.settimeout(wait)
            with suppress(TimeoutError, BlockingIOError):
                return self._sock.recv(CHUNK_BYTES)


def _let_the_kernel_wait(sock: socket.socket | None) -> None:
    """Set the socket's kernel timeouts (SO_RCVTIMEO), in place of polls before reads.

    At each system call another thread may take the interpreter lock. A TLS socket keeps Python's timeout.
    """
    if sock is not None and not isinstance(sock, ssl.SSLSocket):
        sock.settimeout(None)
        timeval = struct.pack("ll", 0, int(_LOOK_SECONDS * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


class Photo:
    """A fetched photo's bytes; ``close`` releases their part of the memory budget."""

    def __init__(self, data: bytes, hold: _Hold) -> None:
        self.data = data
        self._hold = hold

    def close(self) -> None:
        """Release the bytes' part of the budget."""
        self.data = b""
        self._hold.release()


class Fetcher:
    """Fetches photos; thread-safe."""

    def __init__(
        self,
        policy: Policy,
        budget: ByteBudget,
        *,
        timeout_seconds: float,
        max_bytes: int,
        max_redirects: int,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: tuple[str, int] | None = None,
        user_agent: str = USER_AGENT,
        count: Callable[[str], object] = lambda result: None,
    ) -> None:
        self._policy = policy
        self._budget = budget
        self._timeout = timeout_seconds
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._resolver = resolver or Resolver()
        self._count = count
        self._tls = tls
        self._proxy = proxy
        self._user_agent = user_agent
        self._fields = f"User-Agent: {user_agent}\r\nAccept: {ACCEPT}\r\nAccept-Encoding: identity\r\n"
        self._lock = threading.Lock()
        self._idle: deque[tuple[_Key, float, HTTPConnection]] = deque()

    def fetch(self, url: str, deadline: Deadline, has_left: HasLeft = lambda: False, owner: str = "") -> Photo:
        """Return the photo at ``url``; raise a GatewayError.

        The error is ClientLeft when the client has disconnected. The bytes are of the owner's share of the budget.
        """
        hold = _Hold(self._budget, owner)
        limit = _Limit(deadline.sooner(self._timeout).at, has_left)
        result = "failed"
        try:
            photo = Photo(self._follow(url, limit, hold), hold)
            result = "ok"
            return photo
        except NotAllowed as error:
            result = "not_allowed"
            raise AddressNotAllowed(str(error) if isinstance(error, Malformed) else None, cause=str(error)) from None
        except (HTTPError, HTTPException, OSError, ValueError) as error:  # ValueError: a header that is no number
            if has_left():
                result = "client_left"
                raise ClientLeft from None
            if deadline.remaining() <= 0:
                result = "timeout"
                raise OutOfTime("The request's deadline expired while the photo was fetched; retry later.") from None
            if limit.remaining() <= 0:
                result = "timeout"
                raise PhotoServerFailed(
                    "The photo did not arrive in time; retry, or upload it.", cause=f"{type(error).__name__}: {error}"
                ) from None
            detail = (
                "The photo's server sent an invalid HTTP response; upload the photo."
                if isinstance(error, BadAnswer)
                else None
            )
            raise PhotoServerFailed(detail, cause=f"{type(error).__name__}: {error}") from None
        except GatewayError as error:
            if not isinstance(error, PhotoServerFailed):
                result = error.code.replace("-", "_")
            raise
        finally:
            if result != "ok":
                hold.release()
            self._count(result)

    def _follow(self, url: str, limit: _Limit, hold: _Hold) -> bytes:
        url = url.strip(" \t\r\n")  # what pasting adds; browsers strip it, too
        target = self._policy.target(url)
        for _ in range(self._max_redirects + 1):
            found = self._get(target, self._addresses(target, limit), limit, hold)
            if isinstance(found, bytes):
                return found
            before, url = url, _redirected(url, found)
            if url == before:
                raise PhotoServerFailed("The photo's address redirects to itself; upload the photo instead.")
            try:
                target = self._policy.target(url)
            except Malformed as error:  # no mistake of the client's
                raise NotAllowed(f"a redirect: {error}") from None
        raise PhotoServerFailed(f"The photo's address redirects more than {self._max_redirects} times; upload it.")

    def _addresses(self, target: Target, limit: Deadline) -> list[Address]:
        if target.address is not None:
            self._policy.check([target.address])
            return [target.address]
        began = time.monotonic()
        try:
            addresses = self._resolver.addresses(target.host, limit)
            self._policy.check(addresses)
        except NoAddress as error:
            # The same answer as for a forbidden address: the difference would tell which internal names exist.
            _even_out(began, limit)
            raise NotAllowed(f"{target.host} has no address: {error}") from None
        except NotAllowed:
            _even_out(began, limit)
            raise
        except NoAnswer as error:
            raise TimeoutError(f"{target.host} could not be looked up: {error}") from None
        return addresses

    def _get(self, target: Target, addresses: list[Address], limit: _Limit, hold: _Hold) -> bytes | str:
        """Return the photo, or the Location of a redirect."""
        reused = self._take_idle(target, addresses)
        if reused is not None:
            connection, key = reused
            try:
                return self._exchange(connection, key, target, limit, hold)
            except _StaleConnectionError:
                pass  # the server has closed it meanwhile: retry on a new one
        connection, key = self._connect(target, addresses, limit)
        try:
            return self._exchange(connection, key, target, limit, hold)
        except _StaleConnectionError as error:
            raise OSError(str(error)) from None

    def _connect(self, target: Target, addresses: list[Address], limit: Deadline) -> tuple[HTTPConnection, _Key]:
        last: Exception = OSError("no time left to connect")
        for address in addresses[:MAX_ADDRESSES]:
            left = limit.remaining()
            if left <= 0:
                break
            connection = self._connection(target, str(address), min(left, CONNECT_TIMEOUT_SECONDS))
            try:
                connection.connect()
                _let_the_kernel_wait(connection.sock)
            except (HTTPError, OSError) as error:
                connection.close()
                last = error
                continue
            return connection, (target.scheme, target.host, target.port, str(address))
        raise last

    def _connection(self, target: Target, address: str, timeout: float) -> HTTPConnection:
        host, port = self._proxy or (address, target.port)
        if target.scheme == "http":
            return self._tunnelled(HTTPConnection(host, port, timeout=timeout), target, address)
        timeout /= 2  # it applies twice: to connect, and to the handshake
        with self._lock:
            if self._tls is None:
                # Made once: reading the machine's certificates takes 20 ms. SSL_CERT_FILE names others.
                self._tls = _tls_context()
        connection = HTTPSConnection(
            host,
            port,
            timeout=timeout,
            ssl_context=self._tls,
            server_hostname=target.host,  # for SNI, and what the certificate must be for
        )
        return self._tunnelled(connection, target, address)

    def _tunnelled(self, connection: HTTPConnection, target: Target, address: str) -> HTTPConnection:
        """Return the connection, through the proxy where one is set.

        Plain http goes through a tunnel, too: asked for http://name/ a proxy would look the name up by itself.
        """
        if self._proxy is not None:
            connection.set_tunnel(address, target.port, {"User-Agent": self._user_agent}, scheme="http")
        return connection

    def _exchange(
        self, connection: HTTPConnection, key: _Key, target: Target, limit: _Limit, hold: _Hold
    ) -> bytes | str:
        sock = connection.sock
        if sock is None:
            raise OSError("not connected")
        answer = Answer(_Watched(sock, limit))
        keep = False
        try:
            try:
                sock.sendall(
                    f"GET {target.path} HTTP/1.1\r\nHost: {target.host_header}\r\n{self._fields}\r\n".encode("ascii")
                )
                head = answer.head()
            except ConnectionError as error:
                raise _StaleConnectionError(f"{type(error).__name__}: {error}") from error
            if head.status in _REDIRECTS and head.location:
                return head.location
            data = self._read(answer, head, hold)
            keep = head.reusable and not answer.surplus
            return data
        finally:
            if keep:
                self._keep_idle(connection, key)
            else:
                connection.close()

    def _read(self, answer: Answer, head: Head, hold: _Hold) -> bytes:
        if head.status != 200:
            raise PhotoServerFailed(f"The photo's server answered with status {head.status}; check the address.")
        if not COMPRESSIONS.isdisjoint(head.encodings):
            raise PhotoServerFailed("The photo's server sent it compressed; upload the photo.")
        if head.length is not None and head.length > self._max_bytes:
            raise self._too_many()
        pieces: list[bytes | bytearray] = []
        total = 0
        for piece in answer.body(head):
            total += len(piece)
            if total > self._max_bytes:
                raise self._too_many()
            hold.grow(len(piece))  # as they are received: an announced length must not use up the budget
            # A small piece is copied: each packet has a buffer of CHUNK_BYTES, allocated before it arrives, of which a
            # page would stay with it: two bytes took 4 kB.
            if len(piece) >= _KEPT_BYTES:
                pieces.append(piece)
            elif pieces and isinstance(pieces[-1], bytearray):
                pieces[-1] += piece
            else:
                pieces.append(bytearray(piece))
        data = b"".join(pieces)
        if _WEB_PAGE.match(data, 0, 4096):
            raise NotAnImage("The address gave a web page; send the photo's own address.")
        return data

    def _too_many(self) -> TooManyBytes:
        return TooManyBytes(f"The photo is too large; at most {self._max_bytes} bytes are fetched.")

    def _take_idle(self, target: Target, addresses: list[Address]) -> tuple[HTTPConnection, _Key] | None:
        """Return the idle connection used last to one of the addresses just checked."""
        now = time.monotonic()
        wanted = {(target.scheme, target.host, target.port, str(address)) for address in addresses}
        expired: list[HTTPConnection] = []
        found: tuple[HTTPConnection, _Key] | None = None
        with self._lock:
            while self._idle and self._idle[0][1] < now:
                expired.append(self._idle.popleft()[2])
            for index in range(len(self._idle) - 1, -1, -1):
                key, _, connection = self._idle[index]
                if key in wanted:
                    del self._idle[index]
                    if connection.is_connected:
                        found = connection, key
                        break
                    expired.append(connection)
        for connection in expired:
            connection.close()
        return found

    def _keep_idle(self, connection: HTTPConnection, key: _Key) -> None:
        with self._lock:
            self._idle.append((key, time.monotonic() + IDLE_SECONDS, connection))
            surplus = self._idle.popleft()[2] if len(self._idle) > IDLE_CONNECTIONS else None
        if surplus is not None:
            surplus.close()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = list(self._idle), deque()
        for _, _, connection in idle:
            with suppress(OSError):
                connection.close()


def _redirected(url: str, location: str) -> str:
    """Resolve a Location (RFC 9110 10.2.2); an absolute URL is unchanged."""
    if _ABSOLUTE.match(location):
        return location
    try:
        return urljoin(url, location)
    except ValueError:  # its text holds the URL
        raise PhotoServerFailed("The photo's server redirects to an invalid URL; upload the photo.") from None


def _even_out(began: float, limit: Deadline) -> None:
    """Sleep until a refusal has taken a multiple of _REFUSAL_STEP_SECONDS.

    It ends at the deadline at the latest.
    """
    taken = time.monotonic() - began
    wait = math.ceil(taken / _REFUSAL_STEP_SECONDS) * _REFUSAL_STEP_SECONDS - taken
    time.sleep(max(0.0, min(wait, limit.remaining())))


def _tls_context() -> ssl.SSLContext:
    context = tls_context()
    # RFC 9525 6.3: a certificate's names are its subjectAltName's, and the common name is none of them.
    context.hostname_checks_common_name = False
    return context


class _StaleConnectionError(Exception):
    """The connection was closed before a response began."""
