from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from clothing_gateway import __version__, cli
from clothing_gateway.photo import jpeg_decoder
from clothing_gateway.settings import Settings, flag_of
from fakes import image_bytes, multipart

PHOTO = image_bytes((40, 30))


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "TF_SERVING"))}
    return subprocess.run(
        [sys.executable, "-m", "clothing_gateway", *map(str, arguments)],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(PHOTO)
    return file


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--version"]])
def test_version(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (0, f"clothing-gateway {__version__} (JPEG: {jpeg_decoder()})\n")


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_enough_gets_no_traceback(buffered):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "clothing_gateway", "serve", "--print-config"],
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (cli.FAILED, "")


def test_print_config_shows_every_setting_and_where_it_came_from():
    done = run("serve", "--print-config", "--labels", "a,b", GATEWAY_MODEL_NAME="mine", GATEWAY_MODLE="x")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "GATEWAY_LABELS=a,b  # flag" in lines
    assert "GATEWAY_MODEL_NAME=mine  # environment" in lines
    assert "TF_SERVING_HOST=localhost:8500  # default" in lines
    assert "GATEWAY_MODLE is no setting" in done.stderr
    assert lines.pop() == f"# JPEGs are decoded by {jpeg_decoder()}"
    # What is printed can be given again.
    environment = dict(line.rsplit("  # ", 1)[0].split("=", 1) for line in lines)
    again, _, warnings = Settings.load(environment)
    assert again == Settings.load({"GATEWAY_LABELS": "a,b", "GATEWAY_MODEL_NAME": "mine"})[0]
    assert warnings == []


def test_wrong_settings_end_with_2_and_name_all_of_them():
    done = run("serve", "--listen-port", "http", GATEWAY_LABELS="a,a")
    assert done.returncode == 2
    assert "error: --listen-port=http: must be a whole number" in done.stderr
    assert "error: GATEWAY_LABELS=a,a: names twice: a" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["classify"], ["serve", "--nothing"], ["classify", "a", "--top", "0"]]
)
def test_wrong_use_ends_with_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_help_describes_every_setting():
    text = " ".join(run("serve", "--help").stdout.split())
    for entry in fields(Settings):
        assert f"[{entry.metadata['variable']}," in text
        assert flag_of(entry.metadata["variable"]) in text


def test_classify_asks_a_model_server(model_server, photo):
    done = run("classify", photo, "--server", model_server.address)
    assert done.returncode == 0, done.stderr
    first, *rows, times = done.stdout.splitlines()
    assert first == "model clothing-model, version 1"
    assert len(rows) == 10
    assert "score" in rows[0]
    assert re.fullmatch(r"read [\d.]+ ms  metadata [\d.]+ ms  decode [\d.]+ ms  predict [\d.]+ ms", times)


def test_classify_gives_the_same_as_a_gateway(model_server, photo, start_gateway, photo_server):
    photo_server.paths["/photo.jpg"] = PHOTO
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    address = f"http://127.0.0.1:{gateway.port}/"
    straight = json.loads(run("classify", photo, "--json", TF_SERVING_HOST=model_server.address).stdout)
    uploaded = json.loads(run("classify", photo, "--json", "--gateway", address).stdout)
    linked = json.loads(run("classify", f"{photo_server.url}/photo.jpg", "--json", "--gateway", address).stdout)
    assert straight["predictions"] == uploaded["predictions"] == linked["predictions"]
    assert straight["model"] == uploaded["model"] == linked["model"]
    assert set(straight["milliseconds"]) == {"read", "metadata", "decode", "predict"}
    assert set(uploaded["milliseconds"]) == {"read", "gateway"}
    top = run("classify", photo, "--gateway", address, "--top", 2)
    assert len(top.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere/photo.jpg", "--server", "{server}"], "can't read /nowhere/photo.jpg: No such file"),
        (["http://a.test/a.jpg", "--server", "{server}"], "--gateway"),
        (["{photo}", "--server", "127.0.0.1:1"], "127.0.0.1:1 can't be reached"),
        (["{photo}", "--server", "{server}", "--model-name", "other"], "does not serve model 'other'"),
        (["{photo}", "--server", "{server}", "--model-version", "9"], "version 9"),
        (["{photo}", "--server", "{server}", "--model-label", "next"], "label 'next'"),
        (["{photo}", "--server", "{server}", "--labels", "a,b"], "names 2 labels"),
        (["{text}", "--server", "{server}"], "no JPEG, PNG, WebP, GIF or BMP"),
        (["{cut}", "--server", "{server}"], "damaged or cut off"),
        (["{photo}", "--gateway", "http://127.0.0.1:1"], "can't reach http://127.0.0.1:1/classify"),
        (["{photo}", "--gateway", "{pages}"], "is it one?"),
        (["{text}", "--gateway", "{gateway}"], "415, not-an-image"),
        (["http://10.0.0.1/a.jpg", "--gateway", "{gateway}"], "400, address-not-allowed"),
    ],
)
def test_what_fails_ends_with_1_and_says_why(
    arguments, words, model_server, photo, tmp_path, photo_server, start_gateway
):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_bytes(PHOTO[:300])
    gateway = start_gateway(model_server.address) if "{gateway}" in arguments else None
    places = {
        "server": model_server.address,
        "photo": photo,
        "text": tmp_path / "text",
        "cut": tmp_path / "cut",
        "pages": photo_server.url,
        "gateway": f"http://127.0.0.1:{gateway.port}" if gateway else "",
    }
    done = run("classify", *(argument.format(**places) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_server_and_gateway_exclude_each_other(photo):
    assert run("classify", photo, "--server", "a:1", "--gateway", "http://a").returncode == 2


def test_warnings_go_to_the_log_of_serve(start_gateway, model_server):
    gateway = start_gateway(model_server.address, modle_name="x")
    line = next(json.loads(line) for line in gateway.log if "MODLE" in line)
    assert line["level"] == "warning"


def test_ctrl_c_while_asking_ends_quietly(monkeypatch, photo, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_classify", interrupted)
    assert cli.main(["classify", str(photo)]) == 130
    assert capsys.readouterr().err == ""


def test_the_courses_client_works(start_gateway, model_server, photo_server):
    """test.py of the course: requests.post(url, json={"url": …}).json()."""
    photo_server.paths["/mlbookcamp-pants"] = (301, b"", {"Location": f"{photo_server.url}/pants.jpg"})
    photo_server.paths["/pants.jpg"] = PHOTO
    gateway = start_gateway(
        model_server.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=photo_server.port
    )
    body = json.dumps({"url": f"{photo_server.url}/mlbookcamp-pants"}).encode()
    status, answer, _ = gateway.post("/predict", body, "application/json")
    assert status == 200
    assert list(answer) == sorted(answer)
    assert all(isinstance(score, float) for score in answer.values())
    form, kind = multipart(("image", "pants.jpg", PHOTO))
    assert gateway.post("/predict", form, kind)[1] == answer
