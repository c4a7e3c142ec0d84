"""The thread pool: its order, its concurrency limit, its end."""

from __future__ import annotations

import threading
import time

from clothing_gateway.limits.workers import Workers


class Task:
    def __init__(self, do):
        self.do, self.cancelled, self.thread = do, False, None
        self.done = threading.Event()

    def service(self):
        self.thread = threading.current_thread()
        try:
            self.do()
        finally:
            self.done.set()

    def cancel(self):
        self.cancelled = True


def test_last_idle_thread_runs_the_next_task():
    workers = Workers(8, 3)
    threads = set()
    for _ in range(20):
        task = Task(lambda: None)
        workers.add_task(task)
        assert task.done.wait(5)
        threads.add(task.thread)
        time.sleep(0.005)
    assert len(threads) == 1
    assert not workers.shutdown()


class SlowToRelease:
    """A lock whose holder is delayed after its release, so that others overtake it."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_):
        self._lock.release()
        time.sleep(0.05)


def test_worker_that_gets_a_task_before_it_waits_outlives_it():
    workers = Workers(1, 1)
    workers._lock = SlowToRelease()
    for pause in (0, 0, 0.3, 0):
        done = threading.Event()
        time.sleep(pause)
        workers.add_task(Task(done.set))
        assert done.wait(5)
    workers.shutdown()


def test_a_clients_backlog_delays_another_by_one_task():
    workers = Workers(1, 1)
    go, order = threading.Event(), []
    workers.add_task(Task(lambda: go.wait(5)))
    tasks = [Task(lambda name=name: order.append(name)) for name in "aaaabab"]
    for task, client in zip(tasks, "aaaabab", strict=True):
        workers.add_task(task, client=client)
    go.set()
    assert all(task.done.wait(5) for task in tasks)
    assert "".join(order) == "ababaaa"
    assert not workers.shutdown()


def test_queue_of_one_client_is_fifo():
    workers = Workers(1, 1)
    go, order = threading.Event(), []
    workers.add_task(Task(lambda: go.wait(5)))
    tasks = [Task(lambda number=number: order.append(number)) for number in range(10)]
    for task in tasks:
        workers.add_task(task)
    go.set()
    assert tasks[-1].done.wait(5)
    assert order == list(range(10))
    assert not workers.shutdown()


def test_thread_survives_a_failing_task(caplog):
    workers = Workers(1, 1)
    for failure in (ZeroDivisionError, SystemExit):
        workers.add_task(Task(lambda failure=failure: (_ for _ in ()).throw(failure)))
    task = Task(lambda: None)
    workers.add_task(task)
    assert task.done.wait(5)
    assert len(caplog.records) == 2
    workers.shutdown()


def test_shutdown_waits_for_running_tasks_and_cancels_queued_ones():
    workers = Workers(2, 2)
    go = threading.Event()
    running = [Task(lambda: go.wait(5)) for _ in range(2)]
    waiting = [Task(lambda: None) for _ in range(3)]
    for task in (*running, *waiting):
        workers.add_task(task)
    threading.Timer(0.1, go.set).start()
    assert workers.shutdown(timeout=5)
    assert all(task.done.is_set() for task in running)
    assert all(task.cancelled and task.thread is None for task in waiting)


def test_concurrency_limit_and_urgent_tasks():
    workers = Workers(6, 2)
    go = threading.Event()
    tasks = [Task(lambda: go.wait(5)) for _ in range(4)]
    for task in tasks:
        workers.add_task(task)
    urgent = Task(lambda: None)
    workers.add_task(urgent, urgent=True)
    assert urgent.done.wait(5)
    end = time.monotonic() + 5
    while not (tasks[0].thread and tasks[1].thread) and time.monotonic() < end:
        time.sleep(0.01)  # a thread that was told to work may not have begun
    assert [task.thread is not None for task in tasks] == [True, True, False, False]
    go.set()
    assert all(task.done.wait(5) for task in tasks)
    assert not workers.shutdown()
    assert workers._working == 0


def test_blocking_releases_the_permit():
    workers = Workers(6, 1)
    answered, go_on, order = threading.Event(), threading.Event(), []

    def ask():
        with workers.blocking():
            answered.wait(5)
        order.append("goes on at once")
        go_on.wait(5)

    first, second, third = Task(ask), Task(lambda: order.append("meanwhile")), Task(lambda: order.append("later"))
    workers.add_task(first)
    workers.add_task(second)
    assert second.done.wait(5)
    answered.set()
    while len(order) < 2:
        time.sleep(0.001)
    workers.add_task(third)
    assert not third.done.wait(0.05)
    go_on.set()
    assert third.done.wait(5)
    assert order == ["meanwhile", "goes on at once", "later"]
    workers.shutdown()
    assert workers._working == 0


def test_blocking_outside_a_worker_is_a_noop():
    workers = Workers(2, 1)
    with workers.blocking():
        pass
    done = Task(lambda: workers.blocking().__enter__())
    workers.add_task(done, urgent=True)
    assert done.done.wait(5)
    assert workers._working == 0
    workers.shutdown()


def test_200_tasks_keep_the_concurrency_limit():
    workers = Workers(8, 3)
    lock, now, most = threading.Lock(), [0], [0]

    def work():
        for _ in range(3):
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.0005)
            with lock:
                now[0] -= 1
        with workers.blocking():
            time.sleep(0.002)

    tasks = [Task(work) for _ in range(200)]
    for task in tasks:
        workers.add_task(task)
    assert all(task.done.wait(10) for task in tasks)
    assert not workers.shutdown()
    assert workers._working == 0
    assert most[0] == 3
