"""Who asks, and how often they may: bearer keys from a file, addresses behind trusted proxies, and a rate for each."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from clothing_gateway.errors import TooManyRequests, Unauthorized
from clothing_gateway.settings import Network, Settings

logger = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+(\S+)")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
# The characters of RFC 6750's b64token, and long enough not to be guessed.
_KEY = re.compile(r"[A-Za-z0-9._~+/-]{16,256}=*")
_LOOK_AGAIN_SECONDS = 1.0
# Clients remembered at a time: about 2 MB.
_MOST_CLIENTS = 10_000


class KeysError(Exception):
    """The file of keys can't be used; the text says why, and never holds a key."""


def parse(text: str) -> tuple[tuple[bytes, str], ...]:
    """Each key's SHA-256 digest and the name of its holder."""
    keys: list[tuple[bytes, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if match is None:
            raise KeysError(f'line {number} is not "NAME KEY"')
        name, key = match.groups()
        digest = _DIGEST.fullmatch(key)
        if digest is not None:
            keys.append((bytes.fromhex(digest[1]), name))
        elif _KEY.fullmatch(key):
            keys.append((hashlib.sha256(key.encode()).digest(), name))
        else:
            raise KeysError(
                f"line {number}: a key has 16 to 256 letters, digits and ._~+/- characters, or is sha256: and 64 digits"
            )
    if not keys:
        raise KeysError("it holds no key")
    return tuple(keys)


class Keys:
    """The keys of a file, which is read again when it changes; one that can't be used leaves the keys as they were."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._look_at = time.monotonic() + _LOOK_AGAIN_SECONDS
        self._seen = self._stamp()
        try:
            self._keys = self._read()
        except KeysError as error:
            raise KeysError(f"GATEWAY_KEYS_FILE={path}: {error}") from None

    def holder(self, authorization: str | None) -> str:
        """The name that belongs to the key of an Authorization header, or Unauthorized."""
        self._look()
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for digest, name in self._keys:  # all of them, so that the time tells nothing about which one fits
            if hmac.compare_digest(digest, given):
                found = name
        if found is None or scheme.lower() != "bearer":
            raise Unauthorized
        return found

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._look_at:
                return
            self._look_at = now + _LOOK_AGAIN_SECONDS
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
        try:
            self._keys = self._read()
        except KeysError as error:
            logger.error("the new file of keys can't be used, the old keys hold on: %s", error)  # noqa: TRY400
        else:
            logger.info("keys read again", extra={"keys": len(self._keys)})

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> tuple[tuple[bytes, str], ...]:
        try:
            return parse(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise KeysError(f"can't be read: {error.strerror}") from None
        except UnicodeError:
            raise KeysError("is no text") from None


class Rates:
    """So many photos a minute for each client, and so many at once; what comes beyond is told when to come again.

    A token bucket, kept as the one moment at which it will be full again (the generic cell rate algorithm of ATM).
    """

    def __init__(self, per_minute: float, burst: int) -> None:
        self._interval = 60 / per_minute
        self._burst = burst
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: str, photos: int) -> None:
        """Count photos, or TooManyRequests and nothing counted."""
        now = time.monotonic()
        with self._lock:
            full_at = max(self._full_at.get(client, now), now) + photos * self._interval
            wait = full_at - now - self._burst * self._interval
            if wait > 1e-6:
                raise TooManyRequests(retry_after=max(math.ceil(wait), 1))
            self._full_at[client] = full_at
            self._full_at.move_to_end(client)
            while len(self._full_at) > _MOST_CLIENTS or next(iter(self._full_at.values())) <= now:
                self._full_at.popitem(last=False)


def address_of(peer: str, forwarded: str | None, trusted: Sequence[Network]) -> str:
    """The client's address: the peer's; where that is a trusted proxy, the last one in X-Forwarded-For that is none.

    What a client itself writes there stands before what the proxies add, so that it is never reached.
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


@dataclass(frozen=True, slots=True)
class Client:
    """One who asks."""

    identity: str  # what the rate goes by
    key_name: str | None  # the name beside the key


class Clients:
    """Tells clients apart, and lets each have its rate."""

    def __init__(self, settings: Settings) -> None:
        self._keys = Keys(settings.keys_file) if settings.keys_file else None
        self._trusted = settings.trusted_proxies
        self._rates = (
            Rates(settings.rate_photos_per_minute, settings.rate_burst_photos)
            if settings.rate_photos_per_minute
            else None
        )

    def admit(self, environ: Mapping[str, str]) -> Client:
        """Who a request comes from, or Unauthorized."""
        if self._keys is not None:
            name = self._keys.holder(environ.get("HTTP_AUTHORIZATION"))
            return Client(f"key {name}", name)
        peer = environ.get("REMOTE_ADDR", "")
        return Client(address_of(peer, environ.get("HTTP_X_FORWARDED_FOR"), self._trusted), None)

    def take(self, client: Client, photos: int) -> None:
        """Count photos of a client, or TooManyRequests."""
        if self._rates is not None:
            self._rates.take(client.identity, photos)
