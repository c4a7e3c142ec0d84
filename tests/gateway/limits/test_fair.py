"""The order by client."""

from __future__ import annotations

import pytest

from clothing_gateway.limits import fair
from clothing_gateway.limits.fair import FairQueue


def served(queue):
    return "".join(queue.pop() for _ in range(queue.size))


def test_one_client_is_served_in_order_of_arrival():
    queue = FairQueue()
    for item in "abcde":
        queue.push(item, "", ord(item) % 3 + 1)
    assert queue.head == "a"
    assert served(queue) == "abcde"


def test_clients_with_an_item_each_are_served_in_order_of_arrival():
    queue = FairQueue()
    for item in "abcde":
        queue.push(item, item, 5)
    assert served(queue) == "abcde"


def test_a_client_without_a_backlog_is_next():
    queue = FairQueue()
    for item in "aAaAaA":
        queue.push(item, "a")
    assert queue.pop() == "a"
    queue.push("b", "b")
    assert [queue.pop(), queue.pop()] == ["b", "A"]
    queue.push("c", "c")
    queue.push("b", "b")
    assert served(queue) == "cbaAaA"


def test_served_client_keeps_no_credit_and_no_debt():
    queue = FairQueue()
    queue.push("b", "b", 1000)
    assert queue.pop() == "b"
    for _ in range(3):
        queue.push("a", "a")
    queue.push("b", "b")
    assert served(queue) == "abaa"  # the earlier charge was of another busy period


def test_shares_are_by_charge():
    queue = FairQueue()
    for _ in range(4):
        queue.push("L", "large", 3)
    for _ in range(12):
        queue.push("s", "small", 1)
    assert served(queue) == "LsssLsssLsssLsss"


def test_new_clients_do_not_starve_a_backlog():
    queue = FairQueue()
    for _ in range(3):
        queue.push("a", "backlog")
    order = ""
    for number in range(30):
        queue.push(".", str(number))
        order += queue.pop()
    assert order.count("a") == 3


def test_a_removed_item_is_not_served():
    queue, items = FairQueue(), [["a"], ["b"], ["a"]]
    for item in items:
        queue.push(item, "")
    queue.remove(items[2])
    assert queue.clear() == [["a"], ["b"]]
    assert queue.size == 0
    with pytest.raises(IndexError):
        queue.pop()


def test_clients_without_a_backlog_are_forgotten(monkeypatch):
    monkeypatch.setattr(fair, "_MAX_CLIENTS", 10)
    queue = FairQueue()
    for _ in range(3):
        queue.push("a", "backlog", 1000)
    for number in range(100):
        queue.push("b", str(number))
        queue.pop()
    assert len(queue._ends) <= 12
    assert queue._ends["backlog"] == 3000
