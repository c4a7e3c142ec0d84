"""The Host check: names of the gateway, and DNS rebinding."""

from __future__ import annotations

import pytest
from fakes import image_bytes, multipart

from clothing_gateway.settings import Settings, SettingsError
from clothing_gateway.web.hosts import Hosts

ALLOWED = "photos.example, *.shop.example, 192.0.2.1, [2001:DB8:0::1]"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("photos.example", True),
        ("PHOTOS.example:8443", True),
        ("photos.example.", True),
        ("photos.example:", True),
        ("a.shop.example", True),
        ("a.b.shop.example:80", True),
        ("192.0.2.1:9696", True),
        ("[2001:db8::1]", True),
        ("[2001:db8:0:0::1]:9696", True),
        ("shop.example", False),
        ("evil-shop.example", False),
        ("a.photos.example", False),
        ("photos.example.evil.example", False),
        ("evil.example", False),
        ("localhost", False),
        ("192.0.2.10", False),
        ("2001:db8::1", False),
        ("[2001:db8::2]", False),
        ("[2001:db8::1", False),
        ("[:::]", False),
        ("*.shop.example", False),
        ("photos.example:x", False),
        ("photos.example, evil.example", False),  # two headers
        ("photos.example@evil.example", False),
        ("evil.example/photos.example", False),
        ("photos.example\n", False),
        ("", False),
    ],
)
def test_a_host_is_allowed_by_its_name(host, allowed):
    settings, _, _ = Settings.load({"GATEWAY_ALLOWED_HOSTS": ALLOWED})
    assert Hosts(settings.allowed_hosts).allows(host) == allowed


@pytest.mark.parametrize("wrong", ["photos.example:443", "http://photos.example", "::1", "[::1]:80", "[::1", "*"])
def test_setting_takes_names_only(wrong):
    with pytest.raises(SettingsError, match="GATEWAY_ALLOWED_HOSTS"):
        Settings.load({"GATEWAY_ALLOWED_HOSTS": wrong})


def test_other_hosts_get_421_on_every_path_of_the_clients_port(start_gateway, model_server):
    gateway = start_gateway(model_server.address, allowed_hosts="photos.example")
    body, kind = multipart(("image", "a.jpg", image_bytes()))

    def ask(method, path, host):
        data, headers = (body, {"Content-Type": kind}) if method == "POST" else (None, {})
        status, answer, _ = gateway.request(method, path, data, headers | {"Host": host})
        return status, answer

    routes = [("POST", "/predict"), ("POST", "/classify"), ("GET", "/openapi.yaml"), ("GET", "/page.css")]
    for method, path in routes:
        assert ask(method, path, "photos.example:9696")[0] == 200
    for method, path in [*routes, ("OPTIONS", "/predict"), ("GET", "/predict"), ("GET", "/none"), ("POST", "/ping")]:
        for host in ("evil.example", f"127.0.0.1:{gateway.port}", ""):
            status, answer = ask(method, path, host)
            assert status == 421
            assert b"host-not-allowed" in answer
    assert len(model_server.model.calls) == 2
    # Load balancers' health checks name the pod's address.
    for method, path in (("GET", "/ping"), ("HEAD", "/ping"), ("GET", "/")):
        assert ask(method, path, "10.1.2.3:9696")[0] == 200
    assert gateway.admin("/readyz")[0] == 200  # by its address


def test_without_names_any_host_is_accepted(start_gateway, model_server):
    gateway = start_gateway(model_server.address)
    assert gateway.post("/predict", image_bytes(), Host="any.example")[0] == 200
