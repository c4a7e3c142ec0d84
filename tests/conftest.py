"""Puts this folder on the import path for every suite, and gives each test its layer.

``unit`` tests start no process, listen on no socket and don't import TensorFlow: `make quick` runs them. ``process``
tests do one of the first two, ``tensorflow`` tests the third. The layer is read from what a test, its fixtures and
its helpers refer to, so none is written by hand; a guard fails a unit test that starts something nevertheless.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest

TESTS = Path(__file__).parent
# Everything here runs in TensorFlow's environment, and its conftest imports it.
TENSORFLOW = TESTS / "model"
# Everything here is about processes, on this machine or on a cluster.
PROCESSES = {TESTS / "e2e", TESTS / "integration", TESTS / "page"}
# Modules of the standard library, and parts of the gateway, that start a process or listen on a socket.
STARTERS = {
    "clothing_gateway.gateway",
    "clothing_gateway.image.pool",
    "clothing_gateway.web.admin",
    "clothing_gateway.web.server",
    "grpc",
    "http.server",
    "multiprocessing",
    "playwright.sync_api",
    "socketserver",
    "subprocess",
}
LISTENERS = {"bind", "create_server"}  # of the module socket, with which a test may as well only look names up
# https://docs.python.org/3/library/audit_events.html
FORBIDDEN = {"os.fork", "os.forkpty", "os.posix_spawn", "socket.bind", "subprocess.Popen"}

_guarded = False
_started: list[str] = []


def _watch(event: str, _: object) -> None:
    if _guarded and event in FORBIDDEN:
        _started.append(event)
        raise RuntimeError(f"a unit test may not do this: {event}")


sys.addaudithook(_watch)  # it can't be removed: one for the session


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its layer."""
    for item in items:
        item.add_marker(_layer(item))


def _layer(item: pytest.Item) -> str:
    if TENSORFLOW in item.path.parents:
        return "tensorflow"
    if PROCESSES & set(item.path.parents) or not isinstance(item, pytest.Function):
        return "process"
    fixtures = [one.func for several in item._fixtureinfo.name2fixturedefs.values() for one in several]
    functions = [item.function, *fixtures]
    return "process" if any(_starts(inspect.unwrap(function)) for function in functions) else "unit"


@functools.cache
def _starts(thing: object) -> bool:
    """Whether a function or class of the tests refers to a starter, itself or by others of the tests."""
    seen: set[int] = set()

    def look(thing: object) -> bool:
        if isinstance(thing, ModuleType):
            return thing.__name__ in STARTERS
        if id(thing) in seen or not callable(thing):
            return False
        seen.add(id(thing))
        if getattr(thing, "__module__", None) in STARTERS:
            return True
        function = inspect.unwrap(thing)
        if isinstance(function, type):
            inner = [*vars(function).values(), *function.__bases__]
            return _is_ours(function) and any(look(getattr(one, "__func__", one)) for one in inner)
        if not isinstance(function, FunctionType) or not _is_ours(function):
            return False
        return bool(LISTENERS & _names(function.__code__)) or any(map(look, _referred(function)))

    return look(thing)


def _is_ours(thing: Callable[..., object]) -> bool:
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    return bool(file) and TESTS in Path(file).parents


def _referred(function: FunctionType) -> Iterator[object]:
    """The globals, closure and modules' members that a function's code names."""
    yield from inspect.getclosurevars(function).nonlocals.values()
    names = _names(function.__code__)
    for name in names & function.__globals__.keys():
        thing = function.__globals__[name]
        yield thing
        if isinstance(thing, ModuleType):
            yield from (vars(thing)[other] for other in names & vars(thing).keys())


def _names(code: CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


@pytest.fixture(autouse=True)
def started(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Fail a unit test that starts a process or listens on a socket; what it has started so far."""
    global _guarded  # noqa: PLW0603 - the audit hook has no other way to know
    _started.clear()
    _guarded = request.node.get_closest_marker("unit") is not None
    yield _started
    _guarded = False
    assert not _started, f"{request.node.nodeid} is a unit test and has started something: name what in {__file__}"
