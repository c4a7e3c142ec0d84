"""Cuts connections at their deadline, and when their client has left.

A socket's timeout starts anew with each byte, so a server that drips one byte a second holds a fetch for ever: with
urllib3's ``Timeout(total=1.0)`` one was seen to last 3.6 s. One thread, for all fetches, shuts the socket down instead.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clothing_gateway.deadline import Deadline

# How often clients are looked at: a fetch that is over by then costs the thread nothing.
_LOOK_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class Watched:
    """A socket in use, and whether it was cut."""

    sock: socket.socket
    deadline: Deadline
    has_left: Callable[[], bool]
    cut: bool = False


class Watchdog:
    """Shuts a socket down when its time is over or nobody waits for it, whatever its owner does meanwhile."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._changed = threading.Condition()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(
        self, sock: socket.socket, deadline: Deadline, has_left: Callable[[], bool] = lambda: False
    ) -> Iterator[Watched]:
        """Cut ``sock`` if the block lasts longer than the deadline, or than the client stays."""
        watched = Watched(sock, deadline, has_left)
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fetch-watchdog", daemon=True)
                self._thread.start()
            self._watched.add(watched)
            if deadline.at < self._wakes_at:
                self._changed.notify()
        try:
            yield watched
        finally:
            with self._changed:
                self._watched.discard(watched)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for watched in [one for one in self._watched if one.deadline.at <= now or one.has_left()]:
                    self._watched.discard(watched)
                    watched.cut = True
                    with contextlib.suppress(OSError):  # it may be closed already
                        # Not sock.shutdown: SSLSocket's drops its TLS state under the thread that reads from it.
                        socket.socket.shutdown(watched.sock, socket.SHUT_RDWR)
                if not self._watched:
                    self._wakes_at = math.inf
                    self._changed.wait()
                    continue
                self._wakes_at = min(now + _LOOK_SECONDS, *(one.deadline.at for one in self._watched))
                self._changed.wait(self._wakes_at - now)
