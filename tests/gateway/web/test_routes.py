"""The WSGI application in this process: routes, bodies, headers, errors, what is counted and logged."""

from __future__ import annotations

import gc
import io
import json
import sys
import threading
import time
from wsgiref.util import setup_testing_defaults

import grpc
import pytest
from fakes import FakeModel, ModelServer, PhotoServer, image_bytes, multipart

from clothing_gateway.context import CONTEXT
from clothing_gateway.errors import ModelRefused
from clothing_gateway.fetch import Fetcher, Policy
from clothing_gateway.limits.admission import ByteBudget, DecodeGate, Slots
from clothing_gateway.model.predictor import Predictor
from clothing_gateway.pipeline import Classifier
from clothing_gateway.settings import Settings
from clothing_gateway.telemetry.metrics import Metrics
from clothing_gateway.web.app import ROUTES, create_app
from clothing_gateway.web.rate_limit import Clients
from clothing_gateway.web.requests import Lifecycle

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
        self.metrics = Metrics("")
        budget = ByteBudget(self.settings.max_buffered_bytes)
        self.slots = Slots(self.settings.max_in_flight)
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
        clients = Clients(self.settings)
        self.classifier = Classifier(
            self.settings,
            self.predictor,
            self.fetcher,
            gate=gate,
            slots=self.slots,
            metrics=self.metrics,
            count_megapixels=clients.megapixels and clients.megapixels.take,
        )
        self.lifecycle = Lifecycle(self.settings.request_timeout_seconds, self.metrics)
        self.app = create_app(self.settings, self.classifier, self.slots, clients, self.lifecycle)

    def close(self):
        self.fetcher.close()
        self.predictor.close()

    def ask(self, path, body=b"", kind="", method="POST", **more):
        """Status, headers and body of the response; every slot is free again."""
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
        pieces = self.app(environ, lambda status, headers: started.append((status, headers)))
        ((status, headers),) = started
        answer = b"".join(pieces)
        if hasattr(pieces, "close"):
            pieces.close()
        headers = dict(headers)
        if method != "HEAD":
            assert headers["Content-Length"] == str(len(answer))
        if int(status[:3]) >= 400 and method != "HEAD":
            assert headers["Content-Type"] == "application/problem+json"
            assert json.loads(answer)["request_id"] == headers["X-Request-Id"]
        assert self.slots.taken == 0
        return int(status[:3]), headers, answer


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


def test_fallback_releases_the_slots_of_the_first_attempt(model, photos, monkeypatch):
    app = App(model, photos, fetch_allowed_networks="127.0.0.0/8", max_photos=1, max_in_flight=1)
    calls, predict, versions = [], app.predictor.predict, app.predictor.versions

    def refused_once(*arguments, **options):
        calls.append(app.slots.taken)
        if len(calls) == 1:
            raise ModelRefused
        return predict(*arguments, **options)

    monkeypatch.setattr(app.predictor, "predict", refused_once)
    monkeypatch.setattr(versions, "fallback", lambda model: model)
    try:
        context = app.lifecycle.begin({})
        answer = app.classifier.classify([photos.url + "/a.jpg"], context)
        assert len(answer.photos) == 1
        assert calls == [1, 1]
        context.release()
        assert app.slots.taken == 0
    finally:
        app.close()


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
        (FORM.replace(b'; filename="a.jpg"', b""), FORM_TYPE, 200),
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
        (PHOTO, "", 200),  # requests.post(data=open(…))
        (OTHER, "", 200),
        (b'{"url": "http://10.0.0.1/"}', "", 415),
        (PHOTO[:300], "image/jpeg", 422),
        (b"hello", "image/jpeg", 415),
        (PHOTO, "text/plain", 200),
        (PHOTO, "application/x-www-form-urlencoded", 200),  # curl --data-binary @photo.jpg
        (PHOTO[:300], "text/plain", 422),
        (b"hello", "text/plain", 415),
        (b"", "text/plain", 415),
        (b"image=abc", "application/x-www-form-urlencoded", 415),
    ],
)
def test_bodies(app, path, body, kind, status):
    assert app.ask(path, body, kind)[0] == status


@pytest.mark.parametrize(
    ("body", "kind", "detail"),
    [
        (
            b'{"url": "http://a.test/"}',
            "",
            "Missing Content-Type; send application/json, multipart/form-data or image/….",
        ),
        (b"x", "text/plain", "Unsupported Content-Type; send application/json, multipart/form-data or image/…."),
        (b"", "", 'Send JSON {"url": …}, a form file "image", or an image body.'),
        (FORM, "multipart/form-data", "The Content-Type has no boundary; let your client library set it."),
        (FORM.replace(b"image", b"file"), FORM_TYPE, 'The form has "file" but no "image"; rename the field.'),
    ],
)
def test_unusable_body_names_the_mistake(app, body, kind, detail):
    assert json.loads(app.ask("/classify", body, kind)[2])["detail"] == detail


@pytest.mark.parametrize("path", ["/predict", "/classify"])
@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "deflate", "zstd", "identity, gzip", "x-gzip"])
@pytest.mark.parametrize("kind", ["application/json", "image/jpeg", FORM_TYPE, ""])
def test_compressed_body_is_refused_unread(app, path, coding, kind):
    class Unread(io.BytesIO):
        def read(self, _size=-1):
            raise AssertionError

    status, headers, body = app.ask(path, b"x", kind, HTTP_CONTENT_ENCODING=coding, **{"wsgi.input": Unread()})
    assert (status, headers["Accept-Encoding"]) == (415, "identity")
    refusal = json.loads(body)
    name = coding.lower().rpartition(" ")[2]
    assert refusal["code"] == "unsupported-encoding"
    assert refusal["detail"] == f"The body is compressed ({name}); send it as it is."


@pytest.mark.parametrize("coding", ["", "identity", "utf-8", "aws-chunked"])
def test_a_content_encoding_that_names_no_compression_is_ignored(app, coding):
    assert app.ask("/classify", PHOTO, "image/jpeg", HTTP_CONTENT_ENCODING=coding)[0] == 200


@pytest.mark.parametrize("path", ["/predict", "/classify"])
@pytest.mark.parametrize(("photo", "status"), [("a.jpg", 200), ("page", 415), ("cut.jpg", 422), ("none", 424)])
def test_photos_by_url(app, photos, path, photo, status):
    assert app.ask(path, *as_json({"url": f"{photos.url}/{photo}"}))[0] == status


@pytest.mark.parametrize(("path", "status"), [("/predict", 400), ("/classify", 200)])
def test_several_photos(app, photos, path, status):
    assert app.ask(path, TWO, TWO_TYPE)[0] == status
    assert app.ask(path, *as_json({"urls": [f"{photos.url}/a.jpg", f"{photos.url}/none"]}))[0] == status
    assert app.ask("/classify", *as_json({"urls": [photos.url] * 4}))[0] == 413


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
    assert app.ask(f"/classify?{query}", PHOTO, "image/jpeg")[0] == status


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
        ({"HTTP_CONNECTION": "upgrade", "HTTP_UPGRADE": "websocket"}, 200),
        ({"HTTP_UPGRADE": "h2c"}, 200),
    ],
)
def test_headers(app, headers, status):
    status_line, sent, body = app.ask("/predict", PHOTO, "image/jpeg", **headers)
    assert status_line == status
    assert sent["X-Request-Id"] == "one"
    if status != 200:
        assert json.loads(body)["request_id"] == "one"


class Gone:
    """A connection whose client has disconnected."""

    workers = None

    def client_gone(self):
        return True


@pytest.mark.parametrize(("seconds", "status"), [(0.0, 200), (0.1, 499)])
def test_disconnected_client(app, seconds, status):
    """It is looked for when there was time to disconnect."""
    context = app.lifecycle.begin({}, time.monotonic() - seconds, Gone())
    assert app.ask("/predict", PHOTO, "image/jpeg", **{CONTEXT: context})[0] == status


@pytest.mark.parametrize("upgrade", [{}, {"HTTP_CONNECTION": "upgrade", "HTTP_UPGRADE": "websocket"}])
@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/predict", 405, "POST"),
        ("HEAD", "/predict", 405, "POST"),
        ("OPTIONS", "/classify", 405, "POST"),
        ("PUT", "/classify", 405, "POST"),
        ("post", "/predict", 405, "POST"),
        ("POST", "/predict", 200, None),
        ("POST", "/classify", 200, None),
        ("POST", "/predict/", 404, None),
        ("POST", "/nowhere", 404, None),
    ],
)
def test_methods_and_paths(app, method, path, status, allow, upgrade):
    answered, headers, body = app.ask(path, PHOTO, "image/jpeg", method, **upgrade)
    assert (answered, headers.get("Allow")) == (status, allow)
    assert bool(body) == (method != "HEAD")


def test_every_route_of_the_table_is_served_with_its_methods_only(app):
    for route in ROUTES:
        for method in ("GET", "HEAD", "POST"):
            status, headers, _ = app.ask(route.path, PHOTO, "image/jpeg", method)
            allowed = method == route.method or (method, route.method) == ("HEAD", "GET")
            assert status == (200 if allowed else 405), (method, route)
            if not allowed:
                assert headers["Allow"] == ("POST" if route.method == "POST" else "GET, HEAD")


def test_page_can_be_switched_off(model, photos):
    app = App(model, photos, page="off")
    try:
        found = {route.path: app.ask(route.path, PHOTO, "image/jpeg", route.method)[0] for route in ROUTES}
        assert {path for path, status in found.items() if status == 404} == {"/page.css", "/page.js"}
        assert set(found.values()) == {200, 404}
        # GKE's load balancers ask it, and send nothing to a gateway without 200 there.
        status, headers, body = app.ask("/", method="GET")
        assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert body == b"Send photos to /classify; /openapi.yaml describes it.\n"
        assert app.ask("/", method="HEAD")[0] == 200
    finally:
        app.close()


def test_each_request_has_an_id_of_its_own(app):
    ids = {app.ask("/predict", PHOTO, "image/jpeg", HTTP_X_REQUEST_ID="\x00")[1]["X-Request-Id"] for _ in range(4)}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("failure", "status"),
    [(grpc.StatusCode.INTERNAL, 502), ((grpc.StatusCode.UNAVAILABLE, "batch scheduling queue"), 503)],
)
def test_model_server_errors(app, model, failure, status):
    model.model.fail[:] = [failure] * (3 if status == 503 else 1)  # which gRPC retries twice
    assert app.ask("/predict", PHOTO, "image/jpeg")[0] == status


def test_unexpected_error_is_500_and_logged(app, monkeypatch, caplog):
    monkeypatch.setattr(app.classifier, "classify", lambda sources, context: 1 / 0)
    status, _, body = app.ask("/predict", PHOTO, "image/jpeg")
    assert (status, json.loads(body)["code"]) == (500, "internal-error")
    assert b"Zero" not in body
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_over_capacity(app):
    app.slots.acquire(app.settings.max_in_flight)
    context = app.lifecycle.begin({}, slot=app.slots.slot())
    app.slots.release(app.settings.max_in_flight)
    status, headers, _ = app.ask("/predict", PHOTO, "image/jpeg", **{CONTEXT: context})
    assert (status, headers["Retry-After"]) == (503, "1")


def samples(app):
    text = app.metrics.render(time.monotonic()).decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines if name.startswith("gateway_")}


def test_stages_reach_metrics_log_and_server_timing_alike(app, photos, caplog):
    caplog.set_level("INFO")
    before = samples(app)
    urls = {"urls": [f"{photos.url}/a.jpg", f"{photos.url}/none"]}
    status, headers, _ = app.ask("/classify?token=hush", *as_json(urls))
    after = samples(app)
    counted = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert status == 200
    assert [part.split(";")[0] for part in headers["Server-Timing"].split(", ")] == [
        "fetch",
        "wait",
        "decode",
        "predict",
    ]
    (record,) = (one for one in caplog.records if hasattr(one, "stages"))
    assert (record.method, record.path, record.status, record.photos) == ("POST", "/classify", 200, 2)
    for stage, times in (("fetch", 2), ("wait", 1), ("decode", 1), ("predict", 1)):
        assert counted[f'gateway_stage_duration_seconds_count{{stage="{stage}"}}'] == times
        total = counted[f'gateway_stage_duration_seconds_sum{{stage="{stage}"}}'] * 1000
        assert record.stages[stage] == pytest.approx(total, abs=0.06)
        assert f"{stage};dur={record.stages[stage]}" in headers["Server-Timing"]
    assert counted['gateway_request_duration_seconds_count{route="/classify",status="200"}'] == 1
    assert counted["gateway_processing_duration_seconds_count"] == 1
    assert counted['gateway_errors_total{code="photo-server-failed"}'] == 1
    assert "hush" not in caplog.text


def test_fetching_is_not_processing(app, photos):
    before = samples(app)
    app.ask("/predict", *as_json({"url": f"{photos.url}/a.jpg"}))
    after = samples(app)
    whole, fetching, processing = (
        after[name] - before.get(name, 0)
        for name in (
            'gateway_request_duration_seconds_sum{route="/predict",status="200"}',
            'gateway_stage_duration_seconds_sum{stage="fetch"}',
            "gateway_processing_duration_seconds_sum",
        )
    )
    assert 0 < processing <= whole - fetching


def test_failed_request_is_counted_and_logged(app, caplog):
    caplog.set_level("INFO")
    before = samples(app)
    app.ask("/predict", b"text", "image/jpeg")
    after = samples(app)
    for name in (
        'gateway_request_duration_seconds_count{route="/predict",status="415"}',
        'gateway_errors_total{code="not-an-image"}',
    ):
        assert after[name] - before.get(name, 0) == 1
    assert [(one.path, one.status) for one in caplog.records if hasattr(one, "status")] == [("/predict", 415)]


def test_long_paths_are_cut_in_the_log(app, caplog):
    caplog.set_level("INFO")
    app.ask("/" + "x" * 60_000, method="GET")
    (record,) = (one for one in caplog.records if hasattr(one, "path"))
    assert len(record.path) == 1000
    assert len(record.getMessage()) < 1100


def test_keys_and_rate_limit(model, photos, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"anna {KEY}\n")
    app = App(model, photos, keys_file=keys, rate_photos_per_minute=1, rate_burst_photos=8)
    try:
        assert app.ask("/predict", PHOTO, "image/jpeg")[0] == 401
        assert app.ask("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION="Bearer wrong")[0] == 401
        for _ in range(8):
            assert app.ask("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION=f"Bearer {KEY}")[0] == 200
        status, headers, _ = app.ask("/predict", PHOTO, "image/jpeg", HTTP_AUTHORIZATION=f"Bearer {KEY}")
        assert (status, "Retry-After" in headers) == (429, True)
    finally:
        app.close()


@pytest.mark.parametrize("resampling", ["nearest", "bicubic"])  # by clothing_jpeg, where it is installed, and by Pillow
def test_megapixels_are_limited_by_their_scans(model, photos, resampling):
    baseline, progressive = image_bytes((500, 400)), image_bytes((500, 400), progressive=True)  # 0.2 megapixels
    scans = progressive.count(b"\xff\xda")
    assert scans > 4
    photos.paths |= {"/baseline.jpg": baseline}
    upload, costly = (baseline, "image/jpeg"), (progressive, "image/jpeg")
    url = as_json({"url": photos.url + "/baseline.jpg"})

    def statuses(per_minute, *bodies):
        settings = {"fetch_allowed_networks": "127.0.0.0/8", "resampling": resampling}
        app = App(model, photos, rate_megapixels_per_minute=per_minute, **settings)
        try:
            answers = [app.ask("/predict", *body) for body in bodies]
        finally:
            app.close()
        assert all(1 <= int(headers["Retry-After"]) <= 60 * scans for status, headers, _ in answers if status == 429)
        return [status for status, _, _ in answers]

    assert statuses(0.6, upload, upload, upload, upload) == [200, 200, 200, 429]
    assert statuses(0.6, upload, url, upload, url) == [200, 200, 200, 429]
    assert statuses(2 * scans * 0.2, costly, costly, costly) == [200, 200, 429]
    assert statuses(0.2, costly, costly) == [200, 429]  # more than a minute's worth
    assert statuses(0, upload, costly, upload, costly) == [200, 200, 200, 200]


def test_photos_over_the_megapixel_rate_have_the_error_each(model, photos):
    data = image_bytes((100, 80))
    form = multipart(("image", "a.jpg", data), ("image", "b.jpg", data))
    app = App(model, photos, rate_megapixels_per_minute=0.01)
    try:
        status, _, body = app.ask("/classify", *form)
        assert status == 200
        assert sorted(one["error"]["code"] for one in json.loads(body)["photos"] if "error" in one) == [
            "too-many-requests"
        ]
        status, headers, body = app.ask("/classify", *form)
        assert (status, json.loads(body)["code"]) == (429, "too-many-requests")
        assert int(headers["Retry-After"]) > 30
    finally:
        app.close()


def test_calls_of_the_model_are_in_order_of_client(app, model):
    slots = app.predictor.slots
    for _ in range(slots.limit):
        assert slots.acquire(0)
    model.model.metadata.clear()

    def send(address):
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict", "CONTENT_TYPE": "image/jpeg"}
        environ |= {"CONTENT_LENGTH": str(len(PHOTO)), "wsgi.input": io.BytesIO(PHOTO)}
        environ |= {"REMOTE_ADDR": address, "HTTP_X_REQUEST_ID": address}
        app.app(environ, lambda status, headers: None)

    threads = []
    for address in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2"):
        threads.append(threading.Thread(target=send, args=(address,)))
        threads[-1].start()
        end = time.monotonic() + 10
        while slots.waiting < len(threads):
            assert time.monotonic() < end
            time.sleep(0.01)
    slots.release()  # one, so that one call follows on the other
    for thread in threads:
        thread.join()
    for _ in range(slots.in_flight):
        slots.release()
    order = [one["x-request-id"] for one in model.model.metadata]
    assert order == ["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.1"]


def test_parallel_requests_share_nothing(app):
    wrong = []
    kept = threading.Lock()

    def client(seed):
        data = image_bytes((40, 30), "PNG", seed=seed)
        with kept:
            expected = json.loads(app.ask("/predict", data, "image/png")[2])
        answers.setdefault(seed, expected)
        go.wait()
        wrong.extend(1 for _ in range(10) if json.loads(send(data)) != expected)

    def send(data):
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/predict", "CONTENT_TYPE": "image/png"}
        environ |= {"CONTENT_LENGTH": str(len(data)), "wsgi.input": io.BytesIO(data), "REMOTE_ADDR": "192.0.2.1"}
        return b"".join(app.app(environ, lambda status, headers: None))

    answers, go = {}, threading.Barrier(6)
    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len({json.dumps(answer) for answer in answers.values()}) == 6


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (PHOTO[:-20] * 2, "image/jpeg"),
        (OTHER[:60], "image/png"),
        (b"no photo", "image/png"),
        (FORM[:-20], FORM_TYPE),
        (MANY_FIELDS, "multipart/form-data; boundary=b"),
        (FORM.replace(b"image", b"photo"), FORM_TYPE),
        (FORM.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1), FORM_TYPE),
        (b"no photo", ""),
    ],
    ids=[
        "photo cut off",
        "photo without pixels",
        "no photo",
        "form cut off",
        "form of many fields",
        "form of another field",
        "form in base64",
        "no type",
    ],
)
def test_refused_body_is_freed_without_the_garbage_collector(app, body, kind):
    class Input(io.BytesIO):
        def read(self, _size=-1):
            return body

    app.ask("/classify", b"", kind, **{"wsgi.input": Input()})  # whatever is kept once
    before = sys.getrefcount(body)
    gc.disable()
    try:
        for _ in range(3):
            status, _, _ = app.ask("/classify", b"", kind, **{"wsgi.input": Input()})
            assert 400 <= status < 500
        assert sys.getrefcount(body) == before
    finally:
        gc.enable()
