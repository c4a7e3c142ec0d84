"""Cuts connections at their deadline.

A socket's timeout starts anew with each byte, so a server that drips one byte a second holds a fetch for ever: with
urllib3's ``Timeout(total=1.0)`` one was seen to last 3.6 s. One thread, for all fetches, shuts the socket down instead.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
import threading
import time
from collections.abc import Iterator

from clothing_gateway.deadline import Deadline


class Watchdog:
    """Shuts a socket down when its time is over, whatever its owner waits for."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._watched: dict[int, socket.socket] = {}
        self._keys = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, sock: socket.socket, deadline: Deadline) -> Iterator[None]:
        """Cut ``sock`` if the block lasts longer than the deadline."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-watchdog", daemon=True)
                self._thread.start()
            key = next(self._keys)
            self._watched[key] = sock
            heapq.heappush(self._heap, (deadline.at, key))
            if self._heap[0][1] == key:  # sooner than all that the thread sleeps for
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(key, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                while self._heap and (self._heap[0][1] not in self._watched or self._heap[0][0] <= time.monotonic()):
                    _, key = heapq.heappop(self._heap)
                    sock = self._watched.pop(key, None)
                    if sock is not None:
                        with contextlib.suppress(OSError):  # it may be closed already
                            # Not sock.shutdown: SSLSocket's drops its TLS state under the thread that reads from it.
                            socket.socket.shutdown(sock, socket.SHUT_RDWR)
                self._changed.wait(max(self._heap[0][0] - time.monotonic(), 0) if self._heap else None)
