"""Contract with waitress: what the adapter leans on is there, and nothing else of it is used."""

from __future__ import annotations

import ast
import inspect
import socket
from importlib import metadata
from pathlib import Path

import pytest
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import FixedStreamReceiver
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

import clothing_gateway
from clothing_gateway.web import waitress_adapter
from clothing_gateway.web.waitress_adapter import LEANED_ON

ADVICE = (
    f"waitress {metadata.version('waitress')} changed what web/waitress_adapter.py leans on. Read its changes, adapt "
    "the adapter and its LEANED_ON, run tests/gateway/web and tests/gateway/test_gateway.py, and only then allow this "
    "release in gateway/pyproject.toml."
)


@pytest.fixture(scope="module")
def objects():
    """One object of each class, made as waitress makes them."""
    dispatcher = ThreadedTaskDispatcher()
    sock = socket.create_server(("127.0.0.1", 0))
    server = TcpWSGIServer(
        lambda environ, start_response: [],
        map={},
        _sock=sock,
        dispatcher=dispatcher,
        adj=Adjustments(),
        sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
        bind_socket=False,
    )
    ours, theirs = socket.socketpair()
    channel = HTTPChannel(server, ours, ("127.0.0.1", 1), server.adj, map={})
    request = HTTPRequestParser(server.adj)
    request.received(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n")
    yield {
        HTTPRequestParser: request,
        WSGITask: WSGITask(channel, request),
        ErrorTask: ErrorTask(channel, request),
        HTTPChannel: channel,
        TcpWSGIServer: server,
    }
    server.trigger.close()
    for one in (ours, theirs, sock):
        one.close()


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in LEANED_ON.items() for name in names.split()])
def test_waitress_has_the_private_names_that_the_adapter_uses(objects, cls, name):
    assert hasattr(objects[cls], name), f"{cls.__name__}.{name} is gone. {ADVICE}"


# The methods that are overridden, and the functions that are called, with the parameters that they must have.
SIGNATURES = {
    HTTPRequestParser.__init__: ["self", "adj"],
    HTTPRequestParser.received: ["self", "data"],
    HTTPRequestParser.parse_header: ["self", "header_plus"],
    HTTPRequestParser.close: ["self"],
    WSGITask.execute: ["self"],
    WSGITask.get_environment: ["self"],
    WSGITask.write: ["self", "data"],
    WSGITask.build_response_header: ["self"],
    WSGITask.set_close_on_finish: ["self"],
    ErrorTask.execute: ["self"],
    HTTPChannel.__init__: ["self", "server", "sock", "addr", "adj", "map"],
    HTTPChannel.add_channel: ["self", "map"],
    HTTPChannel.del_channel: ["self", "map"],
    HTTPChannel.readable: ["self"],
    HTTPChannel.writable: ["self"],
    HTTPChannel.service: ["self"],
    HTTPChannel.write_soon: ["self", "data"],
    HTTPChannel.received: ["self", "data"],
    HTTPChannel.send: ["self", "data", "do_close"],
    HTTPChannel.handle_close: ["self"],
    TcpWSGIServer.add_task: ["self", "task"],
    TcpWSGIServer.maintenance: ["self", "now"],
    TcpWSGIServer.pull_trigger: ["self"],
    TcpWSGIServer.handle_accept: ["self"],
    TcpWSGIServer.accept: ["self"],
    TcpWSGIServer.readable: ["self"],
    waitress_adapter.wasyncore.readwrite: ["obj", "flags"],
    waitress_adapter.wasyncore.loop: ["timeout", "use_poll", "map", "count"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_overridden_methods_have_the_same_parameters(function):
    assert list(inspect.signature(function).parameters) == SIGNATURES[function], f"{function.__qualname__}: {ADVICE}"


def test_body_receiver_has_a_buffer_that_can_be_replaced(objects):
    receiver = objects[HTTPRequestParser].body_rcv
    assert isinstance(receiver, FixedStreamReceiver), ADVICE
    assert receiver.getbuf() is receiver.buf, ADVICE
    receiver.buf = waitress_adapter._Discard()
    assert receiver.received(b"ab") == 2, ADVICE
    assert receiver.completed, ADVICE


def of_a_socket(node):
    return getattr(node, "id", None) == "sock" or getattr(node, "attr", None) == "socket"


def test_list_of_private_names_is_complete(objects):
    """Each attribute in the adapter that is one of waitress's objects', and that we don't define, is in the list."""
    tree = ast.parse(Path(waitress_adapter.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not of_a_socket(node.value)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    in_classes = [one for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for one in node.body]
    used |= {one.targets[0].id for one in in_classes if isinstance(one, ast.Assign)}
    theirs = {name for one in objects.values() for name in dir(one)} - set(dir(object))
    listed = {name for names in LEANED_ON.values() for name in names.split()}
    assert used & theirs <= listed
    assert listed <= used


def test_no_other_module_imports_waitress():
    source = Path(clothing_gateway.__file__).parent
    importing = {
        path.name
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.split(".")[0] == "waitress"
    }
    assert importing == {"waitress_adapter.py"}
