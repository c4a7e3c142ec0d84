"""Keys, rates and addresses: alone, and in a gateway process."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import time
from ipaddress import ip_network

import pytest
from fakes import image_bytes, multipart

from clothing_gateway.errors import TooManyRequests, Unauthorized
from clothing_gateway.web import auth
from clothing_gateway.web.auth import Keys, KeysError, Rates, address_of, parse

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
def test_who_holds_a_key(file, header, name):
    keys = Keys(str(file))
    if name:
        assert keys.holder(header) == name
    else:
        with pytest.raises(Unauthorized):
            keys.holder(header)


def test_every_key_is_compared_whichever_fits(file, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append(len(one) == len(other) == 32)
        return one == other

    monkeypatch.setattr(auth.hmac, "compare_digest", compare)
    Keys(str(file)).holder(f"Bearer {KEY}")  # the first of the two
    assert compared == [True, True]


def test_a_changed_file_holds_and_a_bad_one_changes_nothing(file, monkeypatch, caplog):
    monkeypatch.setattr(auth, "_LOOK_AGAIN_SECONDS", 0)
    keys = Keys(str(file))
    file.write_text(f"third {THIRD}\n")
    assert keys.holder(f"Bearer {THIRD}") == "third"
    with pytest.raises(Unauthorized):
        keys.holder(f"Bearer {KEY}")
    for change in (lambda: file.write_text("nonsense\n"), lambda: file.write_text(""), file.unlink):
        caplog.clear()
        change()
        with caplog.at_level(logging.ERROR):
            assert keys.holder(f"Bearer {THIRD}") == "third"
        assert "the old keys hold on" in caplog.text
    replacement = file.with_name("new")  # as a Secret's volume changes: another file under the same name
    replacement.write_text(f"shop {KEY}\n")
    replacement.replace(file)
    assert keys.holder(f"Bearer {KEY}") == "shop"


def test_the_file_is_not_looked_at_for_each_request(file):
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
def test_a_file_that_cannot_be_used_is_told_of_without_its_keys(text, words):
    with pytest.raises(KeysError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert "short-secret" not in str(caught.value)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


def refused(rates, client, photos=1):
    """Seconds to wait, or None where the photos are taken."""
    try:
        rates.take(client, photos)
    except TooManyRequests as error:
        return int(error.headers()["Retry-After"])
    return None


def test_a_burst_then_a_rate_and_each_client_its_own(clock):
    rates = Rates(per_minute=6, burst=3)  # one in ten seconds
    assert [refused(rates, "a") for _ in range(4)] == [None, None, None, 10]
    assert refused(rates, "b") is None
    clock.now += 4
    assert refused(rates, "a") == 6
    clock.now += 6
    assert [refused(rates, "a"), refused(rates, "a")] == [None, 10]
    clock.now += 3600  # what is not used is not saved beyond the burst
    assert [refused(rates, "a") for _ in range(4)] == [None, None, None, 10]


def test_several_photos_count_as_many_and_all_or_none(clock):
    rates = Rates(per_minute=60, burst=5)
    assert refused(rates, "a", 3) is None
    assert refused(rates, "a", 3) == 1
    assert refused(rates, "a", 2) is None
    assert refused(rates, "a", 4) == 4


def test_over_an_hour_the_rate_is_the_rate(clock):
    rates = Rates(per_minute=30, burst=1)
    taken = 0
    for _ in range(36_000):
        clock.now += 0.1
        taken += refused(rates, "a") is None
    assert abs(taken - 1800) <= 2


def test_memory_is_bounded(clock, monkeypatch):
    monkeypatch.setattr(auth, "_MOST_CLIENTS", 100)
    rates = Rates(per_minute=1, burst=1)
    for number in range(1000):
        rates.take(f"client {number}", 1)
    assert len(rates._full_at) == 100
    clock.now += 61
    rates.take("another", 1)
    assert list(rates._full_at) == ["another"]


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "address"),
    [
        ("192.0.2.1", None, (), "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", (), "192.0.2.1"),
        ("10.0.0.1", "198.51.100.7", (), "10.0.0.1"),
        ("192.0.2.1", "198.51.100.7", TRUSTED, "192.0.2.1"),  # a client that writes the header itself
        ("10.0.0.1", "198.51.100.7", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", None, TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7", TRUSTED, "198.51.100.7"),  # what it wrote stays before
        ("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.2.3.4", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", "10.1.1.1, 10.2.3.4", TRUSTED, "10.1.1.1"),
        ("10.0.0.1", "198.51.100.7:54321", TRUSTED, "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::7]:54321", TRUSTED, "2001:db8::/64"),
        ("10.0.0.1", "unknown", TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7, unknown", TRUSTED, "10.0.0.1"),
        ("10.0.0.1", "", TRUSTED, "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.7", TRUSTED, "198.51.100.7"),
        ("::ffff:192.0.2.1", None, (), "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", None, (), "2001:db8:1:2::/64"),
        ("fd00::1", "2001:db8:1:2::9", TRUSTED, "2001:db8:1:2::/64"),
    ],
)
def test_whose_address_it_is(peer, forwarded, trusted, address):
    assert address_of(peer, forwarded, trusted) == address


def test_a_gateway_with_keys_and_a_rate(start_gateway, model_server, file):
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


def test_a_rate_by_address_behind_a_trusted_proxy(start_gateway, model_server):
    settings = {"rate_photos_per_minute": 1, "rate_burst_photos": 1, "max_photos": 1}
    trusting = start_gateway(model_server.address, trusted_proxies="127.0.0.0/8", **settings)
    wary = start_gateway(model_server.address, **settings)
    for gateway, statuses in ((trusting, [200, 200, 429]), (wary, [200, 429, 429])):
        addresses = ["198.51.100.1", "198.51.100.2", "203.0.113.9, 198.51.100.1"]
        answers = [gateway.post("/predict", PHOTO, **{"X-Forwarded-For": one}) for one in addresses]
        assert [status for status, _, _ in answers] == statuses


def test_a_gateway_does_not_start_without_its_keys(tmp_path):
    command = [sys.executable, "-m", "clothing_gateway", "serve", "--listen-port", "0", "--admin-listen-port", "0"]
    result = subprocess.run(
        [*command, "--keys-file", tmp_path / "none"], capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == 1
    assert f"GATEWAY_KEYS_FILE={tmp_path}/none: can't be read: No such file" in result.stderr


def test_the_command_sends_a_key(start_gateway, model_server, file, tmp_path):
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
