"""The server and its workers, with a small application: real sockets, with epoll and with poll."""

from __future__ import annotations

import select
import socket
import threading
import time

import pytest
from waitress.channel import HTTPChannel

from clothing_gateway.limits.admission import ByteBudget
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web.limits import Limits
from clothing_gateway.web.requests import Lifecycle
from clothing_gateway.web.server import Listener
from clothing_gateway.web.workers import Workers

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
def listener(request, monkeypatch):
    if request.param == "poll":  # as on macOS
        monkeypatch.delattr(select, "epoll")
    sock = socket.create_server(("127.0.0.1", 0))
    limits = Limits(max_body_bytes=100_000, budget=ByteBudget(1 << 20))
    lifecycle = Lifecycle(0.5, Metrics(""))
    one = Listener(application, sock, limits, lifecycle, threads=4, concurrency=2, max_connections=50)
    stop = threading.Event()
    loop = threading.Thread(target=one.serve, args=(stop,))
    loop.start()
    yield one
    stop.set()
    one.wake()
    loop.join(5)
    assert not loop.is_alive()
    one.stop_accepting()
    assert one.drain(threading.Event(), until=time.monotonic() + 5) == 0
    assert not one.active_channels
    one.trigger.close()


def connect(listener):
    return socket.create_connection(("127.0.0.1", listener.port), timeout=10)


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


def test_connections_over_the_limit_wait_for_a_free_one(listener):
    connections = [connect(listener) for _ in range(60)]
    answered = []
    for connection in connections:
        connection.sendall(request(b"a"))
    for connection in connections[:40]:
        answered.append(read(connection, 2)[-2:])
        connection.close()
    for connection in connections[40:]:
        answered.append(read(connection, 2)[-2:])
        connection.close()
    assert answered == [b"/a"] * 60


def test_late_requests_and_idle_connections_are_closed(listener):
    late, idle = connect(listener), connect(listener)
    late.sendall(b"POST /a HTTP/1.1\r\n")
    assert late.recv(100) == b""
    listener.adj.channel_timeout = 0
    assert idle.recv(100) == b""
    late.close()
    idle.close()


class Task:
    def __init__(self, do):
        self.do, self.cancelled, self.thread = do, False, None
        self.done = threading.Event()

    def service(self):
        self.thread = threading.current_thread()
        try:
            self.do()
        finally:
            self.done.set()

    def cancel(self):
        self.cancelled = True


def test_last_idle_thread_runs_the_next_task():
    workers = Workers(8, 3)
    threads = set()
    for _ in range(20):
        task = Task(lambda: None)
        workers.add_task(task)
        assert task.done.wait(5)
        threads.add(task.thread)
        time.sleep(0.005)
    assert len(threads) == 1
    assert not workers.shutdown()


def test_queue_is_fifo():
    workers = Workers(1, 1)
    go, order = threading.Event(), []
    workers.add_task(Task(lambda: go.wait(5)))
    tasks = [Task(lambda number=number: order.append(number)) for number in range(10)]
    for task in tasks:
        workers.add_task(task)
    go.set()
    assert tasks[-1].done.wait(5)
    assert order == list(range(10))
    assert not workers.shutdown()


def test_thread_survives_a_failing_task(caplog):
    workers = Workers(1, 1)
    for failure in (ZeroDivisionError, SystemExit):
        workers.add_task(Task(lambda failure=failure: (_ for _ in ()).throw(failure)))
    task = Task(lambda: None)
    workers.add_task(task)
    assert task.done.wait(5)
    assert len(caplog.records) == 2
    workers.shutdown()


def test_shutdown_waits_for_running_tasks_and_cancels_queued_ones():
    workers = Workers(2, 2)
    go = threading.Event()
    running = [Task(lambda: go.wait(5)) for _ in range(2)]
    waiting = [Task(lambda: None) for _ in range(3)]
    for task in (*running, *waiting):
        workers.add_task(task)
    threading.Timer(0.1, go.set).start()
    assert workers.shutdown(timeout=5)
    assert all(task.done.is_set() for task in running)
    assert all(task.cancelled and task.thread is None for task in waiting)


def test_concurrency_limit_and_urgent_tasks():
    workers = Workers(6, 2)
    go = threading.Event()
    tasks = [Task(lambda: go.wait(5)) for _ in range(4)]
    for task in tasks:
        workers.add_task(task)
    urgent = Task(lambda: None)
    workers.add_task(urgent, urgent=True)
    assert urgent.done.wait(5)
    end = time.monotonic() + 5
    while not (tasks[0].thread and tasks[1].thread) and time.monotonic() < end:
        time.sleep(0.01)  # a thread that was told to work may not have begun
    assert [task.thread is not None for task in tasks] == [True, True, False, False]
    go.set()
    assert all(task.done.wait(5) for task in tasks)
    assert not workers.shutdown()
    assert workers._working == 0


def test_blocking_releases_the_permit():
    workers = Workers(6, 1)
    answered, go_on, order = threading.Event(), threading.Event(), []

    def ask():
        with workers.blocking():
            answered.wait(5)
        order.append("goes on at once")
        go_on.wait(5)

    first, second, third = Task(ask), Task(lambda: order.append("meanwhile")), Task(lambda: order.append("later"))
    workers.add_task(first)
    workers.add_task(second)
    assert second.done.wait(5)
    answered.set()
    while len(order) < 2:
        time.sleep(0.001)
    workers.add_task(third)
    assert not third.done.wait(0.05)
    go_on.set()
    assert third.done.wait(5)
    assert order == ["meanwhile", "goes on at once", "later"]
    workers.shutdown()
    assert workers._working == 0


def test_blocking_outside_a_worker_is_a_noop():
    workers = Workers(2, 1)
    with workers.blocking():
        pass
    done = Task(lambda: workers.blocking().__enter__())
    workers.add_task(done, urgent=True)
    assert done.done.wait(5)
    assert workers._working == 0
    workers.shutdown()


def test_200_tasks_keep_the_concurrency_limit():
    workers = Workers(8, 3)
    lock, now, most = threading.Lock(), [0], [0]

    def work():
        for _ in range(3):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.0005)
            with lock:
                now[0] -= 1
        with workers.blocking():
            time.sleep(0.002)

    tasks = [Task(work) for _ in range(200)]
    for task in tasks:
        workers.add_task(task)
    assert all(task.done.wait(10) for task in tasks)
    assert not workers.shutdown()
    assert workers._working == 0
    assert most[0] == 3
