"""Admission control: in-flight slots, buffered-bytes budget, decode queue.

The three limits together bound the process's memory (README, "Memory"). The first two never wait: a request over the
limit is rejected at once. Only the decoder has a queue (FIFO), in which a photo waits until its deadline at most.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import OutOfTime, Overloaded


class ByteBudget:
    """A limit on the bytes of buffered uploads and downloads, over all requests."""

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._limit = limit
        self._share = limit if share is None else min(share, limit)  # one owner's limit
        self._reserved = 0
        self._owned: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def reserved(self) -> int:
        """Reserved bytes."""
        return self._reserved

    def reserve(self, count: int, owner: str = "") -> bool:
        """Reserve bytes for an owner; False over the limit or the owner's share.

        Nothing is reserved then.
        """
        with self._lock:
            if self._reserved + count > self._limit or (owner and self._owned[owner] + count > self._share):
                return False
            self._reserved += count
            if owner:
                self._owned[owner] += count
            return True

    def release(self, count: int, owner: str = "") -> None:
        """Release reserved bytes."""
        with self._lock:
            self._reserved -= count
            if owner:
                self._owned[owner] -= count
                if not self._owned[owner]:
                    del self._owned[owner]


class Slots:
    """A limit on photos, in flight or being fetched, and on an owner's share.

    Over a limit, acquire fails at once.
    """

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._limit = limit
        self._budget = ByteBudget(limit, share)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._budget.reserved

    @property
    def full(self) -> bool:
        """Whether no slot is free."""
        return self.taken >= self._limit

    def acquire(self, photos: int = 1, owner: str = "") -> bool:
        """Acquire slots for photos, all or none; whether they were free."""
        return self._budget.reserve(photos, owner)

    def slot(self, owner: str = "") -> Slot:
        """A slot for one photo, denied over the limit."""
        return Slot(self, int(self.acquire(1, owner)), owner)

    def release(self, photos: int = 1, owner: str = "") -> None:
        """Release slots."""
        self._budget.release(photos, owner)


class Slot:
    """A request's slots, or a denied one; ``release`` is idempotent."""

    __slots__ = ("_count", "_owner", "_slots")

    def __init__(self, slots: Slots, count: int, owner: str = "") -> None:
        self._slots = slots
        self._count = count
        self._owner = owner

    @property
    def held(self) -> bool:
        """Whether there is a slot, and it has not been released."""
        return self._count > 0

    def grow(self, photos: int) -> None:
        """Acquire slots for further photos, all or none: Overloaded over the limit."""
        if not self._slots.acquire(photos, self._owner):
            raise Overloaded
        self._count += photos

    def release(self) -> None:
        """Release all of the request's slots."""
        count, self._count = self._count, 0
        if count:
            self._slots.release(count, self._owner)


class _Waiter:
    __slots__ = ("cost", "turn")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.turn = threading.Event()


class DecodeGate:
    """A concurrency and memory limit on decoders, with a FIFO queue.

    Decoding needs a core and, for a large photo, hundreds of megabytes; more decoders than cores only slow each other
    down. The order is strictly FIFO, also where a later and smaller photo would fit: large photos would starve.
    """

    def __init__(self, slots: int, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._free_slots = slots
        self._free_bytes = memory_bytes
        self._waiting: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Photos in the queue."""
        return len(self._waiting)

    @contextmanager
    def hold(self, cost: int, deadline: Deadline) -> Iterator[None]:
        """Hold a decoder slot and ``cost`` bytes during the block.

        Raises OutOfTime if the deadline passes in the queue.
        """
        if cost > self.memory_bytes:
            raise ValueError(f"a photo of {cost} bytes never fits in {self.memory_bytes}")
        self._enter(cost, deadline)
        try:
            yield
        finally:
            with self._lock:
                self._give_back(cost)

    def _enter(self, cost: int, deadline: Deadline) -> None:
        with self._lock:
            if not self._waiting and self._fits(cost):
                self._take(cost)
                return
            waiter = _Waiter(cost)
            self._waiting.append(waiter)
        if waiter.turn.wait(max(deadline.remaining(), 0)):
            return
        with self._lock:
            if waiter.turn.is_set():  # its turn came between the end of the wait and here
                self._give_back(cost)
            else:
                self._waiting.remove(waiter)
                self._admit()
        raise OutOfTime("The request's deadline expired in the decode queue; retry later.")

    def _fits(self, cost: int) -> bool:
        return self._free_slots > 0 and self._free_bytes >= cost

    def _take(self, cost: int) -> None:
        self._free_slots -= 1
        self._free_bytes -= cost

    def _give_back(self, cost: int) -> None:
        self._free_slots += 1
        self._free_bytes += cost
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0].cost):
            waiter = self._waiting.popleft()
            self._take(waiter.cost)
            waiter.turn.set()
