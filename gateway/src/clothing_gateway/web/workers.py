"""The threads that answer requests, in place of waitress's own dispatcher.

There are as many as requests may wait for a model or a photo's server at a time. Of those that don't wait, as many work
at a time as there are cores, and one: more would only take the interpreter's lock and the caches from each other, and a
queue in order of arrival is fairer than the lock.

The thread that was free last is the next to work: its stack and its memory are still in the cache, and where few are
needed few are used. waitress wakes the one that has been free longest, and so goes through all of them in turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What waitress puts into the queue: a channel with a request."""

    def service(self) -> None:
        """Answer the request."""

    def cancel(self) -> None:
        """Put the request away unanswered."""


class _Worker:
    __slots__ = ("counts", "task", "wake")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.counts = False  # whether it is one of those that work at a time
        self.wake = threading.Lock()  # held while there is nothing to do
        self.wake.acquire()


class Workers:
    """So many threads, so many of them at work at a time, and what waits for them in order of arrival."""

    def __init__(self, count: int, at_once: int) -> None:
        self._at_once = at_once
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._working = 0
        self._queue: deque[Task] = deque()
        self._urgent: deque[Task] = deque()
        self._stopping = False
        self._this = threading.local()
        self._threads = [
            threading.Thread(target=self._run, args=(_Worker(),), name=f"worker-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def add_task(self, task: Task, *, urgent: bool = False) -> None:
        """Have a task done; an urgent one at once, whatever else is done: it must be one that takes little."""
        with self._lock:
            (self._urgent if urgent else self._queue).append(task)
            worker = self._next()
        if worker is not None:
            worker.wake.release()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let another task begin while this thread waits for somebody else.

        When the wait is over the thread goes on at once: for a moment there may be more at work than there should be.
        """
        worker: _Worker | None = getattr(self._this, "worker", None)
        if worker is None or not worker.counts:
            yield
            return
        with self._lock:
            self._working -= 1
            other = self._next()
        if other is not None:
            other.wake.release()
        try:
            yield
        finally:
            with self._lock:
                self._working += 1

    def shutdown(self, *, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Let the threads end after what they do now; whether tasks were cancelled that none had begun."""
        with self._lock:
            self._stopping = True
            pending: list[Task] = []
            if cancel_pending:
                pending = [*self._urgent, *self._queue]
                self._urgent.clear()
                self._queue.clear()
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        for task in pending:
            task.cancel()
        return bool(pending)

    def _next(self) -> _Worker | None:
        """The thread that is to be woken, with the task that may begin now; called with the lock held."""
        if self._idle and (self._urgent or (self._queue and self._working < self._at_once)):
            worker = self._idle.pop()
            self._give(worker)
            return worker
        return None

    def _give(self, worker: _Worker) -> None:
        if self._urgent:
            worker.task, worker.counts = self._urgent.popleft(), False
        elif self._queue and self._working < self._at_once:
            worker.task, worker.counts = self._queue.popleft(), True
            self._working += 1
        else:
            worker.task = None

    def _run(self, worker: _Worker) -> None:
        self._this.worker = worker
        while True:
            with self._lock:
                if worker.counts:
                    worker.counts = False
                    self._working -= 1
                self._give(worker)
                if worker.task is None:
                    if self._stopping:
                        return
                    self._idle.append(worker)
            if worker.task is None:
                worker.wake.acquire()
                if worker.task is None:
                    return
            try:
                worker.task.service()
            except BaseException:  # the thread must outlive whatever a request does
                logger.exception("a request failed outside of the application")
