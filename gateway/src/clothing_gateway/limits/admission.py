"""Admission control: in-flight slots, buffered-bytes budget, decode queue.

The three limits together bound the process's memory (README, "Memory"). The first two never wait: a request over the
limit is rejected at once. Only the decoder has a queue, in order of client (fair.py), in which a photo waits until its
deadline at most.
"""

from __future__ import annotations

import threading

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import OutOfTime, Overloaded
from clothing_gateway.limits.fair import FairQueue

# A photo that takes no more memory is light, and takes under 0.1 s of CPU, whatever its format. So are plain JPEGs of
# any size (1 ns a pixel, and 9 ns a byte of the file), PNGs of 2 megapixels and WebPs of half a megapixel.
_LIGHT_BYTES = 12 << 20
# Memory that only light photos get: for two of the largest, or ten plain JPEGs.
_RESERVED_BYTES = 24 << 20


def slots_in_all(max_in_flight: int) -> int:
    """In-flight slots of all clients together.

    They are an eighth more than one client may have (GATEWAY_MAX_IN_FLIGHT). So one client, or all clients behind a
    proxy that hides their addresses, has the whole limit, and no client has the last slots.
    """
    return max_in_flight + max(max_in_flight // 8, 1)


class ByteBudget:
    """A limit on buffered bytes over all requests, with a share for each owner.

    The bytes are those of uploads and downloads. One owner alone gets its share of the limit. Where others have taken
    some, each gets less: at most a multiple of what is free, so that something stays free however many take what they
    get (dynamic thresholds, as the shared memory of network switches has them: Choudhury, Hahne, IEEE/ACM
    Transactions on Networking 6 (2), 1998).
    """

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._limit = limit
        self._share = limit if share is None else min(share, limit)  # one owner's limit
        self._others_share = limit - self._share
        self._reserved = 0
        self._owned: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def reserved(self) -> int:
        """Reserved bytes."""
        return self._reserved

    def reserve(self, count: int, owner: str = "", *, keep: bool = True) -> bool:
        """Reserve bytes for an owner; False over the limit or the owner's share.

        Nothing is reserved then. Without ``keep`` it only tells whether they could be.
        """
        with self._lock:
            free = self._limit - self._reserved
            if count > free:
                return False
            if owner:
                owned = self._owned.get(owner, 0) + count
                if owned > self._share or owned * self._others_share > self._share * free:
                    return False
                if keep:
                    self._owned[owner] = owned
            if keep:
                self._reserved += count
            return True

    def release(self, count: int, owner: str = "") -> None:
        """Release reserved bytes."""
        with self._lock:
            self._reserved -= count
            if owner:
                left = self._owned.pop(owner, 0) - count
                if left:
                    self._owned[owner] = left


class Slots:
    """A limit on photos, in flight or being fetched, and on an owner's share.

    Over a limit, acquire fails at once.
    """

    def __init__(self, limit: int, share: int | None = None) -> None:
        self._budget = ByteBudget(limit, share)

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._budget.reserved

    def full(self, owner: str = "") -> bool:
        """Whether no slot is free for an owner."""
        return not self._budget.reserve(1, owner, keep=False)

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
    __slots__ = ("cost", "number", "turn")

    def __init__(self, cost: int, number: int) -> None:
        self.cost = cost
        self.number = number
        self.turn = threading.Event()


class Hold:
    """Context manager that holds a decoder.

    It is a class, as a generator costs three times as much.
    """

    __slots__ = ("_client", "_cost", "_deadline", "_gate")

    def __init__(self, gate: DecodeGate, cost: int, deadline: Deadline, client: str) -> None:
        self._gate = gate
        self._cost = cost
        self._deadline = deadline
        self._client = client

    def __enter__(self) -> None:
        self._gate.enter(self._cost, self._deadline, self._client)

    def __exit__(self, *_: object) -> None:
        self._gate.leave(self._cost)


class DecodeGate:
    """A concurrency and memory limit on decoders, with queues in order of client.

    Decoding needs a core and, for a large photo, hundreds of megabytes; more decoders than cores only slow each other
    down. Light photos wait apart from heavy ones, which take up to seconds: where heavy ones hold all decoders, one
    light photo is decoded beside them, and the kernel divides the cores among them. So a light photo waits for light
    ones only. Within each queue the order is strict, also where a later and smaller photo
    would fit: large photos would starve. A client is charged by memory, which stands for time as well.
    """

    def __init__(self, slots: int, memory_bytes: int, heavy_slots: int | None = None) -> None:
        """Set the limits: photos, bytes, and heavy photos (as many as all by default)."""
        self._slots = slots
        self._heavy_slots = slots if heavy_slots is None else min(slots, heavy_slots)
        self._free_bytes = memory_bytes
        self._light_bytes = min(_LIGHT_BYTES, memory_bytes // 10)
        self._reserved_bytes = min(_RESERVED_BYTES, memory_bytes // 5)
        self.largest = memory_bytes - self._reserved_bytes
        self._heavy_free_bytes = self.largest
        self._running = self._light_running = 0
        self._light: FairQueue[_Waiter] = FairQueue()
        self._heavy: FairQueue[_Waiter] = FairQueue()
        self._count = 0
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Photos in the queues."""
        return self._light.size + self._heavy.size

    def light(self, cost: int) -> bool:
        """Whether a photo of this cost in bytes waits with the light ones."""
        return cost <= self._light_bytes

    def hold(self, cost: int, deadline: Deadline, client: str = "") -> Hold:
        """Hold a decoder and ``cost`` bytes during the block.

        ``cost`` is ``largest`` at most. Raises OutOfTime if the deadline passes in the queue.
        """
        if cost > self.largest:
            raise ValueError(f"a photo of {cost} bytes never fits in {self.largest}")
        return Hold(self, cost, deadline, client)

    def enter(self, cost: int, deadline: Deadline, client: str) -> None:
        """Take a decoder and memory for it, or OutOfTime."""
        light = self.light(cost)
        queue = self._light if light else self._heavy
        with self._lock:
            if not self._light.size and not self._heavy.size and self._fits(cost, light):
                self._take(cost, light)
                return
            self._count += 1
            waiter = _Waiter(cost, self._count)
            queue.push(waiter, client, cost)
            self._admit()
        if waiter.turn.is_set() or waiter.turn.wait(max(deadline.remaining(), 0)):
            return
        with self._lock:
            if waiter.turn.is_set():  # it was admitted between the end of the wait and here
                self._give_back(cost, light)
            else:
                queue.remove(waiter)
                self._admit()
        raise OutOfTime("The request's deadline expired in the decode queue; retry later.")

    def leave(self, cost: int) -> None:
        """Give a decoder and its memory back."""
        with self._lock:
            self._give_back(cost, self.light(cost))

    def _fits(self, cost: int, light: bool) -> bool:  # noqa: FBT001
        if light:
            return cost <= self._free_bytes and (self._running < self._slots or not self._light_running)
        return cost <= min(self._heavy_free_bytes, self._free_bytes) and self._heavy_may_run

    @property
    def _heavy_may_run(self) -> bool:
        return self._running < self._slots and self._running - self._light_running < self._heavy_slots

    def _take(self, cost: int, light: bool) -> None:  # noqa: FBT001
        self._running += 1
        self._free_bytes -= cost
        if light:
            self._light_running += 1
        else:
            self._heavy_free_bytes -= cost

    def _give_back(self, cost: int, light: bool) -> None:  # noqa: FBT001
        self._running -= 1
        self._free_bytes += cost
        if light:
            self._light_running -= 1
        else:
            self._heavy_free_bytes += cost
        self._admit()

    def _admit(self) -> None:
        while (self._light.size or self._heavy.size) and (queue := self._next()) is not None:
            waiter = queue.pop()
            self._take(waiter.cost, queue is self._light)
            waiter.turn.set()

    def _next(self) -> FairQueue[_Waiter] | None:
        """The queue whose head may start now."""
        heavy = self._heavy.head if self._heavy.size and self._heavy_may_run else None
        light = self._light.head if self._light.size else None
        kept = 0
        if heavy is not None and (light is None or heavy.number < light.number):
            if self._fits(heavy.cost, light=False):
                return self._heavy
            # It waits for memory: later light photos have what is reserved for them, and no more.
            kept = self._heavy_free_bytes
        if light is not None and self._fits(light.cost, light=True) and light.cost <= self._free_bytes - kept:
            return self._light
        return None
