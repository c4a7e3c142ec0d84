"""Concurrency of calls to the model servers: slots that adapt to what is accepted, and the limit on retries.

TensorFlow Serving queues no call: with grpc_max_threads of N it runs N - 1 and refuses the next at once. So calls queue
here, with their deadlines.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

# gRPC's retry throttling (gRFC A6): a failed call costs a token, one that succeeds gives back a tenth, and retries stop
# while half the tokens are gone. gRPC allows no more tokens than this.
_MOST_TOKENS = 1000
TOKEN_RATIO = 0.1

# Additive increase, multiplicative decrease, as TCP does. After a refusal the limit is nine tenths of the calls that
# were accepted, so that several gateways come to share the servers; then it grows by one call, and a tenth, a second:
# from 3 calls to 32 takes 12 s, and at 3 or at 31 calls one in a second or four finds out that there is no more room.
_DECREASE = 0.9
_INCREASE_PER_SECOND = 1.0
_INCREASE_RATIO = 0.1

# How often a call that waits checks whether its client is still connected.
_CLIENT_CHECK_SECONDS = 0.1


def retry_tokens(max_in_flight: int) -> int:
    """The tokens of the retry throttle.

    A server that is lost with all calls that this gateway can have, and a second one after it, must not end retries.
    """
    return min(4 * max_in_flight, _MOST_TOKENS)


class RetryThrottle:
    """Stops retries while too many calls fail, by the rule of gRPC's own retries."""

    def __init__(self, tokens: int) -> None:
        self._most = tokens
        self._tokens = float(tokens)
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Count a call that succeeded."""
        if self._tokens < self._most:
            with self._lock:
                self._tokens = min(self._tokens + TOKEN_RATIO, self._most)

    def failed(self) -> bool:
        """Count a call that failed; whether it may be retried."""
        with self._lock:
            self._tokens = max(self._tokens - 1, 0)
            return self._tokens > self._most / 2


class CallSlots:
    """Limits the calls in flight to as many as the servers accept; further ones wait in order of arrival."""

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = float(maximum)
        self._clock = clock
        self._limit = self._maximum
        self._grown = clock()  # when the limit last grew
        self._in_flight = 0
        self._queue: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Calls that hold a slot now."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot now."""
        return len(self._queue)

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        with self._lock:
            return self._grow()

    def acquire(self, until: float, *, first: bool = False, has_left: Callable[[], bool] = lambda: False) -> bool:
        """Take a slot, and wait for one until a moment of the clock; False where none became free.

        ``first`` skips the queue: for a call that was refused, which has waited already. The wait also ends, with
        False, where the client has disconnected.
        """
        with self._lock:
            if (first or not self._queue) and self._in_flight < self._grow():
                self._in_flight += 1
                return True
            turn = threading.Event()
            if first:
                self._queue.appendleft(turn)
            else:
                self._queue.append(turn)
        while not turn.wait(max(min(until - self._clock(), _CLIENT_CHECK_SECONDS), 0)):
            is_over = self._clock() >= until or has_left()
            with self._lock:
                if is_over and not turn.is_set():
                    self._queue.remove(turn)
                    return False
                self._admit()  # the limit may have grown
        return True

    def release(self, *, refused: bool = False) -> None:
        """Give a slot back: its call has ended on the servers, or was refused before it began."""
        with self._lock:
            self._in_flight -= 1
            if refused:
                # Those that are refused at the same moment are counted until their turn here: the last one sets it.
                self._limit = max(min(self._grow(), self._in_flight * _DECREASE), 1.0)
            self._admit()

    def _grow(self) -> int:
        """The limit now."""
        now = self._clock()
        growth = (now - self._grown) * (_INCREASE_PER_SECOND + _INCREASE_RATIO * self._limit)
        self._limit = min(self._limit + growth, self._maximum)
        self._grown = now
        return int(self._limit + 0.5)

    def _admit(self) -> None:
        limit = self._grow()
        while self._queue and self._in_flight < limit:
            self._in_flight += 1
            self._queue.popleft().set()
