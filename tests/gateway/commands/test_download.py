"""The download of a model: from real servers of HTTP, HTTPS, S3 and GCS, and whatever may be wrong with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import boto3
import pytest

from clothing_gateway.commands import download as downloads
from clothing_gateway.commands.download import Archive, DownloadError, download, find_versions, unpack

MODEL = {
    "1/saved_model.pb": b"graph" * 100,
    "1/variables/variables.index": b"index",
    "1/variables/variables.data-00000-of-00001": os.urandom(3_000_000),
}


def tar(members, mode="w:gz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in members.items():
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                entry.size = len(content)
            archive.addfile(entry, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))
    return packed.getvalue()


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def special(name, kind, target=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


PACKED = tar(MODEL)
SHA256 = hashlib.sha256(PACKED).hexdigest()


class Server:
    """Answers for each path with what it was given: bytes, or a function of the handler."""

    def __init__(self, certificate=None):
        server = self
        self.files, self.asked = {}, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                answer = server.files.get(unquote(self.path.partition("?")[0]))
                if answer is None:
                    self.answer(404, b"<html>not here</html>")
                elif callable(answer):
                    answer(self)
                else:
                    self.answer(200, answer)

            def answer(self, status, body, **headers):
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "localhost.crt", certificate / "localhost.key")
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
            scheme = "https"
        self.base = f"{scheme}://localhost:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    def stop(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(stack):
    server = Server()
    stack.callback(server.stop)
    return server


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No waiting between attempts, and no credentials but the test's own."""
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    monkeypatch.setitem(downloads._RETRIES, "max_retries", 0)
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "AZURE_", "HTTP_AUTH")):
            monkeypatch.delenv(name)


@pytest.fixture
def get(tmp_path):
    """Download what is named into models/flowers; the versions that are there then."""

    def get(*archives, **options):
        models = tmp_path / "models"
        download(
            [Archive.parse(text) for text in archives], name="flowers", to=models, cache=tmp_path / "cache", **options
        )
        return {entry.name: entry for entry in (models / "flowers").iterdir()}

    return get


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def left_over(tmp_path):
    return [entry.name for entry in (tmp_path / "cache").iterdir() if "partial" in entry.name or len(entry.name) == 64]


def test_model_is_unpacked_into_the_servers_folder(server, get, tmp_path):
    server.files["/flowers.tar.gz"] = PACKED
    versions = get(f"{server.base}/flowers.tar.gz?X-Signature=%2Fa+b#sha256={SHA256}")
    assert {f"1/{name}": content for name, content in contents(versions["1"]).items()} == MODEL
    assert server.asked == [("/flowers.tar.gz?X-Signature=%2Fa+b", None, None)]
    assert left_over(tmp_path) == [SHA256]


def test_cached_model_is_not_downloaded_again(server, get, capsys):
    server.files["/a.tar.gz"] = PACKED
    get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    server.files.clear()
    assert set(get(f"{server.base}/a.tar.gz#sha256={SHA256.upper()}&version=7")) == {"7"}
    assert len(server.asked) == 1
    assert "is in the cache" in capsys.readouterr().out


def link(path):
    path.rename(elsewhere := path.parents[1] / "elsewhere")
    path.symlink_to(elsewhere)


GRAPH = "1/saved_model.pb"
OTHER = tar(MODEL | {GRAPH: b"GRAPH" * 100})
# What a pod that shares the cache could do to a model in it, given its folder.
CHANGES = {
    "changed": lambda folder: (folder / GRAPH).write_bytes(b"GRAPH" * 100),
    "shorter": lambda folder: (folder / GRAPH).write_bytes(b"graph" * 99),
    "longer": lambda folder: (folder / GRAPH).write_bytes(b"graph" * 101),
    "missing": lambda folder: (folder / GRAPH).unlink(),
    "more": lambda folder: (folder / "1/labels.txt").touch(),
    "linked file": lambda folder: link(folder / GRAPH),
    "linked folder": lambda folder: link(folder / "1"),
    "linked model": link,
    "archive too": lambda folder: (
        (folder / GRAPH).write_bytes(b"GRAPH" * 100),
        folder.with_name(f"{folder.name}.archive").write_bytes(OTHER),
    ),
    "no archive": lambda folder: folder.with_name(f"{folder.name}.archive").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_modified_cached_model_is_downloaded_again(server, get, tmp_path, capsys, pack, what):
    packed = pack(MODEL)
    sha256 = hashlib.sha256(packed).hexdigest()
    server.files["/a"] = packed
    get(f"{server.base}/a#sha256={sha256}")
    CHANGES[what](tmp_path / "cache" / sha256)
    versions = get(f"{server.base}/a#sha256={sha256}")
    assert len(server.asked) == 2
    assert "has not the content of its SHA-256: it is fetched again" in capsys.readouterr().out
    assert {f"1/{name}": content for name, content in contents(versions["1"]).items()} == MODEL
    assert left_over(tmp_path) == [sha256]
    get(f"{server.base}/a#sha256={sha256}")
    assert len(server.asked) == 2


def test_several_archives_are_unpacked_and_removed_ones_deleted(server, get):
    second = zipped({"flowers/saved_model.pb": b"two"})
    server.files |= {"/1.tar.gz": PACKED, "/2.zip": second}
    one = f"{server.base}/1.tar.gz#sha256={SHA256}"
    two = f"{server.base}/2.zip#sha256={hashlib.sha256(second).hexdigest()}&version=20261122"
    assert set(get(one, two)) == {"1", "20261122"}
    assert set(get(two)) == {"20261122"}
    with pytest.raises(DownloadError, match="version 1 is in two archives"):
        get(one, f"{one}&version=1")


def test_authorization_header_is_sent_from_the_secret(server, get, monkeypatch):
    server.files["/a.tar.gz"] = PACKED
    monkeypatch.setenv("HTTP_AUTHORIZATION", "Bearer abc")
    get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    assert server.asked[0][2] == "Bearer abc"


def broken_off(*, parts):
    """Sends half, and closes; the next request gets the rest, or all where the server gives no parts."""
    tries = []

    def answer(handler):
        tries.append(1)
        if len(tries) == 1:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(PACKED)))
            handler.end_headers()
            handler.wfile.write(PACKED[: len(PACKED) // 2])
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif parts and (given := handler.headers.get("Range")):
            first = int(given.removeprefix("bytes=").partition("-")[0])
            span = f"bytes {first}-{len(PACKED) - 1}/{len(PACKED)}"
            handler.answer(206, PACKED[first:], Content_Range=span)
        else:
            handler.answer(200, PACKED)

    return answer


@pytest.mark.parametrize("parts", [True, False])
def test_interrupted_download_is_resumed(server, get, parts):
    server.files["/a.tar.gz"] = broken_off(parts=parts)
    assert contents(get(f"{server.base}/a.tar.gz#sha256={SHA256}")["1"])
    assert server.asked[1][1].startswith("bytes=")


def test_download_interrupted_every_time_fails(server, get, tmp_path):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.close_connection = True

    server.files["/a.tar.gz"] = answer
    with pytest.raises(DownloadError, match=r"/a.tar.gz can't be fetched, tried 5 times: "):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    assert len(server.asked) == 5
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_missing_credentials_are_an_error(get, monkeypatch, scheme):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="there are no credentials: give the service account a cloud role"):
        get(f"{scheme}://bucket/a.tar.gz#sha256={SHA256}")


def test_unreachable_host_is_an_error(get):
    with pytest.raises(DownloadError, match=r"can't be fetched, tried 5 times: .*\(Connection refused\)"):
        get(f"http://127.0.0.1:1/a.tar.gz#sha256={SHA256}")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "isn't there (404): look at the address, bucket and key"),
        (401, "may not be read"),
        (403, "may not be read"),
        (500, "can't be fetched, tried 5 times"),
    ],
)
def test_refused_download_has_a_one_line_error(server, get, status, message):
    server.files["/a.tar.gz"] = lambda handler: handler.answer(status, b"<html>no</html>")
    with pytest.raises(DownloadError) as refused:
        get(f"{server.base}/a.tar.gz?secret=1#sha256={SHA256}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{server.base}/a.tar.gz ")


def test_file_of_another_digest_is_not_unpacked(server, get, tmp_path):
    server.files["/a.tar.gz"] = PACKED[:-1]
    with pytest.raises(DownloadError, match=f"and {SHA256} is asked for. The archive was replaced"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    server.files["/a.tar.gz"] = b"  <!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(DownloadError, match="It is a web page, of an error or a login perhaps"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    assert left_over(tmp_path) == []
    assert not (tmp_path / "models" / "flowers").exists()


def test_failed_download_leaves_the_model_unchanged(server, get, tmp_path):
    server.files["/a.tar.gz"] = PACKED
    get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    with pytest.raises(DownloadError):
        get(f"{server.base}/b.tar.gz#sha256={'0' * 64}")
    assert contents(tmp_path / "models" / "flowers" / "1")


def test_archive_over_the_size_limit_is_not_downloaded(server, get):
    server.files["/a.tar.gz"] = PACKED
    with pytest.raises(DownloadError, match=f"has {len(PACKED)} bytes, and 1000 are allowed: raise --max-bytes"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}", max_bytes=1000)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_decompression_bomb_is_not_unpacked(server, get, tmp_path, pack):
    bomb = pack({"1/saved_model.pb": bytes(50_000_000)})
    server.files["/bomb"] = bomb
    with pytest.raises(DownloadError, match="unpacks to more than 1000000 bytes"):
        get(f"{server.base}/bomb#sha256={hashlib.sha256(bomb).hexdigest()}", max_bytes=1_000_000)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("pack", [tar, zipped])
def test_unpacked_size_is_limited(tmp_path, pack):
    """Of all files together."""
    (file := tmp_path / "archive").write_bytes(pack({"1/a": bytes(600), "1/b": bytes(400)}))
    (folder := tmp_path / "content").mkdir()
    unpack(Archive("https://a/b", SHA256), file, folder, 1000)
    (other := tmp_path / "other").mkdir()
    with pytest.raises(DownloadError, match="unpacks to more than 999 bytes"):
        unpack(Archive("https://a/b", SHA256), file, other, 999)


UNSAFE = {
    "parent": tar({"../evil": b""}),
    "deep parent": tar({"1/../../evil": b""}),
    "absolute": tar({"/evil": b""}),
    "zip parent": zipped({"../evil": b""}),
    "zip absolute": zipped({"/evil": b""}),
    "zip backslash": zipped({"..\\evil": b""}),
    "zip deep backslash": zipped({"1\\..\\..\\evil": b""}),
    "zip mixed": zipped({"1/..\\../evil": b""}),
    "zip absolute backslash": zipped({"\\evil": b""}),
    "zip share": zipped({"\\\\host\\evil": b""}),
    "tar backslash": tar({"..\\evil": b""}),
}


@pytest.mark.parametrize("packed", UNSAFE.values(), ids=UNSAFE)
def test_no_file_is_written_outside_the_folder(tmp_path, packed):
    (file := tmp_path / "archive").write_bytes(packed)
    (folder := tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(DownloadError, match="which lies outside of it"):
        unpack(Archive("https://a/b", SHA256), file, folder, 1000)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["archive", "a", "b"] or not list(tmp_path.rglob("evil"))


def windows_zip(members):
    """As PowerShell 5 packs: backslashes, and folders as entries that end in one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.create_system = name, 0
            archive.writestr(entry, content)
    return packed.getvalue()


def test_a_zip_from_windows_is_unpacked(server, get, tmp_path):
    server.files["/w.zip"] = packed = windows_zip(
        {
            "flowers\\1\\": b"",
            "flowers\\1\\saved_model.pb": b"\x08\x01",
            "flowers\\1\\variables\\variables.index": b"x",
            "__MACOSX\\flowers\\._1": b"",
        }
    )
    get(f"{server.base}/w.zip#sha256={hashlib.sha256(packed).hexdigest()}")
    version = tmp_path / "models" / "flowers" / "1"
    assert {str(file.relative_to(version)) for file in version.rglob("*") if file.is_file()} >= {
        "saved_model.pb",
        "variables/variables.index",
    }


def zip_link():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo("1/link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc")
    return packed.getvalue()


@pytest.mark.parametrize(
    "packed",
    [
        tar({"1": special("1/link", tarfile.SYMTYPE, "/etc")}),
        tar({"1": special("1/link", tarfile.LNKTYPE, "/etc/passwd")}),
        tar({"1": special("1/link", tarfile.CHRTYPE)}),
        tar({"1": special("1/link", tarfile.FIFOTYPE)}),
        zip_link(),
    ],
    ids=["symlink", "hard link", "device", "pipe", "zip symlink"],
)
def test_archive_with_links_or_devices_is_refused(tmp_path, packed):
    (file := tmp_path / "archive").write_bytes(packed)
    (folder := tmp_path / "content").mkdir()
    with pytest.raises(DownloadError, match="'1/link', a link or a device: pack the files themselves"):
        unpack(Archive("https://a/b", SHA256), file, folder, 1000)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"plain text", "neither a tar nor a zip file: pack the model with `tar czf model.tar.gz 1`"),
        (tar(MODEL)[:100_000], "is broken, or packed in a way that isn't known"),
        (tar({"1/a": b"1", "./1/a": b"2"}), "has 1/a twice"),
        (tar({"1": b"1", "1/a": b"2"}), "has 1 twice"),
        (tar({"1": b"1", "1/a/b": b"2"}), "has a file and a folder of one name"),
        (tar({f"1/{number}": b"" for number in range(101)}, "w"), "or 100 files"),
    ],
)
def test_file_that_is_no_archive_is_an_error(tmp_path, monkeypatch, packed, message):
    monkeypatch.setattr(downloads, "_MAX_FILES", 100)
    (file := tmp_path / "archive").write_bytes(packed)
    (folder := tmp_path / "content").mkdir()
    with pytest.raises(DownloadError) as refused:
        unpack(Archive("https://a/b", SHA256), file, folder, downloads.MAX_BYTES)
    assert message in str(refused.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_compression_is_unpacked_and_macos_metadata_skipped(tmp_path, mode):
    model = {"1/saved_model.pb": b"graph" * 100}
    (file := tmp_path / "archive").write_bytes(tar({**model, "1/._saved_model.pb": b"x", "__MACOSX/1/a": b"x"}, mode))
    (folder := tmp_path / "content").mkdir()
    unpack(Archive("https://a/b", SHA256), file, folder, downloads.MAX_BYTES)
    assert contents(folder) == model


@pytest.mark.parametrize(
    ("files", "asked", "found"),
    [
        (["1/saved_model.pb", "README.md"], None, {1: "1"}),
        (["1/saved_model.pb", "2/saved_model.pb"], None, {1: "1", 2: "2"}),
        (["1/saved_model.pb", "2/saved_model.pb"], 2, {2: "2"}),
        (["flowers/1/saved_model.pb"], None, {1: "flowers/1"}),
        (["models/flowers/00012/saved_model.pbtxt"], None, {12: "models/flowers/00012"}),
        (["1/saved_model.pb"], 5, {5: "1"}),
        (["saved_model.pb"], 5, {5: "."}),
        (["export/saved_model.pb"], 5, {5: "export"}),
    ],
)
def test_version_folders_are_found_in_an_archive(tmp_path, files, asked, found):
    for name in files:
        (file := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    versions = find_versions(tmp_path, Archive("https://a/b", SHA256, asked))
    assert versions == {version: tmp_path / path for version, path in found.items()}


@pytest.mark.parametrize(
    ("files", "asked", "message"),
    [
        (["saved_model.pb"], None, "doesn't say which version it is: add version="),
        (["1/saved_model.pb", "2/saved_model.pb"], 3, "has no version 3, but 1, 2"),
        (["v1/model.h5"], None, "has no saved_model.pb in a version's folder (1/saved_model.pb); it has: model.h5"),
        (["a/x", "b/x"], None, "it has: a, b"),
        ([], None, "it has: nothing"),
    ],
)
def test_an_archive_without_a_version_is_refused(tmp_path, files, asked, message):
    for name in files:
        (file := tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with pytest.raises(DownloadError) as refused:
        find_versions(tmp_path, Archive("https://a/b", SHA256, asked))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host/a#sha256=", "ftp://host/a is no address of an archive: it begins with one of https, http, s3, gs"),
        ("https://host#sha256=", "is no address of an archive"),
        ("https://host/a", "https://host/a isn't pinned: add #sha256= and what `sha256sum` says"),
        ("https://host/a?key=1#sha256=abc", "https://host/a isn't pinned"),
        (f"https://me:secret@host/a#sha256={'a' * 64}", "https://host/a has credentials in it: set HTTP_AUTHORIZATION"),
        (f"s3://bucket/a#sha256={'a' * 64}&version=v2", "version=v2 is no number"),
    ],
)
def test_invalid_download_url_is_refused(text, message):
    with pytest.raises(DownloadError) as refused:
        Archive.parse(text)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "key=1" not in str(refused.value)


def test_existing_folder_that_is_no_download_is_an_error(server, get, tmp_path):
    server.files["/a.tar.gz"] = PACKED
    (tmp_path / "models" / "flowers" / "1").mkdir(parents=True)
    with pytest.raises(DownloadError, match="is there already and no download: remove it, or choose another --to"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")


def command(*arguments, **environment):
    clouds = ("AWS_", "GOOGLE_", "AZURE_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(clouds)}
    program = [sys.executable, "-m", "clothing_gateway", "download", "--name=flowers", *map(str, arguments)]
    return subprocess.Popen(
        program, env=inherited | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_pods_sharing_a_cache_download_once(server, tmp_path):
    gate = threading.Event()

    def slow(handler):
        gate.wait(20)
        handler.answer(200, PACKED)

    server.files["/a.tar.gz"] = slow
    (tmp_path / "cache").mkdir()
    (left := tmp_path / "cache" / f".{SHA256}.partial-killed-1").mkdir()
    (left / "archive").write_bytes(b"half")
    pods = [
        command(f"--to={tmp_path / name}", f"--cache={tmp_path / 'cache'}", f"{server.base}/a.tar.gz#sha256={SHA256}")
        for name in ("one", "two")
    ]
    deadline = time.monotonic() + 20
    while not server.asked and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    gate.set()
    for pod in pods:
        output, error = pod.communicate(timeout=30)
        assert pod.returncode == 0, error
        assert "flowers/1 is there" in output
    assert len(server.asked) == 1
    assert not left.exists()
    assert contents(tmp_path / "one" / "flowers" / "1") == contents(tmp_path / "two" / "flowers" / "1")


def test_download_command_prints_a_one_line_error(tmp_path):
    pod = command(f"--to={tmp_path}", "https://host/a.tar.gz")
    assert pod.communicate(timeout=30) == (
        "",
        "error: https://host/a.tar.gz isn't pinned: add #sha256= and what `sha256sum` says of the archive\n",
    )
    assert pod.returncode == 1


def test_unwritable_cache_is_named(server, tmp_path):
    server.files["/a.tar.gz"] = PACKED
    (tmp_path / "file").touch()
    pod = command(f"--to={tmp_path}", f"--cache={tmp_path / 'file'}", f"{server.base}/a.tar.gz#sha256={SHA256}")
    _, error = pod.communicate(timeout=30)
    assert pod.returncode == 1
    assert str(tmp_path / "file") in error
    assert "Traceback" not in error


def test_a_full_volume_is_named(server, tmp_path):
    (small := tmp_path / "small").mkdir()
    mount = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    server.files["/a.tar.gz"] = PACKED
    program = f"mount -t tmpfs -o size=4m tmpfs {small} && exec {sys.executable} -m clothing_gateway download --name=a"
    done = subprocess.run(
        [*mount, "sh", "-c", f"{program} --to={small} '{server.base}/a.tar.gz#sha256={SHA256}'; ls -A {small}/.cache"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (
        f"error: no space left in {small}/.cache for {server.base}/a.tar.gz and its content: give the volume"
        in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_https_with_a_private_certificate_authority(stack, get, monkeypatch, tmp_path):
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout localhost.key -out localhost.crt -days 2 "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE".split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    server = Server(tmp_path)
    stack.callback(server.stop)
    server.files["/a.tar.gz"] = PACKED
    with pytest.raises(DownloadError, match=r"can't be fetched, tried 5 times: .*certificate"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "localhost.crt"))
    assert set(get(f"{server.base}/a.tar.gz#sha256={SHA256}")) == {"1"}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.crt"))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DownloadError, match=r"SSL_CERT_FILE names .*missing.crt, which can't be read"):
        get(f"{server.base}/a.tar.gz#sha256={SHA256}")


@pytest.fixture(scope="module")
def s3():
    """An S3 that checks signatures, as a process; its address, and a key that may read the bucket ``models``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Seven calls make user, policy, key, bucket and object; from then on each needs a signature by a key that may.
    environment = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "5"}
    program = [sys.executable, "-W", "ignore", "-m", "moto.server", "--host=127.0.0.1", f"--port={port}"]
    with subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 40
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline, "moto's server doesn't start"
                    threading.Event().wait(0.1)
            endpoint = f"http://127.0.0.1:{port}"
            own = {"endpoint_url": endpoint, "region_name": "eu-west-1"}
            nobody = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
            iam = boto3.client("iam", **own, **nobody)
            iam.create_user(UserName="pod")
            allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
            policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
            iam.put_user_policy(UserName="pod", PolicyName="read", PolicyDocument=policy)
            key = iam.create_access_key(UserName="pod")["AccessKey"]
            client = boto3.client("s3", **own, **nobody)
            client.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
            client.put_object(Bucket="models", Key="flowers/model 1.tar.gz", Body=PACKED)
            yield {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_REGION": "eu-west-1",
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        finally:
            process.terminate()


S3_URL = f"s3://models/flowers/model 1.tar.gz#sha256={SHA256}"


def test_download_from_s3(s3, get, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    versions = get(S3_URL)
    assert {f"1/{name}": content for name, content in contents(versions["1"]).items()} == MODEL


@pytest.mark.parametrize(
    ("changed", "url", "message"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            S3_URL,
            "s3://models/flowers/model 1.tar.gz may not be read: .*Give the service account a role",
        ),
        ({}, f"s3://models/none.tar.gz#sha256={SHA256}", "s3://models/none.tar.gz isn't there"),
        ({}, f"s3://other/none.tar.gz#sha256={SHA256}", "s3://other/none.tar.gz isn't there"),
    ],
    ids=["wrong key", "no object", "no bucket"],
)
def test_s3_refusal_is_an_error(s3, get, monkeypatch, changed, url, message):
    for name, value in {**s3, **changed}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=message):
        get(url)


def test_download_from_gcs(server, get, monkeypatch):
    """Google's store of objects as far as a download goes; its service account's file may name another server."""
    account = {
        "gcs_base_url": server.base,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    server.files["/models/flowers/1.tar.gz"] = lambda handler: handler.answer(
        200, PACKED, ETag='"1"', Last_Modified="Sun, 22 Nov 2026 10:00:00 GMT"
    )
    assert set(get(f"gs://models/flowers/1.tar.gz#sha256={SHA256}")) == {"1"}
    with pytest.raises(DownloadError, match=r"gs://models/none.tar.gz isn't there"):
        get(f"gs://models/none.tar.gz#sha256={'0' * 64}")


AZURE_KEY = base64.b64encode(b"a key of the account").decode()
AZURE_SAS = "sv=2026-04-06&sr=c&sp=r&sig=a%2Bb%2Fc%3D"


@pytest.fixture
def azure(server, monkeypatch):
    """Azure Blob Storage as far as a download goes: it reads with the account's key, or a SAS, and nothing else."""

    def signed(handler):
        """Shared Key, computed as Microsoft's "Authorize with Shared Key" describes it."""
        given = handler.headers
        own = sorted((name.lower(), value) for name, value in given.items() if name.lower().startswith("x-ms-"))
        # Verb; encoding, language, length (empty for 0), MD5, type, date; four conditions; range.
        plain = ["GET", "", "", "", "", given.get("Content-Type", ""), given.get("Date", ""), "", "", "", ""]
        text = "\n".join(
            [*plain, given.get("Range", ""), *(f"{name}:{value}" for name, value in own), f"/account{handler.path}"]
        )
        digest = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), "sha256")
        return given.get("Authorization") == f"SharedKey account:{base64.b64encode(digest).decode()}"

    def blob(handler):
        path, _, query = handler.path.partition("?")
        if query != AZURE_SAS and (query or not signed(handler)):
            handler.answer(403, b"<Error><Code>AuthenticationFailed</Code></Error>")
        elif path == "/models/flowers/1.tar.gz":
            handler.answer(200, PACKED, ETag='"1"', Last_Modified="Sun, 22 Nov 2026 10:00:00 GMT")
        else:
            handler.answer(404, b"<Error><Code>BlobNotFound</Code></Error>")

    server.files["/models/flowers/1.tar.gz"] = server.files["/models/none.tar.gz"] = blob
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", server.base)


@pytest.mark.parametrize("secret", [{"AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}, {"AZURE_STORAGE_SAS_TOKEN": AZURE_SAS}])
def test_download_from_azure(azure, get, monkeypatch, secret):
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    versions = get(f"az://models/flowers/1.tar.gz#sha256={SHA256}")
    assert {f"1/{name}": content for name, content in contents(versions["1"]).items()} == MODEL
    with pytest.raises(DownloadError, match=r"az://models/none.tar.gz isn't there"):
        get(f"az://models/none.tar.gz#sha256={'0' * 64}")


@pytest.mark.parametrize(
    "secret",
    [
        {"AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(b"another").decode()},
        {"AZURE_STORAGE_SAS_TOKEN": AZURE_SAS + "x"},
        {"AZURE_SKIP_SIGNATURE": "true"},
    ],
)
def test_azure_refusal_is_an_error(azure, get, monkeypatch, secret):
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=r"az://models/flowers/1.tar.gz may not be read: .*") as refused:
        get(f"az://models/flowers/1.tar.gz#sha256={SHA256}")
    assert "sig=" not in str(refused.value)


def test_azure_needs_an_account(get):
    with pytest.raises(DownloadError, match=r"az://models/1.tar.gz can't be asked for: .*(?i:account)"):
        get(f"az://models/1.tar.gz#sha256={SHA256}")


def test_errors_contain_no_url_signature(get, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", AZURE_SAS)
    for url in ("az://models/1.tar.gz", f"http://127.0.0.1:1/1.tar.gz?{AZURE_SAS}"):
        with pytest.raises(DownloadError) as failed:
            get(f"{url}#sha256={SHA256}")
        assert "Connection refused" in str(failed.value)
        assert "sig=" not in str(failed.value)
