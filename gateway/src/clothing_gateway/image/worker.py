"""Decode processes: a fork server, and the workers that it forks.

``python -m clothing_gateway.image.worker BYTES`` is the fork server of a gateway (pool.py), which has the other end of
its standard input, a Unix socket. It imports what decoding takes, once, and forks a worker for each socket that it is
sent: in 3 ms, and with most of its memory shared. It is sent no photo, and has one thread, so that forking is safe. It
needs Linux.

A worker decodes one photo after another. Photos are other people's bytes in decoders written in C, so it has nothing
that is worth a takeover: no descriptor but its socket, no environment but the paths of Python's modules, no more memory
and CPU than the photo was counted for. One photo that crashes it costs no other.

Neither outlives the gateway: idle workers exit at the end of their socket, and the fork server kills the others at the
end of its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from clothing_contract.fitting import Axis
from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import GatewayError
from clothing_gateway.image import decode
from clothing_gateway.limits import heap

# To the fork server: fork a worker on the socket sent along, or kill and reap the one with this process id. The answer
# is a process id, or an exit code as subprocess has it.
COMMAND = struct.Struct("<ci")
FORK, END = b"f", b"e"
ANSWER = struct.Struct("<i")
READY = -1  # the fork server's first answer

# To a worker: bytes of the pickled Task and of the file, which follow. Its answer: a status and the bytes that follow.
REQUEST = struct.Struct("<II")
RESPONSE = struct.Struct("<BI")
PIXELS, ERROR = 0, 1
# Bytes of an error as JSON, in which a character may take 6, and characters of each of its texts.
MAX_ERROR_BYTES, MAX_TEXT = 8192, 500

# Address space beside what a photo was counted for: pieces of the file, stacks of libwebp's thread, malloc's rounding.
_SLACK_BYTES = 48 << 20
# Descriptors: standard streams, its socket, and a module that Python imports late.
_OPEN_FILES = 16
_MOST_SECONDS = 3600  # of CPU, for a photo without a deadline
# Heavy photos yield the CPU to the gateway's threads and to light photos: a third of the weight of each.
_NICE = 5
# Freed bytes that a worker keeps for the next photo, each of a page fault otherwise: those of a photo of a megapixel.
_HEAP_BYTES = 4 << 20
_NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS, linux/prctl.h


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told of a photo; the gateway pickles it."""

    header: decode.Header
    axes: tuple[Axis, Axis] | None
    deadline: Deadline | None  # on the clock of time.monotonic, which processes of a machine share
    memory: int  # bytes that decoding takes at most
    heavy: bool  # whether it yields the CPU to others


def main() -> None:
    """Run the fork server on standard input until its end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # which a terminal or systemd sends to the gateway's processes, too
        signal.signal(number, signal.SIG_IGN)
    largest = int(sys.argv[1])
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    heap.bound_heap(kept_bytes=_HEAP_BYTES, heaps=1)
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(OSError):  # of the pod's processes the kernel kills a worker first, when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    Image.preinit()
    gc.collect()
    gc.freeze()  # so that collections in the workers don't copy the pages that they share
    control.sendall(ANSWER.pack(READY))
    workers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, COMMAND.size, 1, socket.MSG_WAITALL)
        if len(message) < COMMAND.size:
            break
        command, pid = COMMAND.unpack(message)
        if command == FORK:
            answer = _fork(control, descriptors[0], largest)
            workers.add(answer)
        else:
            answer = _end(pid) if pid in workers else 0
            workers.discard(pid)
        control.sendall(ANSWER.pack(answer))
    for pid in workers:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _fork(control: socket.socket, descriptor: int, largest: int) -> int:
    """Fork a worker; its process id, or 0 where the kernel refuses."""
    try:
        pid = os.fork()
    except OSError as error:
        sys.stderr.write(f"clothing-gateway can't fork a decode process: {error.strerror}\n")
        os.close(descriptor)
        return 0
    if pid == 0:
        control.close()
        _work(socket.socket(fileno=descriptor), largest)
    os.close(descriptor)
    return pid


def _end(pid: int) -> int:
    with suppress(OSError):
        os.kill(pid, signal.SIGKILL)  # the process id is its own until it is reaped, here
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError:
        return 0


def _work(connection: socket.socket, largest: int) -> NoReturn:
    """Decode photos until the socket's end or a heavy one, and exit.

    A heavy one is the last, as a raised nice value stays, and its memory returns to the kernel whole.
    """
    code = 1
    try:
        os.dup2(0, 1)
        os.dup2(0, 2)
        for kind, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, _OPEN_FILES),
        ):
            _limit(kind, most, hard=True)
        _limit(resource.RLIMIT_AS, _address_space() + largest + _SLACK_BYTES, hard=True)
        stream = connection.makefile("rb")
        more = True
        while more and len(head := stream.read(REQUEST.size)) == REQUEST.size:
            task_bytes, file_bytes = REQUEST.unpack(head)
            task: Task = pickle.loads(stream.read(task_bytes))  # noqa: S301 - from the gateway
            status, payload = _decode(stream.read(file_bytes), task)
            connection.sendall(b"".join((RESPONSE.pack(status, len(payload)), payload)))
            more = not task.heavy
        code = 0
    except OSError:
        code = 0  # the gateway has ended, or closed the socket
    finally:
        os._exit(code)


def _decode(data: bytes, task: Task) -> tuple[int, memoryview]:
    if task.heavy:
        os.nice(_NICE)
    # Nets below the gateway's clock and count.
    seconds = _MOST_SECONDS if task.deadline is None else min(max(task.deadline.remaining(), 0), _MOST_SECONDS)
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + seconds) + 1)
    _limit(resource.RLIMIT_AS, _address_space() + task.memory + _SLACK_BYTES)
    try:
        pixels = decode.by_pillow(data, task.header, task.axes, task.deadline)
        return PIXELS, as_bytes(np.ascontiguousarray(pixels))
    except GatewayError as error:
        about = {"code": error.code, "detail": error.detail, "cause": error.cause and error.cause[:MAX_TEXT]}
        return ERROR, memoryview(json.dumps(about).encode())


def as_bytes(pixels: npt.NDArray[Any]) -> memoryview:
    """The bytes of a contiguous array, in place."""
    return pixels.reshape(-1).view(np.uint8).data


def _limit(kind: int, most: int, *, hard: bool = False) -> None:
    """Set a resource limit of this process, no higher than its hard limit."""
    _, there = resource.getrlimit(kind)
    most = most if there == resource.RLIM_INFINITY else min(most, there)
    resource.setrlimit(kind, (most, most if hard else there))


def _address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
