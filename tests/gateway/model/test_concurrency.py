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


def test_as_many_calls_as_the_maximum_and_no_more(clock):
    slots = CallSlots(3, clock)
    fill(slots, 3)
    assert not slots.acquire(clock.now)
    slots.release()
    fill(slots, 1)
    assert (slots.in_flight, slots.waiting) == (3, 0)


@pytest.mark.parametrize("accepted", [1, 3, 7, 31])
def test_after_refusals_the_limit_is_nine_tenths_of_what_was_accepted(clock, accepted):
    slots = CallSlots(64, clock)
    fill(slots, 64)
    for _ in range(64 - accepted):
        slots.release(refused=True)
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
    slots.release(refused=True)
    assert slots.limit == 1
    fill(slots, 1)
    assert not slots.acquire(clock.now)


def test_a_refusal_never_raises_the_limit(clock):
    slots = CallSlots(64, clock)
    fill(slots, 10)
    for _ in range(8):
        slots.release(refused=True)
    before = slots.limit
    fill(slots, 0)
    slots.release()
    slots.release(refused=True)
    assert slots.limit <= before


def test_the_limit_grows_with_time_up_to_the_maximum(clock):
    slots = CallSlots(32, clock)
    fill(slots, 4)
    slots.release(refused=True)
    assert slots.limit == 3
    clock.now += 1
    assert slots.limit == 4  # so that more is found out about a second later
    seconds = 1
    while slots.limit < 32:
        clock.now += 1
        seconds += 1
    assert seconds in range(10, 16)
    clock.now += 1000
    assert slots.limit == 32


def wait_in_line(slots, number, done, **how):
    """A thread that waits for a slot and notes that it has it."""
    thread = threading.Thread(target=lambda: slots.acquire(time.monotonic() + 10, **how) and done.append(number))
    thread.start()
    return thread


def test_calls_wait_in_order_of_arrival_and_refused_ones_before_all():
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


def test_a_wait_ends_in_time_and_takes_nothing():
    slots = CallSlots(1)
    fill(slots, 1)
    start = time.monotonic()
    assert not slots.acquire(start + 0.2)
    assert 0.2 <= time.monotonic() - start < 2
    assert (slots.in_flight, slots.waiting) == (1, 0)


def test_a_wait_ends_when_the_client_leaves():
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


def test_a_call_that_waits_gets_its_slot_when_the_limit_grows():
    """With no other call that ends: a server may have started."""
    slots, done = CallSlots(8), []
    fill(slots, 2)
    slots.release(refused=True)
    assert slots.limit == 1
    thread = wait_in_line(slots, "grown", done)
    wait_until(lambda: done == ["grown"], 5)
    thread.join()


def test_retries_stop_when_half_the_tokens_are_gone_and_start_again_with_successes():
    throttle = RetryThrottle(10)
    assert [throttle.failed() for _ in range(6)] == [True] * 4 + [False] * 2
    for _ in range(10 * 10):
        throttle.succeeded()
    assert throttle.failed()
    assert (retry_tokens(32), retry_tokens(5000)) == (128, 1000)
