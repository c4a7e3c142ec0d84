from __future__ import annotations

import threading
import time

import pytest

from clothing_gateway.deadline import Deadline, client_timeout_seconds
from clothing_gateway.errors import BadRequest, OutOfTime, Overloaded
from clothing_gateway.limits.admission import ByteBudget, DecodeGate, Slots, slots_in_all


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


def test_owner_gets_less_the_more_others_have():
    slots = Slots(36, 32)
    assert [slots.acquire(owner="a") for _ in range(33)] == [True] * 32 + [False]
    assert slots.full("a")
    assert not slots.full("b")
    assert slots.taken == 32  # asking takes none, not even for a moment
    assert [slots.acquire(owner="b") for _ in range(5)] == [True] * 4 + [False]
    slots.release(2, "a")
    assert slots.full("a")  # what is free is for those that have less
    assert slots.acquire(owner="c")


def test_two_owners_leave_room_for_a_third():
    slots = Slots(36, 32)
    for _ in range(100):
        slots.acquire(owner="a")
        slots.acquire(owner="b")
    assert slots.taken == 34
    assert slots.acquire(owner="c")


@pytest.mark.parametrize("most", [1, 2, 7, 8, 32, 1000])
def test_one_owner_has_the_whole_limit_and_another_a_slot(most):
    slots = Slots(slots_in_all(most), most)
    assert all(slots.acquire(owner="a") for _ in range(most))
    assert not slots.acquire(owner="a")
    assert slots.acquire(owner="b")


class Visitor(threading.Thread):
    """Holds the gate until ``go`` is set."""

    def __init__(self, gate, cost, seconds=5.0, client=""):
        super().__init__(daemon=True)
        self.gate, self.cost, self.deadline, self.client = gate, cost, Deadline.after(seconds), client
        self.inside, self.go, self.error = threading.Event(), threading.Event(), None
        self.start()

    def run(self):
        try:
            with self.gate.hold(self.cost, self.deadline, self.client):
                self.inside.set()
                self.go.wait(5)
        except OutOfTime as error:
            self.error = error

    def leave(self):
        self.go.set()
        self.join(5)


def queued(gate, cost, **more):
    """A visitor that waits."""
    before = gate.waiting
    visitor = Visitor(gate, cost, **more)
    wait_for(lambda: gate.waiting == before + 1)
    return visitor


def inside(gate, cost, **more):
    """A visitor that holds the gate."""
    visitor = Visitor(gate, cost, **more)
    assert visitor.inside.wait(5)
    return visitor


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def state(gate):
    """Waiting, running, light ones of these, free bytes."""
    return gate.waiting, gate._running, gate._light_running, gate._free_bytes


# Of 1000 bytes 200 are for light photos, and a photo of 100 is light.
def test_the_decode_queue_of_a_client_is_fifo_although_a_smaller_photo_would_fit():
    gate = DecodeGate(slots=3, memory_bytes=1000)
    first = inside(gate, 500)
    large, small = queued(gate, 700), queued(gate, 101)
    assert not small.inside.wait(0.05)
    first.go.set()
    assert large.inside.wait(5)
    large.leave()
    assert small.inside.wait(5)
    small.leave()
    first.join(5)
    assert state(gate) == (0, 0, 0, 1000)


@pytest.mark.parametrize("cost", [200, 50])
def test_a_clients_backlog_delays_another_by_one_photo(cost):
    gate = DecodeGate(slots=1, memory_bytes=1000)
    running = inside(gate, cost, client="a")
    backlog = [queued(gate, cost, client="a") for _ in range(6)]
    others = [queued(gate, cost, client=client) for client in ("b", "c")]
    last = queued(gate, cost, client="b")
    order = []
    waiting = [*backlog, *others, last]
    for _ in range(len(waiting)):
        running.leave()
        wait_for(lambda: any(visitor.inside.is_set() for visitor in waiting))
        running = next(visitor for visitor in waiting if visitor.inside.is_set())
        waiting.remove(running)
        order.append(running)
    running.leave()
    # The first of each client in turn, and then the second of each that has one.
    assert order[:3] == [backlog[0], *others]
    assert order[3:5] == [backlog[1], last]
    assert order[5:] == backlog[2:]
    assert state(gate) == (0, 0, 0, 1000)


def test_a_large_photo_is_charged_as_several_small_ones():
    gate = DecodeGate(slots=1, memory_bytes=1000)
    running = inside(gate, 400, client="a")
    large = [queued(gate, 600, client="a") for _ in range(2)]
    small = [queued(gate, 200, client="b") for _ in range(4)]
    running.leave()
    for visitor in (large[0], *small[:3]):
        assert visitor.inside.wait(5)
        visitor.leave()
    wait_for(lambda: large[1].inside.is_set() or small[3].inside.is_set())
    assert large[1].inside.is_set()
    for visitor in (large[1], small[3]):
        visitor.leave()


def test_light_photo_does_not_wait_for_a_heavy_one():
    gate = DecodeGate(slots=2, memory_bytes=1000)
    heavy = [inside(gate, 400), inside(gate, 400)]
    waiting = queued(gate, 300)
    light = inside(gate, 100)
    second = queued(gate, 100)  # one light photo beside the heavy ones
    assert state(gate) == (2, 3, 1, 100)
    light.leave()
    assert second.inside.wait(5)
    assert not waiting.inside.is_set()
    second.leave()
    for visitor in heavy:
        visitor.leave()
    assert waiting.inside.wait(5)
    waiting.leave()
    assert state(gate) == (0, 0, 0, 1000)


def test_heavy_photos_have_slots_of_their_own():
    gate = DecodeGate(slots=4, memory_bytes=1000, heavy_slots=1)
    heavy = inside(gate, 200)
    waiting = queued(gate, 200)
    light = [inside(gate, 50) for _ in range(3)]
    light[0].leave()
    assert not waiting.inside.wait(0.05)
    heavy.leave()
    assert waiting.inside.wait(5)
    for visitor in (waiting, *light[1:]):
        visitor.leave()
    assert state(gate) == (0, 0, 0, 1000)


def test_heavy_photos_leave_memory_for_light_ones():
    gate = DecodeGate(slots=4, memory_bytes=1000)
    assert gate.largest == 800
    heavy = inside(gate, 800)
    waiting = queued(gate, 101)
    light = [inside(gate, 100) for _ in range(2)]
    third = queued(gate, 100)
    for visitor in (heavy, waiting, *light, third):
        visitor.leave()
    assert state(gate) == (0, 0, 0, 1000)


def test_light_photos_do_not_starve_a_heavy_one():
    gate = DecodeGate(slots=5, memory_bytes=1000)
    early = [inside(gate, 100) for _ in range(3)]
    heavy = queued(gate, 800)
    late = queued(gate, 100)  # there is memory, which the heavy one waits for
    early[0].leave()
    assert heavy.inside.wait(5)
    assert not late.inside.wait(0.05)
    early[1].leave()
    assert late.inside.wait(5)
    for visitor in (early[2], heavy, late):
        visitor.leave()
    assert state(gate) == (0, 0, 0, 1000)


@pytest.mark.parametrize("cost", [200, 50])
def test_decode_slots_limit_concurrency(cost):
    gate = DecodeGate(slots=2, memory_bytes=1000)
    visitors = [Visitor(gate, cost) for _ in range(3)]
    wait_for(lambda: gate.waiting == 1 and sum(visitor.inside.is_set() for visitor in visitors) == 2)
    for visitor in visitors:
        visitor.go.set()
    for visitor in visitors:
        visitor.join(5)
    assert state(gate) == (0, 0, 0, 1000)


def test_waiting_ends_at_the_deadline_and_admits_the_next_photo():
    gate = DecodeGate(slots=2, memory_bytes=1000)
    first = inside(gate, 500)
    late = queued(gate, 800, seconds=0.05)
    small = Visitor(gate, 101)
    late.join(5)
    assert isinstance(late.error, OutOfTime)
    assert small.inside.wait(5)  # it had waited behind the large one only
    first.leave()
    small.leave()
    assert state(gate) == (0, 0, 0, 1000)


def test_a_passed_deadline_is_never_admitted():
    gate = DecodeGate(slots=1, memory_bytes=1000)
    with gate.hold(1, Deadline.after(1)), pytest.raises(OutOfTime), gate.hold(1, Deadline.after(-1)):
        pass
    assert state(gate) == (0, 0, 0, 1000)


def test_the_decode_queue_under_contention():
    gate = DecodeGate(slots=3, memory_bytes=100)
    peak, inside, lock = [0], [0], threading.Lock()

    def visit(cost):
        for _ in range(50):
            try:
                with gate.hold(cost, Deadline.after(0.02), str(cost)):
                    with lock:
                        inside[0] += cost
                        peak[0] = max(peak[0], inside[0])
                    time.sleep(0.0002)
                    with lock:
                        inside[0] -= cost
            except OutOfTime:
                pass

    threads = [threading.Thread(target=visit, args=(cost,)) for cost in (10, 30, 60, 5, 80, 50, 20, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peak[0] <= 100
    assert state(gate) == (0, 0, 0, 100)


def test_a_cost_above_the_memory_limit_is_a_value_error():
    with pytest.raises(ValueError, match="never fits"), DecodeGate(1, 10).hold(9, Deadline.after(1)):
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
