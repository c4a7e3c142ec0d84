"""Twenty restarts under load, behind a balancer that hears of them as kube-proxy does: late."""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import selectors
import shutil
import socket
import subprocess
import threading
import time

import pytest
from fakes import GatewayProcess, image_bytes

RESTARTS = 20
# What a Service takes to hear that a pod is not ready: the endpoint's way over the API server to each node.
PROPAGATION_SECONDS = 0.2
AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
PHOTO = image_bytes()


class Balancer:
    """Connections in turn to the ready backends; open ones stay where they are, as with a Service."""

    def __init__(self) -> None:
        self.backends: list = []
        self.failed = 0  # connections that found nobody
        self._turn = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopped:
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj.fileno() >= 0:  # not closed with its other side just before
                    self._forward(key.fileobj, key.data)

    def _accept(self):
        client, _ = self._listener.accept()
        self._turn += 1
        backends = self.backends
        try:
            there = socket.create_connection(("127.0.0.1", backends[self._turn % len(backends)]), timeout=5)
        except OSError:
            self.failed += 1
            client.close()
            return
        self._selector.register(client, selectors.EVENT_READ, there)
        self._selector.register(there, selectors.EVENT_READ, client)

    def _forward(self, source, sink):
        with contextlib.suppress(OSError):
            if data := source.recv(1 << 20):
                sink.sendall(data)
                return
        for side in (source, sink):
            self._selector.unregister(side)
            side.close()

    def stop(self):
        self._stopped = True
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


def can_unshare():
    return shutil.which("unshare") is not None and not subprocess.run([*AS_PID_1, "true"], check=False).returncode


@pytest.mark.timeout(300)
def test_twenty_restarts_under_load_fail_no_request(stack, model_server, photo_server):
    """Uploads and URLs, on connections that are kept and on new ones; every other gateway is PID 1 of its namespace."""
    photo_server.paths["/photo"] = PHOTO
    model_server.model.delay = 0.05
    prefixes = (AS_PID_1, ()) if can_unshare() else ((),)
    balancer = Balancer()
    stack.callback(balancer.stop)
    address = ("127.0.0.1", balancer.port)
    answers = collections.Counter()
    asks = {
        "upload": ("/predict", PHOTO, {"Content-Type": "image/jpeg"}),
        "url": (
            "/classify",
            json.dumps({"url": f"{photo_server.url}/photo"}).encode(),
            {"Content-Type": "application/json"},
        ),
    }
    stop = threading.Event()

    def start(prefix):
        gateway = GatewayProcess(
            model_server.address,
            prefix=prefix,
            drain_delay_seconds=2 * PROPAGATION_SECONDS,
            fetch_allowed_networks="127.0.0.0/8",
            fetch_allowed_ports=photo_server.port,
        )
        stack.callback(gateway.stop)
        return gateway

    def client(ask, *, kept):
        connection = http.client.HTTPConnection(*address, timeout=30)
        while not stop.is_set():
            try:
                connection.request("POST", *asks[ask])
                response = connection.getresponse()
                response.read()
                answers[ask, kept, response.status] += 1
            except (OSError, http.client.HTTPException) as error:
                answers[ask, kept, repr(error)] += 1
                connection.close()
            if not kept:
                connection.close()
            time.sleep(0.03)
        connection.close()

    running = collections.deque(start(prefix) for prefix in (prefixes * 2)[:2])
    balancer.backends = [gateway.port for gateway in running]
    clients = [
        threading.Thread(target=client, args=(ask,), kwargs={"kept": kept})
        for ask in asks
        for kept in (True, False)
        for _ in range(2)
    ]
    for thread in clients:
        thread.start()
    ended = []
    try:
        for number in range(RESTARTS):
            running.append(start(prefixes[number % len(prefixes)]))
            balancer.backends = [gateway.port for gateway in running]
            old = running.popleft()
            old.terminate()
            time.sleep(PROPAGATION_SECONDS)
            balancer.backends = [gateway.port for gateway in running]
            ended.append(old)  # its end is waited for while the next one starts
        codes = [gateway.process.wait(20) for gateway in ended]
    finally:
        stop.set()
        for thread in clients:
            thread.join(30)
    print(f"{answers.total()} requests, {RESTARTS} restarts: {dict(answers)}")
    assert codes == [0] * RESTARTS
    assert {status for _, _, status in answers} == {200}
    assert {(ask, kept) for ask, kept, _ in answers} == {(ask, kept) for ask in asks for kept in (True, False)}
    assert balancer.failed == 0
    assert answers.total() > 10 * RESTARTS
