"""A photo's short way to its route beside Flask's: the same requests by both, and the same answers."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from wsgiref.util import setup_testing_defaults

import grpc
import pytest
from fakes import FakeModel, ModelServer, PhotoServer, image_bytes, multipart

from clothing_gateway.fetch import Fetcher, Policy
from clothing_gateway.limits.admission import ByteBudget, DecodeGate, Places
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.pipeline import Classifier
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web.app import ShortWay, create_app
from clothing_gateway.web.auth import Clients
from clothing_gateway.web.requests import HAS_LEFT, RECEIVED

PHOTO = image_bytes((40, 30))
OTHER = image_bytes((50, 60), "PNG", seed=5)
FORM, FORM_TYPE = multipart(("image", "a.jpg", PHOTO))
TWO, TWO_TYPE = multipart(("image", "a.jpg", PHOTO), ("image", "b.png", OTHER))
MANY_FIELDS = b"".join(
    b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n\r\n' % number for number in range(1001)
)
KEY = "k" * 20


class App:
    """The application in this process, with a model server and a photo server."""

    def __init__(self, model, photos, **environment):
        environment = {f"GATEWAY_{name.upper()}": str(value) for name, value in environment.items()}
        self.settings, _, _ = Settings.load({"TF_SERVING_HOST": model.address, **environment})
        self.metrics = Metrics()
        budget = ByteBudget(self.settings.max_buffered_bytes)
        self.places = Places(self.settings.max_in_flight)
        self.predictor = Predictor(self.settings)
        self.predictor.watcher.check()
        self.fetcher = Fetcher(
            Policy(frozenset({80, photos.port}), self.settings.fetch_allowed_networks),
            budget,
            timeout_seconds=5,
            max_bytes=100_000,
            max_redirects=3,
        )
        gate = DecodeGate(2, self.settings.decode_memory_bytes)
        self.classifier = Classifier(self.settings, self.predictor, self.fetcher, gate, self.metrics)
        self.app = create_app(self.settings, self.classifier, self.places, self.metrics, Clients(self.settings))
        assert isinstance(self.app.wsgi_app, ShortWay)
        self.ways = {"short": self.app.wsgi_app, "long": self.app.wsgi_app.long_way}

    def close(self):
        self.fetcher.close()
        self.predictor.close()

    def ask(self, way, path, body, kind, method="POST", **more):
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path.partition("?")[0],
            "QUERY_STRING": path.partition("?")[2],
            "CONTENT_TYPE": kind,
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": "192.0.2.1",
            "wsgi.input": io.BytesIO(body),
            "HTTP_X_REQUEST_ID": "one",
            **more,
        }
        setup_testing_defaults(environ)
        started = []
        pieces = self.ways[way](environ, lambda status, headers: started.append((status, sorted(headers))))
        ((status, headers),) = started
        answer = b"".join(pieces)
        if hasattr(pieces, "close"):
            pieces.close()
        assert dict(headers)["Content-Length"] == str(len(answer))
        # The stages are the same, and no two times are.
        headers = [(name, re.sub(r"dur=[\d.]+", "dur", value)) for name, value in headers]
        return status, headers, answer

    def both(self, *args, **more):
        """The answer, which is the same by both ways."""
        short, long = (self.ask(way, *args, **more) for way in ("short", "long"))
        assert short == long
        assert self.places.taken == 0
        return int(short[0][:3]), dict(short[1]), short[2]


@pytest.fixture(scope="module")
def model():
    server = ModelServer(FakeModel())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def photos():
    server = PhotoServer()
    server.paths |= {"/a.jpg": PHOTO, "/page": b"<html>", "/cut.jpg": PHOTO[:200]}
    yield server
    server.stop()


@pytest.fixture(scope="module")
def app(model, photos):
    one = App(model, photos, fetch_allowed_networks="127.0.0.0/8", max_photos=3, selectable_versions="1")
    yield one
    one.close()


def as_json(value):
    return json.dumps(value).encode(), "application/json"


@pytest.mark.parametrize("path", ["/predict", "/classify", "/classify?top=3"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (PHOTO, "image/jpeg", 200),
        (PHOTO, "IMAGE/JPEG; q=1", 200),
        (PHOTO, "application/octet-stream", 200),
        (OTHER, "image/png", 200),
        (FORM, FORM_TYPE, 200),
        (FORM, "Multipart/Form-Data; charset=utf-8; boundary=b0undary", 200),
        (FORM.replace(b'"a.jpg"', '"é"'.encode()), FORM_TYPE, 200),
        (FORM.replace(b"image", b"photo"), FORM_TYPE, 400),
        (FORM.replace(PHOTO, b""), FORM_TYPE, 400),
        (FORM.replace(PHOTO, b"text"), FORM_TYPE, 415),
        (FORM[:-20], FORM_TYPE, 400),
        (FORM, "multipart/form-data", 400),
        (FORM, "multipart/form-data; boundary=é", 400),
        (MANY_FIELDS + b"--b--", "multipart/form-data; boundary=b", 413),
        (b"", "multipart/form-data; boundary=b", 400),
        (*as_json({}), 400),
        (*as_json({"url": "http://10.0.0.1/"}), 400),
        (*as_json({"url": 1}), 400),
        (*as_json({"url": "http://a.test/", "urls": []}), 400),
        (*as_json([]), 400),
        (b"{", "application/json", 400),
        (b'{"url": "http://10.0.0.1/"}', "application/json; charset=utf-8", 400),
        (b"", "application/json", 400),
        (b"", "image/jpeg", 400),
        (b"", "", 400),
        (PHOTO, "", 400),
        (PHOTO[:300], "image/jpeg", 422),
        (b"hello", "image/jpeg", 415),
        (PHOTO, "text/plain", 415),
        (b"image=abc", "application/x-www-form-urlencoded", 415),
    ],
)
def test_bodies(app, path, body, kind, status):
    assert app.both(path, body, kind)[0] == status


@pytest.mark.parametrize("path", ["/predict", "/classify"])
@pytest.mark.parametrize(("photo", "status"), [("a.jpg", 200), ("page", 415), ("cut.jpg", 422), ("none", 424)])
def test_photos_by_url(app, photos, path, photo, status):
    assert app.both(path, *as_json({"url": f"{photos.url}/{photo}"}))[0] == status


@pytest.mark.parametrize(("path", "status"), [("/predict", 400), ("/classify", 200)])
def test_several_photos(app, photos, path, status):
    assert app.both(path, TWO, TWO_TYPE)[0] == status
    assert app.both(path, *as_json({"urls": [f"{photos.url}/a.jpg", f"{photos.url}/none"]}))[0] == status
    assert app.both("/classify", *as_json({"urls": [photos.url] * 4}))[0] == 413


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("top=1", 200),
        ("top=99", 200),
        ("TOP=1", 200),
        ("a=b&top=2&top=x", 200),
        ("top=%32", 200),
        ("top=0", 400),
        ("top=", 400),
        ("top", 400),
        ("top=%FF", 400),
        ("top=x;", 400),
    ],
)
def test_queries(app, query, status):
    assert app.both(f"/classify?{query}", PHOTO, "image/jpeg")[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"HTTP_X_REQUEST_TIMEOUT_MS": "5000"}, 200),
        ({"HTTP_X_REQUEST_TIMEOUT_MS": "x"}, 400),
        ({"HTTP_GRPC_TIMEOUT": "1n"}, 504),
        ({"HTTP_GRPC_TIMEOUT": "1s"}, 400),
        ({"HTTP_X_MODEL_VERSION": "1"}, 200),
        ({"HTTP_X_MODEL_VERSION": "7"}, 400),
        ({"HTTP_HOST": "any thing"}, 200),
        ({"HTTP_CONNECTION": "upgrade", "HTTP_UPGRADE": "websocket"}, 400),
        ({"HTTP_UPGRADE": "h2c"}, 200),
    ],
)
def test_headers(app, headers, status):
    status_line, sent, body = app.both("/predict", PHOTO, "image/jpeg", **headers)
    assert status_line == status
    assert sent["X-Request-Id"] == "one"
    if status != 200:
        assert json.loads(body)["request_id"] == "one"


@pytest.mark.parametrize(("seconds", "status"), [(0.0, 200), (0.1, 499)])
def test_a_client_that_has_left(app, seconds, status):
    """It is looked for when there was time to leave."""
    received = {RECEIVED: time.monotonic() - seconds, HAS_LEFT: lambda: True}
    assert app.both("/predict", PHOTO, "image/jpeg", **received)[0] == status


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/classify", 405),
        ("post", "/predict", 200),
        ("POST", "/predict/", 404),
        ("POST", "/", 405),
        ("POST", "/nowhere", 404),
        ("GET", "/ping", 200),
    ],
)
def test_the_rest_goes_the_long_way(app, method, path, status):
    assert app.both(path, PHOTO, "image/jpeg", method)[0] == status


def test_a_request_id_of_its_own_for_each(app):
    answers = [app.ask(way, "/predict", PHOTO, "image/jpeg", HTTP_X_REQUEST_ID="\x00") for way in ("short", "long") * 2]
    assert len({dict(headers)["X-Request-Id"] for _, headers, _ in answers}) == 4


@pytest.mark.parametrize(
    ("failure", "status"), [(grpc.StatusCode.INTERNAL, 502), (grpc.StatusCode.RESOURCE_EXHAUSTED, 503)]
)
def test_what_the_model_refuses(app, model, failure, status):
    model.model.fail[:] = [failure] * 2
    assert app.both("/predict", PHOTO, "image/jpeg")[0] == status


def test_what_nobody_thought_of(app, monkeypatch, caplog):
    monkeypatch.setattr(app.classifier, "classify", lambda sources, ticket: 1 / 0)
    status, _, body = app.both("/predict", PHOTO, "image/jpeg")
    assert (status, json.loads(body)["code"]) == (500, "internal-error")
    assert b"Zero" not in body
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


def test_a_full_house(app):
    app.places.take(app.settings.max_in_flight)
    try:
        answers = [app.ask(way, "/predict", PHOTO, "image/jpeg") for way in ("short", "long")]
    finally:
        app.places.leave(app.settings.max_in_flight)
    assert answers[0] == answers[1]
    assert answers[0][0] == "503 Service Unavailable"
    assert ("Retry-After", "1") in answers[0][1]


def test_both_ways_are_counted_and_logged_alike(app, caplog):
    def counted(way):
        before = app.metrics.render()
        app.ask(way, "/classify?token=hush", PHOTO, "image/jpeg")
        app.ask(way, "/predict", b"text", "image/jpeg")
        after = app.metrics.render()
        names = ("_count{", "_total{")
        lines = [
            {line.rsplit(b" ", 1)[0]: float(line.rsplit(b" ", 1)[1]) for line in text.splitlines() if b"{" in line}
            for text in (before, after)
        ]
        return {
            name: value - lines[0].get(name, 0)
            for name, value in lines[1].items()
            if any(part.encode() in name for part in names) and b"python" not in name
        }

    caplog.set_level("INFO")
    assert counted("short") == counted("long")
    ways = [
        [(r.method, r.path, r.status, r.photos) for r in caplog.records[i : i + 2] if hasattr(r, "photos")]
        for i in (0, 2)
    ]
    assert ways[0] == ways[1]
    assert "hush" not in caplog.text


def test_keys_and_rates_hold_on_both_ways(model, photos, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"anna {KEY}\n")
    app = App(model, photos, keys_file=keys, rate_photos_per_minute=1, rate_burst_photos=8)
    try:
        assert app.both("/predict", PHOTO, "image/jpeg")[0] == 401
        assert app.both("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION="Bearer wrong")[0] == 401
        for _ in range(4):
            assert app.both("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION=f"Bearer {KEY}")[0] == 200
        status, headers, _ = app.both("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION=f"Bearer {KEY}")
        assert (status, "Retry-After" in headers) == (429, True)
    finally:
        app.close()


def test_ways_in_many_threads(app):
    """Nothing of one request is left for another."""
    wrong = []

    def client(seed):
        data = image_bytes((40, 30), "PNG", seed=seed)
        expected = app.ask("long", "/predict", data, "image/png")
        wrong.extend(1 for _ in range(10) if app.ask("short", "/predict", data, "image/png") != expected)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
