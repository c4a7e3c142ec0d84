"""Slots that adapt to what servers accept, and the limit on retries; without gRPC, by a clock of the test's own."""

from __future__ import annotations

import threading
import time

import pytest
from models import wait_until

from clothing_gateway.model.concurrency import CallSlots, RetryThrottle, retry_tokens


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def fill(slots, calls):
    """Take slots at once, all of which must be free."""
    for _ in range(calls):
        assert slots.acquire(0)


def test_calls_that_expire_halve_the_limit_once_for_all_in_flight(clock):
    slots = CallSlots(32, clock)
    fill(slots, 32)
    began, clock.now = clock.now, clock.now + 20
    for left in range(31, -1, -1):
        slots.release_expired(began)
        assert (slots.limit, slots.in_flight) == (16, left)
    began = clock.now
    fill(slots, 16)
    assert not slots.acquire(clock.now)
    clock.now += 20
    slots.release_expired(began)  # of the calls that began since
    assert slots.limit == 8


def test_expired_calls_leave_one_slot(clock):
    slots = CallSlots(32, clock)
    for _ in range(8):
        fill(slots, 1)
        slots.release_expired(clock.now)
    assert slots.limit == 1
    fill(slots, 1)


def test_calls_in_flight_are_limited_to_the_maximum(clock):
    slots = CallSlots(3, clock)
    fill(slots, 3)
    assert not slots.acquire(clock.now)
    slots.release()
    fill(slots, 1)
    assert (slots.in_flight, slots.waiting) == (3, 0)


@pytest.mark.parametrize("accepted", [1, 3, 7, 31])
def test_refusal_lowers_the_limit_to_nine_tenths_of_accepted_calls(clock, accepted):
    slots = CallSlots(64, clock)
    fill(slots, 64)
    for _ in range(64 - accepted):
        slots.release(accepted=False)
    assert slots.in_flight == accepted
    assert slots.limit == max(round(accepted * 0.9), 1)
    assert not slots.acquire(clock.now)
    for _ in range(accepted):
        slots.release()
    fill(slots, slots.limit)
    assert not slots.acquire(clock.now)


def test_a_refusal_with_nothing_accepted_leaves_one_call(clock):
    slots = CallSlots(8, clock)
    fill(slots, 1)
    slots.release(accepted=False)
    assert slots.limit == 1
    fill(slots, 1)
    assert not slots.acquire(clock.now)


def test_a_refusal_never_raises_the_limit(clock):
    slots = CallSlots(64, clock)
    fill(slots, 10)
    for _ in range(8):
        slots.release(accepted=False)
    before = slots.limit
    fill(slots, 0)
    slots.release()
    slots.release(accepted=False)
    assert slots.limit <= before


@pytest.mark.parametrize("accepted", [1, 3, 7, 31])
def test_limit_grows_by_one_for_twenty_completed_calls(clock, accepted):
    slots = CallSlots(64, clock)
    fill(slots, accepted + 1)
    slots.release(accepted=False)
    calls = 0
    while slots.limit <= accepted:
        fill(slots, 1) if slots.in_flight < slots.limit else None
        slots.release(accepted=True)
        calls += 1
    assert calls in range(16, 22)


def test_the_limit_grows_up_to_the_maximum(clock):
    slots = CallSlots(32, clock)
    fill(slots, 4)
    slots.release(accepted=False)
    for _ in range(3):
        slots.release(accepted=True)
    calls = 0
    while slots.limit < 32:
        fill(slots, 1)
        slots.release(accepted=True)
        calls += 1
    assert calls < 400  # 3 to 32
    fill(slots, 32)
    assert not slots.acquire(clock.now)


def test_limit_resets_after_idle_time_and_with_new_servers(clock):
    slots = CallSlots(32, clock)
    fill(slots, 4)
    slots.release(accepted=False)
    clock.now += 1000
    assert not slots.acquire(clock.now) or slots.limit < 32  # calls that last long are no pause
    for _ in range(slots.in_flight):
        slots.release()
    assert slots.limit < 32  # a call that fails for another reason tells nothing
    clock.now += 5
    fill(slots, 1)
    assert slots.limit < 32
    slots.release()
    clock.now += 11
    fill(slots, 32)
    slots.release(accepted=False)
    assert slots.limit == 28
    slots.forget()
    assert slots.limit == 32


def wait_in_line(slots, number, done, **how):
    """A thread that waits for a slot and notes that it has it."""
    thread = threading.Thread(target=lambda: slots.acquire(time.monotonic() + 10, **how) and done.append(number))
    thread.start()
    return thread


def test_calls_wait_fifo_with_retries_first():
    slots, done = CallSlots(1), []
    fill(slots, 1)
    threads = []
    for number in range(3):
        threads.append(wait_in_line(slots, number, done))
        wait_until(lambda number=number: slots.waiting == number + 1)
    threads.append(wait_in_line(slots, "refused", done, first=True))
    wait_until(lambda: slots.waiting == 4)
    for expected in ("refused", 0, 1, 2):
        slots.release()
        wait_until(lambda expected=expected: done[-1:] == [expected])
    for thread in threads:
        thread.join()
    assert slots.in_flight == 1


def test_calls_wait_in_order_of_client():
    slots, done = CallSlots(1), []
    fill(slots, 1)
    waiting = [("one", number) for number in range(4)] + [("two", 0), ("two", 1)]
    threads = []
    for client, number in waiting:
        threads.append(wait_in_line(slots, (client, number), done, client=client))
        wait_until(lambda: slots.waiting == len(threads))
    left = threading.Event()
    gone = threading.Thread(target=slots.acquire, args=(time.monotonic() + 10, "one"), kwargs={"has_left": left.is_set})
    gone.start()
    wait_until(lambda: slots.waiting == 7)
    left.set()
    gone.join()
    for count in range(1, 7):
        slots.release()
        wait_until(lambda count=count: len(done) == count)
    assert done == [("one", 0), ("two", 0), ("one", 1), ("two", 1), ("one", 2), ("one", 3)]
    for thread in threads:
        thread.join()
    assert (slots.in_flight, slots.waiting) == (1, 0)


def test_a_retry_that_times_out_leaves_the_others_in_line():
    slots, done = CallSlots(1), []
    fill(slots, 1)
    thread = wait_in_line(slots, "waits", done)
    wait_until(lambda: slots.waiting == 1)
    assert not slots.acquire(time.monotonic() + 0.05, first=True)
    assert slots.waiting == 1
    slots.release()
    thread.join()
    assert done == ["waits"]


def test_wait_times_out_without_taking_a_slot():
    slots = CallSlots(1)
    fill(slots, 1)
    start = time.monotonic()
    assert not slots.acquire(start + 0.2)
    assert 0.2 <= time.monotonic() - start < 2
    assert (slots.in_flight, slots.waiting) == (1, 0)


def test_wait_ends_when_the_client_disconnects():
    slots, left = CallSlots(1), threading.Event()
    fill(slots, 1)
    ended = []
    thread = threading.Thread(target=lambda: ended.append(slots.acquire(time.monotonic() + 30, has_left=left.is_set)))
    thread.start()
    wait_until(lambda: slots.waiting == 1)
    left.set()
    thread.join(5)
    assert ended == [False]
    assert (slots.in_flight, slots.waiting) == (1, 0)


def test_waiting_calls_get_slots_when_servers_are_replaced():
    slots, done = CallSlots(8), []
    fill(slots, 2)
    slots.release(accepted=False)
    assert slots.limit == 1
    thread = wait_in_line(slots, "admitted", done)
    wait_until(lambda: slots.waiting == 1)
    slots.forget()
    wait_until(lambda: done == ["admitted"], 5)
    thread.join()


def test_retries_stop_at_half_the_tokens_and_resume_after_successes():
    throttle = RetryThrottle(10)
    assert [throttle.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(10 * 10):
        throttle.succeeded()
    assert throttle.failed()
    assert (retry_tokens(32), retry_tokens(5000)) == (128, 1000)
