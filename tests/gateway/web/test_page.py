"""The page's files, as the gateway sends them; what a browser makes of them is in tests/page."""

import re
from importlib import resources

import pytest
from fakes import image_bytes

from clothing_gateway.web.page import FILES, POLICY

STATIC = resources.files("clothing_gateway").joinpath("web/static")


@pytest.mark.parametrize(("path", "name", "kind"), FILES)
def test_page_files_have_content_types_and_etags(start_gateway, path, name, kind):
    gateway = start_gateway(wait_ready=False)
    status, body, headers = gateway.request("GET", path)
    assert status == 200
    assert body == STATIC.joinpath(name).read_bytes()
    assert headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert headers["Content-Security-Policy"] == POLICY
    assert "default-src 'none'; script-src 'self';" in POLICY
    assert "unsafe" not in POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    again, nothing, _ = gateway.request("GET", path, headers={"If-None-Match": headers["ETag"]})
    assert (again, nothing) == (304, b"")


def test_page_can_be_disabled(start_gateway):
    gateway = start_gateway(wait_ready=False, page="off")
    for path, _, _ in FILES:
        assert gateway.request("GET", path)[0] == (200 if path == "/" else 404)
    assert b"<html" not in gateway.request("GET", "/")[2]
    assert gateway.request("GET", "/ping")[0] == 200


def test_page_is_small_and_loads_nothing_external():
    """What the policy would forbid is not even tried: no inline script or style, no other host."""
    files = {name: STATIC.joinpath(name).read_text() for _, name, _ in FILES}
    assert sum(len(text.encode()) for text in files.values()) < 60_000
    page = files["index.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! src=)|javascript:", page)
    for link in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert link in {"page.css", "page.js", "openapi.yaml", "data:,"}
    assert "http" not in files["page.css"]
    assert "innerHTML" not in files["page.js"]


def luminance(colour):
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_have_enough_contrast(scheme):
    """By WCAG's contrasts. Axe sees to the texts that are there, and not to bars."""
    block = re.findall(r":root \{(.*?)\}", STATIC.joinpath("page.css").read_text(), re.DOTALL)[scheme]
    colours = {
        name: re.sub(r"^#(.)(.)(.)$", r"#\1\1\2\2\3\3", colour)
        for name, colour in re.findall(r"--([\w-]+): (#\w+)", block)
    }

    def contrast(one, other):
        lower, higher = sorted(luminance(colours[name]) for name in (one, other))
        return (higher + 0.05) / (lower + 0.05)

    for text, ground in (
        *((name, "back") for name in ("text", "quiet", "accent", "bad")),
        *((name, "panel") for name in ("text", "quiet")),
        ("on-accent", "accent"),
    ):
        assert contrast(text, ground) >= 4.5, (text, ground)
    for bar in ("bar", "rest"):
        assert contrast(bar, "back") >= 3, bar


def test_predict_response_has_server_timing(start_gateway, model_server):
    gateway = start_gateway(model_server.address)
    status, _, headers = gateway.post("/predict", image_bytes((40, 30)))
    assert status == 200
    assert re.fullmatch(r"wait;dur=[\d.]+, decode;dur=[\d.]+, predict;dur=[\d.]+", headers["Server-Timing"])
    assert "Server-Timing" not in gateway.request("GET", "/ping")[2]
