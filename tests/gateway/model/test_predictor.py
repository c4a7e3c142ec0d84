"""The way to the model, over real gRPC, to a server that fails on demand."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from fakes import FakeModel, ModelServer, NameServer
from tensorflow.core.framework import types_pb2

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    BadRequest,
    ModelAnswerUnusable,
    ModelFailed,
    ModelNotReady,
    ModelRefused,
    ModelUnavailable,
    OutOfTime,
    Overloaded,
    TooManyBytes,
)
from clothing_gateway.model import predictor as predictor_module
from clothing_gateway.model.predictor import Predictor, channel_options, is_chosen, target_of
from clothing_gateway.settings import Settings

Code = grpc.StatusCode


@pytest.fixture
def make(stack):
    def make(address, **settings):
        counted = []
        predictor = Predictor(
            Settings(**{"tf_serving_host": address, "model_check_seconds": 0.1, **settings}),
            count=lambda method, code: counted.append((method, code)),
        )
        predictor.counted = counted
        stack.callback(predictor.close)
        return predictor

    return make


def photo(seed=0, size=8, dtype=np.float32):
    return np.random.default_rng(seed).uniform(0, 200, (size, size, 3)).astype(dtype)


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def ask(predictor, photos=None, seconds=5.0, metadata=()):
    return predictor.predict(
        predictor.model(), [photo()] if photos is None else photos, Deadline.after(seconds), metadata
    )


def test_scores_come_back_as_the_model_gave_them(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    prediction = ask(predictor, metadata=(("x-request-id", "req-1"),))
    assert prediction.scores.tolist() == [photo().ravel()[:10].tolist()]
    assert prediction.version == 1
    (request,) = model_server.model.calls
    assert request.model_spec.name == "clothing-model"
    assert request.model_spec.signature_name == "serving_default"
    assert not request.model_spec.HasField("version")
    assert list(request.output_filter) == ["dense_7"]
    assert model_server.model.metadata[0]["x-request-id"] == "req-1"
    assert predictor.counted == [("GetModelMetadata", "OK"), ("Predict", "OK")]


def test_tensor_content_is_read_as_well(make, model_server):
    model_server.model.as_content = True
    predictor = make(model_server.address)
    predictor.check()
    assert ask(predictor).scores.tolist() == [photo().ravel()[:10].tolist()]


def test_photos_go_in_batches(make, model_server):
    predictor = make(model_server.address, predict_batch_size=3)
    predictor.check()
    photos = [photo(seed) for seed in range(7)]
    prediction = ask(predictor, photos)
    assert np.array_equal(prediction.scores, np.stack([one.ravel()[:10] for one in photos]))
    sizes = [next(iter(call.inputs.values())).tensor_shape.dim[0].size for call in model_server.model.calls]
    assert sizes == [3, 3, 1]


def test_a_batch_fixed_at_one_is_kept_to(make, model_server):
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (1, 8, 8, 3))}
    predictor = make(model_server.address)
    predictor.check()
    assert len(ask(predictor, [photo(1), photo(2)]).scores) == 2
    assert len(model_server.model.calls) == 2


def test_a_version_is_asked_for_by_number(make, model_server):
    model_server.model.version = 7
    predictor = make(model_server.address, model_version=7)
    predictor.check()
    assert ask(predictor).version == 7
    assert model_server.model.calls[0].model_spec.version.value == 7


def test_a_version_is_asked_for_by_label_and_the_label_may_move(make, model_server):
    model_server.model.others = (2,)
    model_server.model.labels = {"stable": 2}
    predictor = make(model_server.address, model_label="stable")
    predictor.check()
    assert ask(predictor).version == 2
    spec = model_server.model.calls[0].model_spec
    assert (spec.version_label, spec.HasField("version")) == ("stable", False)
    model_server.model.labels = {"stable": 1}
    assert ask(predictor).version == 1


def answered(predictor, request_id="", selected=None):
    """The version that answers a request, by what the server itself says."""
    model = predictor.model(request_id, selected)
    return predictor.predict(model, [photo(size=model.size[0])], Deadline.after(5)).version


def test_the_canary_gets_its_part_of_the_requests_and_the_same_ones_again(make, model_server):
    model_server.model.others = (2,)
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=20.0)
    predictor.check()
    ids = [f"request-{number}" for number in range(1000)]
    chosen = {one for one in ids if predictor.model(one).version == 2}
    assert 150 < len(chosen) < 250
    assert chosen == {one for one in ids if predictor.model(one).version == 2}
    for one in [*sorted(chosen)[:3], *sorted(set(ids) - chosen)[:3]]:
        assert answered(predictor, one) == (2 if one in chosen else 1)


@pytest.mark.parametrize(("percent", "versions"), [(0.0, {1}), (100.0, {2})])
def test_none_and_all(make, model_server, percent, versions):
    model_server.model.others = (2,)
    model_server.model.labels = {"stable": 1, "canary": 2}
    settings = {"model_label": "stable", "canary_label": "canary", "canary_percent": percent}
    predictor = make(model_server.address, **settings)
    predictor.check()
    assert {answered(predictor, f"request-{number}") for number in range(20)} == versions


def test_a_larger_share_keeps_those_that_were_chosen():
    ids = [f"request-{number}" for number in range(500)]
    small = {one for one in ids if is_chosen(one, 10)}
    assert small < {one for one in ids if is_chosen(one, 50)}


def test_a_canary_that_is_not_there_gets_nothing_and_keeps_nobody_from_the_stable_version(make, model_server):
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=100.0)
    predictor.check()
    assert predictor.not_ready is None
    assert answered(predictor, "request") == 1
    model_server.model.others = (2,)
    predictor.check()
    assert answered(predictor, "request") == 2
    model_server.model.others = ()
    predictor.check()
    assert answered(predictor, "request") == 1


def test_a_canary_may_take_photos_of_another_size(make, model_server):
    model_server.model.others = (2,)
    model_server.model.inputs_of = {2: {"input_28": (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}}
    predictor = make(model_server.address, model_version=1, canary_version=2, canary_percent=50.0)
    predictor.check()
    assert {answered(predictor, f"request-{number}") for number in range(20)} == {1, 2}
    assert {tuple(call.inputs) for call in model_server.model.calls} == {("input_8",), ("input_28",)}


def test_clients_select_only_what_was_opened(make, model_server):
    model_server.model.others = (2, 3)
    model_server.model.labels = {"next": 3}
    predictor = make(model_server.address, model_version=1, selectable_versions=("2", "next", "gone"))
    predictor.check()
    assert answered(predictor) == 1
    assert answered(predictor, selected="2") == 2
    assert answered(predictor, selected="next") == 3
    with pytest.raises(ModelNotReady) as caught:
        predictor.model("", "gone")
    assert "GATEWAY_SELECTABLE_VERSIONS" in caught.value.cause
    for closed in ("1", "3", "", "selected 2", "2 "):
        with pytest.raises(BadRequest, match="must be one of 2, next, gone"):
            predictor.model("", closed)
    with pytest.raises(BadRequest, match="lets no client choose"):
        make(model_server.address).model("", "2")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_version": 9}, ["clothing-model", "version 9", "NOT_FOUND", "GATEWAY_MODEL_VERSION"]),
        ({"model_name": "other"}, ["'other'", "NOT_FOUND", "GATEWAY_MODEL_NAME"]),
        ({"model_label": "stable"}, ["label 'stable'", "INVALID_ARGUMENT", "GATEWAY_MODEL_LABEL"]),
        ({"labels": ("a", "b")}, ["10 scores", "2 labels", "GATEWAY_LABELS"]),
        ({"input_name": "input_28"}, ["'input_28'", "'input_8'"]),
        ({"signature_name": "predict"}, ["'predict'", "'serving_default'"]),
    ],
)
def test_a_model_that_does_not_fit_is_not_ready_and_says_why(make, model_server, settings, words):
    predictor = make(model_server.address, **settings)
    predictor.check()
    is_absent = {"NOT_FOUND", "INVALID_ARGUMENT"} & set(words)
    for word in (*words, *(["does not serve", model_server.address] if is_absent else ["version 1"])):
        assert word in predictor.not_ready
    with pytest.raises(ModelNotReady) as caught:
        predictor.model()
    assert caught.value.cause == predictor.not_ready
    assert caught.value.detail == ModelNotReady.detail


def test_before_the_first_look_it_is_not_ready(make):
    assert "not been asked" in make("127.0.0.1:1").not_ready


def test_the_gateway_may_start_before_the_model(make, stack):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    predictor = make(f"127.0.0.1:{port}")
    predictor.start()
    wait_until(lambda: predictor.not_ready and "can't be reached" in predictor.not_ready)
    assert f"127.0.0.1:{port}" in predictor.not_ready
    assert "UNAVAILABLE" in predictor.not_ready
    time.sleep(1)  # long enough for several attempts and a new channel
    server = ModelServer(port=port)
    stack.callback(server.stop)
    start = time.monotonic()
    wait_until(lambda: predictor.not_ready is None)
    assert time.monotonic() - start < 3
    assert len(ask(predictor).scores) == 1


def test_a_model_that_goes_is_noticed_and_one_that_comes_back_too(make, stack):
    server = ModelServer()
    predictor = make(server.address)
    predictor.start()
    wait_until(lambda: predictor.not_ready is None)
    server.stop()
    wait_until(lambda: predictor.not_ready is not None)
    again = ModelServer(port=server.port)
    stack.callback(again.stop)
    wait_until(lambda: predictor.not_ready is None)
    assert len(ask(predictor).scores) == 1


def test_one_lost_check_is_no_lost_model(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.fail_metadata = (Code.INTERNAL, "busy")
    predictor.check()
    predictor.check()
    assert predictor.not_ready is None
    predictor.check()
    assert "INTERNAL" in predictor.not_ready
    model_server.model.fail_metadata = None
    predictor.check()
    assert predictor.not_ready is None


def test_a_model_that_changes_is_looked_at_again(make, model_server):
    predictor = make(model_server.address, model_check_seconds=60)
    predictor.start()
    wait_until(lambda: predictor.not_ready is None)
    model_server.model.version = 2
    model_server.model.inputs = {"input_28": (types_pb2.DT_FLOAT, (-1, 8, 8, 3))}
    with pytest.raises(ModelRefused):
        ask(predictor)
    wait_until(lambda: predictor.model().input_name == "input_28")  # in no minute: the refusal made it look
    assert ask(predictor).version == 2
    model_server.model.version = 3
    assert ask(predictor).version == 3
    wait_until(lambda: predictor.model().version == 3)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Code.DEADLINE_EXCEEDED, OutOfTime),
        (Code.RESOURCE_EXHAUSTED, Overloaded),
        ((Code.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs 4)"), TooManyBytes),
        (Code.NOT_FOUND, ModelRefused),
        (Code.FAILED_PRECONDITION, ModelRefused),
        (Code.INVALID_ARGUMENT, ModelRefused),
        (Code.UNIMPLEMENTED, ModelRefused),
        (Code.CANCELLED, ModelUnavailable),
        (Code.UNKNOWN, ModelFailed),
        (Code.INTERNAL, ModelFailed),
        (Code.ABORTED, ModelFailed),
        (Code.PERMISSION_DENIED, ModelFailed),
    ],
)
def test_statuses_are_mapped_and_their_words_kept_from_the_client(make, model_server, failure, expected):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.fail = [failure]
    with pytest.raises(expected) as caught:
        ask(predictor)
    assert type(caught.value) is expected
    code, words = failure if isinstance(failure, tuple) else (failure, "told to fail")
    assert caught.value.cause == f"{code.name}: {words}"
    assert words not in caught.value.detail
    assert predictor.counted[-1] == ("Predict", code.name)
    assert len(model_server.model.calls) == 1


@pytest.mark.parametrize("size", [8, 299, 512])
def test_unavailable_is_tried_again_also_with_a_large_tensor(make, model_server, size):
    """Without per_rpc_retry_buffer_size the two larger ones (1 and 3 MB) would fail at the first attempt."""
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (-1, size, size, 3))}
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.fail = [Code.UNAVAILABLE]
    assert len(ask(predictor, [photo(size=size)]).scores) == 1
    assert len(model_server.model.calls) == 2


def test_a_batch_larger_than_the_first_buffer_is_tried_again(make, model_server):
    model_server.model.inputs = {"x": (types_pb2.DT_FLOAT, (-1, 512, 512, 3))}
    predictor = make(model_server.address)
    predictor.check()
    assert predictor._connection.retry_buffer_bytes >= 8 * 512 * 512 * 3 * 4
    model_server.model.fail = [Code.UNAVAILABLE]
    assert len(ask(predictor, [photo(seed, 512) for seed in range(8)]).scores) == 8
    assert len(model_server.model.calls) == 2


def test_unavailable_for_good_is_unavailable(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.fail = [Code.UNAVAILABLE] * 3
    with pytest.raises(ModelUnavailable) as caught:
        ask(predictor)
    assert caught.value.retry_after
    assert len(model_server.model.calls) == 3


def test_retries_are_throttled(make, model_server):
    predictor = make(model_server.address, max_in_flight=2, max_photos=2)  # which the throttle goes by
    predictor.check()
    model_server.model.fail = [Code.UNAVAILABLE] * 1000
    for _ in range(20):
        with pytest.raises(ModelUnavailable):
            ask(predictor)
    assert len(model_server.model.calls) < 40  # 60 without throttling


def test_a_full_batching_queue_is_overload_not_absence(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    words = "The batch scheduling queue to which this task was submitted is full"
    model_server.model.fail = [(Code.UNAVAILABLE, words)] * 3
    with pytest.raises(Overloaded):
        ask(predictor)


def test_the_deadline_holds_for_the_call(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.delay = 1.0
    start = time.monotonic()
    with pytest.raises(OutOfTime):
        ask(predictor, seconds=0.2)
    assert time.monotonic() - start < 0.8
    with pytest.raises(OutOfTime, match="before it could ask the model"):
        ask(predictor, seconds=-1)
    assert len(model_server.model.calls) == 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda batch: [[1.0] * 9], "(1, 9)"),
        (lambda batch: [[1.0] * 10] * 2, "(2, 10)"),
        (lambda batch: [1.0] * 10, "(10,)"),
        (lambda batch: [[float("nan")] * 10], "not finite"),
        (lambda batch: [[float("inf")] * 10], "not finite"),
    ],
)
def test_an_answer_that_is_no_score_for_each_label(make, model_server, scores, words):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.scores = scores
    with pytest.raises(ModelAnswerUnusable) as caught:
        ask(predictor)
    assert words in caught.value.cause


def test_an_answer_without_the_output(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    model_server.model.answer_outputs = ("other",)
    with pytest.raises(ModelAnswerUnusable, match="no score for each label"):
        ask(predictor)


def test_a_closed_predictor_is_unavailable_not_a_traceback(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    model = predictor.model()
    connection = predictor._connect()
    predictor.close()
    predictor._connection = connection  # a call that had the channel in hand when it was closed
    with pytest.raises(ModelUnavailable):
        predictor.predict(model, [photo()], Deadline.after(1))


def at_once(predictor, calls):
    """So many calls at the same time; none fails."""
    with futures.ThreadPoolExecutor(calls) as pool:
        list(pool.map(lambda _: ask(predictor), range(calls)))


def test_calls_at_the_same_time_have_connections_of_their_own(make, model_server):
    predictor = make(model_server.address)
    predictor.check()
    for _ in range(3):
        ask(predictor)
    connection = predictor._connection
    assert len(connection._lanes) == 1
    model_server.model.delay = 0.1
    for calls, lanes in ((3, 3), (12, 8)):
        wait_until(lambda calls=calls, lanes=lanes: at_once(predictor, calls) or len(connection._lanes) == lanes)
        at_once(predictor, calls)
        assert len(connection._lanes) == lanes
        assert all(lane.calls == 0 for lane in connection._lanes)
    model_server.model.delay = 0
    lanes = list(connection._lanes)
    ask(predictor)
    assert connection._lanes == lanes


def test_a_channel_is_used_when_it_has_found_a_server(make, model_server, stack):
    """A name server that doesn't know the servers yet, beside one that does, must not lose the calls."""
    names = stack.enter_context(NameServer())
    names.addresses = ["127.0.0.1"]
    predictor = make(names.target("servers.test", model_server.address), request_timeout_seconds=5)
    predictor.check()
    ask(predictor)
    names.addresses = []
    model_server.model.delay = 0.02
    asked = names.asked
    for _ in range(5):
        at_once(predictor, 4)
    wait_until(lambda: names.asked > asked)
    at_once(predictor, 4)
    assert len(predictor._connection._lanes) == 1
    names.addresses = ["127.0.0.1"]
    wait_until(lambda: at_once(predictor, 4) or len(predictor._connection._lanes) > 1, seconds=20)


def test_a_connection_gives_way_to_one_that_has_found_a_server(make, model_server, stack, monkeypatch):
    monkeypatch.setattr(predictor_module, "_REACH_SECONDS", 0.3)
    names = stack.enter_context(NameServer())
    names.addresses = ["127.0.0.1"]
    predictor = make(names.target("servers.test", model_server.address))
    predictor.check()
    before = predictor._connection
    model_server.model.fail_metadata = (grpc.StatusCode.UNAVAILABLE, "away")
    predictor.check()
    model_server.model.fail_metadata = None
    names.addresses = []
    for _ in range(2):  # the server is back, and a new channel doesn't find it
        predictor.check()
        assert predictor.not_ready is None
        assert predictor._connection is before
        ask(predictor)
    names.addresses = ["127.0.0.1"]
    wait_until(lambda: predictor.check() or predictor._connection is not before)
    ask(predictor)


@pytest.mark.parametrize("kind", ["", "dns:///"])
def test_a_new_server_is_connected_to_when_its_address_is_there(make, model_server, monkeypatch, kind):
    """Not half a minute later, when a connection ends; and not where a name server gives some of many addresses."""
    predictor = make(kind + model_server.address)
    there = ["10.0.0.1", "10.0.0.2"]

    def connected_anew(*addresses):
        there[:] = addresses
        before = predictor._connection
        predictor.check()
        ask(predictor)
        return predictor._connection is not before

    monkeypatch.setattr(
        predictor_module.socket, "getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", (one, 0)) for one in there]
    )
    predictor.check()
    assert not connected_anew("10.0.0.1", "10.0.0.2")
    assert not connected_anew("10.0.0.2")
    assert not connected_anew("10.0.0.1")
    assert connected_anew("10.0.0.2", "10.0.0.3")
    assert not connected_anew("10.0.0.3", "10.0.0.2")
    monkeypatch.setattr(predictor_module, "_ADDRESS_SECONDS", 0.05)
    time.sleep(0.1)
    assert not connected_anew("10.0.0.3")  # nothing is remembered to compare it with
    time.sleep(0.03)
    assert connected_anew("10.0.0.3", "10.0.0.1")

    def no_answer(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(predictor_module.socket, "getaddrinfo", no_answer)
    assert not connected_anew()


def test_when_the_server_is_back_no_channel_waits_to_look_again(make, model_server):
    """gRPC's channels wait up to a second each before they try again; the one that is asked first may not be the one
    that a photo goes by."""
    predictor = make(model_server.address)
    predictor.check()
    before = predictor._connection
    model_server.model.fail_metadata = (grpc.StatusCode.UNAVAILABLE, "away")
    predictor.check()
    assert predictor._connection is before
    model_server.model.fail_metadata = None
    predictor.check()
    assert predictor._connection is not before
    ask(predictor)


def test_an_error_of_the_check_itself_does_not_end_the_thread(make, model_server, monkeypatch):
    predictor = make(model_server.address)
    answers = [RuntimeError("what nobody thought of")]

    def describe(*arguments):
        if answers:
            raise answers.pop()
        return original(*arguments)

    original = predictor_module.signature.describe
    monkeypatch.setattr(predictor_module.signature, "describe", describe)
    predictor.start()
    wait_until(lambda: predictor.not_ready is None)


def test_calls_go_round_over_all_addresses(make, stack, monkeypatch):
    servers = [ModelServer(FakeModel()) for _ in range(3)]
    for server in servers:
        stack.callback(server.stop)
    predictor = make("ipv4:" + ",".join(server.address for server in servers))
    predictor.check()
    for _ in range(30):
        ask(predictor)
    wait_until(lambda: ask(predictor) and all(server.model.calls for server in servers))


def test_targets_and_options():
    assert target_of("model:8500") == "dns:///model:8500"
    assert target_of("[::1]:8500") == "dns:///[::1]:8500"
    assert target_of("unix:/run/model.sock") == "unix:/run/model.sock"
    options = dict(channel_options(123, 32))
    config = json.loads(options["grpc.service_config"])
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert config["retryThrottling"]["maxTokens"] == 128
    assert json.loads(dict(channel_options(1, 5000))["grpc.service_config"])["retryThrottling"]["maxTokens"] == 1000
    assert options["grpc.per_rpc_retry_buffer_size"] == 123
    assert options["grpc.keepalive_time_ms"] == 5000


@contextmanager
def doomed_server():
    """A model server in a process of its own, that says "asked" when it has a call, and answers none."""
    script = (
        "import time\nfrom fakes import FakeModel, ModelServer\n"
        "server = ModelServer(FakeModel(delay=30))\nprint(server.port, flush=True)\n"
        "server.model.asked.wait(30)\nprint('asked', flush=True)\ntime.sleep(30)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_server_that_ends_or_hangs_while_it_works_is_made_up_for_by_another(make, model_server, monkeypatch, end):
    """Its connection breaks, or is found dead by a ping: gRPC tries again, on the server that is left.

    So many calls are on their way as a full gateway has: the limit on retries must let all of them through.
    """
    monkeypatch.setattr(predictor_module, "_PING_SECONDS", 1)
    with doomed_server() as (doomed, port):
        predictor = make(f"ipv4:127.0.0.1:{port},127.0.0.1:{model_server.port}")
        predictor.check()
        with futures.ThreadPoolExecutor(32) as clients:
            answers = [clients.submit(ask, predictor, None, 20.0) for _ in range(32)]
            assert doomed.stdout.readline() == "asked\n"
            wait_until(lambda: sum(answer.done() for answer in answers) >= 12)
            doomed.send_signal(end)
            assert [answer.result().version for answer in answers] == [1] * 32


def test_a_full_queue_is_not_tripled_by_retries(make, model_server):
    """TensorFlow's full batching queue looks like an absent server. Retries of it end when too many calls fail."""
    predictor = make(model_server.address, max_in_flight=8)
    predictor.check()
    words = "The batch scheduling queue to which this task was submitted is full"
    model_server.model.fail = [(Code.UNAVAILABLE, words)] * 300
    for _ in range(100):
        with pytest.raises(Overloaded):
            ask(predictor)
    assert len(model_server.model.calls) < 150
