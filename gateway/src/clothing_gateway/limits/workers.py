"""Thread pool with a concurrency limit and a queue in order of client.

It replaces waitress's dispatcher.

It has a thread for each request that may block on the model server, on a photo's server or in the decode queue. Of
those that don't block, one more than there are cores run concurrently: more would only contend for the GIL and the
caches, and a queue (fair.py) is fairer than the GIL.

The thread that became idle last runs the next task: its stack is still in the cache, and under low load few threads
are used. waitress wakes the one that has been idle longest, and so cycles through all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

from clothing_gateway.limits.fair import FairQueue

logger = logging.getLogger(__name__)


class Task(Protocol):
    """A connection with a request, as waitress enqueues it."""

    def service(self) -> None:
        """Answer the request."""

    def cancel(self) -> None:
        """Drop the request unanswered."""


class _Worker:
    __slots__ = ("counts", "task", "wake")

    def __init__(self) -> None:
        self.task: Task | None = None
        self.counts = False  # whether it holds a concurrency permit
        self.wake = threading.Lock()  # held while idle
        self.wake.acquire()


class Blocking:
    """Context manager that releases the thread's concurrency permit.

    It is a class, as a generator costs three times as much.
    """

    __slots__ = ("_left", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def __enter__(self) -> None:
        self._left = self._workers.leave()

    def __exit__(self, *_: object) -> None:
        if self._left:
            self._workers.enter()


class Workers:
    """Thread pool with a concurrency limit and a queue in order of client."""

    def __init__(self, count: int, at_once: int) -> None:
        self._at_once = at_once
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._working = 0
        self._queued_at = self._finished_at = time.monotonic()  # when a task began to wait, and when one last finished
        self._queue: FairQueue[Task] = FairQueue()
        self._urgent: deque[Task] = deque()
        self._stopping = False
        self._this = threading.local()
        self._threads = [
            threading.Thread(target=self._run, args=(_Worker(),), name=f"worker-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def add_task(self, task: Task, *, urgent: bool = False, client: str = "") -> None:
        """Enqueue a client's task.

        Urgent ones bypass the order and the concurrency limit, and must be cheap.
        """
        with self._lock:
            if not self._queue.size and not self._urgent:
                self._queued_at = time.monotonic()
            if urgent:
                self._urgent.append(task)
                worker = self._next()
            elif self._idle and self._working < self._at_once and not self._queue.size:
                worker = self._idle.pop()  # it need not pass through an empty queue
                self._start(worker, task)
            else:
                self._queue.push(task, client)
                worker = self._next()
        if worker is not None:
            worker.wake.release()

    def blocking(self) -> Blocking:
        """Release this thread's concurrency permit while it blocks on I/O.

        It is a no-op outside of a worker.

        Afterwards the thread continues at once: for a moment the limit may be exceeded.
        """
        return Blocking(self)

    def leave(self) -> bool:
        """Release this thread's concurrency permit; whether it had one."""
        worker: _Worker | None = getattr(self._this, "worker", None)
        if worker is None or not worker.counts:
            return False
        with self._lock:
            self._working -= 1
            other = self._next()
        if other is not None:
            other.wake.release()
        return True

    def enter(self) -> None:
        """Take a concurrency permit, at once."""
        with self._lock:
            self._working += 1

    def stuck_seconds(self) -> float:
        """Seconds since a task finished while tasks wait; 0 where none waits."""
        with self._lock:
            if not self._queue.size and not self._urgent:
                return 0.0
            return time.monotonic() - max(self._queued_at, self._finished_at)

    def shutdown(self, *, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Stop the threads after their current tasks; whether queued tasks were cancelled."""
        with self._lock:
            self._stopping = True
            pending: list[Task] = []
            if cancel_pending:
                pending = [*self._urgent, *self._queue.clear()]
                self._urgent.clear()
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
        """The thread to wake for the next task that may start; the caller holds the lock."""
        if self._idle and (self._urgent or (self._queue.size and self._working < self._at_once)):
            worker = self._idle.pop()
            self._give(worker)
            return worker
        return None

    def _give(self, worker: _Worker) -> None:
        if self._urgent:
            worker.task, worker.counts = self._urgent.popleft(), False
        elif self._queue.size and self._working < self._at_once:
            self._start(worker, self._queue.pop())
        else:
            worker.task = None

    def _start(self, worker: _Worker, task: Task) -> None:
        worker.task, worker.counts = task, True
        self._working += 1

    def _run(self, worker: _Worker) -> None:
        self._this.worker = worker
        while True:
            with self._lock:
                self._finished_at = time.monotonic()
                if worker.counts:
                    worker.counts = False
                    self._working -= 1
                self._give(worker)
                # Known within the lock alone: once idle, it may be given a task, and its wake-up, before it waits. One
                # that then didn't wait would find the wake-up later, with no task, and end.
                is_idle = worker.task is None
                if is_idle:
                    if self._stopping:
                        return
                    self._idle.append(worker)
            if is_idle:
                worker.wake.acquire()
            task = worker.task
            if task is None:
                return
            try:
                task.service()
            except BaseException:  # the thread must outlive whatever a request does
                logger.exception("a request failed outside of the application")
