"""The web page: static files of this package (GATEWAY_PAGE)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources

from flask import Response, request

# Paths, files and types. The page names its files relatively, so that it works under an ingress's path as well.
FILES = (
    ("/", "index.html", "text/html"),
    ("/page.css", "page.css", "text/css"),
    ("/page.js", "page.js", "text/javascript"),
)
# Nothing but the page's own files runs, nothing is loaded from elsewhere, nothing is sent anywhere but here; blob: is
# for the thumbnails, which never leave the browser. No other site may show the page in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def views() -> dict[str, Callable[[], Response]]:
    """The page's views, by path."""
    folder = resources.files("clothing_gateway.web").joinpath("static")
    return {path: _File(folder.joinpath(name).read_bytes(), kind) for path, name, kind in FILES}


class _File:
    """The view of one file; 304 where the browser has its current version."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._content = content
        self._kind = kind
        self._tag = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self) -> Response:
        response = Response(self._content, mimetype=self._kind)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        # Revalidated at each load, and answered with 304 while unchanged: a rollout takes effect at once.
        response.headers["Cache-Control"] = "no-cache"
        response.set_etag(self._tag)
        response.make_conditional(request)
        return response
