"""HTTP server of one port, with graceful shutdown, on waitress.

waitress is in waitress_adapter.py.
"""

from __future__ import annotations

import threading
import time

from clothing_gateway.limits.workers import Workers
from clothing_gateway.web.waitress_adapter import Server

# How long the event loop sleeps at most, and so how late it notices a stop that nothing announces.
_TURN_SECONDS = 1.0
# Grace for workers to finish bookkeeping after the drain timeout.
_SETTLE_SECONDS = 0.1


class Listener(Server):
    """One port, its connections, and the workers that answer them."""

    def serve(self, stop: threading.Event, until: float | None = None) -> None:
        """Serve until ``stop`` is set or until a time (``time.monotonic``).

        Call ``wake`` after setting ``stop``.
        """
        while not stop.is_set():
            left = _TURN_SECONDS if until is None else min(_TURN_SECONDS, until - time.monotonic())
            if left <= 0:
                break
            self.turn(left)

    def drain(self, stop: threading.Event, until: float) -> int:
        """Finish the requests in flight; return the number of connections cut.

        Requests that are being received are in flight, too.
        """
        self.draining = True
        while self.channels and not stop.is_set() and time.monotonic() < until:
            for channel in self.channels:
                if channel.idle:
                    channel.end()
            self.turn(0.1)
        # A worker whose response the client already has may not have finished: such a connection isn't cut.
        settled = time.monotonic() + _SETTLE_SECONDS
        while (cut := self._unfinished()) and time.monotonic() < settled:
            self.turn(_SETTLE_SECONDS / 10)
        self.shut_down_workers()
        return cut

    def stuck_seconds(self) -> float:
        """Seconds for which the event loop or the workers have made no progress.

        Workers make none where requests wait and none is finished.
        """
        workers: Workers = self.task_dispatcher
        return max(time.monotonic() - self.turned, workers.stuck_seconds())

    def _unfinished(self) -> int:
        return sum(not channel.idle for channel in self.channels)
