"""Dynamic batching of concurrent requests, as in TensorFlow Serving.

Its parameters, defaults and refusals (batching_session.cc, shared_batch_scheduler.h). Two things are kinder: requests
of different shapes, which it refuses together, are computed apart; and where a batch is refused, each of its requests
is tried alone, so that one client's broken photo fails no other's.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from clothing_model.server.cpus import available_cpus
from clothing_model.server.errors import RequestError, deadline_exceeded, failed_precondition, invalid, unavailable
from clothing_model.server.metrics import Metrics
from clothing_model.server.tensors import Array

log = logging.getLogger(__name__)

PER_MODEL_FILE = "batching_params.pbtxt"
# TensorFlow Serving gives its sessions' batches no pool name, whatever thread_pool_name says (bundle_factory_util.cc).
_POOL_LABEL = ""

Run = Callable[[dict[str, Array], list[str], int], list[Array]]


@dataclass(frozen=True)
class Parameters:
    """A BatchingParameters message, with its defaults filled in."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=available_cpus)
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0  # 0: max_batch_size; it counts only where large requests are split

    @staticmethod
    def of(message: Any) -> Parameters:
        """Read the parameters from a BatchingParameters message.

        Raises:
            RequestError: values that contradict each other.

        """
        given: dict[str, Any] = {}
        for descriptor, value in message.ListFields():
            if descriptor.name == "allowed_batch_sizes":
                given[descriptor.name] = tuple(value)
            else:
                given[descriptor.name] = value.value if descriptor.message_type else value
        parameters = Parameters(**given)
        parameters.check()
        return parameters

    @property
    def batch_size(self) -> int:
        """Maximum rows of one computed batch."""
        split = self.enable_large_batch_splitting and self.max_execution_batch_size
        return self.max_execution_batch_size if split else self.max_batch_size

    def check(self) -> None:
        """Reject parameters that TensorFlow Serving rejects.

        Raises:
            RequestError: a value out of bounds.

        """
        for name, least in (
            ("max_batch_size", 1), ("batch_timeout_micros", 0), ("max_enqueued_batches", 1), ("num_batch_threads", 1),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise invalid(f"{name} must be at least {least}; was {getattr(self, name)}")
        if not 1 <= self.batch_size <= self.max_batch_size:
            raise invalid(
                f"max_execution_batch_size must be from 1 to max_batch_size, which is {self.max_batch_size}; "
                f"was {self.max_execution_batch_size}"
            )
        sizes = self.allowed_batch_sizes
        if any(size < 1 for size in sizes) or any(b <= a for a, b in itertools.pairwise(sizes)):
            raise invalid(f"allowed_batch_sizes entries must be positive and increasing; were {list(sizes)}")
        if sizes and sizes[-1] != self.batch_size:
            raise invalid(
                f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {sizes[-1]}; "
                f"expected {self.batch_size}"
            )

    def padded(self, size: int) -> int:
        """The smallest allowed batch size for this number of rows."""
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


@dataclass(eq=False)
class _Task:
    """One request, or a part of one, in a batch."""

    feeds: dict[str, Array]
    size: int
    queued: float
    deadline: float | None
    done: threading.Event = field(default_factory=threading.Event)
    taken: bool = False
    outputs: list[Array] = field(default_factory=list)
    error: RequestError | None = None

    def fail(self, error: RequestError) -> None:
        self.error = error
        self.done.set()

    def kind(self, padded: bool) -> tuple[Any, ...]:
        """Key of requests that may share a batch: their shapes, or only their ranks."""
        shapes = (self.feeds[name].shape[1:] for name in sorted(self.feeds))
        return tuple(len(shape) for shape in shapes) if padded else tuple(shapes)


@dataclass(eq=False)
class _Batch:
    tasks: list[_Task] = field(default_factory=list)
    size: int = 0
    started: float = 0.0


class _Queue:
    """Queue of batches of one kind of request; the last batch is open.

    The scheduler's lock guards it.
    """

    def __init__(self, parameters: Parameters, process: Callable[[list[_Task]], None]) -> None:
        self.parameters = parameters
        self.process = process
        self.batches = deque([_Batch()])

    def sizes(self, size: int) -> list[int]:
        """The parts of a request for the batches: itself, unless large ones are split."""
        limit = self.parameters.batch_size
        if not self.parameters.enable_large_batch_splitting or self.batches[-1].size + size <= limit:
            return [size]
        first = limit - self.batches[-1].size
        parts = [first] if first else []
        return parts + [min(limit, size - start) for start in range(first, size, limit)]

    def check_room(self, size: int) -> None:
        parameters, count, opened = self.parameters, len(self.batches), self.batches[-1].size
        if size > parameters.max_batch_size:
            raise invalid(f"Task size {size} is larger than maximum input batch size {parameters.max_batch_size}")
        limit, most = parameters.batch_size, parameters.max_enqueued_batches
        if parameters.enable_large_batch_splitting:
            room = (most - count) * limit + limit - opened
            if size > room:
                raise unavailable(
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"task size is {size} but scheduling capacity is only {room} (num_enqueued_batches={count}, "
                    f"max_enqueued_batches={most}, open_batch_size={opened}, max_execution_batch_size={limit})"
                )
        elif opened + size > limit and count >= most:
            raise unavailable(
                "The batch scheduling queue to which this task was submitted is full; "
                f"currently {count} batches enqueued and max_enqueued_batches is {most}"
            )

    def put(self, task: _Task) -> None:
        if self.batches[-1].size + task.size > self.parameters.batch_size:
            self.batches.append(_Batch())
        batch = self.batches[-1]
        if not batch.tasks:
            batch.started = task.queued
        batch.tasks.append(task)
        batch.size += task.size

    def due(self) -> float | None:
        """Time at which its first batch is due; None where it has none."""
        first = self.batches[0]
        if not first.tasks:
            return None
        if len(self.batches) > 1 or first.size >= self.parameters.batch_size:
            return first.started
        return first.started + self.parameters.batch_timeout_micros / 1e6

    def take(self) -> list[_Task]:
        batch = self.batches.popleft()
        if not self.batches:
            self.batches.append(_Batch())
        for task in batch.tasks:
            task.taken = True
        return batch.tasks


class Scheduler:
    """Batch threads, shared by all models; queues are served round robin."""

    def __init__(self, threads: int, name: str) -> None:
        self.lock = threading.Condition()
        self._queues: deque[_Queue] = deque()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def add(self, queue: _Queue) -> None:
        """Add a queue."""
        with self.lock:
            self._queues.append(queue)

    def remove(self, queue: _Queue) -> None:
        """Remove a queue."""
        with self.lock:
            self._queues.remove(queue)

    def _work(self) -> None:
        while True:
            queue, tasks = self._next()
            queue.process(tasks)
            del queue, tasks  # or they would stay in memory until the next batch

    def _next(self) -> tuple[_Queue, list[_Task]]:
        with self.lock:
            while True:
                soonest = None
                now = time.monotonic()
                for position, queue in enumerate(self._queues):
                    due = queue.due()
                    if due is None:
                        continue
                    if due <= now:
                        self._queues.rotate(-position - 1)
                        self.lock.notify()  # another thread waits for the next batch's due time
                        return queue, queue.take()
                    soonest = due if soonest is None else min(soonest, due)
                self.lock.wait(None if soonest is None else soonest - now)


class BatchingSession:
    """A session's `run` with batching: same arguments, same results."""

    def __init__(self, run: Run, parameters: Parameters, scheduler: Scheduler, metrics: Metrics) -> None:
        self._run = run
        self._parameters = parameters
        self._scheduler = scheduler
        self._metrics = metrics
        self._queues: dict[tuple[tuple[str, ...], tuple[str, ...]], _Queue] = {}

    def run(self, feeds: dict[str, Array], fetches: list[str], timeout_ms: int = 0) -> list[Array]:
        """Compute ``fetches`` for ``feeds``, batched with other calls.

        The first dimension of ``feeds`` is the batch.

        Raises:
            RequestError: the queue is full, the deadline passed, or the session failed.

        """
        size = _size(feeds)
        if size == 0:
            return self._run(feeds, fetches, timeout_ms)
        names = sorted(set(fetches))
        now = time.monotonic()
        deadline = now + timeout_ms / 1000 if timeout_ms else None
        tasks = []
        with self._scheduler.lock:
            queue = self._queue(tuple(sorted(feeds)), tuple(names))
            queue.check_room(size)
            start = 0
            for part in queue.sizes(size):
                whole = part == size
                rows = feeds if whole else {name: array[start : start + part] for name, array in feeds.items()}
                tasks.append(_Task(rows, part, now, deadline))
                queue.put(tasks[-1])
                start += part
            self._scheduler.lock.notify()
        for task in tasks:
            if not task.done.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
                raise deadline_exceeded("Timed out waiting for notification") if task.taken else _waited_too_long()
            if task.error is not None:
                raise task.error
        columns = zip(*(task.outputs for task in tasks), strict=True)
        outputs = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in columns]
        return [outputs[names.index(fetch)] for fetch in fetches]

    def _queue(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> _Queue:
        queue = self._queues.get((inputs, outputs))
        if queue is None:
            queue = _Queue(self._parameters, lambda tasks: self._process(tasks, list(outputs)))
            self._queues[inputs, outputs] = queue
            self._scheduler.add(queue)
        return queue

    def close(self) -> None:
        """Remove its queues from the scheduler."""
        for queue in self._queues.values():
            self._scheduler.remove(queue)
        self._queues.clear()

    def _process(self, tasks: list[_Task], outputs: list[str]) -> None:
        now = time.monotonic()
        groups: dict[Any, list[_Task]] = {}
        for task in tasks:
            self._metrics.queuing_latency.observe((now - task.queued) * 1e6, _POOL_LABEL)
            if task.deadline is not None and task.deadline <= now:
                task.fail(_waited_too_long())  # its caller has timed out
            else:
                groups.setdefault(task.kind(self._parameters.pad_variable_length_inputs), []).append(task)
        for group in groups.values():
            self._compute(group, outputs)

    def _compute(self, tasks: list[_Task], outputs: list[str]) -> None:
        try:
            found = self._together(tasks, outputs)
        except RequestError as error:
            if len(tasks) > 1 and error.code is grpc.StatusCode.INVALID_ARGUMENT:
                for task in tasks:
                    self._compute([task], outputs)
                return
            for task in tasks:
                task.fail(error)
        except Exception as error:  # a thread of the pool must not end
            log.exception("a batch failed")
            for task in tasks:
                task.fail(RequestError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            start = 0
            for task in tasks:
                task.outputs = [array[start : start + task.size] for array in found]
                start += task.size
                task.done.set()

    def _together(self, tasks: list[_Task], outputs: list[str]) -> list[Array]:
        size = sum(task.size for task in tasks)
        padded = self._parameters.padded(size)
        merged = {name: self._merged([task.feeds[name] for task in tasks], padded - size) for name in tasks[0].feeds}
        self._metrics.wrapped_run_count.increment()
        found = self._run(merged, outputs, _timeout_ms(tasks))
        for array in found:
            if array.ndim == 0:
                raise failed_precondition("Batched output tensor has 0 dimensions")
            if len(array) != padded:
                raise failed_precondition(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors"
                )
        return found

    def _merged(self, arrays: list[Array], padding: int) -> Array:
        if self._parameters.pad_variable_length_inputs:
            arrays = _equally_long(arrays)
        if padding:
            arrays = [*arrays, np.repeat(arrays[-1][:1], padding, axis=0)]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _size(feeds: dict[str, Array]) -> int:
    """Number of rows of a request: the 0th dimension of its inputs."""
    if any(array.ndim == 0 for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop() if sizes else 0


def _equally_long(arrays: Sequence[Array]) -> list[Array]:
    """Pad arrays to the longest of them, in every dimension but the 0th.

    Each is padded with its own first element.
    """
    longest = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        if not array.size or tuple(longest) == array.shape[1:]:
            padded.append(array)
            continue
        wider = np.full((len(array), *longest), array.flat[0], array.dtype)
        wider[tuple(slice(size) for size in array.shape)] = array
        padded.append(wider)
    return padded


def _timeout_ms(tasks: list[_Task]) -> int:
    """The longest of the deadlines; 0, which is none, where one request has none."""
    deadlines = [task.deadline for task in tasks if task.deadline is not None]
    if len(deadlines) < len(tasks):
        return 0
    return max(1, int((max(deadlines) - time.monotonic()) * 1000))


def _waited_too_long() -> RequestError:
    # TensorFlow Serving returns RESOURCE_EXHAUSTED, but so late that its clients have timed out and never see it.
    return deadline_exceeded("Run() timeout exceeded while waiting in batching queue")
