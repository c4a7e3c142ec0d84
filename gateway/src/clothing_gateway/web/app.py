"""The WSGI application: route table, photo routes' dispatcher, Flask."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from clothing_gateway.context import RequestContext
from clothing_gateway.errors import MethodNotAllowed
from clothing_gateway.limits.admission import Slots
from clothing_gateway.pipeline import Classifier
from clothing_gateway.settings import Settings
from clothing_gateway.web import page
from clothing_gateway.web.rate_limit import Clients
from clothing_gateway.web.requests import Lifecycle, Reply
from clothing_gateway.web.routes import Photos

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class Route:
    """A path with its method; GET implies HEAD."""

    method: str
    path: str
    photos: bool = False  # takes photos, and so needs an in-flight slot


ROUTES = (
    Route("POST", "/predict", photos=True),
    Route("POST", "/classify", photos=True),
    Route("GET", "/ping"),
    Route("GET", "/openapi.yaml"),
    Route("GET", "/"),  # the page, or where it is off a line of text
    Route("GET", "/page.css"),
    Route("GET", "/page.js"),
)
PHOTO_ROUTES = frozenset((route.method, route.path) for route in ROUTES if route.photos)

_PhotoView = Callable[["WSGIEnvironment", RequestContext], Reply]


class Application:
    """WSGI application that dispatches the photo routes without Flask.

    Flask and werkzeug cost a request 0.6 ms more than all of its rules.
    """

    def __init__(self, photos: dict[str, tuple[str, _PhotoView]], lifecycle: Lifecycle, rest: WSGIApplication) -> None:
        self._photos = photos
        self._lifecycle = lifecycle
        self._rest = rest

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        route = environ["PATH_INFO"]
        found = self._photos.get(route)
        if found is None:
            return self._rest(environ, start_response)
        lifecycle, method = self._lifecycle, environ["REQUEST_METHOD"]
        context = lifecycle.context(environ)
        try:
            lifecycle.hosts.require(environ)
            allowed, view = found
            if method == allowed:
                lifecycle.origins.require(environ)
                lifecycle.read(context, environ)
                reply = view(environ, context)
            else:
                preflight = lifecycle.origins.preflight(environ, allowed) if method == "OPTIONS" else None
                if preflight is None:
                    raise MethodNotAllowed(allowed)
                reply = Reply(200, preflight, b"")
        except Exception as error:  # noqa: BLE001 - as Flask's handlers take them
            reply = lifecycle.refusal(context, error)
        headers = lifecycle.end(context, method, route, route, reply.status)
        start_response(reply.status_line, [*reply.headers, *headers])
        return [] if method == "HEAD" else [reply.body]


class _Rest:
    """Flask's hooks and views."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._openapi = resources.files("clothing_gateway.web").joinpath("openapi.yaml").read_bytes()

    def begin(self) -> None:
        """Give the request its context."""
        g.context = self._lifecycle.context(request.environ)
        self._lifecycle.hosts.require(request.environ)
        if request.routing_exception is None:  # an error of the path or the method takes precedence
            self._lifecycle.read(g.context, request.environ)

    def end(self, response: Response) -> Response:
        """Name the request, count it, log it."""
        route = request.url_rule.rule if request.url_rule else "none"
        headers = self._lifecycle.end(g.context, request.method, request.path, route, response.status_code)
        response.headers.extend(headers)
        return response

    def refuse(self, error: Exception) -> Response:
        """Answer any error."""
        reply = self._lifecycle.refusal(g.context, error)
        return Response(reply.body, reply.status_line, list(reply.headers))

    def ping(self) -> Response:
        """GET /ping."""
        return Response("PONG", mimetype="text/plain")

    def root(self) -> Response:
        """GET / without the page returns 200.

        GKE's load balancers mark a backend without 200 there as unhealthy.
        """
        return Response("Send photos to /classify; /openapi.yaml describes it.\n", mimetype="text/plain")

    def openapi(self) -> Response:
        """GET /openapi.yaml."""
        return Response(self._openapi, mimetype="application/yaml")


def create_app(
    settings: Settings, classifier: Classifier, slots: Slots, clients: Clients, lifecycle: Lifecycle
) -> Application:
    """The WSGI application of the clients' port."""
    photos = Photos(settings, classifier, slots, clients)
    rest = _Rest(lifecycle)
    views = {"/ping": rest.ping, "/openapi.yaml": rest.openapi}
    views |= page.views() if settings.page else {"/": rest.root}
    flask = Flask(__name__, static_folder=None)
    flask.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    flask.before_request(rest.begin)
    flask.after_request(rest.end)
    flask.register_error_handler(HTTPException, rest.refuse)
    flask.register_error_handler(Exception, rest.refuse)
    for route in ROUTES:
        if route.path in views:
            flask.add_url_rule(route.path, route.path, views[route.path], methods=[route.method])
    photo_views: dict[str, _PhotoView] = {"/predict": photos.predict, "/classify": photos.classify}
    dispatched = {route.path: (route.method, photo_views[route.path]) for route in ROUTES if route.photos}
    return Application(dispatched, lifecycle, flask)
