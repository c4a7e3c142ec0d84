"""Adaptive concurrency limit for calls to the model servers, and retry budget.

TensorFlow Serving queues no call: with grpc_max_threads of N it runs N - 1 and refuses the next at once. So calls queue
here, with their deadlines.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from clothing_gateway.limits.fair import FairQueue

# gRPC's retry throttling (gRFC A6): a failed call costs a token, one that succeeds gives back a tenth, and retries stop
# while half the tokens are gone. gRPC allows no more tokens than this.
_MOST_TOKENS = 1000
TOKEN_RATIO = 0.1

# Additive increase, multiplicative decrease, as TCP does. After a refusal the limit is nine tenths of the calls that
# were accepted, so that several gateways come to share the servers. Then it grows with each call that ends: about one
# in 20 finds out whether there is more room, whatever the limit, and costs half of the tokens that the others give.
_DECREASE = 0.9
_CALLS_BETWEEN_REFUSALS = 20
# Where calls end at their deadline the servers have more than they can finish, and compute for nothing. Then the
# limit is half of the calls in flight. (Measured: 32 calls of 400 ms on half a CPU need 26 s and have 20 s; 33 of 69
# requests expired.)
_EXPIRED_DECREASE = 0.5
# With no call for so long, what was learnt is out of date.
_FORGET_SECONDS = 10.0

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
    """Limit on calls in flight that adapts to what the servers accept.

    Further calls wait in order of client, so that one with many calls delays no other by more than one.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = float(maximum)
        self._clock = clock
        self._limit = self._maximum
        self._ended = clock()  # when the last call ended
        self._halved = float("-inf")  # when calls last expired
        self._in_flight = 0
        self._retries: deque[threading.Event] = deque()
        self._queue: FairQueue[threading.Event] = FairQueue()
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Calls that hold a slot now."""
        return self._in_flight

    @property
    def waiting(self) -> int:
        """Calls that wait for a slot now."""
        return len(self._retries) + self._queue.size

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return int(self._limit + 0.5)

    def forget(self) -> None:
        """Raise the limit to the maximum: the servers are others now."""
        with self._lock:
            self._limit = self._maximum
            self._admit()

    def acquire(
        self, until: float, client: str = "", *, first: bool = False, has_left: Callable[[], bool] = lambda: False
    ) -> bool:
        """Take a slot for a client; whether one became free in time.

        It waits until a moment of the clock. ``first`` skips the queue: for a call that was refused, which has waited
        already. The wait also ends, with False, where the client has disconnected.
        """
        with self._lock:
            if self._in_flight == 0 and self._clock() - self._ended > _FORGET_SECONDS:
                self._limit = self._maximum
            if (first or not (self._retries or self._queue.size)) and self._in_flight < self.limit:
                self._in_flight += 1
                return True
            turn = threading.Event()
            if first:
                self._retries.appendleft(turn)
            else:
                self._queue.push(turn, client)
        while not turn.wait(max(min(until - self._clock(), _CLIENT_CHECK_SECONDS), 0)):
            if self._clock() >= until or has_left():
                with self._lock:
                    if not turn.is_set():
                        if first:
                            self._retries.remove(turn)
                        else:
                            self._queue.remove(turn)
                        return False
        return True

    def release(self, *, accepted: bool | None = None) -> None:
        """Return a slot; an accepted call raises the limit, a refused one lowers it."""
        with self._lock:
            self._in_flight -= 1
            self._ended = self._clock()
            if accepted is False:
                # Those that are refused at the same moment are counted until their turn here: the last one sets it.
                self._limit = max(min(self._limit, self._in_flight * _DECREASE), 1.0)
            elif accepted:
                # From nine tenths to a half above, where it is rounded up to one call more.
                growth = (0.5 + (1 - _DECREASE) * self._limit) / _CALLS_BETWEEN_REFUSALS
                self._limit = min(self._limit + growth, self._maximum)
            self._admit()

    def release_expired(self, began: float) -> None:
        """Return the slot of a call that ended at its deadline; lowers the limit.

        It falls once for all calls in flight.
        """
        with self._lock:
            if began >= self._halved:
                self._limit = max(min(self._limit, self._in_flight) * _EXPIRED_DECREASE, 1.0)
                self._halved = self._clock()
            self._in_flight -= 1
            self._ended = self._clock()
            self._admit()

    def _admit(self) -> None:
        while (self._retries or self._queue.size) and self._in_flight < self.limit:
            self._in_flight += 1
            turn = self._retries.popleft() if self._retries else self._queue.pop()
            turn.set()
