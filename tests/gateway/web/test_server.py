"""The server and its workers, with a small application: real sockets, with epoll and with poll."""

from __future__ import annotations

import contextlib
import errno
import re
import select
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from waitress.channel import HTTPChannel

from clothing_gateway.limits.admission import ByteBudget
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web import limits, waitress_adapter
from clothing_gateway.web.limits import Connections, Pace, PortLimits
from clothing_gateway.web.requests import Lifecycle
from clothing_gateway.web.server import Listener

LARGE = 8_000_000


def application(environ, start_response):
    body = environ["wsgi.input"].read()
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(0.3)
    answer = b"x" * LARGE if path == "/large" else path.encode() + body
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


@pytest.fixture(params=["epoll", "poll"])
def serve(request, monkeypatch):
    """Start a listener with limits of the test's own; it is drained at the end."""
    if request.param == "poll":  # as on macOS
        monkeypatch.delattr(select, "epoll")
    with contextlib.ExitStack() as stack:

        def start(**limits):
            sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
            limits = {"max_connections": 50, "max_connections_per_client": 50} | limits
            limits = PortLimits(max_body_bytes=100_000, budget=ByteBudget(1 << 20), **limits)
            one = Listener(application, sock, limits, Lifecycle(0.5, Metrics("")), threads=4, concurrency=2)
            stop = threading.Event()
            loop = threading.Thread(target=one.serve, args=(stop,))
            loop.start()
            stack.callback(end, one, stop, loop)
            return one

        yield start


def end(one, stop, loop):
    stop.set()
    one.wake()
    loop.join(5)
    assert not loop.is_alive()
    one.stop_accepting()
    assert one.drain(threading.Event(), until=time.monotonic() + 5) == 0
    assert not one.active_channels
    assert len(one.connections) == 0
    one.trigger.close()


@pytest.fixture
def listener(serve):
    return serve()


def connect(listener, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", listener.port), timeout=10, source_address=(source, 0))


def is_open(connection):
    """Whether the other side has the connection open, now."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


def wait_for(condition, seconds=5):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def request(path, body=b"", *headers):
    lines = [b"POST /%s HTTP/1.1" % path, b"Host: a", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def read(connection, count=None):
    """An answer with so many bytes in its body, or everything to the end."""
    data, start = bytearray(), -1
    while count is None or start < 0 or len(data) < start + 4 + count:
        piece = connection.recv(1 << 20)
        if not piece:
            break
        data += piece
        start = data.find(b"\r\n\r\n") if start < 0 else start
    return bytes(data)


def test_many_requests_on_one_connection(listener):
    with connect(listener) as connection:
        for number in range(200):
            body = b"%d" % number
            connection.sendall(request(b"a", body))
            answer = read(connection, 2 + len(body))
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\n/a" + body)


def test_response_is_one_packet(listener, monkeypatch):
    sent = []
    send = HTTPChannel.send
    monkeypatch.setattr(HTTPChannel, "send", lambda self, data, **more: sent.append(data) or send(self, data, **more))
    with connect(listener) as connection:
        for _ in range(3):
            connection.sendall(request(b"a", b"1234567890"))
            assert read(connection, 12).endswith(b"/a1234567890")
    assert [data.count(b"/a1234567890") for data in sent] == [1, 1, 1]


def test_a_request_in_pieces(listener):
    with connect(listener) as connection:
        for piece in (request(b"a", b"1234567890" * 1000)[at : at + 997] for at in range(0, 11_000, 997)):
            connection.sendall(piece)
            time.sleep(0.002)
        assert read(connection, 10_002).endswith(b"/a" + b"1234567890" * 1000)


def test_pipelined_requests(listener):
    with connect(listener) as connection:
        connection.sendall(b"".join(request(b"a", b"%d" % number) for number in range(9)) + request(b"z"))
        data = b""
        while not data.endswith(b"/z"):
            data += connection.recv(65536)
        assert [data.count(b"\r\n\r\n/a%d" % number) for number in range(9)] == [1] * 9
        assert data.index(b"/a1") < data.index(b"/a7") < data.index(b"/z")


def test_slowly_read_response(listener):
    with connect(listener) as connection, connect(listener) as other:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
        connection.sendall(request(b"large"))
        time.sleep(0.1)
        other.sendall(request(b"a"))
        assert read(other, 2).endswith(b"/a")  # others are served meanwhile
        data = read(connection, LARGE)
        assert len(data.partition(b"\r\n\r\n")[2]) == LARGE
        connection.sendall(request(b"b"))
        assert read(connection, 2).endswith(b"/b")


def test_more_connections_than_threads(listener):
    connections = [connect(listener) for _ in range(40)]
    for connection in connections:
        connection.sendall(request(b"a"))
    for connection in connections:
        assert read(connection, 2).endswith(b"/a")
        connection.close()


def test_disconnects_release_everything(listener):
    for path in (b"a", b"slow", b"large"):
        connection = connect(listener)
        connection.sendall(request(path))
        connection.close()
        half = connect(listener)
        half.sendall(request(path, b"123")[:-1])
        half.close()
    with connect(listener) as connection:
        connection.sendall(request(b"a", b"", b"Connection: close"))
        assert read(connection).endswith(b"/a")
    end = time.monotonic() + 5
    while listener.active_channels:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert listener.limits.budget.reserved == 0


def test_busy_connections_over_the_limit_wait_for_a_free_one(serve):
    listener = serve(max_connections=3)
    busy = [connect(listener) for _ in range(3)]
    for connection in busy:
        connection.sendall(request(b"slow"))
    wait_for(lambda: listener.connections.full)
    more = [connect(listener) for _ in range(4)]
    for connection in more:
        connection.sendall(request(b"a"))
    for connection in busy:
        assert read(connection, 5).endswith(b"/slow")
    for connection in more:
        assert read(connection, 2).endswith(b"/a")
    for connection in (*busy, *more):
        connection.close()


def test_longest_idle_connection_is_closed_in_favour_of_a_new_one(serve):
    listener = serve(max_connections=3)
    first, second, third = (connect(listener) for _ in range(3))
    for connection in (second, third, first):  # the second has been idle for the longest
        connection.sendall(request(b"a"))
        assert read(connection, 2).endswith(b"/a")
        time.sleep(0.02)
    fourth = connect(listener)
    fourth.sendall(request(b"b"))
    assert read(fourth, 2).endswith(b"/b")
    assert [is_open(one) for one in (first, second, third, fourth)] == [True, False, True, True]
    assert len(listener.connections) == 3
    for connection in (first, second, third, fourth):
        connection.close()


def test_one_client_has_its_share_of_the_connections(serve):
    listener = serve(max_connections=6, max_connections_per_client=3)
    mine = [connect(listener) for _ in range(3)]
    for connection in mine:
        connection.sendall(request(b"a", b"12")[:-1])  # a request that is being received is not idle
    wait_for(lambda: not listener.connections.idle(9))
    with connect(listener) as beyond:
        assert beyond.recv(1) == b""
    assert all(map(is_open, mine))
    others = [connect(listener, f"127.0.0.{number}") for number in (2, 3, 4)]
    for connection in others:
        connection.sendall(request(b"b"))
        assert read(connection, 2).endswith(b"/b")
    wait_for(lambda: len(listener.connections.idle(9)) == 3)
    for number, connection in enumerate(mine, 4):
        connection.sendall(b"2")
        assert read(connection, 4).endswith(b"/a12")
        wait_for(lambda number=number: len(listener.connections.idle(9)) == number)  # a moment after its response
    with connect(listener) as instead:  # of the first, which is idle now
        instead.sendall(request(b"c"))
        assert read(instead, 2).endswith(b"/c")
        assert [is_open(one) for one in (*mine, *others)] == [False, True, True, True, True, True]
    for connection in (*mine, *others):
        connection.close()


def test_default_limits_are_those_of_the_security_model():
    ports = PortLimits(max_body_bytes=1, budget=ByteBudget(1), max_connections=1, max_connections_per_client=1)
    assert (ports.first_byte_seconds, ports.head_seconds, ports.stalled_seconds) == (10, 10, 10)
    assert (ports.max_fields, ports.max_pipelined, ports.max_empty_lines, ports.max_json_bytes) == (100, 16, 16, 65536)
    most = 8 << 20
    assert [ports.heads.reserve(count, "a") for count in (most, 1)] == [True, False]


def test_counted_connections():
    connections = Connections(4, 2)
    for number, client in enumerate("aabc"):
        connections.add(number, client)
    assert (connections.crowded, connections.full, len(connections)) == (True, False, 4)
    assert [connections.crowded_by(client) for client in "abcd"] == [True, False, False, False]
    connections.set_busy(0)
    connections.set_idle(1)
    assert (connections.idle(9), connections.idle(1), connections.idle(9, "a")) == ([2, 3, 1], [2], [1])
    for number in (1, 2, 3):
        connections.set_busy(number)
    assert connections.full
    connections.discard(0)
    connections.discard(0)
    connections.set_idle(0)
    assert (connections.crowded_by("a"), connections.full, connections.idle(9)) == (False, False, [])


def test_silent_late_and_idle_connections_are_closed(serve):
    listener = serve(first_byte_seconds=0.5, head_seconds=0.5, idle_seconds=3)
    silent, late, idle = (connect(listener) for _ in range(3))
    late.sendall(b"POST /a HTTP/1.1\r\n")
    idle.sendall(request(b"a"))
    assert read(idle, 2).endswith(b"/a")
    start = time.monotonic()
    assert silent.recv(1) == late.recv(1) == b""
    assert time.monotonic() - start < 2.5
    assert is_open(idle)
    idle.settimeout(10)
    assert idle.recv(1) == b""
    assert time.monotonic() - start > 2.5
    for connection in (silent, late, idle):
        connection.close()


def test_accepting_pauses_when_file_descriptors_are_exhausted(listener, monkeypatch, caplog):
    accept, failed = listener.accept, []

    def exhausted():
        if not failed:
            failed.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")
        return accept()

    monkeypatch.setattr(listener, "accept", exhausted)
    with connect(listener) as connection:
        connection.sendall(request(b"a"))
        assert read(connection, 2).endswith(b"/a")
    assert time.monotonic() - failed[0] > 0.9
    assert [record.getMessage() for record in caplog.records] == ["accepting paused: Too many open files"]


def test_response_that_its_client_does_not_take_ends_the_connection(serve):
    """Also with requests behind it, whose worker would wait for the client for ever."""
    listener = serve(stalled_seconds=0.5)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", listener.port))
        connection.sendall(request(b"large") * 9)
        wait_for(lambda: listener.active_channels)
        wait_for(lambda: not listener.active_channels)
    with connect(listener) as other:
        other.sendall(request(b"a"))
        assert read(other, 2).endswith(b"/a")


def test_pipelined_requests_are_limited_to_sixteen(listener):
    def answered(count):
        with connect(listener) as connection:
            connection.sendall(b"".join(request(b"a", b"%02d" % number) for number in range(count)))
            data = b""
            try:
                while data.count(b"HTTP/1.1 200 OK") < count or not data.endswith(b"%02d" % (count - 1)):
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    data += piece
            except ConnectionError:
                pass
            return data

    assert b"Connection: close" not in answered(16)
    data = answered(17)
    assert data.count(b"HTTP/1.1 200 OK") == 16
    assert data.count(b"Connection: close") == 1
    assert data.rpartition(b"Connection: close")[2].endswith(b"/a15")
    assert answered(1000).count(b"HTTP/1.1 200 OK") == 16


def first_line(listener, data):
    """Status line of the first response; empty where the connection is closed without one."""
    with connect(listener) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        return connection.recv(65536).partition(b"\r\n")[0]
    return b""


def test_header_fields_are_limited_to_100(listener):
    """Each takes 200 bytes of memory, and 64 kB have 13,000 empty ones."""
    head = b"GET /a HTTP/1.1\r\nHost: a\r\n"
    fields = [b"X-%d:\r\n" % number for number in range(100)]
    assert b" 200 " in first_line(listener, head + b"".join(fields[:99]) + b"\r\n")
    assert b" 431 " in first_line(listener, head + b"".join(fields) + b"\r\n")


def test_head_is_limited_to_64_kb(listener):
    head = b"GET /a HTTP/1.1\r\nX: %b\r\n\r\n"
    most = 65535 - len(head % b"")
    assert b" 200 " in first_line(listener, head % (b"x" * most))
    assert b" 431 " in first_line(listener, head % (b"x" * (most + 1)))


def test_heads_of_one_client_are_counted(serve):
    """Those that wait behind another and those that aren't complete; the sum is limited, and is released."""
    heads = ByteBudget(200_000, 100_000)
    listener = serve(heads=heads)
    head = b"GET /slow HTTP/1.1\r\nX: "
    with connect(listener) as unfinished:
        unfinished.sendall(head + b"x" * (60_000 - len(head)))
        wait_for(lambda: heads.reserved == 60_000)
    wait_for(lambda: heads.reserved == 0)
    with connect(listener) as waiting, connect(listener, "127.0.0.2") as other:
        waiting.sendall((head + b"x" * 6_000 + b"\r\n\r\n") * 15)
        wait_for(lambda: heads.reserved > 48_000)
        assert b" 503 " in first_line(listener, head + b"x" * 60_000)
        other.sendall(head + b"x" * 60_000 + b"\r\n\r\n")
        assert b" 200 " in other.recv(65536)
    wait_for(lambda: heads.reserved == 0)


def test_requests_behind_a_lost_response_are_released(serve, monkeypatch):
    """A worker's write closes the connection, as where the client has reset it."""

    def send(channel, data, do_close=True):
        channel.handle_close()
        return 0

    monkeypatch.setattr(waitress_adapter._Channel, "send", send)
    heads = ByteBudget(200_000, 100_000)
    listener = serve(heads=heads)
    with connect(listener) as connection:
        connection.sendall(request(b"slow") * 3)
        wait_for(lambda: heads.reserved > 0)
        wait_for(lambda: heads.reserved == 0)
    assert not listener.active_channels


def test_empty_lines_between_requests_are_limited_to_sixteen(listener):
    def answer(count):
        return first_line(listener, b"\r\n\r\n" * count + request(b"a"))

    assert b" 200 " in answer(16)
    assert b" 400 " in answer(17)
    with connect(listener) as connection:  # counted anew after each request
        for _ in range(3):
            connection.sendall(b"\r\n\r\n" * 16 + request(b"a"))
            assert read(connection, 2).endswith(b"/a")


@pytest.mark.parametrize("digits", [5, 6, 4300, 4301, 60_000])
def test_length_of_many_digits(listener, caplog, digits):
    """Above 4,300 digits Python's int raises an error of its own."""
    data = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * digits + b"\r\n\r\n"
    if digits == 5:
        assert b" 200 " in first_line(listener, data + b"x" * 99_999)
    else:
        assert (b" 413 " if digits <= 4300 else b" 400 ") in first_line(listener, data)
    assert caplog.text == ""


def test_nothing_is_answered_behind_a_refused_request(listener):
    with connect(listener) as connection:
        connection.sendall(b"POST /a HTTP/1.1\r\nContent-Length: x\r\n\r\n" + request(b"a") * 9)
        assert re.findall(rb"HTTP/1\.[01] (\d+) ", read(connection)) == [b"400"]


def test_cheap_requests_of_one_client_are_paced(listener):
    """On however many connections; another client's start at once."""
    listener.pace = Pace(per_second=20, at_once=10)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(listener)) for _ in range(4)]
        for connection in connections:
            connection.sendall(request(b"a") * 5)
        with connect(listener, "127.0.0.2") as other:
            other.sendall(request(b"b"))
            assert read(other, 2).endswith(b"/b")
        assert time.monotonic() - start < 0.4
        for connection in connections:
            data = b""
            while data.count(b"HTTP/1.1 200") < 5 or not data.endswith(b"/a"):
                data += connection.recv(65536)
    assert time.monotonic() - start > 0.45  # ten at once, and ten at 20 a second


def test_pace():
    pace = Pace(per_second=1000, at_once=3)
    held = [pace.holds(number, "a") for number in range(6)]
    assert held[:3] == [False] * 3
    assert held[-1]
    assert not pace.holds(9, "b")
    due = []
    while len(due) < sum(held):
        time.sleep(pace.seconds(1))
        due += pace.due()
    assert due == [number for number in range(6) if held[number]]
    assert pace.seconds(1) == 1
    time.sleep(0.01)
    assert not pace.holds(7, "a")


def test_400_cheap_requests_start_at_once_and_then_200_each_second(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace = Pace()
    assert [pace.holds(number, "a") for number in range(401)] == [False] * 400 + [True]
    assert pace.due() == []
    now[0] += 1.001  # a second, and what the sums of fractions lack
    assert pace.due() == [400]
    assert [pace.holds(number, "a") for number in range(200)] == [False] * 199 + [True]


def test_stuck_workers_are_noticed(serve):
    listener, go, done = serve(), threading.Event(), threading.Semaphore(0)
    task = SimpleNamespace(service=lambda: go.wait(5) and done.release())
    for _ in range(5):  # one more than there are threads
        listener.task_dispatcher.add_task(task, urgent=True)
    time.sleep(0.3)
    assert 0.25 < listener.stuck_seconds() < 2
    go.set()
    assert all(done.acquire(timeout=5) for _ in range(5))
    assert listener.task_dispatcher.stuck_seconds() == 0
