"""The command `classify`: one photo or thousands, by a gateway or straight by a model server."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import FakeModel, GatewayProcess, ModelServer, PhotoServer, image_bytes

from clothing_gateway.commands import classify, cli, progress

PHOTO = image_bytes((40, 30))
KEY = "0123456789abcdef"


@dataclass
class Shared:
    model: FakeModel
    server: str
    gateway: str
    photos: PhotoServer


@pytest.fixture(scope="module")
def shared():
    model, photos = ModelServer(FakeModel()), PhotoServer()
    photos.paths["/photo.jpg"] = PHOTO
    gateway = GatewayProcess(
        model.address, fetch_allowed_networks="127.0.0.0/8", fetch_allowed_ports=f"80,{photos.port}", max_in_flight=64
    )
    yield Shared(model.model, model.address, f"http://127.0.0.1:{gateway.port}/", photos)
    gateway.stop()
    photos.stop()
    model.stop()


@pytest.fixture
def run(capsys, monkeypatch):
    """The command in this process: its status, stdout and stderr."""
    for name in list(os.environ):
        if name.startswith(("GATEWAY_", "TF_SERVING", "CLOTHING_GATEWAY")):
            monkeypatch.delenv(name)

    def run(*arguments):
        try:
            status = cli.main(["classify", *map(str, arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(PHOTO)
    return file


@pytest.fixture
def folder(tmp_path):
    """Six photos, one of them broken, among other things."""
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.jpg", "b.PNG", "c/d.jpeg", "c/e/f.webp", "c/g.gif")):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(file.suffix.lower(), file.suffix[1:].upper())
        file.write_bytes(image_bytes((40, 30), kind=kind, seed=number))
    (folder / "c/broken.bmp").write_bytes(b"BM and no more")
    (folder / "notes.txt").write_text("no photo")
    (folder / "._a.jpg").write_bytes(b"what macOS leaves")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/a.jpg").write_bytes(PHOTO)
    return folder


GOOD = ("a.jpg", "b.PNG", "c/d.jpeg", "c/g.gif", "c/e/f.webp")


def test_classify_calls_a_model_server_directly(run, shared, photo):
    status, out, err = run(photo, "--server", shared.server)
    assert (status, err) == (0, "")
    first, *rows, times = out.splitlines()
    assert first == "model clothing-model, version 1"
    assert len(rows) == 10
    assert "score" in rows[0]
    assert re.fullmatch(r"read [\d.]+ ms  decode [\d.]+ ms  predict [\d.]+ ms", times)


def test_url_upload_and_model_server_give_the_same_scores(run, shared, photo, monkeypatch):
    ways = [
        (photo, "--server", shared.server),
        (photo, "--gateway", shared.gateway),
        (f"{shared.photos.url}/photo.jpg", "--gateway", shared.gateway),
    ]
    found = []
    for way in ways:
        status, out, _ = run(*way, "--json")
        assert status == 0
        (line,) = out.splitlines()
        found.append(json.loads(line))
    straight, uploaded, linked = found
    assert straight["predictions"] == uploaded["predictions"] == linked["predictions"]
    assert straight["model"] == uploaded["model"] == linked["model"] == {"name": "clothing-model", "version": "1"}
    assert set(straight["milliseconds"]) == {"read", "decode", "predict"}
    assert set(uploaded["milliseconds"]) == {"total", "wait", "decode", "predict"}
    assert "fetch" in linked["milliseconds"]
    assert (uploaded["photo"], linked["photo"]) == (str(photo), f"{shared.photos.url}/photo.jpg")
    assert uploaded["request_id"]
    status, out, _ = run(photo, "--gateway", shared.gateway, "--top", 2)
    assert len(out.splitlines()) == 4
    monkeypatch.setenv("TF_SERVING_HOST", shared.server)
    assert run(photo)[0] == 0


@pytest.mark.parametrize("way", ["--gateway", "--server"])
def test_broken_photo_does_not_stop_the_others(run, shared, folder, way):
    target = shared.gateway if way == "--gateway" else shared.server
    status, out, err = run(folder, folder / "nowhere.jpg", way, target)
    assert status == 1
    # In the order of the folder, whatever came first.
    assert [Path(line.split()[0]).name for line in out.splitlines()] == [Path(name).name for name in GOOD]
    assert all(len(re.findall(r"[\d.]+%", line)) == 3 for line in out.splitlines())
    assert f"error: {folder}/c/broken.bmp: 422 broken-image: " in err
    assert f"error: {folder}/nowhere.jpg: can't be read: No such file or directory\n" in err
    assert re.search(r"\n5 of 7 photos classified in [\d.]+ s, 2 failed\n$", err)


def test_json_lines_include_failures(run, shared, folder):
    status, out, _ = run(folder, "--gateway", shared.gateway, "--json", "--top", 1, "--parallel", 3)
    assert status == 1
    lines = {Path(line["photo"]).name: line for line in map(json.loads, out.splitlines())}
    assert len(lines) == 6
    broken = lines.pop("broken.bmp")
    assert (broken["error"]["status"], broken["error"]["code"]) == (422, "broken-image")
    assert len(broken["error"]["request_id"]) == 32
    assert all(len(line["predictions"]) == 1 for line in lines.values())


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_each_photo(run, shared, folder, tmp_path):
    file = tmp_path / "results.csv"
    status, out, _ = run(folder, "--gateway", shared.gateway, "--csv", file, "--top", 2)
    assert (status, out) == (1, "")
    found = {row["photo"]: row for row in rows(file)}
    assert set(found) == {f"{folder}/{name}" for name in (*GOOD, "c/broken.bmp")}
    broken = found.pop(f"{folder}/c/broken.bmp")
    assert broken["error"].startswith("422 broken-image: ")
    assert broken["label"] == broken["model"] == ""
    for row in found.values():
        assert float(row["probability"]) >= float(row["probability_2"])
        assert (row["model"], row["version"], row["error"]) == ("clothing-model", "1", "")
    # The same on stdout, whichever photo came first.
    status, out, _ = run(folder, "--gateway", shared.gateway, "--csv", "-", "--top", 2)
    assert len(out.splitlines()) == 7
    assert {line for line in out.split("\r\n") if "broken" not in line} == {
        line for line in file.read_bytes().decode().split("\r\n") if "broken" not in line
    }


def test_results_are_appended_to_an_existing_file(run, shared, folder, tmp_path):
    file = tmp_path / "results.csv"
    run(folder / "a.jpg", folder / "b.PNG", folder / "c/broken.bmp", "--gateway", shared.gateway, "--csv", file)
    before = file.read_bytes()
    status, _, err = run(folder, "--gateway", shared.gateway, "--csv", file)
    assert (status, file.read_bytes()) == (1, before)
    assert "add to them with --resume" in err
    # A machine that went away in the middle of a row.
    file.write_bytes(before + b"half a ro")
    status, _, err = run(folder, "--gateway", shared.gateway, "--csv", file, "--resume")
    assert status == 1  # the broken one is tried again
    assert "2 photos have their answers" in err
    assert file.read_bytes().startswith(before)
    assert sorted(Path(row["photo"]).name for row in rows(file)) == sorted(
        ["broken.bmp", "broken.bmp", *(Path(name).name for name in GOOD)]
    )
    (folder / "c/broken.bmp").unlink()
    status, _, err = run(folder, "--gateway", shared.gateway, "--csv", file, "--resume")
    assert status == 0
    assert "0 of 0" in err
    status, _, err = run(folder, "--gateway", shared.gateway, "--csv", file, "--resume", "--top", 1)
    assert status == 1
    assert "another --top" in err
    other = tmp_path / "letter.txt"
    other.write_text("Dear Sir")
    assert run(folder, "--gateway", shared.gateway, "--csv", other, "--resume")[0] == 1
    assert other.read_text() == "Dear Sir"


def test_file_name_that_is_not_utf_8_is_unchanged(run, shared, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9\n.jpg"
    Path(os.fsdecode(name)).write_bytes(PHOTO)
    file = tmp_path / "results.csv"
    status, _, _ = run(tmp_path, "--gateway", shared.gateway, "--csv", file)
    assert status == 0
    assert name in file.read_bytes()
    assert "0 of 0" in run(tmp_path, "--gateway", shared.gateway, "--csv", file, "--resume")[2]
    status, out, _ = run(tmp_path, tmp_path, "--gateway", shared.gateway)
    assert status == 0
    assert len(out.splitlines()) == 2


def test_full_disk_stops_the_command(run, shared, folder):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    status, _, err = run(folder, "--gateway", shared.gateway, "--csv", "/dev/full")
    assert status == 1
    assert "error: can't write the results: No space left on device" in err
    assert "Traceback" not in err


def test_folders_are_searched_recursively(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = list(classify.find([str(folder), "http://a.test/b", str(empty), str(folder / "notes.txt")]))
    assert [name for name, problem in found if problem is None] == [
        *(f"{folder}/{name}" for name in ("a.jpg", "b.PNG", "c/broken.bmp", "c/d.jpeg", "c/g.gif", "c/e/f.webp")),
        "http://a.test/b",
        f"{folder}/notes.txt",
    ]
    ((name, problem),) = [one for one in found if one[1] is not None]
    assert name == str(empty)
    assert "holds no photo (.bmp, .gif, .jfif, .jpeg, .jpg, .png, .webp)" in str(problem)


def test_skipped_files_of_a_folder_are_reported(run, shared, tmp_path):
    """Phones' HEIC above all; .jfif, and files without a suffix that begin as photos, are classified."""
    for name, kind in {
        "a.JPG": "JPEG",
        "b.jfif": "JPEG",
        "c": "JPEG",
        "d": "PNG",
        "e": "WEBP",
        "f": "GIF",
        "g": "BMP",
    }.items():
        (tmp_path / name).write_bytes(image_bytes((40, 30), kind=kind))
    heic = bytes(3) + b"\x18ftypheic"
    for name in ("h.HEIC", "i.HEIC", "j.avif", "k.tif", "heic-without-suffix"):
        (tmp_path / name).write_bytes(heic)
    (tmp_path / "README").write_text("BMW, no BMP")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    status, out, err = run(tmp_path, "--gateway", shared.gateway)
    assert status == 0
    assert [Path(line.split()[0]).name for line in out.splitlines()] == ["a.JPG", "b.jfif", *"cdefg"]
    first, last = err.splitlines()
    assert first == ("8 files skipped, not JPEG, PNG, WebP, GIF or BMP: 4 without a suffix, 2 .HEIC, 1 .avif, 1 .tif")
    assert last.startswith("7 of 7 photos classified in ")
    for number in range(20):
        (tmp_path / f"x.{number:02}\x1b[2J").touch()
    _, _, err = run(tmp_path, "--gateway", shared.gateway)
    assert err.splitlines()[0].startswith("28 files skipped")
    assert err.splitlines()[0].endswith(", 16 others")
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere/photo.jpg", "--server", "{server}"], "/nowhere/photo.jpg: can't be read: No such file"),
        (["http://a.test/a.jpg", "--server", "{server}"], "--gateway"),
        (["{photo}", "--server", "127.0.0.1:1"], "127.0.0.1:1 can't be reached"),
        (["{photo}", "--server", "{server}", "--model-name", "other"], "does not serve model 'other'"),
        (["{photo}", "--server", "{server}", "--model-version", "9"], "version 9"),
        (["{photo}", "--server", "{server}", "--model-label", "next"], "label 'next'"),
        (["{photo}", "--server", "{server}", "--labels", "a,b"], "names 2 labels"),
        (["{text}", "--server", "{server}"], "no JPEG, PNG, WebP, GIF or BMP"),
        (["{cut}", "--server", "{server}"], "damaged or cut off"),
        (["{photo}", "--gateway", "http://127.0.0.1:1", "--attempts", "1"], "can't reach http://127.0.0.1:1: Conn"),
        (["{photo}", "--gateway", "http://{server}", "--attempts", "1"], "not in HTTP"),
        (["{text}", "--gateway", "{gateway}"], "415 not-an-image"),
        (["http://10.0.0.1/a.jpg", "--gateway", "{gateway}"], "400 address-not-allowed"),
        (["{photo}", "--gateway", "{gateway}", "--key-file", "/nowhere/key"], "can't read /nowhere/key"),
        (["{photo}", "--gateway", "{gateway}", "--csv", "/nowhere/results.csv"], "can't write /nowhere/results.csv"),
    ],
)
def test_failure_exits_with_1_and_the_reason(run, shared, photo, tmp_path, arguments, words):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "cut").write_bytes(PHOTO[:300])
    places = {
        "server": shared.server,
        "gateway": shared.gateway,
        "photo": photo,
        "text": tmp_path / "text",
        "cut": tmp_path / "cut",
    }
    status, out, err = run(*(argument.format(**places) for argument in arguments))
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: PHOTO"),
        (["a", "--server", "a:1", "--gateway", "http://a"], "not allowed with"),
        (["a", "--top", "0"], "--top"),
        (["a", "--gateway", "http://a", "--json", "--csv", "-"], "choose one"),
        (["a", "--gateway", "http://a", "--resume"], "name one"),
        (["a", "--key-file", "key"], "--key-file is for --gateway"),
        (["a", "--retry-seconds", "1"], "--retry-seconds is for --gateway"),
        (["a", "--gateway", "localhost:9696"], "is no gateway's address"),
        (["a", "--gateway", "http://a", "--timeout", "-1"], "--timeout"),
    ],
)
def test_usage_error_exits_with_2(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_the_key_comes_from_a_file_or_the_environment(run, start_gateway, model_server, photo, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text(f"mine {KEY}\n")
    gateway = f"http://127.0.0.1:{start_gateway(model_server.address, keys_file=keys).port}"
    # A run whose photos all fail for the same reason ends before it has tried thousands.
    status, out, err = run(*[photo] * 50, "--gateway", gateway)
    assert (status, out) == (1, "")
    assert err.count("401 unauthorized") <= 8
    assert re.search(r"0 of 50 photos .* not done: the last 4 photos failed, and for no reason of their own\n$", err)
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    assert run(photo, "--gateway", gateway, "--key-file", key)[0] == 0
    monkeypatch.setenv("CLOTHING_GATEWAY_KEY", KEY)
    assert run(photo, "--gateway", gateway)[0] == 0
    monkeypatch.setenv("CLOTHING_GATEWAY_KEY", "two words")
    assert run(photo, "--gateway", gateway)[0] == 2


def command(*arguments):
    return [sys.executable, "-m", "clothing_gateway", "classify", *map(str, arguments)]


def test_ctrl_c_writes_the_results_so_far(shared, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.model, "delay", 0.3)
    file = tmp_path / "results.csv"
    # Where the tests run in the background of a script, SIGINT is ignored, and by all that they start.
    heeding = ["env", "--default-signal=INT"]
    process = subprocess.Popen(
        [*heeding, *command(*[photo] * 200, "--gateway", shared.gateway, "--csv", file)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    end = time.monotonic() + 30
    while not file.exists() or file.read_bytes().count(b"\r\n") < 5:  # rows are there before the end
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - start < 5
    assert "Traceback" not in err
    done = len(rows(file))
    assert f"{done} of 200 photos classified" in err
    assert err.endswith(f"{200 - done} not done: interrupted\n")


def test_closed_pipe_prints_no_traceback(shared, photo):
    process = subprocess.Popen(
        command(*[photo] * 50, "--gateway", shared.gateway, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert json.loads(process.stdout.readline())["photo"] == str(photo)
    process.stdout.close()
    assert process.wait(20) == 1
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_progress_bar_is_shown_on_a_terminal_only(shared, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(shared.model, "delay", 0.2)
    reading, terminal = pty.openpty()
    arguments = command(tmp_path / "no.jpg", *[photo] * 12, "--gateway", shared.gateway)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(reading, 65536)
        except OSError:  # the other end is closed
            break
    os.close(reading)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(out.splitlines()) == 12
    text = shown.decode()
    assert re.search(r"\[#+\.+\] \d+ of 13 photos, 1 failed, [\d.]+ a second, 0:\d\d left", text)
    # What is left when the bar has gone.
    left = [part.rsplit("\x1b[K", 1)[-1] for part in text.replace("\r\n", "\n").split("\n")]
    assert left[0].startswith(f"error: {tmp_path}/no.jpg: can't be read")
    assert left[1].startswith("12 of 13 photos classified in ")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert "#" not in done.stderr


def test_without_a_terminal_progress_is_logged_every_few_seconds(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.Progress(sys.stderr, 100, "photos")
    for _ in range(60):
        now[0] += 0.2
        shown.count(failed=shown.done == 3)
        shown.show()
    assert capsys.readouterr().err.splitlines() == [
        "25 of 100 photos, 1 failed, 5.0 a second, 0:15 left",
        "50 of 100 photos, 1 failed, 5.0 a second, 0:10 left",
    ]


def test_file_names_are_escaped_on_a_terminal(run, shared, tmp_path):
    (tmp_path / "\x1b[31mred.jpg").write_bytes(PHOTO)
    (tmp_path / "\x1b[2Jbroken.jpg").write_bytes(b"x")
    _, out, err = run(tmp_path, tmp_path, "--gateway", shared.gateway)
    assert "\x1b" not in out + err
    assert "?[31mred.jpg" in out
