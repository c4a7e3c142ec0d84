"""Each test has its layer, and a unit test can start nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from fakes import GatewayProcess

import processes


def calls_a_helper():
    return processes.free_port()


def starts_a_gateway():
    return GatewayProcess("127.0.0.1:1")


class Helper:
    @staticmethod
    def run():
        return [subprocess.run(one, check=True) for one in ("true", "false")]


def uses_a_class():
    return Helper.run()


def only_resolves():
    return socket.getaddrinfo("localhost", 80)


@pytest.mark.parametrize("test", [calls_a_helper, starts_a_gateway, uses_a_class])
def test_process_tests_are_detected_through_helpers(request, test):
    assert starts(request)(test)


def test_test_without_process_or_socket_is_a_unit_test(request):
    assert not starts(request)(only_resolves)
    assert [mark.name for mark in request.node.iter_markers()] == ["unit"]


def starts(request):
    """The rule of tests/conftest.py, which is no module to import."""
    root = request.config.rootpath / "tests/conftest.py"
    return request.config.pluginmanager.get_plugin(str(root))._starts


def listen():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))


# Found by name when they are called, which the rule doesn't see.
UNSEEN = {
    "run": lambda: vars(sys.modules["subprocess"])["run"](["true"]),
    "fork": os.fork,
    "listen": lambda: globals()["listen"]() is None,
}


@pytest.mark.parametrize("name", UNSEEN)
def test_unit_test_guard_blocks_processes_and_sockets(started, name):
    with pytest.raises(RuntimeError, match="a unit test may not do this"):
        UNSEEN[name]()
    assert started
    started.clear()
