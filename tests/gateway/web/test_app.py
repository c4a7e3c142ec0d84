"""The routes, in one gateway process for the whole file: real sockets, real gRPC, a model that echoes."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import select
import socket
import struct
import threading
import time

import grpc
import jsonschema
import numpy as np
import pytest
import yaml
from fakes import LABELS, FakeModel, GatewayProcess, ModelServer, PhotoServer, image_bytes, multipart
from PIL import Image
from tensorflow.core.framework import types_pb2

import processes
from clothing_contract.scaling import Scaling
from clothing_gateway import __version__
from clothing_gateway.errors import AddressNotAllowed, all_errors
from clothing_gateway.image.decode import jpeg_decoder

PHOTO = image_bytes((40, 30))
OTHER = image_bytes((50, 60), "PNG", seed=5)


@pytest.fixture(scope="module")
def model():
    server = ModelServer(FakeModel())
    yield server
    server.stop()


@pytest.fixture(scope="module")
def photos():
    server = PhotoServer()
    server.paths |= {"/a.jpg": PHOTO, "/b.png": OTHER, "/page": b"<html>", "/cut.jpg": PHOTO[:200]}
    server.paths["/short"] = (302, b"", {"Location": "/a.jpg"})
    server.paths["/inside"] = (302, b"", {"Location": "http://169.254.169.254/"})
    server.paths["/large"] = (200, b"", {"Content-Length": str(1 << 30)})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def gateway(model, photos):
    process = GatewayProcess(
        model.address,
        fetch_allowed_networks="127.0.0.0/8",
        fetch_allowed_ports=f"80,{photos.port}",
        max_body_bytes=200_000,
        max_pixels=1_000_000,
        max_photos=3,
        request_timeout_seconds=5,
        log_level="debug",
    )
    yield process
    assert process.stop() == 0


@pytest.fixture(autouse=True)
def fresh(model):
    model.model.calls.clear()
    model.model.metadata.clear()
    model.model.fail.clear()
    yield
    model.model.delay = 0.0
    model.model.scores = None


@pytest.fixture(scope="module")
def document(gateway):
    return yaml.safe_load(gateway.request("GET", "/openapi.yaml")[1])


def check(document, name, instance):
    """Compare an answer with the schema that the document has for it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    jsonschema.validate(instance, schema, cls=jsonschema.Draft202012Validator)


def expected_scores(data):
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8), Image.Resampling.NEAREST)
    return Scaling("tf").numbers(np.array(image)).ravel()[:10].tolist()


def as_json(value):
    return json.dumps(value).encode(), "application/json"


@pytest.fixture
def problem(document):
    """Check a refusal: its form, its status, its code, and that it tells nothing it shouldn't."""

    def check_problem(answer, status, code):
        got, body, headers = answer
        assert (got, body["code"]) == (status, code), body
        assert headers["Content-Type"] == "application/problem+json"
        assert headers["X-Request-Id"] == body["request_id"]
        assert body["status"] == status
        check(document, "Problem", body)
        for secret in ("127.0.0.1", "169.254", "Traceback", "told to fail", "File "):
            assert secret not in json.dumps(body)
        return body, headers

    return check_problem


FORM, FORM_TYPE = multipart(("image", "a.jpg", PHOTO))


@pytest.mark.parametrize("way", ["url", "redirect", "multipart", "body", "octets"])
@pytest.mark.parametrize("route", ["/predict", "/classify"])
def test_photo_by_each_kind_of_request(gateway, photos, document, route, way):
    body, kind = {
        "url": as_json({"url": f"{photos.url}/a.jpg"}),
        "redirect": as_json({"url": f"{photos.url}/short"}),
        "multipart": (FORM, FORM_TYPE),
        "body": (PHOTO, "image/jpeg"),
        "octets": (PHOTO, "application/octet-stream"),
    }[way]
    status, answer, headers = gateway.post(route, body, kind)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    if route == "/predict":
        assert answer == dict(zip(LABELS, expected_scores(PHOTO), strict=True))
        check(document, "Scores", answer)
    else:
        assert answer["model"] == {"name": "clothing-model", "version": "1", "scores": "logits"}
        assert {one["label"]: one["score"] for one in answer["predictions"]} == dict(
            zip(LABELS, expected_scores(PHOTO), strict=True)
        )
        chances = [one["probability"] for one in answer["predictions"]]
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) == pytest.approx(1)
        check(document, "Classification", answer)


def test_predict_matches_the_course_byte_for_byte(gateway):
    """gateway.py of the course: jsonify(dict(zip(classes, preds))) with preds out of float_val."""
    import flask

    course = flask.Flask("course")
    with course.app_context():
        expected = flask.jsonify(dict(zip(LABELS, expected_scores(PHOTO), strict=True))).get_data()
    _, body, headers = gateway.request("POST", "/predict", PHOTO, {"Content-Type": "image/jpeg"})
    assert body == expected
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("route", ["/predict", "/classify"])
def test_model_version_by_canary_and_header(start_gateway, stack, route):
    server = ModelServer(FakeModel(name="modèle", others=(2,), labels={"next": 2}))
    stack.callback(server.stop)
    gateway = start_gateway(
        server.address,
        model_name="modèle",
        model_version=1,
        canary_label="next",
        canary_percent=50,
        selectable_versions="2",
    )
    for _ in ("stable", "canary", "selected 2"):  # ready with the first, and the others a moment later
        gateway.wait_for_line("the model is ready")
    answers = set()
    for number in range(20):
        status, body, headers = gateway.post(route, PHOTO, **{"X-Request-Id": f"request-{number}"})
        assert (status, headers["X-Model-Name"]) == (200, "mod%C3%A8le")
        answers.add(headers["X-Model-Version"])
        if route == "/classify":
            assert body["model"] == {"name": "modèle", "version": headers["X-Model-Version"], "scores": "logits"}
    assert answers == {"1", "2"}
    assert gateway.post(route, PHOTO, **{"X-Model-Version": "2"})[2]["X-Model-Version"] == "2"
    status, body, headers = gateway.post(route, PHOTO, **{"X-Model-Version": "1"})
    assert (status, body["code"], headers["X-Model-Version"]) == (400, "bad-request", None)
    counted = gateway.admin("/metrics")[1]
    assert 'gateway_predictions_total{track="selected 2",version="2"} 1.0' in counted
    assert 'gateway_predictions_total{track="canary",version="2"}' in counted
    assert 'gateway_predictions_total{track="stable",version="1"}' in counted


def test_missing_canary_falls_back_to_stable(start_gateway, stack):
    """As while several servers take a new configuration: one has said that it has the canary, another is asked."""
    model = FakeModel(others=(2,), inputs_of={2: {"input_16": (types_pb2.DT_FLOAT, (-1, 16, 16, 3))}})
    server = ModelServer(model)
    stack.callback(server.stop)
    gateway = start_gateway(
        server.address, model_version=1, canary_version=2, canary_percent=100, selectable_versions="2"
    )
    for _ in ("stable", "canary", "selected 2"):  # ready with the first, and the others a moment later
        gateway.wait_for_line("the model is ready")
    assert gateway.post("/predict", PHOTO)[2]["X-Model-Version"] == "2"
    refusal = (grpc.StatusCode.NOT_FOUND, "Servable not found for request: Specific(clothing-model, 2)")
    model.fail = [refusal] * 4  # on each server that is tried
    status, body, headers = gateway.post("/predict", PHOTO)
    assert (status, headers["X-Model-Version"]) == (200, "1")
    assert body == dict(zip(LABELS, expected_scores(PHOTO), strict=True))
    counted = gateway.admin("/metrics")[1]
    assert 'gateway_predictions_total{track="stable",version="1"} 1.0' in counted
    assert 'gateway_rpcs_total{code="NOT_FOUND",method="Predict"} 4.0' in counted
    # Nothing stands in for what both refuse, nor for a version that the client has named.
    model.fail = [refusal] * 8
    assert gateway.post("/predict", PHOTO)[0] == 502
    model.fail = [refusal] * 4
    assert gateway.post("/predict", PHOTO, **{"X-Model-Version": "2"})[0] == 502


def test_predict_sorts_labels(start_gateway, model_server):
    labels = "b,a,d,c,f,e,h,g,j,i"
    gateway = start_gateway(model_server.address, labels=labels)
    _, answer, _ = gateway.post("/predict", PHOTO)
    assert list(answer) == sorted(labels.split(","))
    assert answer == dict(zip(labels.split(","), expected_scores(PHOTO), strict=True))


def test_top(gateway):
    _, answer, _ = gateway.post("/classify?top=3", PHOTO)
    assert len(answer["predictions"]) == 3
    assert len(gateway.post("/classify?top=99", PHOTO)[1]["predictions"]) == 10


@pytest.mark.parametrize("top", ["0", "-1", "x", "", "1.5", "99999999999"])
def test_invalid_top_is_400(gateway, problem, top):
    problem(gateway.post(f"/classify?top={top}", PHOTO), 400, "bad-request")


def test_several_urls_have_a_result_each(gateway, photos, document, model):
    urls = [f"{photos.url}/{name}" for name in ("a.jpg", "none", "b.png")]
    status, answer, headers = gateway.post("/classify?top=1", *as_json({"urls": urls}))
    assert status == 200
    check(document, "Classifications", answer)
    first, failed, last = answer["photos"]
    assert failed["error"]["code"] == "photo-server-failed"
    assert failed["error"]["request_id"] == headers["X-Request-Id"]
    assert first["predictions"][0]["score"] == max(expected_scores(PHOTO))
    assert last["predictions"][0]["score"] == max(expected_scores(OTHER))
    assert len(model.model.calls) == 1  # both in one call


def test_several_files(gateway, document):
    form, kind = multipart(("image", "a.jpg", PHOTO), ("image", "b.png", OTHER), ("image", "c", b"nothing"))
    status, answer, _ = gateway.post("/classify", form, kind)
    assert status == 200
    check(document, "Classifications", answer)
    assert [next(iter(one)) for one in answer["photos"]] == ["predictions", "predictions", "error"]
    assert answer["photos"][2]["error"]["code"] == "not-an-image"


def test_list_of_one_url_returns_a_list(gateway, photos):
    _, answer, _ = gateway.post("/classify", *as_json({"urls": [f"{photos.url}/a.jpg"]}))
    assert len(answer["photos"]) == 1


def test_no_predict_call_when_all_photos_fail(gateway, photos, model):
    status, answer, _ = gateway.post("/classify", *as_json({"urls": [f"{photos.url}/none", "http://10.0.0.1/"]}))
    assert status == 200
    assert [one["error"]["code"] for one in answer["photos"]] == ["photo-server-failed", "address-not-allowed"]
    assert model.model.calls == []


def test_model_failure_fails_the_request(gateway, photos, model, problem):
    model.model.fail = [grpc.StatusCode.INTERNAL]
    answer = gateway.post("/classify", *as_json({"urls": [f"{photos.url}/a.jpg", f"{photos.url}/b.png"]}))
    problem(answer, 502, "model-failed")


def test_too_many_photos(gateway, problem):
    problem(gateway.post("/classify", *as_json({"urls": ["http://a.test/"] * 4})), 413, "too-many-photos")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/json", 400, "no-photo"),
        (b"{}", "application/json", 400, "no-photo"),
        (b'{"url": null}', "application/json", 400, "no-photo"),
        (b'{"urls": []}', "application/json", 400, "no-photo"),
        (b"{", "application/json", 400, "bad-request"),
        (b"\xff", "application/json", 400, "bad-request"),
        (b"[" * 65_536, "application/json", 400, "bad-request"),
        (b"[" * 65_537, "application/json", 413, "too-many-bytes"),
        (b"[]", "application/json", 400, "bad-request"),
        (b'"http://a.test/"', "application/json", 400, "bad-request"),
        (b"null", "application/json", 400, "bad-request"),
        (b'{"url": 1}', "application/json", 400, "bad-request"),
        (b'{"url": ""}', "application/json", 400, "bad-request"),
        (b'{"url": ["http://a.test/"]}', "application/json", 400, "bad-request"),
        (b'{"urls": "http://a.test/"}', "application/json", 400, "bad-request"),
        (b'{"urls": [1]}', "application/json", 400, "bad-request"),
        (b'{"url": "http://a.test/", "urls": []}', "application/json", 400, "bad-request"),
        (b'{"url": "\\ud800"}', "application/json", 400, "address-not-allowed"),
        (b'{"url": "http://169.254.169.254/"}', "application/json", 400, "address-not-allowed"),
        (b'{"url": "file:///etc/passwd"}', "application/json", 400, "address-not-allowed"),
        (b'{"url": "http://127.0.0.1:22/"}', "application/json", 400, "address-not-allowed"),
        (b"", "image/jpeg", 400, "no-photo"),
        (b"", "", 400, "no-photo"),
        (b"hello", "image/jpeg", 415, "not-an-image"),
        (PHOTO[:300], "image/jpeg", 422, "broken-image"),
        (b"hello", "text/plain", 415, "unsupported-media-type"),
        (b"hello", "", 415, "unsupported-media-type"),
        (b"image=abc", "application/x-www-form-urlencoded", 415, "unsupported-media-type"),
        (b"", "multipart/form-data; boundary=b", 400, "no-photo"),
        (PHOTO, "multipart/form-data", 400, "bad-request"),
        (FORM[:-20], FORM_TYPE, 400, "bad-request"),
        (*multipart(("photo", "a.jpg", PHOTO)), 400, "no-photo"),
        (*multipart(("image", "", b"")), 400, "no-photo"),
        (*multipart(("image", "a.jpg", b"text")), 415, "not-an-image"),
        (image_bytes((1300, 800), "PNG", "1"), "image/png", 413, "too-many-pixels"),
        (b"x" * 200_001, "image/jpeg", 413, "too-many-bytes"),
    ],
)
def test_client_errors(gateway, problem, model, body, kind, status, code):
    problem(gateway.post("/predict", body, kind), status, code)
    assert model.model.calls == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/none", 424, "photo-server-failed"),
        ("/page", 415, "not-an-image"),
        ("/cut.jpg", 422, "broken-image"),
        ("/inside", 400, "address-not-allowed"),
        ("/large", 413, "too-many-bytes"),
    ],
)
def test_photo_server_errors(gateway, photos, problem, path, status, code):
    problem(gateway.post("/predict", *as_json({"url": photos.url + path})), status, code)


def test_predict_refuses_several_photos(gateway, photos, problem):
    for body, kind in (
        as_json({"urls": [f"{photos.url}/a.jpg"]}),
        multipart(("image", "a.jpg", PHOTO), ("image", "b.png", OTHER)),
    ):
        refusal, _ = problem(gateway.post("/predict", body, kind), 400, "bad-request")
        assert "/classify" in refusal["detail"]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        ([grpc.StatusCode.INTERNAL], 502, "model-failed"),
        ([grpc.StatusCode.INVALID_ARGUMENT] * 4, 502, "model-refused"),
        ([grpc.StatusCode.NOT_FOUND] * 4, 502, "model-refused"),
        ([grpc.StatusCode.UNAVAILABLE] * 3, 503, "model-unavailable"),
        ([(grpc.StatusCode.RESOURCE_EXHAUSTED, "")] * 99, 503, "model-busy"),
        ([(grpc.StatusCode.UNAVAILABLE, "The batch scheduling queue … is full")] * 3, 503, "model-queue-full"),
        ([(grpc.StatusCode.RESOURCE_EXHAUSTED, "OOM when allocating tensor")], 502, "model-out-of-memory"),
        ([grpc.StatusCode.DEADLINE_EXCEEDED], 504, "out-of-time"),
    ],
)
def test_model_server_errors(gateway, model, problem, failure, status, code):
    model.model.fail = list(failure)
    _, headers = problem(gateway.post("/predict", PHOTO, **{"X-Request-Timeout-Ms": "1000"}), status, code)
    assert ("Retry-After" in headers) == (status == 503)


def test_nan_scores_are_502(gateway, model, problem):
    model.model.scores = lambda batch: [[float("nan")] * 10]
    problem(gateway.post("/predict", PHOTO), 502, "model-answer-unusable")


@pytest.mark.parametrize("header", ["X-Request-Timeout-Ms", "grpc-timeout"])
def test_client_timeout_shortens_the_deadline(gateway, model, problem, header):
    model.model.delay = 1.0
    start = time.monotonic()
    limit = {header: "150" if header.startswith("X") else "150m"}
    problem(gateway.post("/predict", PHOTO, **limit), 504, "out-of-time")
    assert time.monotonic() - start < 0.9
    problem(gateway.post("/predict", PHOTO, **{header: "soon"}), 400, "bad-request")


def send(gateway, body, kind):
    """A client that has sent a photo and waits."""
    client = socket.create_connection(("127.0.0.1", gateway.port))
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def leave(client, *, abruptly):
    if abruptly:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("sends", ["nothing", "a part", "drops"])
def test_client_disconnect_cancels_the_fetch(start_gateway, model_server, photo_server, sends, abruptly):
    asked, cut = threading.Event(), threading.Event()

    def slow(handler):
        if sends != "nothing":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(PHOTO)))
            handler.end_headers()
            handler.wfile.write(PHOTO[:100])
        asked.set()
        handler.connection.settimeout(0.05)
        for place in range(100, 300):
            try:
                if not handler.connection.recv(1):
                    cut.set()
                    return
            except TimeoutError:
                pass
            if sends == "drops":
                handler.wfile.write(PHOTO[place : place + 1])

    photo_server.paths["/slow"] = slow
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    client = send(gateway, json.dumps({"url": photo_server.url + "/slow"}).encode(), "application/json")
    assert asked.wait(10)
    start = time.monotonic()
    leave(client, abruptly=abruptly)
    line = gateway.wait_for_line("POST /predict 499")
    assert cut.wait(5)
    assert time.monotonic() - start < 2
    assert "decode" not in line["stages"]
    assert not model_server.model.calls
    metrics = gateway.admin("/metrics")[1]
    assert 'gateway_errors_total{code="client-left"} 1.0' in metrics
    assert 'gateway_fetches_total{result="client_left"} 1.0' in metrics
    assert gateway.post("/predict", PHOTO)[0] == 200


@pytest.mark.parametrize("abruptly", [False, True])
def test_client_disconnect_ends_the_request_and_not_the_call(start_gateway, model_server, abruptly):
    """TensorFlow Serving stops no call that is cancelled: the request ends at once, the call in its time."""
    model = model_server.model
    model.delay = 3
    gateway = start_gateway(model_server.address)
    client = send(gateway, PHOTO, "image/jpeg")
    assert model.asked.wait(10)
    start = time.monotonic()
    leave(client, abruptly=abruptly)
    gateway.wait_for_line("POST /predict 499")
    assert time.monotonic() - start < 2
    assert model.ended == 0
    metrics = gateway.admin("/metrics")[1]
    assert "gateway_in_flight_photos 0.0" in metrics
    assert 'method="Predict"' not in metrics
    while 'gateway_rpcs_total{code="OK",method="Predict"} 1.0' not in gateway.admin("/metrics")[1]:
        assert time.monotonic() - start < 10
        time.sleep(0.05)
    assert (model.ended, model.cancelled.is_set()) == (1, False)
    model.delay = 0
    for _ in range(3):  # the calls that can be left, and those of a fast model
        assert gateway.post("/predict", PHOTO)[0] == 200


def test_client_timeout_never_extends_the_deadline(start_gateway, model_server, problem):
    model_server.model.delay = 1.0
    gateway = start_gateway(model_server.address, request_timeout_seconds=0.3)
    problem(gateway.post("/predict", PHOTO, **{"X-Request-Timeout-Ms": "60000"}), 504, "out-of-time")


def test_request_id_is_echoed_and_sent_to_the_model(gateway, model, photos):
    _, _, headers = gateway.post("/predict", PHOTO, **{"X-Request-Id": "my-id.1"})
    assert headers["X-Request-Id"] == "my-id.1"
    assert model.model.metadata[-1]["x-request-id"] == "my-id.1"
    for bad in ("a b", "x" * 129, "ä", '"'):
        _, _, headers = gateway.request("GET", "/ping", headers={"X-Request-Id": bad.encode("latin-1")})
        assert len(headers["X-Request-Id"]) == 32


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"])
def test_wrong_method_is_405_with_allow(gateway, method):
    status, _, headers = gateway.request(method, "/predict")
    assert status == 405
    assert headers["Allow"] == "POST"
    assert headers["Content-Type"] == "application/problem+json"


def test_unknown_path_is_404(gateway, problem):
    problem(gateway.post("/nothing", b"x"), 404, "not-found")
    problem(gateway.post("/predict/", PHOTO), 404, "not-found")


def test_ping(gateway):
    assert gateway.request("GET", "/ping")[:2] == (200, b"PONG")
    assert gateway.request("HEAD", "/ping")[:2] == (200, b"")


def raw(gateway, data, *, timeout=10, close=False):
    """The answer to bytes that no HTTP library would send."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=timeout) as connection:
        connection.sendall(data)
        if close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and b'"request_id"' in answer:
                break
    return answer


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad-request"),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400, "bad-request"),
        (b"GET /ping HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "bad-request"),
        (b"GET /ping HTTP/1.1\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n", 431, "headers-too-large"),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "not-implemented"),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad-request"),
        (
            b"POST /predict HTTP/1.1\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",
            413,
            "too-many-bytes",
        ),
    ],
)
def test_server_level_errors_are_problem_json(gateway, document, data, status, code):
    answer = raw(gateway, data)
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith((b"HTTP/1.1 %d " % status, b"HTTP/1.0 %d " % status))
    assert b"Content-Type: application/problem+json" in head
    problem = json.loads(body)
    assert problem["code"] == code
    check(document, "Problem", problem)


@pytest.mark.parametrize("blank", [b"\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n"])
@pytest.mark.parametrize("pause", [0, 0.1])
def test_blank_lines_before_a_request_are_ignored(gateway, blank, pause):
    """RFC 9112, section 2.2: a server should ignore at least one empty line before a request line."""
    lines = len(gateway.log)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(blank)
        time.sleep(pause)
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not [line for line in gateway.log[lines:] if '"level": "error"' in line]


def test_too_large_body_is_discarded_and_answered_413(gateway, problem):
    for _ in range(3):
        problem(gateway.post("/predict", b"x" * 15_000_000), 413, "too-many-bytes")
    body = b"".join(b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Type: image/jpeg\r\n\r\n"
    assert b"too-many-bytes" in raw(gateway, head + body)


@pytest.mark.parametrize(
    ("length", "read"), [(b"Content-Length: %d" % (1 << 30), 0), (b"Transfer-Encoding: chunked", 16 << 20)]
)
def test_gigabyte_body_is_not_read(gateway, length, read):
    """It would cost half a second of CPU. Its client can read the 413 before the connection closes."""
    sent, piece, answer = 0, b"10000\r\n" + bytes(0x10000) + b"\r\n", b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n\r\n")
        while not answer and sent < 1 << 30:
            readable, writable, _ = select.select([connection], [connection], [], 20)
            if readable:
                while b"too-many-bytes" not in answer:  # head and body are two packets
                    answer += connection.recv(10_000) or pytest.fail(f"the answer ended: {answer!r}")
            elif writable:
                sent += connection.send(piece)
        answered = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < answered + 10:
                connection.sendall(piece)
        hung_up = time.monotonic() - answered
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert read <= sent < read + (16 << 20)  # what is read of it, and what the kernel holds
    assert 0.2 < hung_up < 2
    assert gateway.post("/predict", image_bytes())[0] == 200


def test_expect_100_continue(gateway):
    """curl does, for bodies over 1 MB."""
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PHOTO))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PHOTO)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_chunked_upload(gateway):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    connection.request("POST", "/predict", iter([PHOTO[:100], PHOTO[100:]]), {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    assert response.status == 200
    assert json.loads(response.read()) == dict(zip(LABELS, expected_scores(PHOTO), strict=True))
    connection.close()


def test_access_log_has_no_query(gateway):
    gateway.post("/classify?top=1&token=hush", PHOTO, **{"X-Request-Id": "find-me"})
    end = time.monotonic() + 5
    while not (lines := [line for line in gateway.log if "find-me" in line]):
        assert time.monotonic() < end
        time.sleep(0.01)
    line = json.loads(lines[0])
    assert line["path"] == "/classify"
    assert (line["status"], line["photos"], line["bytes"], line["pixels"]) == (200, 1, len(PHOTO), 1200)
    assert set(line["stages"]) == {"wait", "decode", "predict"}
    assert line["milliseconds"] > 0
    assert not any("hush" in line for line in gateway.log)


def test_error_cause_is_logged_with_the_request_id(gateway, photos):
    body, kind = as_json({"url": "http://169.254.169.254/?secret=1"})
    _, answer, _ = gateway.post("/predict", body, kind, **{"X-Request-Id": "find-why"})
    assert answer["detail"] == AddressNotAllowed.detail
    assert "169.254" not in str(answer)
    end = time.monotonic() + 5
    while not (lines := [line for line in gateway.log if "find-why" in line]):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "169.254.169.254" in json.loads(lines[0])["cause"]
    assert not any("secret" in line for line in gateway.log)


def test_metrics_by_route_and_code(gateway, photos):
    gateway.post("/predict", PHOTO)
    gateway.post("/predict", *as_json({"url": f"{photos.url}/a.jpg"}))
    gateway.post("/predict", b"text")
    gateway.request("GET", "/some/path/nobody/knows")
    status, text = gateway.admin("/metrics")
    assert status == 200
    for line in (
        'gateway_request_duration_seconds_count{route="/predict",status="200"}',
        'gateway_request_duration_seconds_count{route="none",status="404"}',
        'gateway_stage_duration_seconds_count{stage="fetch"}',
        'gateway_stage_duration_seconds_count{stage="wait"}',
        'gateway_errors_total{code="not-an-image"}',
        'gateway_fetches_total{result="ok"}',
        'gateway_rpcs_total{code="OK",method="Predict"}',
        'gateway_rpc_attempts_total{result="succeeded"}',
        'gateway_rpc_attempts_total{result="failed"}',
        "gateway_ready 1.0",
        "gateway_in_flight_photos 0.0",
        "gateway_buffered_bytes 0.0",
        f'gateway_build_info{{jpeg_decoder="{jpeg_decoder()}",version="{__version__}"}} 1.0',
        "process_resident_memory_bytes",
    ):
        assert line in text, line
    assert "nobody" not in text


def test_failed_rpc_attempts_are_counted(start_gateway, model_server):
    """Also where the call itself is OK in the end, and also when the connection on which it failed is gone."""
    gateway = start_gateway(model_server.address)

    def counted():
        lines = gateway.admin("/metrics")[1].splitlines()
        named = dict(line.rsplit(" ", 1) for line in lines if line.startswith("gateway_rpc"))
        return [
            float(named.get(name, 0))
            for name in (
                'gateway_rpc_attempts_total{result="succeeded"}',
                'gateway_rpc_attempts_total{result="failed"}',
                'gateway_rpcs_total{code="OK",method="Predict"}',
            )
        ]

    begun = counted()
    model_server.model.fail = [(grpc.StatusCode.UNAVAILABLE, "away"), (grpc.StatusCode.UNAVAILABLE, "away")]
    assert gateway.post("/predict", image_bytes())[0] == 200
    processes.wait_for("both to be counted", lambda: counted()[1] - begun[1] == 2)
    succeeded, failed, answered = (now - was for now, was in zip(counted(), begun, strict=True))
    assert answered == 1
    assert succeeded >= 1  # the model is looked at now and then, too
    model_server.stop()
    processes.wait_for("the gateway to notice", lambda: gateway.admin("/readyz")[0] == 503)
    after = counted()
    assert after[0] >= begun[0] + succeeded
    assert after[1] >= begun[1] + failed


def test_admin_port(gateway):
    assert gateway.admin("/healthz") == (200, '{"status": "ok"}\n')
    assert gateway.admin("/readyz") == (200, '{"status": "ok"}\n')
    assert gateway.admin("/predict")[0] == 404
    status, body, headers = gateway.request("POST", "/healthz", b"x", port=gateway.admin_port)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["code"] == "method-not-allowed"
    assert gateway.request("HEAD", "/readyz", port=gateway.admin_port)[:2] == (200, b"")
    assert gateway.request("GET", "/healthz")[0] == 404  # not on the clients' port


def test_many_clients_at_once_all_get_the_right_answer(gateway):
    results = []

    def client(seed):
        data = image_bytes((40, 30), "PNG", seed=seed)
        for _ in range(5):
            status, answer, _ = gateway.post("/predict", data, "image/png")
            results.append(status == 200 and list(answer.values()) == expected_scores(data))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


@pytest.mark.parametrize("kind", ["uint8", "string"])
def test_a_model_that_takes_pixels_or_files(start_gateway, model_server, kind):
    model_server.model.inputs = {
        "x": (types_pb2.DT_UINT8, (-1, 8, 8, 3)) if kind == "uint8" else (types_pb2.DT_STRING, (-1,))
    }
    gateway = start_gateway(model_server.address)
    status, answer, _ = gateway.post("/predict", OTHER, "image/png")
    assert status == 200
    pixels = np.array(Image.open(io.BytesIO(OTHER)).resize((8, 8), Image.Resampling.NEAREST)).ravel()
    expected = [float(value) for value in (OTHER if kind == "string" else pixels)[:10]]
    assert list(answer.values()) == expected
    form, form_type = multipart(("image", "a", OTHER), ("image", "b", PHOTO))
    assert len(gateway.post("/classify", form, form_type)[1]["photos"]) == 2
    assert gateway.post("/predict", OTHER[:100], "image/png")[1]["code"] == "broken-image"


def test_resampling_and_scaling_reach_the_model(start_gateway, model_server):
    model_server.model.inputs = {"x": (types_pb2.DT_UINT8, (-1, 8, 8, 3))}
    large = image_bytes((800, 800), quality=95)
    gateway = start_gateway(model_server.address, resampling="bilinear", jpeg_scaling="on")
    assert gateway.post("/predict", large)[0] == 200
    with Image.open(io.BytesIO(large)) as image:
        image.draft("RGB", (100, 100))
        wanted = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR))
    (call,) = model_server.model.calls
    assert call.inputs["x"].tensor_content == wanted.tobytes()


def test_another_model_by_settings_alone(start_gateway, model_server):
    model_server.model.name = "kitchen"
    model_server.model.version = 42
    model_server.model.inputs = {"inputs": (types_pb2.DT_FLOAT, (-1, 9, 16, 3))}
    model_server.model.outputs = {"output_0": (types_pb2.DT_FLOAT, (-1, 20))}
    gateway = start_gateway(
        model_server.address,
        model_name="kitchen",
        labels=json.dumps([f"label {number}" for number in range(20)]),
        preprocessing="caffe",
    )
    status, answer, _ = gateway.post("/classify", OTHER, "image/png")
    assert status == 200
    assert answer["model"] == {"name": "kitchen", "version": "42", "scores": "logits"}
    image = Image.open(io.BytesIO(OTHER)).resize((16, 9), Image.Resampling.NEAREST)
    expected = Scaling("caffe").numbers(np.array(image)).ravel()[:20].tolist()
    assert {one["label"]: one["score"] for one in answer["predictions"]} == {
        f"label {number}": score for number, score in enumerate(expected)
    }


def test_every_error_is_in_the_document(document):
    assert set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == {
        error.code for error in all_errors()
    }
