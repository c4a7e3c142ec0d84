"""Model servers whose threads are all in use: they refuse at once, as TensorFlow Serving does, and are not absent."""

from __future__ import annotations

import threading
import time
from concurrent import futures

import grpc
import pytest
from fakes import FakeModel, ModelServer
from models import ask, photo, wait_until

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    ClientLeft,
    GatewayError,
    ModelBusy,
    ModelOutOfMemory,
    ModelQueueFull,
    ModelUnavailable,
    OutOfTime,
)

Code = grpc.StatusCode
QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"
NO_THREAD = ["", "Server Threadpool Exhausted", "Concurrent RPC limit exceeded!"]


@pytest.fixture
def serve(stack):
    """Start model servers with few threads."""

    def serve(threads, **options):
        server = ModelServer(FakeModel(**options), threads=threads)
        stack.callback(server.stop)
        return server

    return serve


def concurrently(predictor, calls, seconds=20.0):
    """The outcome of each of these calls: a prediction, or the error."""

    def one(_):
        try:
            return ask(predictor, None, seconds)
        except GatewayError as error:
            return error

    with futures.ThreadPoolExecutor(calls) as pool:
        return list(pool.map(one, range(calls)))


def failed(outcomes):
    return [one for one in outcomes if isinstance(one, Exception)]


def test_fake_server_refuses_like_tensorflow_serving(make, serve):
    """With N threads N - 1 calls run; the next is refused at once, metadata too, and health checks never."""
    server = serve(4, delay=3.0)
    with grpc.insecure_channel(server.address) as channel:
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        predictor = make(server.address)
        predictor.watcher.check()
        with futures.ThreadPoolExecutor(3) as pool:
            running = [pool.submit(ask, predictor) for _ in range(3)]
            wait_until(lambda: len(server.model.calls) == 3)
            other = make(server.address)
            start = time.monotonic()
            other.watcher.check()
            assert time.monotonic() - start < 1.5
            assert ("GetModelMetadata", "RESOURCE_EXHAUSTED") in other.counted
            assert health(b"") == b"\x08\x01"
            assert [one.result().version for one in running] == [1] * 3


@pytest.mark.parametrize("details", NO_THREAD)
def test_a_call_without_a_thread_is_retried(make, model_server, details):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [(Code.RESOURCE_EXHAUSTED, details)] * 3
    assert len(ask(predictor).scores) == 1
    assert [code for method, code in predictor.counted if method == "Predict"] == ["RESOURCE_EXHAUSTED"] * 3 + ["OK"]


@pytest.mark.parametrize(
    ("failure", "expected", "calls"),
    [
        ((Code.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[8,3]"), ModelOutOfMemory, 1),
        ((Code.RESOURCE_EXHAUSTED, QUEUE_FULL), ModelQueueFull, 1),
        ((Code.UNAVAILABLE, QUEUE_FULL), ModelQueueFull, 3),
    ],
)
def test_other_exhausted_resources_are_not_retried_as_busy(make, model_server, failure, expected, calls):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [failure] * 100
    with pytest.raises(expected) as caught:
        ask(predictor)
    assert len(model_server.model.calls) == calls
    assert caught.value.retry_after == (None if expected is ModelOutOfMemory else 1)


def test_retries_end_with_the_deadline(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail = [(Code.RESOURCE_EXHAUSTED, "")] * 1000
    start = time.monotonic()
    with pytest.raises(ModelBusy) as caught:
        ask(predictor, None, 1.0)
    assert time.monotonic() - start <= 1.0
    assert caught.value.retry_after == 1
    assert 2 < len(model_server.model.calls) < 20  # with pauses


def test_retries_are_throttled(make, model_server):
    predictor = make(model_server.address, max_in_flight=2, max_photos=2)  # 8 tokens, of which 3 may be spent
    predictor.watcher.check()
    model_server.model.fail = [(Code.RESOURCE_EXHAUSTED, "")] * 1000
    for _ in range(10):
        with pytest.raises(ModelBusy):
            ask(predictor)
    assert len(model_server.model.calls) == 13


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_more_calls_than_threads_wait_in_the_gateway(make, serve, threads):
    server = serve(threads, delay=0.05)
    predictor = make(server.address)
    predictor.watcher.check()
    assert failed(concurrently(predictor, 24)) == []
    first = server.threads.refused
    assert failed(concurrently(predictor, 24)) == []
    assert server.threads.refused - first < 12  # by now it is known how many are accepted


def test_another_server_with_a_free_thread_is_found(make, stack):
    servers = [ModelServer(FakeModel(delay=delay), threads=4) for delay in (0.5, 0.01)]
    for server in servers:
        stack.callback(server.stop)
    predictor = make("ipv4:" + ",".join(server.address for server in servers))
    predictor.watcher.check()
    assert failed(concurrently(predictor, 24)) == []


def test_two_gateways_share_the_threads(make, serve):
    server = serve(8, delay=0.05)
    predictors = [make(server.address) for _ in range(2)]
    for predictor in predictors:
        predictor.watcher.check()
    with futures.ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda predictor: [concurrently(predictor, 16) for _ in range(6)], predictors))
    assert [failed(one) for each in outcomes for one in each] == [[]] * 12


def test_call_without_a_slot_in_time_is_busy_and_not_sent(make, serve):
    server = serve(2, delay=0.3)
    predictor = make(server.address)
    predictor.watcher.check()
    ask(predictor)  # the mean duration of a call: 0.3 s
    outcomes = concurrently(predictor, 12, 1.0)
    errors = failed(outcomes)
    assert {type(error) for error in errors} <= {ModelBusy, OutOfTime}  # the latter where a call took longer than usual
    assert len([error for error in errors if isinstance(error, ModelBusy)]) >= 7
    assert 1 <= len(outcomes) - len(errors) <= 4


def test_calls_that_expire_beside_others_are_busy_and_fewer_calls_follow(make, serve):
    server = serve(64, delay=30.0)
    predictor = make(server.address, request_timeout_seconds=2)
    predictor.watcher.check()
    errors = failed(concurrently(predictor, 8, 2.0))
    assert [type(error) for error in errors] == [ModelBusy] * 8
    assert {error.retry_after for error in errors} == {1}
    assert (predictor.slots.limit, predictor.slots.in_flight) == (4, 0)


def test_call_that_expires_alone_is_out_of_time(make, serve):
    """The model is too slow for the request timeout: a retry would expire as well."""
    server = serve(64, delay=30.0)
    predictor = make(server.address, request_timeout_seconds=1)
    predictor.watcher.check()
    with pytest.raises(OutOfTime):
        ask(predictor, None, 1.0)


def test_short_client_timeouts_do_not_lower_the_limit(make, serve):
    server = serve(64, delay=3.0)
    predictor = make(server.address)
    predictor.watcher.check()
    limit = predictor.slots.limit
    errors = failed(concurrently(predictor, 8, 0.3))
    assert {type(error) for error in errors} <= {OutOfTime, ModelBusy}  # the latter for want of a slot in that time
    assert OutOfTime in {type(error) for error in errors}
    assert predictor.slots.limit == limit


def test_expired_calls_of_disconnected_clients_halve_the_limit(make, serve):
    server = serve(64, delay=30.0)
    predictor = make(server.address, request_timeout_seconds=2, max_in_flight=8)
    predictor.watcher.check()
    left, outcomes = threading.Event(), []
    threads = [threading.Thread(target=leave, args=(predictor, left, outcomes, 2.0)) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(server.model.calls) == 8)
    left.set()
    for thread in threads:
        thread.join(5)
    wait_until(lambda: predictor.slots.in_flight == 0)
    assert predictor.slots.limit == 4


def test_full_server_keeps_the_model_ready(make, model_server):
    """It refuses everything, metadata included, for as long as 20 checks take."""
    predictor = make(model_server.address)
    predictor.watcher.start()
    wait_until(lambda: predictor.versions.not_ready is None)
    model_server.model.fail_metadata = (Code.RESOURCE_EXHAUSTED, "")
    model_server.model.fail = [(Code.RESOURCE_EXHAUSTED, "")] * 1000
    refused = len(predictor.counted)
    while len(predictor.counted) < refused + 20:
        assert predictor.versions.not_ready is None
        with pytest.raises((ModelBusy, OutOfTime)):  # the latter where this machine itself is full
            ask(predictor, None, 0.3)
    assert predictor.versions.not_ready is None
    model_server.model.fail_metadata, model_server.model.fail = None, []
    assert len(ask(predictor).scores) == 1


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED])
def test_server_refusing_metadata_keeps_the_model_ready(make, model_server, code):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail_metadata = (code, "")
    for _ in range(10):
        ask(predictor)
        predictor.watcher.check()
    assert predictor.versions.not_ready is None
    assert predictor.versions.stable.failures == 0


def test_unresponsive_server_makes_the_model_not_ready(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail_metadata = (Code.DEADLINE_EXCEEDED, "")
    for _ in range(3):
        assert predictor.versions.not_ready is None
        predictor.watcher.check()
    assert "can't be reached (DEADLINE_EXCEEDED" in predictor.versions.not_ready


def test_refusals_do_not_hide_a_lost_server(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail_metadata = (Code.RESOURCE_EXHAUSTED, "")
    predictor.watcher.check()
    model_server.model.fail_metadata = (Code.UNAVAILABLE, "away")
    for _ in range(3):
        predictor.watcher.check()
    assert "UNAVAILABLE" in predictor.versions.not_ready


def test_gateway_started_before_a_full_server_logs_it_and_becomes_ready(make, model_server):
    model_server.model.fail_metadata = (Code.RESOURCE_EXHAUSTED, "")
    predictor = make(model_server.address, model_check_seconds=60)
    predictor.watcher.start()
    wait_until(lambda: "too busy" in predictor.versions.not_ready)
    assert "grpc_max_threads" in predictor.versions.not_ready
    model_server.model.fail_metadata = None
    start = time.monotonic()
    wait_until(lambda: predictor.versions.not_ready is None)
    assert time.monotonic() - start < 1


def test_model_check_gets_a_thread_on_a_server_full_of_own_calls(make, serve):
    server = serve(4, delay=0.1)
    predictor = make(server.address)
    predictor.watcher.check()
    with futures.ThreadPoolExecutor(12) as pool:
        running = [pool.submit(lambda: [ask(predictor, None, 20) for _ in range(8)]) for _ in range(12)]
        wait_until(lambda: server.threads.refused > 0)
        time.sleep(0.3)  # until it is known how many are accepted
        before = len(predictor.counted)
        for _ in range(5):
            predictor.watcher.check()
        checks = [code for method, code in predictor.counted[before:] if method == "GetModelMetadata"]
        for one in running:
            one.result()
    assert checks.count("OK") >= 3


def leave(predictor, left, outcomes, seconds=10):
    """A call whose client disconnects when the event is set."""
    try:
        predictor.predict(predictor.versions.route(), [photo()], Deadline.after(seconds), (), left.is_set)
    except ClientLeft as error:
        outcomes.append(error)


def test_disconnected_clients_slot_is_held_until_its_call_ends(make, serve):
    """The server works on: with its clients gone, no further call may be sent to it than it has threads for."""
    server = serve(64, delay=3.0)
    predictor = make(server.address, max_in_flight=8)
    predictor.watcher.check()
    slots, left, outcomes = predictor._channels.slots, threading.Event(), []
    threads = [threading.Thread(target=leave, args=(predictor, left, outcomes)) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(server.model.calls) == 8)
    left.set()
    for thread in threads:
        thread.join(1.5)
    assert len(outcomes) == 8
    assert slots.in_flight == 8
    with pytest.raises(ModelBusy):
        ask(predictor, None, 0.1)
    wait_until(lambda: slots.in_flight == 0)
    assert (server.model.ended, server.model.cancelled.is_set()) == (8, False)
    assert predictor.counted.count(("Predict", "OK")) == 8
    assert len(ask(predictor).scores) == 1


def test_client_disconnected_in_the_queue_makes_no_call(make, serve):
    server = serve(64, delay=0.5)
    predictor = make(server.address, max_in_flight=1, max_photos=1)
    predictor.watcher.check()
    left, outcomes = threading.Event(), []
    with futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, predictor)
        wait_until(lambda: server.model.calls)
        thread = threading.Thread(target=leave, args=(predictor, left, outcomes))
        thread.start()
        wait_until(lambda: predictor._channels.slots.waiting == 1)
        left.set()
        thread.join(5)
        assert len(running.result().scores) == 1
    assert len(outcomes) == len(server.model.calls) == 1


def test_a_clients_waiting_calls_delay_another_by_one_call(make, serve):
    server = serve(64)
    predictor = make(server.address, max_in_flight=1, max_photos=1)
    predictor.watcher.check()
    server.model.metadata.clear()
    assert predictor.slots.acquire(0)

    def call(client):
        metadata = (("x-request-id", client),)
        predictor.predict(predictor.versions.route(), [photo()], Deadline.after(20), metadata, client=client)

    with futures.ThreadPoolExecutor(5) as pool:
        running = []
        for client in ("many", "many", "many", "many", "one"):
            running.append(pool.submit(call, client))
            wait_until(lambda: predictor.slots.waiting == len(running))
        predictor.slots.release()
        assert [one.result() for one in running] == [None] * 5
    assert [one["x-request-id"] for one in server.model.metadata] == ["many", "one", "many", "many", "many"]


def test_a_server_that_stops_frees_the_slots(make, stack):
    server = ModelServer(FakeModel(delay=0.5))
    predictor = make(server.address)
    predictor.watcher.check()
    with futures.ThreadPoolExecutor(4) as pool:
        running = [pool.submit(ask, predictor) for _ in range(4)]
        wait_until(lambda: len(server.model.calls) == 4)
        server.stop()
        assert {type(one.exception()) for one in running} == {ModelUnavailable}
    assert predictor._channels.slots.in_flight == 0
