"""Fixtures of the gateway's tests. Nothing here or in the tests needs the internet."""

from __future__ import annotations

import contextlib

import pytest
from fakes import FakeModel, GatewayProcess, ModelServer, PhotoServer


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def model_server(stack):
    server = ModelServer(FakeModel())
    stack.callback(server.stop)
    return server


@pytest.fixture
def photo_server(stack):
    server = PhotoServer()
    stack.callback(server.stop)
    return server


@pytest.fixture
def start_gateway(stack):
    """Start gateway processes that end with the test."""

    def start(server="127.0.0.1:1", **settings):
        gateway = GatewayProcess(server, **settings)
        stack.callback(gateway.stop)
        return gateway

    return start
