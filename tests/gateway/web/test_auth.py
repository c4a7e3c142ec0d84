"""API keys: alone, and in a gateway process."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from fakes import image_bytes, multipart

from clothing_gateway.errors import Unauthorized
from clothing_gateway.web import auth
from clothing_gateway.web.auth import Keys, KeysError, parse

PHOTO = image_bytes((40, 30))
KEY, OTHER, THIRD = "k3y-of-the-web-shop", "k3y-of-the-phone-app", "k3y-number-three-here"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# clients\nshop {KEY}\n\nphone  sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}\n")
    return file


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (f"Bearer {KEY}", "shop"),
        (f"bearer {KEY}", "shop"),
        (f"Bearer   {KEY} ", "shop"),
        (f"Bearer {OTHER}", "phone"),
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        (KEY, None),
        (f"Basic {KEY}", None),
        (f"Bearer {KEY}x", None),
        (f"Bearer {KEY[:-1]}", None),
        (f"Bearer {KEY.upper()}", None),
        ("Bearer shop", None),
        (f"Bearer sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}", None),
        ("Bearer \udcff\xff", None),
    ],
)
def test_holder_of_a_key(file, header, name):
    keys = Keys(str(file))
    if name:
        assert keys.holder(header) == name
    else:
        with pytest.raises(Unauthorized):
            keys.holder(header)


def test_every_key_is_compared(file, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append(len(one) == len(other) == 32)
        return one == other

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    Keys(str(file)).holder(f"Bearer {KEY}")  # the first of the two
    assert compared == [True, True]


def test_changed_file_is_reloaded_and_an_invalid_one_ignored(file, monkeypatch, caplog):
    monkeypatch.setattr(auth, "_RELOAD_SECONDS", 0)
    keys = Keys(str(file))
    file.write_text(f"third {THIRD}\n")
    assert keys.holder(f"Bearer {THIRD}") == "third"
    with pytest.raises(Unauthorized):
        keys.holder(f"Bearer {KEY}")
    file.write_text("nonsense\n")
    with caplog.at_level(logging.ERROR):
        assert keys.holder(f"Bearer {THIRD}") == "third"
    assert "the previous keys stay in force" in caplog.text
    replacement = file.with_name("new")  # as a Secret's volume changes: another file under the same name
    replacement.write_text(f"shop {KEY}\n")
    replacement.replace(file)
    assert keys.holder(f"Bearer {KEY}") == "shop"


@pytest.mark.parametrize("change", ["emptied", "comments", "deleted"])
def test_an_emptied_or_deleted_file_revokes_all_keys(file, monkeypatch, caplog, change):
    monkeypatch.setattr(auth, "_RELOAD_SECONDS", 0)
    keys = Keys(str(file))
    if change == "deleted":
        file.unlink()
    else:
        file.write_text("" if change == "emptied" else "# none\n")
    assert keys.holder(f"Bearer {KEY}") == "shop"  # it may be just being written
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(Unauthorized):
                keys.holder(f"Bearer {KEY}")
    assert caplog.text.count("all API keys are revoked") == 1
    file.write_text(f"third {THIRD}\n")
    assert keys.holder(f"Bearer {THIRD}") == "third"


def test_a_removed_key_is_revoked_within_a_second(file, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now[0]))
    keys = Keys(str(file))
    file.write_text(f"third {THIRD}\n")
    now[0] = 0.999
    assert keys.holder(f"Bearer {KEY}") == "shop"
    now[0] = 1.0
    with pytest.raises(Unauthorized):
        keys.holder(f"Bearer {KEY}")
    file.unlink()
    now[0] = 2.999  # from 2.0 on it is known to be gone
    assert keys.holder(f"Bearer {THIRD}") == "third"
    now[0] = 3.999
    with pytest.raises(Unauthorized):
        keys.holder(f"Bearer {THIRD}")


def test_a_file_that_is_empty_for_a_moment_revokes_nothing(file, monkeypatch):
    monkeypatch.setattr(auth, "_RELOAD_SECONDS", 0)
    keys = Keys(str(file))
    text = file.read_text()
    for _ in range(2):
        file.write_text("")
        assert keys.holder(f"Bearer {KEY}") == "shop"
        file.write_text(text)
        assert keys.holder(f"Bearer {KEY}") == "shop"


def test_file_is_not_read_for_each_request(file):
    keys = Keys(str(file))
    file.write_text(f"third {THIRD}\n")
    assert keys.holder(f"Bearer {KEY}") == "shop"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        (f"\n{KEY}\n", "line 2"),
        ("shop short-secret", "line 1: a key has 16 to 256"),
        (f"shop {KEY} more", "line 1"),
        ("shop sha256:abc", "line 1"),
        (f"a/b {KEY}", "line 1"),
    ],
)
def test_error_of_an_invalid_file_holds_no_key(text, words):
    with pytest.raises(KeysError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert "short-secret" not in str(caught.value)


def test_gateway_with_keys_and_a_rate_limit(start_gateway, model_server, file):
    gateway = start_gateway(
        model_server.address, keys_file=file, rate_photos_per_minute=1, rate_burst_photos=4, max_photos=4
    )
    for key in (None, "Bearer wrong-but-long-enough", f"Basic {KEY}"):
        sent = {"Authorization": key} if key else {}
        status, body, headers = gateway.post("/predict", PHOTO, **sent)
        assert (status, body["code"], headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
    assert not model_server.model.calls
    assert gateway.request("GET", "/ping")[0] == gateway.request("GET", "/openapi.yaml")[0] == 200
    shop = {"Authorization": f"Bearer {KEY}"}
    form, kind = multipart(*[("image", f"{number}.jpg", PHOTO) for number in range(3)])
    assert gateway.post("/classify", form, kind, **shop)[0] == 200
    status, body, headers = gateway.post("/classify", form, kind, **shop)
    assert (status, body["code"]) == (429, "too-many-requests")
    assert 100 < int(headers["Retry-After"]) <= 120  # the first of them found the last place
    assert gateway.post("/predict", PHOTO, **shop)[0] == 429
    assert gateway.post("/predict", PHOTO, Authorization=f"Bearer {OTHER}")[0] == 200
    assert 'gateway_errors_total{code="too-many-requests"} 2.0' in gateway.admin("/metrics")[1]
    file.write_text(f"third {THIRD}\n")
    end = time.monotonic() + 10
    while gateway.post("/predict", PHOTO, Authorization=f"Bearer {THIRD}")[0] == 401:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert gateway.post("/predict", PHOTO, **shop)[0] == 401
    log = "".join(gateway.log)
    assert '"key": "shop"' in log
    assert KEY not in log
    assert OTHER not in log


def test_missing_key_file_fails_the_start(tmp_path):
    command = [sys.executable, "-m", "clothing_gateway", "serve", "--listen-port", "0", "--admin-listen-port", "0"]
    result = subprocess.run(
        [*command, "--keys-file", tmp_path / "none"], capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == 1
    assert f"GATEWAY_KEYS_FILE={tmp_path}/none: can't be read: No such file" in result.stderr


def test_classify_command_sends_a_key(start_gateway, model_server, file, tmp_path):
    gateway = start_gateway(model_server.address, keys_file=file)
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    (tmp_path / "key").write_text(KEY + "\n")
    command = [sys.executable, "-m", "clothing_gateway", "classify", tmp_path / "photo.jpg"]
    command += ["--gateway", f"http://127.0.0.1:{gateway.port}"]
    bare, keyed = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=30)
        for more in ([], ["--key-file", tmp_path / "key"])
    )
    assert (bare.returncode, keyed.returncode) == (1, 0)
    assert "401 unauthorized" in bare.stderr
