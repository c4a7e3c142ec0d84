"""Hostile HTTP: request smuggling, header and log injection, slow connections."""

from __future__ import annotations

import json
import re
import socket
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


def test_endless_headers_are_431(gateway):
    many = talk(
        gateway, b"GET /ping HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n", 5
    )
    assert b" 431 " in many[:15]
    one = talk(gateway, b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", 5)
    assert b" 431 " in one[:15]


def test_silent_and_slow_connections_keep_no_client_out(gateway):
    silent = [socket.create_connection(("127.0.0.1", gateway.port), timeout=10) for _ in range(200)]
    for number, connection in enumerate(silent):
        connection.sendall((b"", b"G", HEAD, HEAD + length(1000) + b"\r\n" + b"x")[number % 4])
    try:
        for _ in range(5):
            start = time.monotonic()
            assert gateway.post("/predict", PHOTO)[0] == 200
            assert time.monotonic() - start < 2
        end = time.monotonic() + 10
        closed = 0
        for number, connection in enumerate(silent):
            if number % 4 == 0:
                continue  # it has asked for nothing yet, and may wait as an idle connection does
            connection.settimeout(max(end - time.monotonic(), 0.1))
            while connection.recv(65536):
                pass
            closed += 1
        assert closed == 150
    finally:
        for connection in silent:
            connection.close()


def test_chunked_http_1_0_is_refused(gateway):
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n" + length(5) + CHUNKED
    assert re.findall(rb"HTTP/1\.[01] (\d+) ", talk(gateway, head + b"\r\n0\r\n\r\n" + SMUGGLED)) == [b"400"]
