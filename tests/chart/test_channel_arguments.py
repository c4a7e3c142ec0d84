"""The gRPC channel arguments of the model server have the effect that the chart sets them for.

gRPC ignores a name that it doesn't have, so a misspelt one is found by its effect alone.
"""

import re
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from charts import CLASSIFIER, manifests, pods

# A gateway pings a silent connection every 5 seconds, a client here every second, the shortest interval of grpcio.
FASTER = 5
CALL_SECONDS = 6
CLIENT = [
    ("grpc.keepalive_time_ms", 5000 // FASTER),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),
]


def channel_arguments() -> dict[str, int]:
    server = pods(manifests(CLASSIFIER))["Deployment demo-clothing-classifier-server"]
    (argument,) = (a for a in server["spec"]["containers"][0]["args"] if a.startswith("--grpc_channel_arguments="))
    return {name: int(value) for name, value in re.findall(r"([\w.]+)=(\d+)", argument.partition("=")[2])}


@contextmanager
def server_with(options: dict[str, int]) -> Iterator[str]:
    def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(CALL_SECONDS)
        return request

    handlers = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
    server = grpc.server(futures.ThreadPoolExecutor(2), options=list(options.items()))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Slow", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def call(address: str) -> bytes:
    with grpc.insecure_channel(address, CLIENT) as channel:
        return bytes(channel.unary_unary("/test.Slow/Wait")(b"answer", timeout=20))


def test_server_allows_the_pings_of_the_gateway():
    allowed = {name: value // FASTER for name, value in channel_arguments().items() if "ping" in name}
    assert allowed, "the chart allows no pings"
    with server_with(allowed) as address:
        assert call(address) == b"answer"


def test_server_ignores_a_misspelt_argument():
    options = {"grpc.http2.min_recv_ping_interval_without_data_ms": 4000 // FASTER}
    with server_with(options) as address, pytest.raises(grpc.RpcError) as error:
        call(address)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "too many pings" in error.value.details().lower()
