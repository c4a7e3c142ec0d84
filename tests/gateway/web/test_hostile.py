"""Hostile HTTP: request smuggling, header and log injection, slow connections."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import ssl
import threading
import time

import pytest
from fakes import GatewayProcess, ModelServer, image_bytes

PHOTO = image_bytes()
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def talk(gateway, data, seconds=1.5):
    """All that comes back within a time."""
    received = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=seconds) as connection:
        connection.sendall(data)
        try:
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    return received


@pytest.fixture(scope="module")
def gateway():
    model = ModelServer()
    gateway = GatewayProcess(model.address, request_timeout_seconds=2)
    yield gateway
    gateway.stop()
    model.stop()


def length(count):
    return b"Content-Length: %d\r\n" % count


CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        length(5) + CHUNKED,
        CHUNKED + length(5),
        length(5) + b"Transfer-Encoding : chunked\r\n",
        length(5) + b"Transfer-Encoding: \tchunked\r\n",
        length(5) + b"Transfer-Encoding:\x0bchunked\r\n",
        length(5) + b"Transfer-Encoding: xchunked\r\n",
        length(5) + b"Transfer-Encoding: identity, chunked\r\n",
        length(5) + b"Transfer-Encoding: chunked, identity\r\n",
        length(5) + CHUNKED + b"Transfer-Encoding: identity\r\n",
        length(5) + b"Transfer-Encoding: identity\r\n" + CHUNKED,
        length(5) + b"X: y\r\n Transfer-Encoding: chunked\r\n",
        length(5) + b"X: y\nTransfer-Encoding: chunked\r\n",
        length(5) + b"Transfer_Encoding: chunked\r\n",
        CHUNKED + CHUNKED,
        b"Transfer-Encoding: chunked, chunked\r\n",
        length(5) + length(5 + len(SMUGGLED)),
        length(5 + len(SMUGGLED)) + length(5),
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5_0\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: \xd9\xa5\r\n",
        b"Content_Length: 500\r\n" + length(5),
    ],
    ids=repr,
)
def test_ambiguous_framing_is_refused(gateway, headers):
    """Request smuggling: a body whose end two servers could read differently is refused, and the connection closed."""
    received = talk(gateway, HEAD + headers + b"\r\n0\r\n\r\n" + SMUGGLED)
    statuses = re.findall(rb"HTTP/1\.[01] (\d+) ", received)
    if b"_" in headers.split(b":")[0] + headers.split(b"\n")[1] or b"\r\n " in headers:
        # No second length, whatever it looks like: five bytes are the body, and what follows is a request.
        assert statuses == [b"415", b"404"]
    else:
        assert len(statuses) <= 1, received
        assert statuses in ([], [b"400"], [b"501"], [b"408"]), received


@pytest.mark.parametrize("given", ["a\x00b", "a b", "a" * 129, "é", '"', "<script>", "a\tb", "{}", "%0d%0aX: y"])
def test_invalid_request_id_is_replaced(gateway, given):
    received = talk(
        gateway, b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: " + given.encode() + b"\r\n\r\n"
    )
    assert received.startswith((b"HTTP/1.1 200", b"HTTP/1.0 400"))
    assert given.encode() not in received


@pytest.mark.parametrize(
    "path", ["/a%0d%0a{%22level%22:1}", "/%00", "/%1b[31m", "/\x7f", "/a%22,%22b%22:%22", "/%e2%80%a8"]
)
def test_path_stays_within_its_log_line(gateway, path):
    before = len(gateway.log)
    assert talk(gateway, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()).startswith(
        b"HTTP/1.1 40"
    )
    end = time.monotonic() + 5
    while len(gateway.log) == before:
        assert time.monotonic() < end
        time.sleep(0.01)
    for line in gateway.log[before:]:
        assert line.isascii()
        assert line.rstrip("\n").isprintable()
        assert json.loads(line)["level"] == "info"


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tls_on_the_plain_port_is_answered_at_once(gateway, version):
    """As nginx does; a client that gets silence waits for its timeout."""
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    start = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as sock,
        pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number|record.layer.failure"),
    ):
        context.wrap_socket(sock, server_hostname="localhost")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("hello", [b"\x16\x03\x01\x06\x00\x01" + bytes(1530), b"\x16"], ids=["whole", "first byte"])
def test_tls_on_the_plain_port_gets_400_with_the_reason(gateway, hello):
    received = talk(gateway, hello)
    assert received.startswith(b"HTTP/1.0 400 ")
    assert b"This port speaks plain HTTP; use http:// in its URL." in received
    assert b"\r\nConnection: close\r\n" in received
    asks(gateway, 1)


def test_endless_headers_are_431(gateway):
    many = talk(
        gateway, b"GET /ping HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n", 5
    )
    assert b" 431 " in many[:15]
    one = talk(gateway, b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 5)
    assert b" 431 " in one[:15]


@pytest.fixture
def many_files():
    """Room for the connections of a thousand clients in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def opened(port, count, address):
    """Connections from one address of the loopback network."""
    return [socket.create_connection(("127.0.0.1", port), 10, (address, 0)) for _ in range(count)]


def is_closed_within(connections, seconds):
    """How many of the connections the other side closes within so many seconds."""
    until, closed = time.monotonic() + seconds, 0
    for connection in connections:
        connection.settimeout(max(until - time.monotonic(), 0.01))
        try:
            while connection.recv(65536):
                pass
            closed += 1
        except TimeoutError:
            pass
        except ConnectionError:
            closed += 1
    return closed


def asks(gateway, number=5):
    """Honest requests on connections of their own, each answered in time."""
    for _ in range(number):
        start = time.monotonic()
        assert gateway.post("/predict", PHOTO)[0] == 200
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "sent", [b"", b"G", HEAD, HEAD + length(1000) + b"\r\nx"], ids=["silent", "byte", "head", "body"]
)
def test_1000_slow_connections_of_one_client_block_no_other_client(start_gateway, model_server, many_files, sent):
    """It has half of GATEWAY_MAX_CONNECTIONS at most, and for seconds."""
    gateway = start_gateway(model_server.address, request_timeout_seconds=5)
    slow = []
    try:
        for _ in range(1000):
            slow += opened(gateway.port, 1, "127.0.1.1")
            with contextlib.suppress(ConnectionError):
                slow[-1].sendall(sent)
        asks(gateway)
        assert is_closed_within(slow, 15) == 1000
    finally:
        for connection in slow:
            connection.close()


def test_silent_connections_are_closed_in_favour_of_new_ones(start_gateway, model_server, many_files):
    """Over the limit the longest idle connection is closed in favour of the new one."""
    gateway = start_gateway(model_server.address)
    silent = [connection for number in range(1, 13) for connection in opened(gateway.port, 100, f"127.0.1.{number}")]
    try:
        asks(gateway)
        assert is_closed_within(silent[:200], 1) == 200
        assert is_closed_within(silent, 15) == 1200
    finally:
        for connection in silent:
            connection.close()


def test_unread_pipelined_responses_hold_no_thread(start_gateway, model_server):
    """40 connections: one more than there are threads, and some."""
    gateway = start_gateway(model_server.address)
    one = b"GET /openapi.yaml HTTP/1.1\r\nHost: a\r\n\r\n"
    stalled = []
    for _ in range(40):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateway.port))
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.send(one * (65536 // len(one)))
        stalled.append(connection)
    asks(gateway)
    assert gateway.admin("/healthz")[0] == 200
    for connection in stalled:
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n" * 2000])
def test_admin_port_clients_do_not_block_probes(start_gateway, many_files, sent):
    """300 connections, more than it has: from the kubelet's own address, too."""
    gateway = start_gateway("127.0.0.1:1", wait_ready=False)
    held = []
    for number in range(6):
        for connection in opened(gateway.admin_port, 50, f"127.0.0.{number + 1}"):
            held.append(connection)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection.send(sent)
    for _ in range(5):
        start = time.monotonic()
        assert gateway.admin("/healthz")[0] == 200
        assert time.monotonic() - start < 2
    assert is_closed_within(held, 25) == 300
    for connection in held:
        connection.close()


def test_slow_urls_in_one_request_delay_no_other(start_gateway, model_server, photo_server):
    """More requests of two slow URLs than there are permits to work."""
    go = threading.Event()
    photo_server.paths["/slow"] = lambda handler: go.wait(20)
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    body = json.dumps({"urls": [f"{photo_server.url}/slow"] * 2}).encode()
    head = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + length(len(body)) + b"\r\n"
    slow = opened(gateway.port, len(os.sched_getaffinity(0)) + 4, "127.0.0.1")
    for connection in slow:
        connection.sendall(head + body)
    end = time.monotonic() + 10
    while len(photo_server.asked) < 2 * len(slow):
        assert time.monotonic() < end
        time.sleep(0.01)
    asks(gateway)
    go.set()
    for connection in slow:
        connection.close()


def test_bodies_without_a_key_take_no_memory(start_gateway, model_server, many_files, tmp_path):
    """200 MB that stop before their last byte: more than GATEWAY_MAX_BUFFERED_BYTES."""
    (tmp_path / "keys").write_text("shop k3y-of-the-web-shop\n")
    gateway = start_gateway(model_server.address, keys_file=tmp_path / "keys")
    sent = HEAD + length((1 << 20) + 1) + b"\r\n" + bytes(1 << 20)
    bodies = opened(gateway.port, 200, "127.0.1.1")
    for connection in bodies:
        connection.sendall(sent)
    assert "gateway_buffered_bytes 0.0" in gateway.admin("/metrics")[1]
    for _ in range(5):
        assert gateway.post("/predict", PHOTO, Authorization="Bearer k3y-of-the-web-shop")[0] == 200
    bodies[0].sendall(b"x")
    assert b"HTTP/1.1 401 " in bodies[0].recv(65536)
    for connection in bodies:
        connection.close()


def test_bodies_over_a_rate_limit_take_no_memory(start_gateway, model_server):
    gateway = start_gateway(model_server.address, rate_photos_per_minute=1, rate_burst_photos=1, max_photos=1)
    assert gateway.post("/predict", PHOTO)[0] == 200
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(HEAD + length(1000) + b"\r\n" + bytes(999))
        assert "gateway_buffered_bytes 0.0" in gateway.admin("/metrics")[1]
        connection.sendall(b"x")
        assert b"HTTP/1.1 429 " in connection.recv(65536)


def test_one_client_has_its_share_of_the_buffered_bytes(start_gateway, model_server):
    gateway = start_gateway(
        model_server.address, max_body_bytes=100_000, fetch_max_bytes=100_000, max_buffered_bytes=600_000
    )
    bodies = opened(gateway.port, 6, "127.0.1.1")
    for connection in bodies:
        connection.sendall(HEAD + length(100_000) + b"\r\n" + bytes(99_000))
    end = time.monotonic() + 10
    while "gateway_buffered_bytes 297000.0" not in gateway.admin("/metrics")[1]:
        assert time.monotonic() < end
        time.sleep(0.02)
    asks(gateway)
    assert gateway.post("/predict", bytes(100_000))[0] == 415
    for connection in bodies:
        connection.close()


@pytest.mark.parametrize("path", [b"/predict", b"//classify", b"/ping"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_json_body_is_limited_to_64_kb(gateway, path, framing):
    def ask(size):
        body = b'{"":0}'.ljust(size)
        head = b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
        if framing == "length":
            return talk(gateway, head + length(size) + b"\r\n" + body)
        return talk(gateway, head + CHUNKED + b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body))

    most = 65536 - (len(b"ffff\r\n\r\n0\r\n\r\n") if framing == "chunks" else 0)
    assert b" 413 " not in ask(most)[:20]
    assert ask(most + 1).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "rest",
    [b"1\r\nx\r\n" * 20_000, b"1;" + b"a" * 20_000, b"0\r\n" + b"X: y\r\n" * 20_000, b"0\r\nX: " + b"a" * 20_000],
    ids=["bytes", "extension", "trailers", "trailer"],
)
def test_chunked_bodies_that_are_no_content_are_refused(gateway, rest):
    received = talk(gateway, HEAD + CHUNKED + b"\r\n" + rest)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    asks(gateway, 1)


def test_chunked_http_1_0_is_refused(gateway):
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n" + length(5) + CHUNKED
    assert re.findall(rb"HTTP/1\.[01] (\d+) ", talk(gateway, head + b"\r\n0\r\n\r\n" + SMUGGLED)) == [b"400"]
