"""A gateway before a model server that is full, or that loads another version: real processes and sockets."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter

import numpy as np
import pytest
from fakes import FakeModel, ModelServer, image_bytes
from tensorflow.core.framework import types_pb2

PHOTO = image_bytes((40, 30))


def load(gateway, clients, seconds, answer):
    """Clients that send photos for some seconds and wait as Retry-After says; /readyz is asked all the while."""
    end = time.monotonic() + seconds
    ready = Counter()

    def client():
        while time.monotonic() < end:
            status, body, headers = gateway.post("/classify", PHOTO)
            answer(status, body)
            if status == 503:
                time.sleep(float(headers["Retry-After"]))

    def watch():
        while time.monotonic() < end:
            ready[gateway.admin("/readyz")[0]] += 1
            time.sleep(0.1)

    threads = [threading.Thread(target=client) for _ in range(clients)] + [threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    return threads, ready


@pytest.mark.parametrize("threads", [4, 8, 64])
def test_clients_of_a_full_server_wait_in_the_gateway(start_gateway, stack, threads):
    """24 clients and a model of 200 ms: without a wait here, most calls would be refused, metadata too."""
    server = ModelServer(FakeModel(delay=0.2), threads=threads)
    stack.callback(server.stop)
    gateway = start_gateway(server.address)
    codes = Counter()
    running, ready = load(
        gateway, 24, 6, lambda status, body: codes.update([status if status == 200 else body["code"]])
    )
    time.sleep(3)
    waiting, limit = (
        float(re.search(rf"^{name} (.*)$", gateway.admin("/metrics")[1], re.MULTILINE)[1])
        for name in ("gateway_model_waiting_calls", "gateway_model_call_limit")
    )
    for thread in running:
        thread.join()
    if threads < 24:
        assert (waiting > 0, limit in range(threads - 2, threads + 1)) == (True, True), (waiting, limit)
    else:
        assert (waiting, limit) == (0, 32)
    assert set(ready) == {200}
    assert set(codes) == {200}
    assert (server.threads.refused > 0) == (threads < 24)


def test_a_gateway_stays_ready_while_the_server_refuses_everything_for_ten_seconds(start_gateway, stack):
    server = ModelServer(FakeModel(), threads=2)
    stack.callback(server.stop)
    gateway = start_gateway(server.address)
    server.threads.free.acquire()  # the only thread: metadata is refused as photos are
    codes = Counter()
    running, ready = load(gateway, 4, 10, lambda status, body: codes.update([body.get("code", status)]))
    for thread in running:
        thread.join()
    assert set(ready) == {200}
    assert set(codes) <= {"model-busy"}
    server.threads.free.release()
    assert gateway.post("/predict", PHOTO)[0] == 200


@pytest.mark.parametrize("name", ["input_8", "input_16"], ids=["computed", "refused"])
def test_hot_reload_to_another_input_size_fails_no_request(start_gateway, stack, name):
    """TensorFlow Serving computes tensors of the former size without a word, or refuses them by their name."""
    model = FakeModel(scores=lambda batch: [np.full(10, photo.shape[0]) for photo in batch])
    server = ModelServer(model)
    stack.callback(server.stop)
    gateway = start_gateway(server.address, model_check_seconds=60)
    answers = []

    def note(status, body):
        answers.append((status, body))

    running, ready = load(gateway, 8, 3, note)
    time.sleep(1)
    model.version, model.inputs = 2, {name: (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}
    for thread in running:
        thread.join()
    assert {status for status, _ in answers} == {200}
    sizes = {(body["model"]["version"], body["predictions"][0]["score"]) for _, body in answers}
    assert sizes == {("1", 8.0), ("2", 16.0)}
    assert set(ready) == {200}
