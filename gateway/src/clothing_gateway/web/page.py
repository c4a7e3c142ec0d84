"""The page for people: a few files of this package, served as they are (GATEWAY_PAGE)."""

from __future__ import annotations

import hashlib
from importlib import resources

from flask import Flask, Response, request

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


def add_page(app: Flask) -> None:
    """Give the application the page's routes."""
    folder = resources.files("clothing_gateway.web").joinpath("static")
    for path, name, kind in FILES:
        app.get(path, endpoint=f"page {name}")(_File(folder.joinpath(name).read_bytes(), kind))


class _File:
    """The view that sends one file, or nothing where the browser has it already."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._content = content
        self._kind = kind
        self._tag = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self) -> Response:
        response = Response(self._content, mimetype=self._kind)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        # Asked for each time, and answered with 304 as long as it is the same: a rollout is seen at once.
        response.headers["Cache-Control"] = "no-cache"
        response.set_etag(self._tag)
        response.make_conditional(request)
        return response
