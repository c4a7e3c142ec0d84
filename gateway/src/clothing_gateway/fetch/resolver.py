"""Names to addresses, within a deadline.

``getaddrinfo`` knows no timeout of its own, and a name server that doesn't answer holds it for half a minute. So
lookups run in a few daemon threads: the one who asked stops waiting at the deadline, and a thread in a lookup never
holds up the process's end.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

from clothing_gateway.deadline import Deadline

Address = IPv4Address | IPv6Address
LookUp = Callable[[str], list[Address]]


class NoAddress(Exception):
    """The name has no address."""


class NoAnswer(Exception):
    """No name server answered in time; asking again later may help."""


def system_look_up(host: str) -> list[Address]:
    """All addresses of a name, in the order to be tried (RFC 6724).

    The name is asked for with its last dot first: else a pod's resolver (ndots:5) tries every search domain before it,
    which costs several questions a photo, and finds the cluster's ``redis`` for http://redis. The spelling without it
    comes second, for names that only /etc/hosts knows.
    """
    last: socket.gaierror | None = None
    for name in (f"{host}.", host):
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            last = error
            continue
        except UnicodeError as error:  # a label that the idna codec does not take
            raise NoAddress(str(error)) from None
        addresses = [ip_address(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
        if addresses:
            return list(dict.fromkeys(addresses))
    if last is not None and last.errno == socket.EAI_AGAIN:
        raise NoAnswer(str(last))
    raise NoAddress(str(last))


class _Question:
    __slots__ = ("addresses", "answered", "deadline", "error", "host")

    def __init__(self, host: str, deadline: Deadline) -> None:
        self.host = host
        self.deadline = deadline
        self.answered = threading.Event()
        self.addresses: list[Address] = []
        self.error: Exception | None = None


class Resolver:
    """Looks names up in at most ``threads`` daemon threads, started when they are first needed."""

    def __init__(self, look_up: LookUp = system_look_up, threads: int = 16) -> None:
        self._look_up = look_up
        self._limit = threads
        self._questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0

    def addresses(self, host: str, deadline: Deadline) -> list[Address]:
        """All addresses of a name; NoAddress, or NoAnswer when the deadline comes first."""
        question = _Question(host, deadline)
        self._ask(question)
        if not question.answered.wait(max(deadline.remaining(), 0)):
            raise NoAnswer("the lookup took too long")
        if question.error is not None:
            raise question.error
        return question.addresses

    def _ask(self, question: _Question) -> None:
        with self._lock:
            if self._free > 0:
                self._free -= 1
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"resolver-{self._threads}", daemon=True).start()
            else:
                self._free -= 1  # in the queue until a thread is free again
            self._questions.put(question)

    def _work(self) -> None:
        while True:
            question = self._questions.get()
            try:
                if question.deadline.remaining() > 0:  # else nobody waits for it any more
                    question.addresses = self._look_up(question.host)
            except (NoAddress, NoAnswer, OSError) as error:
                question.error = error if isinstance(error, NoAddress | NoAnswer) else NoAddress(str(error))
            finally:
                question.answered.set()
                with self._lock:
                    self._free += 1
