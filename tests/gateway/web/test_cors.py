"""Browsers: cross-origin requests, preflights, and what a page may read."""

from __future__ import annotations

import pytest
from fakes import image_bytes, multipart

from clothing_gateway.errors import OriginNotAllowed
from clothing_gateway.settings import Settings, SettingsError
from clothing_gateway.web.cors import Origins

PHOTO = image_bytes()
SHOP = "https://shop.example"


def environ(origin, site, host):
    given = {"HTTP_ORIGIN": origin, "HTTP_SEC_FETCH_SITE": site, "HTTP_HOST": host}
    return {name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize(
    ("origin", "site", "host", "passes"),
    [
        (None, None, "photos.example", True),  # no browser
        (None, None, None, True),
        ("https://photos.example", "same-origin", "photos.example", True),
        ("https://photos.example", "same-origin", "internal:9696", True),  # a proxy that rewrites Host
        (None, "none", "photos.example", True),  # typed by its user
        ("https://evil.example", "cross-site", "photos.example", False),
        ("null", "cross-site", "photos.example", False),
        (None, "cross-site", "photos.example", False),
        ("https://other.photos.example", "same-site", "photos.example", False),
        # Without TLS browsers send no Sec-Fetch-Site.
        ("http://photos.example", None, "photos.example", True),
        ("http://PHOTOS.example", None, "photos.example", True),
        ("http://localhost:8080", None, "localhost:8080", True),
        ("http://[::1]:8080", None, "[::1]:8080", True),
        ("https://photos.example", None, "photos.example", True),  # TLS ends at a proxy
        ("https://photos.example", None, "photos.example:443", True),
        ("http://photos.example:8080", None, "photos.example", False),
        ("http://photos.example", None, "photos.example:8080", False),
        ("http://evil.example", None, "photos.example", False),
        ("http://photos.example.evil.example", None, "photos.example", False),
        ("null", None, "photos.example", False),
        ("", None, "photos.example", False),
        ("http://[", None, "photos.example", False),
        ("http://photos.example:x", None, "photos.example", False),
        ("http://evil.example", None, None, False),
        (SHOP, "cross-site", "photos.example", True),
        (SHOP, None, "photos.example", True),
        (SHOP + ".evil.example", "cross-site", "photos.example", False),
        ("http://shop.example", "cross-site", "photos.example", False),
        (SHOP + ":8443", "cross-site", "photos.example", False),
    ],
)
def test_cross_origin_requests(origin, site, host, passes):
    origins = Origins((SHOP,))
    if passes:
        origins.require(environ(origin, site, host))
    else:
        with pytest.raises(OriginNotAllowed):
            origins.require(environ(origin, site, host))
    Origins(("*",)).require(environ(origin or "null", site, host))


def test_setting_takes_origins_only():
    loaded, _, _ = Settings.load({"GATEWAY_ALLOWED_ORIGINS": f"{SHOP}, http://localhost:3000,*"})
    assert loaded.allowed_origins == (SHOP, "http://localhost:3000", "*")
    for wrong in ("shop.example", SHOP + "/", "ftp://a.example", "https://Shop.example", "https://*.example", "null"):
        with pytest.raises(SettingsError, match="is no origin"):
            Settings.load({"GATEWAY_ALLOWED_ORIGINS": wrong})


FORM, FORM_TYPE = multipart(("image", "a.jpg", PHOTO))
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


def test_a_form_of_another_site_is_refused_by_default(start_gateway, model_server):
    gateway = start_gateway(model_server.address)
    evil = {"Origin": "https://evil.example"}
    for sent in (evil, evil | {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "cross-site"}):
        status, body, headers = gateway.post("/predict", FORM, FORM_TYPE, **sent)
        assert (status, body["code"]) == (403, "origin-not-allowed")
        assert not [name for name in headers if name.startswith("Access-Control") or name == "Vary"]
    assert not model_server.model.calls
    assert gateway.request("OPTIONS", "/predict", headers=evil | ASKS)[0] == 405
    own = {"Origin": f"http://127.0.0.1:{gateway.port}"}
    assert gateway.post("/predict", FORM, FORM_TYPE, **own)[0] == 200
    assert gateway.post("/predict", FORM, FORM_TYPE)[0] == 200


@pytest.mark.parametrize("allowed", [SHOP, "*"])
def test_an_allowed_origin_may_send_and_read(start_gateway, model_server, allowed, tmp_path):
    (tmp_path / "keys").write_text("shop k3y-of-the-web-shop\n")
    gateway = start_gateway(
        model_server.address, allowed_origins=allowed, keys_file=tmp_path / "keys", max_body_bytes=100_000
    )
    shop = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
    for route in ("/predict", "/classify"):
        status, body, headers = gateway.request("OPTIONS", route, headers=shop | ASKS)
        assert (status, body) == (200, b"")
        assert headers["Access-Control-Allow-Origin"] == SHOP
        assert headers["Access-Control-Allow-Methods"] == "POST"
        assert {"Content-Type", "Authorization"} <= set(headers["Access-Control-Allow-Headers"].split(", "))
    key = {"Authorization": "Bearer k3y-of-the-web-shop"}
    answers = [
        gateway.post("/predict", FORM, FORM_TYPE, **shop, **key),
        gateway.post("/predict", FORM, FORM_TYPE, **shop),
        gateway.post("/predict", b"x" * 200_000, **shop, **key),
    ]
    assert [status for status, _, _ in answers] == [200, 401, 413]
    for _, _, headers in answers:  # also the errors of the server itself can be read
        assert headers["Access-Control-Allow-Origin"] == SHOP
        assert headers["Vary"] == "Origin"
        assert "X-Request-Id" in headers["Access-Control-Expose-Headers"]
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    status, _, headers = gateway.post("/predict", FORM, FORM_TYPE, **evil, **key)
    assert (status, headers["Vary"]) == (403 if allowed == SHOP else 200, "Origin")
    assert gateway.request("OPTIONS", "/predict", headers=shop)[0] == 405  # no preflight


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/predict"), ("GET", "/"), ("GET", "/openapi.yaml"), ("GET", "/nothing")]
)
def test_no_response_is_sniffed(start_gateway, model_server, method, path):
    gateway = start_gateway(model_server.address)
    _, _, headers = gateway.request(method, path)
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    for other in ("/healthz", "/metrics", "/nothing"):
        _, _, headers = gateway.request("GET", other, port=gateway.admin_port)
        assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
