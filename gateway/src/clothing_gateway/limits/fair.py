"""Fair queue: an order by client, in which no backlog delays other clients.

It is start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM 1996). A client's items form a
chain: each starts where the client's last one ended, and no sooner than the virtual time. The earliest start is
served first. So a client whose items don't wait behind its own is next, whatever others have queued; and the items of
one client alone keep their order of arrival (FIFO), as behind a proxy that hides addresses.

The virtual time is beyond the start of the last item that was served, by its charge divided among all that wait: at its
start, as in the paper, ever new clients would keep those with several items waiting for ever.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Clients of which the ends of their chains are kept; above it those that have none ahead are forgotten.
_MAX_CLIENTS = 1000


class FairQueue(Generic[Item]):
    """A fair queue, ordered by client; its user holds a lock.

    An item costs 1 us, whatever waits.
    """

    def __init__(self) -> None:
        self.size = 0  # items that wait; an attribute, as every request reads it several times
        self._heap: list[tuple[float, int, float, Item]] = []
        self._ends: dict[str, float] = {}
        self._now = 0.0
        self._count = 0

    @property
    def head(self) -> Item:
        """The next item; IndexError where none waits."""
        return self._heap[0][3]

    def push(self, item: Item, client: str, charge: float = 1.0) -> None:
        """Queue a client's item; the charge, in any unit, uses up its client's share."""
        start = max(self._ends.get(client, 0.0), self._now)
        self._ends[client] = start + charge
        self._count += 1
        heapq.heappush(self._heap, (start, self._count, charge, item))
        self.size += 1
        if len(self._ends) > _MAX_CLIENTS:
            self._ends = {one: end for one, end in self._ends.items() if end > self._now}

    def pop(self) -> Item:
        """Remove the next item; IndexError where none waits."""
        start, _, charge, item = heapq.heappop(self._heap)
        self.size -= 1
        if self.size:
            self._now = max(self._now, start + charge / (self.size + 1))
        else:
            self._reset()
        return item

    def remove(self, item: Item) -> None:
        """Remove an item that won't wait any longer; its charge stays."""
        self._heap = [entry for entry in self._heap if entry[3] is not item]
        heapq.heapify(self._heap)
        self.size = len(self._heap)
        if not self.size:
            self._reset()

    def clear(self) -> list[Item]:
        """Remove all items; they, in their order."""
        items = [item for *_, item in sorted(self._heap, key=lambda entry: entry[:2])]
        self._heap, self.size = [], 0
        self._reset()
        return items

    def _reset(self) -> None:
        self._ends.clear()
        self._now = 0.0
