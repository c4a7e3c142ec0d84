"""Host check against DNS rebinding: other names than the gateway's are refused.

A web page's own name can be resolved to an address within its visitor's network. To the browser the gateway there is
then the page's own origin, so that no CSRF protection or CORS refuses it. Only its name is wrong.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from clothing_gateway.errors import HostNotAllowed

# Health checks of load balancers: sent to the pod's address, or in HTTP/1.0 without a Host. They show nothing that
# depends on a photo or a client.
_HEALTH_CHECKS = ("/ping", "/")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]*)?", re.IGNORECASE)  # RFC 9110, 7.2


class Hosts:
    """The names by which clients may call the gateway; without any, all."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._exact = frozenset(allowed)
        self._suffixes = tuple(one[1:] for one in allowed if one.startswith("*."))

    def require(self, environ: Mapping[str, Any]) -> None:
        """Raise HostNotAllowed for a Host outside the list, or a missing one."""
        if not self._exact or self.allows(environ.get("HTTP_HOST", "")):
            return
        if environ["REQUEST_METHOD"] in ("GET", "HEAD") and environ["PATH_INFO"] in _HEALTH_CHECKS:
            return
        raise HostNotAllowed

    def allows(self, host: str) -> bool:
        """Whether a Host header's name is allowed; its port and case don't count."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].lower()
        if name.startswith("["):
            try:
                name = f"[{ipaddress.IPv6Address(name[1:-1])}]"
            except ValueError:
                return False
        name = name.removesuffix(".")
        return name in self._exact or name.endswith(self._suffixes)
