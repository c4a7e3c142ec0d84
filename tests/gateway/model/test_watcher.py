"""Model discovery over real gRPC, with a server that fails on demand."""

from __future__ import annotations

import socket
import time

import grpc
import pytest
from fakes import ModelServer
from models import ask, wait_until
from tensorflow.core.framework import types_pb2

from clothing_gateway.errors import ModelNotReady, ModelRefused
from clothing_gateway.model import signature

Code = grpc.StatusCode


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
def test_a_model_that_does_not_fit_is_not_ready_and_the_reason_is_given(make, model_server, settings, words):
    predictor = make(model_server.address, **settings)
    predictor.watcher.check()
    is_absent = {"NOT_FOUND", "INVALID_ARGUMENT"} & set(words)
    for word in (*words, *(["does not serve", model_server.address] if is_absent else ["version 1"])):
        assert word in predictor.versions.not_ready
    with pytest.raises(ModelNotReady) as caught:
        predictor.versions.route()
    assert caught.value.cause == predictor.versions.not_ready
    assert caught.value.detail == ModelNotReady.detail


def test_not_ready_before_the_first_check(make):
    assert "not been asked" in make("127.0.0.1:1").versions.not_ready


def test_the_gateway_may_start_before_the_model(make, stack):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    predictor = make(f"127.0.0.1:{port}")
    predictor.watcher.start()
    wait_until(lambda: predictor.versions.not_ready and "can't be reached" in predictor.versions.not_ready)
    assert f"127.0.0.1:{port}" in predictor.versions.not_ready
    assert "UNAVAILABLE" in predictor.versions.not_ready
    time.sleep(1)  # long enough for several attempts and a new channel
    server = ModelServer(port=port)
    stack.callback(server.stop)
    start = time.monotonic()
    wait_until(lambda: predictor.versions.not_ready is None)
    assert time.monotonic() - start < 3
    assert len(ask(predictor).scores) == 1


def test_a_server_that_stops_is_noticed_and_one_that_returns_too(make, stack):
    server = ModelServer()
    predictor = make(server.address)
    predictor.watcher.start()
    wait_until(lambda: predictor.versions.not_ready is None)
    server.stop()
    wait_until(lambda: predictor.versions.not_ready is not None)
    again = ModelServer(port=server.port)
    stack.callback(again.stop)
    wait_until(lambda: predictor.versions.not_ready is None)
    assert len(ask(predictor).scores) == 1


def test_one_failed_check_keeps_the_model(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    model_server.model.fail_metadata = (Code.INTERNAL, "busy")
    predictor.watcher.check()
    predictor.watcher.check()
    assert predictor.versions.not_ready is None
    predictor.watcher.check()
    assert "INTERNAL" in predictor.versions.not_ready
    model_server.model.fail_metadata = None
    predictor.watcher.check()
    assert predictor.versions.not_ready is None


def test_a_call_that_meets_another_version_triggers_a_check(make, model_server):
    predictor = make(model_server.address, model_check_seconds=60)
    predictor.watcher.start()
    wait_until(lambda: predictor.versions.not_ready is None)
    model_server.model.version = 2
    model_server.model.inputs = {"input_28": (types_pb2.DT_FLOAT, (-1, 8, 8, 3))}
    with pytest.raises(ModelRefused):
        ask(predictor)
    wait_until(lambda: predictor.versions.route().input_name == "input_28")  # in no minute: the refusal made it look
    assert ask(predictor).version == 2
    model_server.model.version = 3
    assert ask(predictor).version == 3
    wait_until(lambda: predictor.versions.route().version == 3)


def test_an_exception_in_a_check_does_not_end_the_thread(make, model_server, monkeypatch):
    predictor = make(model_server.address)
    answers = [RuntimeError("what nobody thought of")]

    def describe(*arguments):
        if answers:
            raise answers.pop()
        return original(*arguments)

    original = signature.describe
    monkeypatch.setattr(signature, "describe", describe)
    predictor.watcher.start()
    wait_until(lambda: predictor.versions.not_ready is None)


@pytest.mark.parametrize(
    ("settings", "fix"),
    [
        ({"model_version": 1}, "GATEWAY_MODEL_VERSION"),
        ({"model_label": "stable"}, "GATEWAY_MODEL_LABEL"),
        ({"model_version": 2, "canary_version": 1, "canary_percent": 5.0}, "GATEWAY_CANARY_VERSION"),
    ],
)
def test_a_version_that_is_unloaded_while_it_serves_is_an_error_with_the_fix(make, model_server, caplog, settings, fix):
    """A configuration that names a version which is not on the volume unloads the one that serves."""
    model = model_server.model
    model.others, model.labels = (2,), {"stable": 1}
    predictor = make(model_server.address, **settings)
    predictor.watcher.check()
    name = "canary" if "canary_version" in settings else "stable"
    assert predictor.versions.states[name].version == 1
    assert not caplog.records
    model.version, model.others, model.labels = 2, (), {}
    predictor.watcher.check()
    reason = predictor.versions.states[name]
    assert "no longer serves model 'clothing-model'" in reason
    assert "put the version back where the server loads it from" in reason
    assert fix in reason
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "unloaded" in record.getMessage()
    assert (record.track, record.version) == (name, 1)
    predictor.watcher.check()
    assert predictor.versions.states[name] == reason  # said once in the log, and shown until it is back
    assert len([one for one in caplog.records if one.levelname == "ERROR"]) == 1
    model.version, model.others, model.labels = 1, (2,), {"stable": 1}
    predictor.watcher.check()
    assert predictor.versions.states[name].version == 1
