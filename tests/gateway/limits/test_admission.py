from __future__ import annotations

import threading
import time

import pytest

from clothing_gateway.deadline import Deadline, client_timeout_seconds
from clothing_gateway.errors import BadRequest, OutOfTime, Overloaded
from clothing_gateway.limits.admission import ByteBudget, DecodeGate, Slots


def test_slots_over_the_limit_are_denied_at_once():
    slots = Slots(3)
    assert slots.acquire(2)
    assert not slots.acquire(2)
    assert slots.taken == 2
    assert slots.acquire()
    slots.release(3)
    assert slots.taken == 0


def test_releasing_a_slot_is_idempotent():
    slots = Slots(1)
    slot, denied = slots.slot(), slots.slot()
    assert (slot.held, denied.held, slots.taken) == (True, False, 1)
    for _ in range(2):
        denied.release()
        assert slots.taken == 1
    for _ in range(2):
        slot.release()
        assert slots.taken == 0
    assert slots.slot().held


def test_slot_grows_by_all_photos_or_none():
    slots = Slots(3)
    slot = slots.slot()
    slot.grow(1)
    with pytest.raises(Overloaded) as caught:
        slot.grow(2)
    assert caught.value.retry_after == 1
    assert slots.taken == 2
    slot.release()
    assert slots.taken == 0


def test_the_byte_budget_is_exact():
    budget = ByteBudget(100)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    budget.release(100)
    assert budget.reserved == 0


def test_owner_has_its_share_of_the_byte_budget():
    budget = ByteBudget(100, 60)
    assert budget.reserve(60, "a")
    assert not budget.reserve(1, "a")
    assert budget.reserve(30, "b")
    assert not budget.reserve(11, "b")  # all of it is shared
    assert budget.reserve(10)  # no owner, no share
    budget.release(60, "a")
    assert budget.reserve(60, "a")
    budget.release(60, "a")
    budget.release(30, "b")
    budget.release(10)
    assert (budget.reserved, dict(budget._owned)) == (0, {})


class Visitor(threading.Thread):
    """Holds the gate until ``go`` is set."""

    def __init__(self, gate, cost, seconds=5.0):
        super().__init__(daemon=True)
        self.gate, self.cost, self.deadline = gate, cost, Deadline.after(seconds)
        self.inside, self.go, self.error = threading.Event(), threading.Event(), None
        self.start()

    def run(self):
        try:
            with self.gate.hold(self.cost, self.deadline):
                self.inside.set()
                self.go.wait(5)
        except OutOfTime as error:
            self.error = error


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_decode_queue_is_fifo_although_a_smaller_photo_would_fit():
    gate = DecodeGate(slots=3, memory_bytes=100)
    first = Visitor(gate, 60)
    assert first.inside.wait(5)
    large = Visitor(gate, 80)
    wait_for(lambda: gate.waiting == 1)
    small = Visitor(gate, 10)
    wait_for(lambda: gate.waiting == 2)
    assert not small.inside.wait(0.05)
    first.go.set()
    assert large.inside.wait(5)
    assert small.inside.wait(5)
    for visitor in (large, small):
        visitor.go.set()
        visitor.join(5)
    assert (gate.waiting, gate._free_slots, gate._free_bytes) == (0, 3, 100)


def test_decode_slots_limit_concurrency():
    gate = DecodeGate(slots=2, memory_bytes=100)
    visitors = [Visitor(gate, 1) for _ in range(3)]
    wait_for(lambda: gate.waiting == 1 and sum(visitor.inside.is_set() for visitor in visitors) == 2)
    for visitor in visitors:
        visitor.go.set()
    for visitor in visitors:
        visitor.join(5)
    assert (gate._free_slots, gate._free_bytes) == (2, 100)


def test_waiting_ends_at_the_deadline_and_admits_the_next_photo():
    gate = DecodeGate(slots=2, memory_bytes=100)
    first = Visitor(gate, 60)
    assert first.inside.wait(5)
    late = Visitor(gate, 80, seconds=0.05)
    wait_for(lambda: gate.waiting == 1)
    small = Visitor(gate, 10)
    late.join(5)
    assert isinstance(late.error, OutOfTime)
    assert small.inside.wait(5)  # it had waited behind the large one only
    first.go.set()
    small.go.set()
    first.join(5)
    small.join(5)
    assert (gate.waiting, gate._free_slots, gate._free_bytes) == (0, 2, 100)


def test_a_passed_deadline_is_never_admitted():
    gate = DecodeGate(slots=1, memory_bytes=100)
    with gate.hold(1, Deadline.after(1)), pytest.raises(OutOfTime), gate.hold(1, Deadline.after(-1)):
        pass
    assert (gate.waiting, gate._free_slots) == (0, 1)


def test_the_decode_queue_under_contention():
    gate = DecodeGate(slots=3, memory_bytes=100)
    peak, inside, lock = [0], [0], threading.Lock()

    def visit(cost):
        for _ in range(50):
            try:
                with gate.hold(cost, Deadline.after(0.02)):
                    with lock:
                        inside[0] += cost
                        peak[0] = max(peak[0], inside[0])
                    time.sleep(0.0002)
                    with lock:
                        inside[0] -= cost
            except OutOfTime:
                pass

    threads = [threading.Thread(target=visit, args=(cost,)) for cost in (10, 30, 60, 90, 100, 50, 20, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak[0] <= 100
    assert (gate.waiting, gate._free_slots, gate._free_bytes) == (0, 3, 100)


def test_a_cost_above_the_memory_limit_is_a_value_error():
    with pytest.raises(ValueError, match="never fits"), DecodeGate(1, 10).hold(11, Deadline.after(1)):
        pass


def test_a_deadline_counts_from_its_start():
    deadline = Deadline.after(10, start=time.monotonic() - 9)
    assert 0.5 < deadline.remaining() <= 1
    assert deadline.require("work") > 0
    with pytest.raises(OutOfTime, match="before it could work"):
        Deadline.after(-0.01).require("work")
    assert deadline.sooner(0.1).remaining() <= 0.1
    assert deadline.sooner(100) == deadline


@pytest.mark.parametrize(
    ("milliseconds", "grpc", "seconds"),
    [
        (None, None, None),
        ("1500", None, 1.5),
        (None, "2S", 2),
        (None, "1500m", 1.5),
        (None, "1H", 3600),
        (None, "1M", 60),
        (None, "5u", 5e-6),
        (None, "99999999n", 0.099999999),
        ("1500", "1S", 1),
        ("500", "1S", 0.5),
    ],
)
def test_a_client_sets_a_shorter_timeout(milliseconds, grpc, seconds):
    assert client_timeout_seconds(milliseconds, grpc) == (pytest.approx(seconds) if seconds else None)


@pytest.mark.parametrize("milliseconds", ["", "0", "-1", "1.5", "1e3", "soon", "9" * 10, "１"])
def test_invalid_timeouts_in_milliseconds(milliseconds):
    with pytest.raises(BadRequest):
        client_timeout_seconds(milliseconds, None)


@pytest.mark.parametrize("grpc", ["", "1", "S", "0S", "1s", "-1S", "1.5S", "123456789S", "1 S"])
def test_invalid_grpc_timeouts(grpc):
    with pytest.raises(BadRequest):
        client_timeout_seconds(None, grpc)
