"""DNS resolver with a deadline: names to addresses.

``getaddrinfo`` has no timeout of its own, and a name server that doesn't answer blocks it for seconds. So lookups run
in a few daemon threads: the caller stops waiting at its deadline, and a thread in a lookup never delays the process's
end. What one client's names can hold is bounded: a name is looked up once for all that wait for it, a zone holds a few
threads at most, and a name that failed is not looked up again for some seconds.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from clothing_gateway.deadline import Deadline

Address = IPv4Address | IPv6Address
LookUp = Callable[[str], list[Address]]

# More than the 32 requests in flight by default: a lookup that hangs (2 s by RESOLVER_OPTIONS) keeps none waiting.
THREADS = 64
# A photo host has a few names, and each lookup takes milliseconds.
THREADS_PER_ZONE = 8
# As long as a client's pause before a retry, and shorter than the wait for a DNS name that was just created.
FAILED_SECONDS = 5.0
# Names that failed and are remembered: a bound on memory, 1 kB each at most.
FAILED_NAMES = 1024
# For the C library, which by default waits 5 s for each name server, twice: then a lookup holds a thread for 10 s.
# Still twice, as packets to a cluster's DNS do get lost.
RESOLVER_OPTIONS = "timeout:1 attempts:2"
_HOSTS = Path("/etc/hosts")


class NoAddress(Exception):
    """The name has no address."""


class NoAnswer(Exception):
    """No name server answered in time; asking again later may help."""


def limit_system_lookups() -> None:
    """Set the C library's timeout for a name server to 2 s, unless RES_OPTIONS is set.

    It must be called before the first lookup.
    """
    os.environ.setdefault("RES_OPTIONS", RESOLVER_OPTIONS)


def system_look_up(host: str) -> list[Address]:
    """Return all addresses of a name, in the order to be tried (RFC 6724).

    The name is asked for with its last dot: else a pod's resolver (ndots:5) tries every search domain, which costs
    several questions a photo, finds the cluster's ``redis`` for http://redis, and takes longer for a name that doesn't
    exist than for one that does. Only what /etc/hosts has is asked for without it, as that file knows no last dot.
    """
    try:
        found = socket.getaddrinfo(host if host in _hosts() else f"{host}.", None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise NoAnswer(str(error)) from None
        raise NoAddress(str(error)) from None
    except UnicodeError as error:  # a label that the idna codec does not take
        raise NoAddress(str(error)) from None
    addresses = [ip_address(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]
    if not addresses:
        raise NoAddress("no IPv4 or IPv6 address")
    return list(dict.fromkeys(addresses))


def _hosts() -> frozenset[str]:
    """The names in /etc/hosts, in lower case."""
    try:
        lines = _HOSTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(name for line in lines for name in line.partition("#")[0].lower().split()[1:])


class _Question:
    __slots__ = ("addresses", "answered", "deadline", "error", "host")

    def __init__(self, host: str, deadline: Deadline) -> None:
        self.host = host
        self.deadline = deadline
        self.answered = threading.Event()
        self.addresses: list[Address] = []
        self.error: NoAddress | NoAnswer | None = None


class Resolver:
    """Resolver with at most ``threads`` daemon threads, started on demand."""

    def __init__(
        self, look_up: LookUp = system_look_up, *, threads: int = THREADS, threads_per_zone: int = THREADS_PER_ZONE
    ) -> None:
        self._look_up = look_up
        self._limit = threads
        self._per_zone = threads_per_zone
        self._changed = threading.Condition()
        self._threads = 0
        self._free = 0
        self._waiting: deque[_Question] = deque()
        self._asked: dict[str, _Question] = {}  # waiting or being looked up
        self._busy: Counter[str] = Counter()  # threads in a lookup, by zone
        self._failed: OrderedDict[str, tuple[float, NoAddress | NoAnswer]] = OrderedDict()

    def addresses(self, host: str, deadline: Deadline) -> list[Address]:
        """Return all addresses of a name; raises NoAddress, or NoAnswer at the deadline."""
        question = self._ask(host, deadline)
        if not question.answered.wait(max(deadline.remaining(), 0)):
            raise NoAnswer("the lookup took too long")
        if question.error is not None:
            raise type(question.error)(*question.error.args)
        return question.addresses

    def _ask(self, host: str, deadline: Deadline) -> _Question:
        with self._changed:
            failed = self._failed.get(host)
            if failed is not None and failed[0] > time.monotonic():
                question = _Question(host, deadline)
                question.error = failed[1]
                question.answered.set()
                return question
            known = self._asked.get(host)
            if known is not None:
                known.deadline = max(known.deadline, deadline, key=lambda one: one.at)
                return known
            question = self._asked[host] = _Question(host, deadline)
            self._waiting.append(question)
            if self._free < len(self._waiting) and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name=f"resolver-{self._threads}", daemon=True).start()
            self._changed.notify()
            return question

    def _work(self) -> None:
        while True:
            with self._changed:
                self._free += 1
                question = self._take()
                while question is None:
                    self._changed.wait()
                    question = self._take()
                self._free -= 1
            try:
                question.addresses = self._look_up(question.host)
            except (NoAddress, NoAnswer, OSError) as error:
                question.error = error if isinstance(error, NoAddress | NoAnswer) else NoAddress(str(error))
            finally:
                with self._changed:
                    self._done(question)

    def _take(self) -> _Question | None:
        """Take the first lookup whose zone has a free thread.

        Lookups whose callers have stopped waiting are dropped.
        """
        for question in list(self._waiting):
            if question.deadline.remaining() <= 0:
                self._waiting.remove(question)
                del self._asked[question.host]
            elif self._busy[zone(question.host)] < self._per_zone:
                self._waiting.remove(question)
                self._busy[zone(question.host)] += 1
                return question
        return None

    def _done(self, question: _Question) -> None:
        of = zone(question.host)
        self._busy[of] -= 1
        if not self._busy[of]:
            del self._busy[of]
        del self._asked[question.host]
        if question.error is not None:
            self._failed[question.host] = time.monotonic() + FAILED_SECONDS, question.error
            self._failed.move_to_end(question.host)
            if len(self._failed) > FAILED_NAMES:
                self._failed.popitem(last=False)
        question.answered.set()
        self._changed.notify_all()  # one of its zone may have waited for this thread


def zone(host: str) -> str:
    """The part of a name that one owner has, more or less.

    It is the last two labels, or three below the likes of co.uk.
    """
    labels = host.rsplit(".", 3)
    is_shared = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= 3
    return ".".join(labels[-3 if is_shared else -2 :])
