"""CSRF protection and CORS: cross-origin requests of browsers are refused.

GATEWAY_ALLOWED_ORIGINS allows origins by CORS.

A web page can make its visitor's browser send a form with photos to any address that the browser reaches, also inside a
private network. Browsers say so, by Sec-Fetch-Site over TLS and on localhost, and by Origin; programs send neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from clothing_gateway.errors import OriginNotAllowed

ANY = "*"
# What a page may send and read beyond what CORS always allows.
_REQUEST_HEADERS = "Authorization, Content-Type, X-Model-Version, X-Request-Id, X-Request-Timeout-Ms"
_RESPONSE_HEADERS = "Retry-After, Server-Timing, X-Model-Name, X-Model-Version, X-Request-Id"
# How long a browser keeps a preflight's answer; it limits how late a change is noticed.
_MAX_AGE_SECONDS = 600
_DEFAULT_PORTS = {"http": 80, "https": 443}

Headers = tuple[tuple[str, str], ...]


class Origins:
    """The origins whose pages may send photos."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._allowed = frozenset(allowed)

    def require(self, environ: Mapping[str, Any]) -> None:
        """Raise OriginNotAllowed for a browser's request from a forbidden origin."""
        origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        if (origin is None and site is None) or site in ("same-origin", "none"):
            return
        if origin is not None and (self.allows(origin) or (site is None and _is_of(origin, environ))):
            return
        raise OriginNotAllowed

    def allows(self, origin: str) -> bool:
        """Whether an origin is in GATEWAY_ALLOWED_ORIGINS."""
        return origin in self._allowed or ANY in self._allowed

    def headers(self, origin: str | None) -> Headers:
        """The headers by which a browser lets the origin's page read a response."""
        if not self._allowed:
            return ()
        vary = (("Vary", "Origin"),)
        if origin is None or not self.allows(origin):
            return vary
        return (
            *vary,
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _RESPONSE_HEADERS),
        )

    def preflight(self, environ: Mapping[str, Any], method: str) -> Headers | None:
        """Headers of a preflight response for a route's method; None where not allowed.

        It is None for other requests, too.
        """
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or "HTTP_ACCESS_CONTROL_REQUEST_METHOD" not in environ or not self.allows(origin):
            return None
        return (
            ("Access-Control-Allow-Methods", method),
            ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
            ("Access-Control-Max-Age", str(_MAX_AGE_SECONDS)),
            ("Content-Length", "0"),
        )


def _is_of(origin: str, environ: Mapping[str, Any]) -> bool:
    """Whether an origin is the request's own; a proxy may have terminated TLS."""
    try:
        asked = urlsplit(origin)
        port = asked.port or _DEFAULT_PORTS.get(asked.scheme)
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}")
        return (
            bool(asked.hostname)
            and asked.hostname == host.hostname
            and port in ((host.port,) if host.port else _DEFAULT_PORTS.values())
        )
    except ValueError:
        return False
