"""The threads that answer requests, in place of waitress's own dispatcher.

The thread that was free last is the next to work: its stack and its memory are still in the cache, and where few are
needed few are used. waitress wakes the one that has been free longest, and so goes through all of them in turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

logger = logging.getLogger(__name__)


class Task(Protocol):
    """What waitress puts into the queue: a channel with a request."""

    def service(self) -> None:
        """Answer the request."""

    def cancel(self) -> None:
        """Put the request away unanswered."""


class _Worker:
    __slots__ = ("task", "wake")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.wake = threading.Lock()  # held while there is nothing to do
        self.wake.acquire()


class Workers:
    """So many threads, and what waits for them in order of arrival."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._queue: deque[Task] = deque()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(_Worker(),), name=f"worker-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def add_task(self, task: Task) -> None:
        """Give a task to the thread that was free last, or to the queue."""
        with self._lock:
            if not self._idle:
                self._queue.append(task)
                return
            worker = self._idle.pop()
        worker.task = task
        worker.wake.release()

    def shutdown(self, *, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Let the threads end after what they do now; whether tasks were cancelled that none had begun."""
        with self._lock:
            self._stopping = True
            idle, self._idle = self._idle, []
            pending = list(self._queue) if cancel_pending else []
            if cancel_pending:
                self._queue.clear()
        for worker in idle:
            worker.wake.release()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))
        for task in pending:
            task.cancel()
        return bool(pending)

    def _run(self, worker: _Worker) -> None:
        while True:
            with self._lock:
                if self._queue:
                    worker.task = self._queue.popleft()
                elif self._stopping:
                    return
                else:
                    worker.task = None
                    self._idle.append(worker)
            if worker.task is None:
                worker.wake.acquire()
                if worker.task is None:
                    return
            try:
                worker.task.service()
            except BaseException:  # the thread must outlive whatever a request does
                logger.exception("a request failed outside of the application")
