"""Client authentication: API keys (bearer tokens, RFC 6750), reloaded from a file."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
from pathlib import Path

from clothing_gateway.errors import Unauthorized

logger = logging.getLogger(__name__)

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+(\S+)")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
# The characters of RFC 6750's b64token, and long enough not to be guessed.
_KEY = re.compile(r"[A-Za-z0-9._~+/-]{16,256}=*")
_RELOAD_SECONDS = 1.0


class KeysError(Exception):
    """The key file is invalid; the text says why, and never holds a key."""


class NoKeys(KeysError):
    """The key file is empty or gone."""


def parse(text: str) -> tuple[tuple[bytes, str], ...]:
    """Each key's SHA-256 digest and its holder's name, or KeysError."""
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
        raise NoKeys("it holds no key")
    return tuple(keys)


class Keys:
    """The keys of a file, reloaded when it changes.

    An invalid file leaves the keys as they were: a slip must not lock all clients out. An empty or deleted one revokes
    them all, once it has been seen so twice, as writing a file in place empties it for a moment.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._reload_at = time.monotonic() + _RELOAD_SECONDS
        self._seen = self._stamp()
        self._was_empty = False
        try:
            self._keys = self._read()
        except KeysError as error:
            raise KeysError(f"GATEWAY_KEYS_FILE={path}: {error}") from None

    def holder(self, authorization: str | None) -> str:
        """The holder's name of an Authorization header's key, or Unauthorized."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for digest, name in self._keys:  # all of them, so that the time doesn't depend on the key
            if hmac.compare_digest(digest, given):
                found = name
        if found is None or scheme.lower() != "bearer":
            raise Unauthorized
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now < self._reload_at:
                return
            self._reload_at = now + _RELOAD_SECONDS
            stamp = self._stamp()
            if stamp == self._seen and not self._was_empty:
                return
            self._seen = stamp
        was_empty, self._was_empty = self._was_empty, False
        try:
            self._keys = self._read()
        except NoKeys as error:
            if not was_empty:
                self._was_empty = True
            elif self._keys:
                self._keys = ()
                logger.error("all API keys are revoked, the key file has none: %s", error)  # noqa: TRY400
        except KeysError as error:
            logger.error("key file is invalid, the previous keys stay in force: %s", error)  # noqa: TRY400
        else:
            logger.info("API keys reloaded", extra={"keys": len(self._keys)})

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _read(self) -> tuple[tuple[bytes, str], ...]:
        try:
            return parse(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NoKeys(f"can't be read: {error.strerror}") from None
        except OSError as error:
            raise KeysError(f"can't be read: {error.strerror}") from None
        except UnicodeError:
            raise KeysError("is no text") from None
