"""The routes: HTTP on one side, the classifier on the other."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from clothing_gateway.limits.admission import Places
from clothing_gateway.pipeline import Classifier, Ticket
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.telemetry.tracing import Tracer
from clothing_gateway.web import page
from clothing_gateway.web.auth import Clients
from clothing_gateway.web.requests import Exchange, Reply
from clothing_gateway.web.routes import CLASSIFY, PREDICT, ROUTES, Photos

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class ShortWay:
    """Takes photos to their route without Flask and werkzeug, which cost a request 0.6 ms more than all of its rules.

    It decides nothing but the way: both ways call the same functions, and tests/gateway/web/test_routes.py sends the same
    requests by both.
    """

    def __init__(self, long_way: WSGIApplication, exchange: Exchange, photos: Photos) -> None:
        self.long_way = long_way
        self._exchange = exchange
        self._photos = photos

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI application: Flask, but for a plain POST to one of the two routes."""
        route = environ["PATH_INFO"]
        if (
            route not in ROUTES
            or environ["REQUEST_METHOD"] != "POST"
            or environ.get("SCRIPT_NAME")
            or "HTTP_UPGRADE" in environ  # to WebSocket, say, for which werkzeug has other routes
        ):
            return self.long_way(environ, start_response)
        exchange, ticket = self._exchange, self._exchange.ticket(environ)
        try:
            exchange.read(ticket, environ)
            reply = self._photos.answer(route, environ, ticket)
        except Exception as error:  # noqa: BLE001 - as Flask's handlers take them
            reply = exchange.refusal(ticket, error)
        headers = exchange.end(ticket, "POST", route, route, reply.status)
        start_response(reply.status_line, [*reply.headers, *headers])
        return [reply.body]


class _Routes:
    """The application's functions, with what they work with."""

    def __init__(self, exchange: Exchange, photos: Photos) -> None:
        self._exchange = exchange
        self._photos = photos
        self._openapi = resources.files("clothing_gateway.web").joinpath("openapi.yaml").read_bytes()

    def begin(self) -> None:
        """Give each request its ticket."""
        g.ticket = self._exchange.ticket(request.environ)
        if request.routing_exception is None:  # what is wrong about the path or the method is said first
            self._exchange.read(g.ticket, request.environ)

    def end(self, response: Response) -> Response:
        """Name the request, count it, log it."""
        ticket: Ticket = g.ticket
        route = request.url_rule.rule if request.url_rule else "none"
        response.headers.extend(self._exchange.end(ticket, request.method, request.path, route, response.status_code))
        return response

    def refuse(self, error: Exception) -> Response:
        """Any error."""
        response = _response(self._exchange.refusal(g.ticket, error))
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    def photos(self) -> Response:
        """POST /predict and POST /classify."""
        rule = request.url_rule
        assert rule is not None  # noqa: S101 - this is called by the two rules only
        return _response(self._photos.answer(rule.rule, request.environ, g.ticket))

    def ping(self) -> Response:
        """GET /ping."""
        return Response("PONG", mimetype="text/plain")

    def openapi(self) -> Response:
        """GET /openapi.yaml."""
        return Response(self._openapi, mimetype="application/yaml")


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status_line, list(reply.headers))


def create_app(
    settings: Settings,
    classifier: Classifier,
    places: Places,
    metrics: Metrics,
    clients: Clients,
    *,
    tracer: Tracer | None = None,
) -> Flask:
    """The WSGI application."""
    app = Flask(__name__, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    exchange = Exchange(settings, metrics, tracer)
    photos = Photos(settings, classifier, places, metrics, clients)
    routes = _Routes(exchange, photos)
    app.before_request(routes.begin)
    app.after_request(routes.end)
    app.register_error_handler(HTTPException, routes.refuse)
    app.register_error_handler(Exception, routes.refuse)
    app.post(PREDICT, endpoint="predict")(routes.photos)
    app.post(CLASSIFY, endpoint="classify")(routes.photos)
    app.get("/ping")(routes.ping)
    app.get("/openapi.yaml")(routes.openapi)
    if settings.page:
        page.add_page(app)
    app.wsgi_app = ShortWay(app.wsgi_app, exchange, photos)  # type: ignore[method-assign]
    return app
