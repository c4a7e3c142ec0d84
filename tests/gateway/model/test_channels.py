"""Channels to model servers that start, stop, hang and move."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from fakes import FakeModel, ModelServer, NameServer
from models import ask, wait_until
from tensorflow.core.framework import types_pb2
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import predict_pb2

from clothing_gateway.model import channels as channels_module
from clothing_gateway.model.channels import channel_options, target_of
from clothing_gateway.model.tensorflow_serving import SERVICE, TensorFlowServing

CHART = Path(__file__).parents[3] / "charts/clothing-classifier/templates/server/_config.tpl"


def at_once(predictor, calls):
    """So many calls at the same time; none fails."""
    with futures.ThreadPoolExecutor(calls) as pool:
        list(pool.map(lambda _: ask(predictor), range(calls)))


def test_concurrent_calls_get_channels_of_their_own(make, model_server):
    predictor = make(model_server.address)
    predictor.watcher.check()
    for _ in range(3):
        ask(predictor)
    pool = predictor._channels._pool
    assert len(pool._channels) == 1
    model_server.model.delay = 0.1
    for calls, channels in ((3, 3), (12, 8)):
        wait_until(lambda calls=calls, channels=channels: at_once(predictor, calls) or len(pool._channels) == channels)
        at_once(predictor, calls)
        assert len(pool._channels) == channels
        assert all(pooled.calls == 0 for pooled in pool._channels)
    model_server.model.delay = 0
    channels = list(pool._channels)
    ask(predictor)
    assert pool._channels == channels


def test_a_channel_is_used_once_it_has_connected(make, model_server, stack):
    """A name server that doesn't know the servers yet, beside one that does, must not lose the calls."""
    names = stack.enter_context(NameServer())
    names.addresses = ["127.0.0.1"]
    predictor = make(names.target("servers.test", model_server.address), request_timeout_seconds=5)
    predictor.watcher.check()
    ask(predictor)
    names.addresses = []
    model_server.model.delay = 0.02
    asked = names.asked
    for _ in range(5):
        at_once(predictor, 4)
    wait_until(lambda: names.asked > asked)
    at_once(predictor, 4)
    assert len(predictor._channels._pool._channels) == 1
    names.addresses = ["127.0.0.1"]
    wait_until(lambda: at_once(predictor, 4) or len(predictor._channels._pool._channels) > 1, seconds=20)


def test_a_pool_is_replaced_only_by_one_that_has_connected(make, model_server, stack, monkeypatch):
    monkeypatch.setattr(channels_module, "_CONNECT_SECONDS", 0.3)
    names = stack.enter_context(NameServer())
    names.addresses = ["127.0.0.1"]
    predictor = make(names.target("servers.test", model_server.address))
    predictor.watcher.check()
    before = predictor._channels._pool
    model_server.model.fail_metadata = (grpc.StatusCode.UNAVAILABLE, "away")
    predictor.watcher.check()
    model_server.model.fail_metadata = None
    names.addresses = []
    for _ in range(2):  # the server is back, and a new channel doesn't find it
        predictor.watcher.check()
        assert predictor.versions.not_ready is None
        assert predictor._channels._pool is before
        ask(predictor)
    names.addresses = ["127.0.0.1"]
    wait_until(lambda: predictor.watcher.check() or predictor._channels._pool is not before)
    ask(predictor)


@pytest.mark.parametrize("kind", ["", "dns:///"])
def test_a_new_address_of_the_name_renews_the_pool(make, model_server, monkeypatch, kind):
    """Not half a minute later, when a connection ends; and not where a name server gives some of many addresses."""
    predictor = make(kind + model_server.address)
    there = ["10.0.0.1", "10.0.0.2"]

    def connected_anew(*addresses):
        there[:] = addresses
        before = predictor._channels._pool
        predictor.watcher.check()
        ask(predictor)
        return predictor._channels._pool is not before

    monkeypatch.setattr(
        channels_module.socket, "getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", (one, 0)) for one in there]
    )
    predictor.watcher.check()
    assert not connected_anew("10.0.0.1", "10.0.0.2")
    assert not connected_anew("10.0.0.2")
    assert not connected_anew("10.0.0.1")
    assert connected_anew("10.0.0.2", "10.0.0.3")
    assert not connected_anew("10.0.0.3", "10.0.0.2")
    monkeypatch.setattr(channels_module, "_ADDRESS_SECONDS", 0.05)
    time.sleep(0.1)
    assert not connected_anew("10.0.0.3")  # nothing is remembered to compare it with
    time.sleep(0.03)
    assert connected_anew("10.0.0.3", "10.0.0.1")

    def no_answer(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(channels_module.socket, "getaddrinfo", no_answer)
    assert not connected_anew()


def test_the_pool_is_renewed_when_the_server_is_back(make, model_server):
    """gRPC's channels wait up to a second each before they try again; the one that is asked first may not be the one
    that a photo goes by."""
    predictor = make(model_server.address)
    predictor.watcher.check()
    before = predictor._channels._pool
    model_server.model.fail_metadata = (grpc.StatusCode.UNAVAILABLE, "away")
    predictor.watcher.check()
    assert predictor._channels._pool is before
    model_server.model.fail_metadata = None
    predictor.watcher.check()
    assert predictor._channels._pool is not before
    ask(predictor)


def test_calls_are_balanced_over_all_addresses(make, stack, monkeypatch):
    servers = [ModelServer(FakeModel()) for _ in range(3)]
    for server in servers:
        stack.callback(server.stop)
    predictor = make("ipv4:" + ",".join(server.address for server in servers))
    predictor.watcher.check()
    for _ in range(30):
        ask(predictor)
    wait_until(lambda: ask(predictor) and all(server.model.calls for server in servers))


def test_targets_and_options():
    assert target_of("model:8500") == "dns:///model:8500"
    assert target_of("[::1]:8500") == "dns:///[::1]:8500"
    assert target_of("unix:/run/model.sock") == "unix:/run/model.sock"
    options = dict(channel_options(SERVICE, 123, 32))
    config = json.loads(options["grpc.service_config"])
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert config["retryThrottling"]["maxTokens"] == 128
    assert (
        json.loads(dict(channel_options(SERVICE, 1, 5000))["grpc.service_config"])["retryThrottling"]["maxTokens"]
        == 1000
    )
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
def test_killed_or_hung_server_is_retried_on_another(make, model_server, monkeypatch, end):
    """Its connection breaks, or is found dead by a ping: gRPC tries again, on the server that is left.

    So many calls are on their way as a full gateway has: the limit on retries must let all of them through.
    """
    monkeypatch.setattr(channels_module, "_PING_SECONDS", 1)
    with doomed_server() as (doomed, port):
        predictor = make(f"ipv4:127.0.0.1:{port},127.0.0.1:{model_server.port}")
        predictor.watcher.check()
        with futures.ThreadPoolExecutor(32) as clients:
            answers = [clients.submit(ask, predictor, None, 20.0) for _ in range(32)]
            assert doomed.stdout.readline() == "asked\n"
            wait_until(lambda: sum(answer.done() for answer in answers) >= 12)
            doomed.send_signal(end)
            assert [answer.result().version for answer in answers] == [1] * 32


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_proxy_variables_of_the_environment_are_ignored(make, model_server, monkeypatch, variable):
    """gRPC would send its calls to the proxy, where nothing listens."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    predictor = make(model_server.address)
    predictor.watcher.check()
    assert predictor.versions.not_ready is None
    assert len(ask(predictor).scores) == 1


def code_of_a_long_call(server_options, client_options):
    """The status of a Predict call during which seven keepalive pings are due, a second apart."""
    server = ModelServer(FakeModel(delay=7.5), options=server_options)
    options = [one for one in channel_options(SERVICE, 1 << 20, 32) if one[0] != "grpc.service_config"]
    photo = TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=bytes(8 * 8 * 3 * 4))
    for size in (1, 8, 8, 3):
        photo.tensor_shape.dim.add().size = size
    request = predict_pb2.PredictRequest(inputs={"input_8": photo})
    request.model_spec.name = "clothing-model"
    with grpc.insecure_channel(server.address, [*options, *client_options]) as channel:
        call = channel.unary_unary(TensorFlowServing.predict.path).future(request.SerializeToString(), timeout=30)
        code, details = call.code(), call.details()
    server.stop()
    return code, details


def test_keepalive_pings_end_no_long_call(monkeypatch):
    """By effect, as gRPC ignores an argument that it does not know: a server ends connections with too many pings."""
    monkeypatch.setattr(channels_module, "_PING_SECONDS", 1)
    name, milliseconds = re.search(r"(grpc\.http2\.\w*ping\w*)=(\d+)", CHART.read_text()).groups()
    told = [(name, int(milliseconds) // 5)]  # as the pings are five times as many here
    unthrottled = [("grpc.http2.max_pings_without_data", 0)]  # what grpcio does not do, and other clients may
    cases = {
        "by itself the gateway stays below the limit of a server that was told nothing": ([], []),
        "the chart's argument lets a server take all pings": (told, unthrottled),
        "without it they are too many": ([], unthrottled),
    }
    with futures.ThreadPoolExecutor(len(cases)) as pool:
        outcomes = dict(zip(cases, pool.map(lambda case: code_of_a_long_call(*case), cases.values()), strict=True))
    ok, too_many = (grpc.StatusCode.OK, ""), (grpc.StatusCode.UNAVAILABLE, "Too many pings")
    assert list(outcomes.values()) == [ok, ok, too_many], outcomes
