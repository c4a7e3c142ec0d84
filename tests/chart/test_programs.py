"""The programs that the charts bring: helm test's, the one that writes the server's TLS configuration, and ping."""

import json
import socket
import sys
import threading
from base64 import b64encode
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from runpy import run_path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from charts import CLASSIFIER, ROOT, run
from PIL import Image

from clothing_gateway.model.versions import is_chosen

PHOTO = CLASSIFIER / "files" / "photo.png"


@contextmanager
def serving(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def gateway(status, answer, seen, versions=("1", "1")):
    """A gateway whose canary has a half: it answers with the first version where the request id is the canary's."""

    class Gateway(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers, body))
            self.send_response(status)
            self.send_header("X-Model-Version", versions[not is_chosen(self.headers.get("X-Request-Id", ""), 50)])
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    return Gateway


def in_base64(file):
    return b64encode(file.read_bytes()).decode()


WANTED = {"labels": ["a", "b"], "label": "", "photoUrl": "", "maxSeconds": 20, "canary": None}
SCORES = '{"a": 1.5, "b": -2.25}'


def predict(status=200, answer=SCORES, versions=("1", "1"), url="", **wanted):
    seen = []
    program, options = CLASSIFIER / "files" / "predict.py", json.dumps(WANTED | wanted)
    with serving(gateway(status, answer.encode(), seen, versions)) as served:
        result = run(sys.executable, program, url or served, in_base64(PHOTO), options)
    return result, seen


def test_helm_test_uploads_as_form_and_as_body():
    result, seen = predict()
    assert result.returncode == 0, result.stderr
    assert "PASSED" in result.stdout
    (form_path, form_headers, form), (body_path, body_headers, body) = seen
    assert form_path == body_path == "/predict"
    assert form_headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="image"' in form
    assert PHOTO.read_bytes() in form
    assert body_headers["Content-Type"] == "image/png"
    assert body == PHOTO.read_bytes()


@pytest.mark.parametrize(("key", "sent"), [(None, None), ("secret\n", "Bearer secret")])
def test_helm_test_sends_the_api_key(monkeypatch, key, sent):
    if key:
        monkeypatch.setenv("GATEWAY_KEY", key)
    assert [headers["Authorization"] for _, headers, _ in predict()[1]] == [sent, sent]


def test_helm_test_checks_the_class_of_a_url():
    result, seen = predict(label="a", photoUrl="https://example.com/a.jpg")
    assert result.returncode == 0, result.stderr
    assert json.loads(seen[2][2]) == {"url": "https://example.com/a.jpg"}


def test_helm_test_requests_stable_and_canary():
    canary = {"percent": 50, "version": "2", "stable": "1"}
    result, seen = predict(versions=("2", "1"), canary=canary)
    assert result.returncode == 0, result.stderr
    assert [is_chosen(headers["X-Request-Id"], 50) for _, headers, _ in seen[2:]] == [True, False]


def test_helm_test_waits_for_a_late_service():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    late = []

    def start() -> None:
        late.append(ThreadingHTTPServer(("127.0.0.1", port), gateway(200, SCORES.encode(), [])))
        late[0].serve_forever()

    timer = threading.Timer(1.5, start)
    timer.start()
    result, _ = predict(url=f"http://127.0.0.1:{port}")
    late[0].shutdown()
    late[0].server_close()
    timer.join()
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"status": 503, "answer": '{"title": "the model is away"}'},
            'the gateway answered 503: {"title": "the model is away"}',
        ),
        ({"answer": '{"a": 1.5}'}, "expected a score for each of ['a', 'b'], got {'a': 1.5}"),
        ({"answer": '{"a": 1.5, "b": 1.0, "c": 1.0}'}, "expected a score for each"),
        ({"answer": '{"a": 1.5, "b": NaN}'}, "expected a score for each"),
        ({"answer": '{"a": 1.5, "b": "1"}'}, "expected a score for each"),
        ({"answer": "<html>"}, "gave no answer"),
        ({"url": "http://127.0.0.1:9"}, "http://127.0.0.1:9 gave no answer"),
        ({"label": "b"}, "the photo is a, and test.label says b"),
        ({"maxSeconds": 0.000001}, "test.maxSeconds is 1e-06"),
        (
            {"versions": ("1", "1"), "canary": {"percent": 50, "version": "2", "stable": "1"}},
            "is for version 2, and 1 answered",
        ),
        (
            {"versions": ("2", "2"), "canary": {"percent": 50, "version": "2", "stable": "1"}},
            "is for version 1, and 2 answered",
        ),
    ],
)
def test_helm_test_fails_with_the_reason(given, message):
    result, _ = predict(**given)
    assert result.returncode == 1
    assert "FAILED" in result.stderr
    assert message in result.stderr


def test_sample_photo_is_generated_and_small(tmp_path):
    drawn = tmp_path / "photo.png"
    assert run(sys.executable, ROOT / "scripts" / "draw-sample-photo.py", drawn).returncode == 0
    with Image.open(PHOTO) as kept, Image.open(drawn) as fresh:
        assert kept.size == fresh.size == (200, 200)
        assert kept.tobytes() == fresh.tobytes()
    assert PHOTO.stat().st_size < 20_000


def test_ping_answers_pong_and_nothing_else(capfd):
    with serving(run_path(str(ROOT / "images" / "ping" / "ping.py"))["Ping"]) as url:
        with urlopen(f"{url}/ping") as response:
            assert response.read() == b"PONG"
        with pytest.raises(HTTPError) as missing:
            urlopen(f"{url}/other")
        with missing.value as error:
            assert error.code == 404
            assert b"/ping" in error.read()
    assert "GET /ping" in capfd.readouterr().err


def write_ssl_config(folder, mutual="false"):
    file = folder / "memory" / "ssl.config"
    file.parent.mkdir()
    result = run(sys.executable, CLASSIFIER / "files" / "ssl_config.py", folder, file, mutual)
    return result, file.read_text() if file.exists() else ""


@pytest.mark.parametrize("mutual", [False, True])
def test_certificates_become_an_ssl_config(mutual, tmp_path):
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text(f"-----BEGIN {name}-----\n")
    result, config = write_ssl_config(tmp_path, "true" if mutual else "false")
    assert result.returncode == 0, result.stderr
    expected = 'server_cert: "-----BEGIN tls.crt-----\\n"\nserver_key: "-----BEGIN tls.key-----\\n"\n'
    expected += 'custom_ca: "-----BEGIN ca.crt-----\\n"\nclient_verify: true\n' if mutual else ""
    assert config == expected


def test_existing_ssl_config_is_used_unchanged(tmp_path):
    (tmp_path / "ssl.config").write_text('server_key: "k"')
    assert write_ssl_config(tmp_path)[1] == 'server_key: "k"'


@pytest.mark.parametrize(("there", "missing"), [(["tls.crt"], "tls.key"), (["tls.crt", "tls.key"], "ca.crt")])
def test_incomplete_tls_secret_is_an_error(there, missing, tmp_path):
    for name in there:
        (tmp_path / name).write_text("pem")
    result, config = write_ssl_config(tmp_path, "true")
    assert result.returncode == 1
    assert f"the Secret has no {missing}" in result.stderr
    assert not config
