"""The client of clothing_gateway.client, against real gateways, and against what only looks like one."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from io import BytesIO

import pytest
from fakes import LABELS, FakeModel, GatewayProcess, ModelServer, PhotoServer, image_bytes

from clothing_gateway import client as module
from clothing_gateway.client import Client, ClientError, NoAnswer, Problem, UnexpectedAnswer
from processes import free_port

PHOTO = image_bytes((40, 30))
KEY = "0123456789abcdef"


@dataclass
class Shared:
    """A gateway for all tests of this file, as each takes a second of CPU to start."""

    gateway: GatewayProcess
    model: FakeModel
    photos: PhotoServer


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"mine {KEY}\n")
    model, photos = ModelServer(FakeModel(others=(2,))), PhotoServer()
    gateway = GatewayProcess(
        model.address,
        keys_file=keys,
        max_body_bytes=100_000,
        model_version=1,
        selectable_versions="2",
        fetch_allowed_networks="127.0.0.0/8",
        fetch_allowed_ports=f"80,{photos.port}",
    )
    for _ in ("stable", "selected 2"):
        gateway.wait_for_line("the model is ready")
    yield Shared(gateway, model.model, photos)
    gateway.stop()
    photos.stop()
    model.stop()


@pytest.fixture
def connect(stack):
    def connect(gateway, **options):
        return stack.enter_context(Client(f"http://127.0.0.1:{gateway.port}", **options))

    return connect


@pytest.fixture
def client(shared, connect):
    return connect(shared.gateway, key=KEY)


@pytest.fixture
def impostor(stack):
    """Something on a port that answers each POST with the next of a list, the last one again and again."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.server.asked.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.asked, server.answers = [], []
    server.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server


def test_file_bytes_and_url_get_the_same_answer(shared, client, tmp_path):
    shared.photos.paths["/photo.jpg"] = PHOTO
    file = tmp_path / "photo.jpg"
    file.write_bytes(PHOTO)
    answers = [client.classify(one) for one in (file, str(file), PHOTO, f"{shared.photos.url}/photo.jpg")]
    assert len({answer.predictions for answer in answers}) == 1
    answer = answers[0]
    assert (answer.model, answer.version, answer.attempts) == ("clothing-model", "1", 1)
    assert {one.label for one in answer.predictions} == set(LABELS)
    assert answer.best.probability == max(one.probability for one in answer.predictions)
    assert sum(one.probability for one in answer.predictions) == pytest.approx(1)
    assert set(answer.milliseconds) >= {"decode", "predict"}
    assert "fetch" in answers[-1].milliseconds
    # One id leads from the client to the log and to the model.
    assert answer.request_id in [asked["x-request-id"] for asked in shared.model.metadata]
    assert len(client.classify(PHOTO, top=2).predictions) == 2


def test_client_requests_a_model_version(client):
    deadline = time.monotonic() + 5
    assert client.classify(PHOTO).version == "1"
    while client.classify(PHOTO, model_version="2").version != "2":
        assert time.monotonic() < deadline
    with pytest.raises(Problem) as caught:
        client.classify(PHOTO, model_version="3\r\nX-Other: 1")
    assert (caught.value.status, caught.value.code) == (400, "bad-request")


def test_many_threads_share_a_client(client):
    photos = [image_bytes((40, 30), seed=seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(client.classify, photos))
    for photo, answer in zip(photos, together, strict=True):
        assert client.classify(photo).predictions == answer.predictions
    assert len({answer.request_id for answer in together}) == 40


@pytest.mark.parametrize(
    ("photo", "status", "code"),
    [
        (b"hello", 415, "not-an-image"),
        (PHOTO[:300], 422, "broken-image"),
        (b"", 400, "no-photo"),
        ("http://10.0.0.1/a.jpg", 400, "address-not-allowed"),
        (b"\xff\xd8\xff" + bytes(5_000_000), 413, "too-many-bytes"),
    ],
)
def test_gateway_errors_are_raised_as_problems(client, photo, status, code):
    with pytest.raises(Problem) as caught:
        client.classify(photo)
    problem = caught.value
    assert (problem.status, problem.code, problem.attempts) == (status, code, 1)
    assert problem.is_photos_own
    assert problem.detail
    assert len(problem.request_id) == 32
    assert str(problem) == f"{status} {code}: {problem.detail}"
    # The next photo gets its answer all the same.
    assert client.classify(PHOTO).best


def test_a_file_that_cannot_be_read_is_an_os_error(client, tmp_path):
    with pytest.raises(FileNotFoundError):
        client.classify(tmp_path / "nowhere.jpg")
    with pytest.raises(IsADirectoryError):
        client.classify(tmp_path)


def test_missing_api_key_is_an_error(shared, connect):
    with pytest.raises(Problem) as caught:
        connect(shared.gateway).classify(PHOTO)
    assert (caught.value.status, caught.value.is_photos_own, caught.value.attempts) == (401, False, 1)
    for key in ("", "two words", "line\nbreak", "schlüssel"):
        with pytest.raises(ValueError, match="the key"):
            connect(shared.gateway, key=key)


@pytest.mark.parametrize("url", ["localhost:9696", "ftp://a", "http://", "http://u:p@a", "http://a?b=c", ""])
def test_invalid_address_is_an_error_before_any_request(url):
    with pytest.raises(ValueError, match="address"):
        Client(url)


def test_client_waits_for_a_model_that_starts_later(start_gateway, connect, stack):
    port = free_port()
    gateway = start_gateway(f"127.0.0.1:{port}", wait_ready=False)
    waited = []

    def come(error, pause):
        waited.append((error.status, error.code, pause))
        if len(waited) == 1:
            stack.callback(ModelServer(FakeModel(), port).stop)

    answer = connect(gateway, on_retry=come).classify(PHOTO)
    assert answer.attempts == len(waited) + 1
    for status, code, pause in waited:
        assert (status, code) == (503, "model-not-ready")
        assert pause >= 5  # Retry-After


def test_client_waits_for_a_gateway_that_restarts(start_gateway, model_server):
    port = free_port()
    errors = []

    def come(error, pause):
        errors.append(str(error))
        if len(errors) == 1:
            start_gateway(model_server.address, listen_port=port)

    with Client(f"http://127.0.0.1:{port}", on_retry=come) as client:
        assert client.classify(PHOTO).attempts == 2
    assert errors == [f"can't reach http://127.0.0.1:{port}: Connection refused"]


def test_client_slows_down_to_the_rate_limit(start_gateway, model_server, connect):
    """429 is waited out, more often than a failure would be, and not for longer than allowed."""
    gateway = start_gateway(model_server.address, rate_photos_per_minute=60, rate_burst_photos=1, max_photos=1)
    pauses = []
    client = connect(gateway, attempts=1, on_retry=lambda error, pause: pauses.append((error.status, pause)))
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(client.classify, [PHOTO] * 4))) == 4
    assert len(pauses) > 1
    assert all(status == 429 and pause >= 1 for status, pause in pauses)
    hasty = connect(gateway, retry_seconds=0.5)
    start = time.monotonic()
    outcomes = []
    while not (outcomes and isinstance(outcomes[-1], Problem)):
        try:
            outcomes.append(hasty.classify(PHOTO))
        except Problem as error:
            outcomes.append(error)
    assert outcomes[-1].status == 429
    assert len(outcomes) <= 3
    assert time.monotonic() - start < 5


def test_client_retries_are_bounded_by_attempts_and_time(monkeypatch, impostor):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    impostor.answers = [(503, {}, b"<html>")]
    with Client(f"http://127.0.0.1:{impostor.port}", attempts=4) as client, pytest.raises(UnexpectedAnswer) as caught:
        client.classify(PHOTO)
    assert caught.value.attempts == len(impostor.asked) == 4
    assert [body for _, body in impostor.asked] == [PHOTO] * 4
    assert len({headers["X-Request-Id"] for headers, _ in impostor.asked}) == 1
    assert [pause <= longest for pause, longest in zip(slept, (0.5, 1, 2), strict=True)] == [True] * 3
    assert len(set(slept)) == 3
    impostor.answers = [(503, {"Retry-After": "3600"}, b"")]
    with Client(f"http://127.0.0.1:{impostor.port}") as client, pytest.raises(UnexpectedAnswer) as caught:
        client.classify(PHOTO)
    assert (caught.value.attempts, caught.value.retry_after) == (1, 3600)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, {}, b"<html>"), "answered 200, and not as a gateway does"),
        ((200, {}, b'{"predictions": []}'), "not as a gateway does"),
        ((404, {}, b'{"code": "x"}'), "answered 404"),
        ((301, {"Location": "https://example.test/classify?top=1"}, b""), "sends on to https://example.test: use that"),
    ],
)
def test_response_of_another_server_is_not_retried(impostor, answer, words):
    impostor.answers = [answer]
    with Client(f"http://127.0.0.1:{impostor.port}/") as client, pytest.raises(UnexpectedAnswer, match=words) as caught:
        client.classify(PHOTO, top=1)
    assert (caught.value.attempts, caught.value.is_photos_own) == (1, False)


def test_retry_after_may_be_a_date(monkeypatch, impostor):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    impostor.answers = [(503, {"Retry-After": formatdate(time.time() + 7, usegmt=True)}, b""), (200, {}, b"{}")]
    with Client(f"http://127.0.0.1:{impostor.port}") as client, pytest.raises(UnexpectedAnswer, match="200"):
        client.classify(PHOTO)
    assert 5 < slept[0] < 8


def test_lost_connection_is_retried(impostor):
    impostor.answers = [None, (404, {}, b"")]
    with Client(f"http://127.0.0.1:{impostor.port}") as client, pytest.raises(UnexpectedAnswer) as caught:
        client.classify(PHOTO)
    assert caught.value.attempts == 2


def test_unresponsive_gateway_times_out(shared, connect, stack, monkeypatch):
    monkeypatch.setattr(shared.model, "delay", 10)
    # The gateway is told how long the client waits, and answers itself.
    with pytest.raises(Problem) as caught:
        connect(shared.gateway, key=KEY, timeout=0.3).classify(PHOTO)
    assert (caught.value.status, caught.value.attempts) == (504, 1)
    deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    start = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.2) as client,
        pytest.raises(NoAnswer, match="did not answer within 1") as silence,
    ):
        client.classify(PHOTO)
    assert time.monotonic() - start < 5
    assert (silence.value.attempts, silence.value.retry_after) == (1, None)
    assert silence.value.request_id


@pytest.mark.parametrize(
    ("scheme", "words"), [("https", "no TLS connection|did not answer"), ("http", "Connection refused")]
)
def test_unreachable_gateway_is_an_error(shared, scheme, words):
    port = shared.gateway.port if scheme == "https" else free_port()
    with (
        Client(f"{scheme}://127.0.0.1:{port}", timeout=1, attempts=1) as client,
        pytest.raises(NoAnswer, match=words) as caught,
    ):
        client.classify(PHOTO)
    assert not caught.value.is_photos_own


def test_server_without_http_is_an_error(model_server):
    with Client(f"http://{model_server.address}") as client, pytest.raises(UnexpectedAnswer, match="not in HTTP"):
        client.classify(PHOTO)


def test_unresolvable_name_is_not_retried():
    with Client("http://nowhere.invalid") as client, pytest.raises(NoAnswer, match=r"can't reach") as caught:
        client.classify(PHOTO)
    if caught.value.retry_after is None:  # DNS that does not answer is another matter
        assert caught.value.attempts == 1


def test_client_imports_no_heavy_dependency():
    heavy = ("grpc", "numpy", "flask", "PIL", "waitress", "google.protobuf")
    script = f"import sys, clothing_gateway.client; print([one for one in {heavy!r} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_error_tree_of_the_docstring_is_complete():
    for error in (NoAnswer, UnexpectedAnswer, Problem):
        assert issubclass(error, ClientError)
        assert f"── {error.__name__} " in module.__doc__


def test_bytes_of_a_stream_are_no_photo(client):
    with pytest.raises(TypeError):
        client.classify(BytesIO(PHOTO))
