"""Rate limits and client addresses: alone, and in a gateway process."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from fakes import image_bytes

from clothing_gateway.errors import TooManyRequests
from clothing_gateway.web import rate_limit
from clothing_gateway.web.rate_limit import RateLimiter, client_address

PHOTO = image_bytes((40, 30))


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


def refused(rates, client, photos=1):
    """Seconds to wait, or None where the photos are taken."""
    try:
        rates.take(client, photos)
    except TooManyRequests as error:
        return int(error.headers()["Retry-After"])
    return None


def test_burst_then_rate_for_each_client(clock):
    rates = RateLimiter(per_minute=6, burst=3)  # one in ten seconds
    assert [refused(rates, "a") for _ in range(4)] == [None, None, None, 10]
    assert refused(rates, "b") is None
    clock.now += 4
    assert refused(rates, "a") == 6
    clock.now += 6
    assert [refused(rates, "a"), refused(rates, "a")] == [None, 10]
    clock.now += 3600  # what is not used is not saved beyond the burst
    assert [refused(rates, "a") for _ in range(4)] == [None, None, None, 10]


def test_several_photos_are_counted_all_or_none(clock):
    rates = RateLimiter(per_minute=60, burst=5)
    assert refused(rates, "a", 3) is None
    assert refused(rates, "a", 3) == 1
    assert refused(rates, "a", 2) is None
    assert refused(rates, "a", 4) == 4


def test_more_than_the_burst_needs_a_full_bucket_and_is_paid_for(clock):
    rates = RateLimiter(per_minute=60, burst=60)
    assert refused(rates, "a", 61) is None  # beyond the burst
    assert refused(rates, "a", 1) == 2
    assert refused(rates, "a", 300) == 61
    clock.now += 61
    assert refused(rates, "a", 300) is None
    assert refused(rates, "a", 0.5) == 241
    clock.now += 240.5
    assert refused(rates, "a", 0.5) is None


def test_rate_over_an_hour(clock):
    rates = RateLimiter(per_minute=30, burst=1)
    taken = 0
    for _ in range(36_000):
        clock.now += 0.1
        taken += refused(rates, "a") is None
    assert abs(taken - 1800) <= 2


def test_remembered_clients_are_limited(clock, monkeypatch):
    monkeypatch.setattr(rate_limit, "_MAX_CLIENTS", 100)
    rates = RateLimiter(per_minute=1, burst=1)
    for number in range(1000):
        rates.take(f"client {number}", 1)
    assert len(rates._full_at) == 100
    clock.now += 61
    rates.take("another", 1)
    assert list(rates._full_at) == ["another"]


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "address"),
    [
        ("192.0.2.1", None, (), "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", (), "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7", (), "10.0.0.1"),
        ("192.0.2.1", "198.51.100.7", TRUSTED, "192.0.2.1"),  # the client wrote the header itself
        ("10.0.0.1", "198.51.100.7", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", None, TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7", TRUSTED, "198.51.100.7"),  # what it wrote precedes
        ("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.2.3.4", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", "10.1.1.1, 10.2.3.4", TRUSTED, "10.1.1.1"),
        ("10.0.0.1", "198.51.100.7:54321", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::7]:54321", TRUSTED, "2001:db8::/64"),
        ("10.0.0.1", "unknown", TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, unknown", TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "", TRUSTED, "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", TRUSTED, "198.51.100.7"),
        ("::ffff:192.0.2.1", None, (), "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", None, (), "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:1:2::9", TRUSTED, "2001:db8:1:2::/64"),
    ],
)
def test_client_address(peer, forwarded, trusted, address):
    assert client_address(peer, forwarded, trusted) == address


def test_rate_by_address_behind_a_trusted_proxy(start_gateway, model_server):
    settings = {"rate_photos_per_minute": 1, "rate_burst_photos": 1, "max_photos": 1}
    trusting = start_gateway(model_server.address, trusted_proxies="127.0.0.0/8", **settings)
    wary = start_gateway(model_server.address, **settings)
    for gateway, statuses in ((trusting, [200, 200, 429]), (wary, [200, 429, 429])):
        addresses = ["198.51.100.1", "198.51.100.2", "203.0.113.9, 198.51.100.1"]
        answers = [gateway.post("/predict", PHOTO, **{"X-Forwarded-For": one}) for one in addresses]
        assert [status for status, _, _ in answers] == statuses
