"""Pool of decode processes, which can be killed, for what Pillow decodes.

Pillow's decoders are C code that nothing in its own process can interrupt, and photos are other people's bytes. So each
photo is decoded by a worker process (worker.py), which is killed at its deadline or when its client is gone. The
gateway survives its crash.

Workers are forked by a fork server with all modules loaded, which takes 3 ms, by need, and are kept for the next photo;
one that has decoded a heavy photo is replaced. The gateway itself is never forked, as it has threads.

A worker's answer is not trusted: it is the pixels, whose number the gateway knows before, or one of a few errors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from clothing_contract.fitting import Axis
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    BrokenImage,
    ClientLeft,
    DecoderCrashed,
    GatewayError,
    OutOfTime,
    TooComplex,
    TooManyPixels,
    Unavailable,
)
from clothing_gateway.image import decode, worker

logger = logging.getLogger(__name__)

# Why a worker ended: the label of a metric.
DEADLINE, CLIENT_LEFT, CRASH, KILLED = EXITS = ("deadline", "client-left", "crash", "killed")
# What a worker may answer (decode.by_pillow).
_ERRORS: dict[str, type[GatewayError]] = {
    error.code: error for error in (BrokenImage, OutOfTime, TooComplex, TooManyPixels)
}
# Seconds between two looks at the client's connection, as the model's calls have them.
_LOOK_SECONDS = 0.05
# Seconds that a fork server may take to load its modules (0.15 s of CPU), and to fork or to reap a worker (0.05 s,
# where the kernel frees 400 MB), on a node that is overloaded.
_START_SECONDS, _COMMAND_SECONDS = 60.0, 10.0
# Seconds between two attempts to start a fork server that does not start.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# Of the gateway's environment, those with which Python finds its modules and libraries.
_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_NO_ERROR = "a decode process answered an error that is none"
_NO_PROCESS = "The photo can't be decoded now; retry later."


class _Lost(Exception):
    """A worker has ended with a photo."""


class _Rubbish(Exception):
    """A worker has answered what no worker answers."""


class _ForkServer:
    """A running fork server, and commands to it."""

    def __init__(self, largest: int) -> None:
        self._control, theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._ended = False
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with theirs:
            # A process group of its own: a terminal's Ctrl-C is for the gateway, and all of it can be killed at once.
            # -P: no module is taken from the working directory.
            self._process = subprocess.Popen(  # noqa: S603 - a module of this package
                [sys.executable, "-P", "-m", worker.__name__, str(largest)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment | {"OPENBLAS_NUM_THREADS": "1"},
                process_group=0,
            )

    def wait_until_ready(self) -> bool:
        """Whether it has loaded its modules."""
        with contextlib.suppress(OSError):
            self._control.settimeout(_START_SECONDS)
            return self._control.recv(worker.ANSWER.size, socket.MSG_WAITALL) == worker.ANSWER.pack(worker.READY)
        return False

    def command(self, command: bytes, pid: int = 0, *descriptors: int) -> int:
        """Send a command, and return its answer.

        It is 0 where there is none, and the server is killed.
        """
        with self._lock, contextlib.suppress(OSError):
            self._control.settimeout(_COMMAND_SECONDS)
            socket.send_fds(self._control, [worker.COMMAND.pack(command, pid)], descriptors)
            answer = self._control.recv(worker.ANSWER.size, socket.MSG_WAITALL)
            if len(answer) == worker.ANSWER.size:
                return int(worker.ANSWER.unpack(answer)[0])
        self.kill()
        return 0

    def wait(self) -> int:
        """Wait for its end, and kill its workers; the exit code."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._kill_group()  # before it is reaped: until then its group's number is its own
            self._ended = True
        self._control.close()
        return self._process.wait()

    def kill(self) -> None:
        """Kill it and its workers."""
        with self._lock:
            if not self._ended:
                self._kill_group()

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)


class _Worker:
    """A worker process, and its photos."""

    def __init__(self, server: _ForkServer) -> None:
        """Fork it; raises Unavailable where the kernel refuses."""
        self._server = server
        self._connection, theirs = socket.socketpair()
        with theirs:
            self.pid = server.command(worker.FORK, 0, theirs.fileno())
        if not self.pid:
            self._connection.close()
            raise Unavailable(_NO_PROCESS, cause="no decode process could be forked")
        self._connection.setblocking(False)  # noqa: FBT003 - socket's own
        self._poll = select.poll()
        self._poll.register(self._connection, select.POLLIN)

    @property
    def is_idle(self) -> bool:
        """Whether it runs, and has sent nothing that it wasn't asked for."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def end(self) -> int:
        """Kill it, if it runs, and wait until its memory is free; the exit code."""
        self._connection.close()
        return self._server.command(worker.END, self.pid)

    def decode(
        self, data: bytes, task: worker.Task, client_gone: Callable[[], bool]
    ) -> npt.NDArray[Any] | GatewayError:
        """The photo's pixels, or the error that the worker answers.

        Raises OutOfTime, ClientLeft, _Lost or _Rubbish, after which the worker must end.
        """
        about = pickle.dumps(task)
        wait = self._waiting(task.deadline, client_gone)
        self._send(worker.REQUEST.pack(len(about), len(data)) + about, wait)
        self._send(data, wait)
        head = bytearray(worker.RESPONSE.size)
        self._receive(memoryview(head), wait)
        status, count = worker.RESPONSE.unpack(head)
        shape, dtype = decode.shape_by_pillow(task.header, task.axes)
        pixels = np.empty(shape, dtype)
        if status == worker.PIXELS and count == pixels.nbytes:
            self._receive(worker.as_bytes(pixels), wait)
            return pixels
        if status == worker.ERROR and count <= worker.MAX_ERROR_BYTES:
            text = bytearray(count)
            self._receive(memoryview(text), wait)
            return _error(bytes(text))
        raise _Rubbish(f"a decode process answered {count} bytes of kind {status}")

    def _waiting(self, deadline: Deadline | None, client_gone: Callable[[], bool]) -> Callable[[int], None]:
        """A function that waits until the connection is ready."""

        def wait(event: int) -> None:
            self._poll.modify(self._connection, event)
            while True:
                left = _LOOK_SECONDS if deadline is None else min(deadline.require("decode the photo"), _LOOK_SECONDS)
                if self._poll.poll(left * 1000):
                    return
                if client_gone():
                    raise ClientLeft

        return wait

    def _send(self, data: bytes, wait: Callable[[int], None]) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._connection.send(view) :]
            except BlockingIOError:
                wait(select.POLLOUT)
            except OSError:
                raise _Lost from None

    def _receive(self, view: memoryview, wait: Callable[[int], None]) -> None:
        while view:
            wait(select.POLLIN)
            try:
                count = self._connection.recv_into(view)
            except BlockingIOError:
                continue
            except OSError:
                count = 0
            if not count:
                raise _Lost
            view = view[count:]


def _error(text: bytes) -> GatewayError:
    """The error that a worker answers."""
    try:
        about = json.loads(text)
        kind, detail, cause = _ERRORS[about["code"]], about["detail"], about["cause"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Rubbish(_NO_ERROR) from None
    if all(isinstance(one, str) and len(one) <= worker.MAX_TEXT for one in (detail, cause or "")):
        return kind(detail, cause=cause)
    raise _Rubbish(_NO_ERROR)


class DecoderPool:
    """Decode processes for what Pillow decodes; thread-safe."""

    def __init__(self, processes: int, largest: int, count_exit: Callable[[str], object] = lambda _: None) -> None:
        """Start a fork server, in the background.

        ``processes`` is the maximum of workers, ``largest`` the bytes that a photo takes at most; ``count_exit`` counts
        a worker that ended with a photo, by one of EXITS.
        """
        self._most = processes
        self._largest = largest
        self._count_exit = count_exit
        self._changed = threading.Condition()
        self._server: _ForkServer | None = None  # the one that runs, and
        self._serving: _ForkServer | None = None  # the same once it is ready
        self._failed = False  # whether the last attempt to start one failed
        self._idle: list[_Worker] = []
        self._running = 0  # workers, idle or not
        self._closed = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="decode-processes", daemon=True)
        self._supervisor.start()

    def decode(
        self,
        data: bytes,
        header: decode.Header,
        axes: tuple[Axis, Axis] | None,
        deadline: Deadline | None = None,
        *,
        heavy: bool = False,
        client_gone: Callable[[], bool] = lambda: False,
    ) -> npt.NDArray[Any]:
        """Decode as ``decode.by_pillow``, in a worker.

        A ``heavy`` photo's worker yields the CPU. Raises what by_pillow does, OutOfTime at the deadline, ClientLeft,
        DecoderCrashed, and Unavailable where there is no worker.
        """
        one = self._take(deadline)
        reason = "heavy" if heavy else ""
        try:
            answer = one.decode(data, worker.Task(header, axes, deadline, header.cost, heavy), client_gone)
        except OutOfTime:
            reason = DEADLINE
            raise
        except ClientLeft:
            reason = CLIENT_LEFT
            raise
        except _Rubbish as error:
            reason = CRASH
            raise DecoderCrashed(cause=str(error)) from None
        except _Lost:
            code = one.end()
            reason = KILLED if code in (0, -signal.SIGKILL) else CRASH
            if reason == KILLED:
                raise Unavailable(_NO_PROCESS, cause="the decode process was killed, as when memory runs out") from None
            raise DecoderCrashed(cause=f"the decode process ended with {_named(code)}") from None
        finally:
            if reason in EXITS:
                self._count_exit(reason)
            self._give_back(one, ends=bool(reason))
        if isinstance(answer, GatewayError):
            raise answer
        return answer

    def close(self) -> None:
        """Kill all processes."""
        self._closed.set()
        with self._changed:
            if self._server is not None:
                self._server.kill()
        self._supervisor.join(_COMMAND_SECONDS)
        with self._changed:
            idle, self._idle = self._idle, []
        for one in idle:
            self._give_back(one, ends=True)

    def _take(self, deadline: Deadline | None) -> _Worker:
        """An idle worker, or a new one where there may be more."""
        while True:
            with self._changed:
                left = None if deadline is None else deadline.require("decode the photo")
                if not self._changed.wait_for(self._may_take, left):
                    continue
                if self._serving is None:
                    raise Unavailable(_NO_PROCESS, cause="the decode processes' fork server does not run")
                if not self._idle:
                    self._running += 1
                    server = self._serving
                    break
                one = self._idle.pop()  # the last one that worked: its memory is in the cache
            if one.is_idle:
                return one
            self._count_exit(KILLED)
            self._give_back(one, ends=True)
        try:
            return _Worker(server)
        except BaseException:
            with self._changed:
                self._running -= 1
                self._changed.notify()
            raise

    def _may_take(self) -> bool:
        if self._failed or self._closed.is_set():
            return True
        return self._serving is not None and (bool(self._idle) or self._running < self._most)

    def _give_back(self, one: _Worker, *, ends: bool) -> None:
        if ends:
            one.end()
        with self._changed:
            if ends:
                self._running -= 1
            else:
                self._idle.append(one)
            self._changed.notify()

    def _supervise(self) -> None:
        """Keep a fork server running, until the pool is closed."""
        pause = _FIRST_PAUSE
        while not self._closed.is_set():
            if self._serve():
                pause = _FIRST_PAUSE
            if not self._closed.wait(pause):
                logger.warning("starting the decode processes again")
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _serve(self) -> bool:
        """Run a fork server until its end; whether it had started."""
        try:
            server = _ForkServer(self._largest)
        except OSError:
            logger.exception("can't start the decode processes")
            self._publish(None, failed=True)
            return False
        self._publish(server, failed=self._failed)
        started = not self._closed.is_set() and server.wait_until_ready()
        if started:
            self._publish(server, serving=True)
        else:
            server.kill()
        code = server.wait()
        if not self._closed.is_set():
            logger.error("the decode processes' fork server ended with %s", _named(code))
        self._publish(None, failed=not started)
        return started

    def _publish(self, server: _ForkServer | None, *, serving: bool = False, failed: bool = False) -> None:
        with self._changed:
            self._server, self._failed = server, failed
            self._serving = server if serving else None
            self._changed.notify_all()


def _named(code: int) -> str:
    """An exit code in words."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
