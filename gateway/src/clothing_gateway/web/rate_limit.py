"""Per-client rate limits.

A client is its API key's holder, or its address behind trusted proxies.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from clothing_gateway.context import Client
from clothing_gateway.errors import TooManyRequests
from clothing_gateway.settings import Network, Settings
from clothing_gateway.web.auth import Keys

Address = IPv4Address | IPv6Address

# Clients remembered: about 2 MB.
_MAX_CLIENTS = 10_000


class RateLimiter:
    """Token bucket for each client: photos or megapixels per minute, and a burst.

    Kept as the time at which the bucket is full again (the generic cell rate algorithm of ATM).
    """

    def __init__(self, per_minute: float, burst: float) -> None:
        self._interval = 60 / per_minute
        self._burst = burst
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str, amount: float) -> None:
        """Count an amount, or TooManyRequests with nothing counted.

        More than the burst needs a full bucket, which then is full again the later: so the largest photo is not refused
        for ever, and the rate holds.
        """
        now = time.monotonic()
        with self._lock:
            full_at = max(self._full_at.get(client, now), now)
            wait = full_at - now + (min(amount, self._burst) - self._burst) * self._interval
            if wait > 1e-6:
                raise TooManyRequests(retry_after=max(math.ceil(wait), 1))
            self._full_at[client] = full_at + amount * self._interval
            self._full_at.move_to_end(client)
            while len(self._full_at) > _MAX_CLIENTS or next(iter(self._full_at.values())) <= now:
                self._full_at.popitem(last=False)


def client_address(peer: str, forwarded: str | None, trusted: Sequence[Network]) -> str:
    """The client's address: the TCP peer's, or X-Forwarded-For's behind a proxy.

    Behind a trusted proxy it is the last address in X-Forwarded-For that is no trusted proxy.

    What a client itself writes there precedes what the proxies add, so it is never reached.
    """
    address = _address(peer)
    if address is None:
        return peer
    hops = forwarded.split(",") if forwarded else []
    while hops and any(address in network for network in trusted):
        hop = _address(hops.pop())
        if hop is None:
            break
        address = hop
    if isinstance(address, IPv6Address):
        # One customer has a network of 2^64 addresses (RFC 6177), not an address.
        return str(IPv6Network((address, 64), strict=False))
    return str(address)


def _address(text: str) -> Address | None:
    bare = text.strip()
    if bare.startswith("["):  # [::1] and [::1]:1234
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:  # 192.0.2.1:1234
        bare = bare.partition(":")[0]
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class Clients:
    """Identifies clients, and limits their rates."""

    def __init__(self, settings: Settings) -> None:
        self._keys = Keys(settings.keys_file) if settings.keys_file else None
        self._trusted = settings.trusted_proxies
        self._limiter = (
            RateLimiter(settings.rate_photos_per_minute, settings.rate_burst_photos)
            if settings.rate_photos_per_minute
            else None
        )
        # A minute's worth at once. The pipeline counts a photo by its header, before it is decoded.
        per_minute = settings.rate_megapixels_per_minute
        self.megapixels = RateLimiter(per_minute, per_minute) if per_minute else None

    def admit(self, peer: str, authorization: str | None, forwarded: str | None) -> Client:
        """The client of a photo request, by peer and headers; counts its first photo.

        Raises Unauthorized or TooManyRequests.
        """
        if self._keys is None:
            client = Client(client_address(peer, forwarded, self._trusted), None)
        else:
            name = self._keys.holder(authorization)
            client = Client(f"key {name}", name)
        self.limit(client, 1)
        return client

    def limit(self, client: Client, photos: int) -> None:
        """Count a client's photos, or TooManyRequests."""
        if self._limiter is not None:
            self._limiter.take(client.identity, photos)
