"""Hostile requests to a living gateway: no 500, no traceback, no hang, and nothing kept of them.

For FUZZ_SECONDS (20), beginning with FUZZ_SEED (0).
"""

from __future__ import annotations

import collections
import http.client
import io
import json
import os
import re
import socket
import time

import pytest
from fakes import image_bytes
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
TIMEOUT = 3.0  # the gateway's own
ALLOWED = {200, 400, 404, 405, 408, 413, 415, 422, 424, 431, 501, 504}

PHOTOS = [image_bytes((24, 18), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")] + [
    image_bytes((24, 18), progressive=True),
    image_bytes((24, 18), mode="CMYK"),
    image_bytes((24, 18), "PNG", mode="P"),
    image_bytes((24, 18), "WEBP", lossless=True),
]


@st.composite
def damaged(draw, sources):
    """One of the sources with some of its bytes changed, cut out, doubled or cut off."""
    data = bytearray(draw(sources))
    for _ in range(draw(st.integers(0, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(["byte", "cut", "double", "end", "length"]))
        if change == "byte":
            data[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif change == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        elif change == "end":
            del data[at:]
        else:  # what says how long something is
            data[at : at + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00"]))
    return bytes(data)


photos = damaged(st.sampled_from(PHOTOS)) | st.binary(max_size=200)
words = st.text(max_size=30)
hosts = st.sampled_from(
    ["127.0.0.1", "localhost", "169.254.169.254", "[::1]", "0x7f.1", "2130706433", "example.invalid", "é.invalid", ""]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
header_values = st.sampled_from(
    ["", "1", "-1", "0", "99999999999999999999", "1e3", "a b", "\x7f", "é", "a" * 9000, "100S", "1n", "00-1-2-3",
     "Bearer x", "chunked", "gzip, chunked", "identity", "close", "keep-alive, upgrade", "websocket", "100-continue",
     "bytes=0-1"]
) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40)  # fmt: skip
header_names = st.sampled_from(
    ["X-Request-Id", "X-Request-Timeout-Ms", "grpc-timeout", "X-Model-Version", "Authorization", "X-Forwarded-For",
     "traceparent", "tracestate", "Expect", "Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Host",
     "Content-Encoding", "Cookie", "Range", "Accept", "Forwarded", "Content_Length", "X-Scheme"]
) | st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)  # fmt: skip
some_headers = st.just([]) | st.lists(st.tuples(header_names, header_values), max_size=4)
kinds = st.sampled_from(
    ["image/jpeg", "image/*", "application/octet-stream", "application/json", "APPLICATION/JSON; charset=utf-16",
     "multipart/form-data; boundary=b", 'multipart/form-data; boundary="b"', "multipart/form-data",
     "multipart/form-data; boundary=" + "x" * 300, "multipart/mixed; boundary=b", "text/plain", "", "é", ";", "/"]
)  # fmt: skip


def urls(photo_server):
    there = f"http://127.0.0.1:{photo_server.port}"
    return (
        st.sampled_from([f"{there}/photo", f"{there}/raw", f"{there}/away", f"{there}/nothing"])
        | st.builds("{}://{}:{}/{}".format, st.sampled_from(["http", "https", "file", "ftp", "", "HTTP"]), hosts,
                    st.sampled_from(["80", "", "0", "99999", "-1", "x", str(photo_server.port)]), words)
        | words
        | damaged(st.just(f"{there}/photo".encode())).map(lambda url: url.decode("latin-1"))
    )  # fmt: skip


def documents(address):
    return (
        st.fixed_dictionaries({"url": address})
        | st.fixed_dictionaries({"urls": st.lists(address | values, max_size=9)})
        | st.fixed_dictionaries({}, optional={"url": values, "urls": values})
        | values
    ).map(lambda value: json.dumps(value).encode()) | st.sampled_from(
        [
            b"[" * 100_000,
            b'{"url": ' * 5000,
            b'"\\ud800"',
            b'{"url": "\\ud800"}',
            b"\xff\xfe{\x00}\x00",
            b"NaN",
            b"1" * 5000,
        ]
    )


@st.composite
def forms(draw):
    """A form out of right and wrong pieces."""
    pieces = st.sampled_from(
        [b"--b\r\n", b"--b--\r\n", b"--b", b"\r\n", b"\n", b"--", b"--c\r\n",
         b'Content-Disposition: form-data; name="image"; filename="a"\r\n', b"Content-Type: image/png\r\n",
         b'Content-Disposition: form-data; name="image"\r\n', b"Content-Disposition: form-data\r\n", b"X" * 20_000,
         b"Content-Disposition: form-data; name*=utf-8''image; filename*=x\r\n",
         b"Content-Transfer-Encoding: base64\r\n"]
    ) | photos  # fmt: skip
    if draw(st.booleans()):
        return b"".join(draw(st.lists(pieces, max_size=10)))
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n'
    whole = b"".join(part % draw(photos) for _ in range(draw(st.integers(0, 10)))) + b"--b--\r\n"
    return draw(damaged(st.just(whole)))


@st.composite
def requests(draw, photo_server):
    """A request's bytes, and whether a whole request was sent."""
    if draw(st.integers(0, 9)) == 0:
        return draw(damaged(st.just(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"))), False
    kind = draw(kinds)
    if "json" in kind.lower():
        bodies = documents(urls(photo_server))
    elif kind.startswith("multipart"):
        bodies = forms()
    else:
        bodies = photos
    body = draw(bodies | st.just(b"") | photos)
    method = draw(st.sampled_from(["POST"] * 8 + ["GET", "HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "post", "X"]))
    path = draw(
        st.sampled_from(["/predict", "/classify"] * 4 + ["/", "/ping", "/openapi.yaml", "*", "//", "/predict/", "/%00"])
        | words.map(lambda word: "/" + "".join(c for c in word if c > " " and c != "\x7f"))
    ) + draw(st.sampled_from(["", "", "?top=1", "?top=x", "?top=" + "9" * 30, "?top=%ff", "?" + "a=&" * 5000, "#"]))
    lines = [f"{method} {path} HTTP/{draw(st.sampled_from(['1.1', '1.1', '1.1', '1.0', '9.9']))}", "Host: a"]
    if kind:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(header_names, header_values), max_size=4))]
    framing = draw(st.sampled_from(["length"] * 6 + ["chunks", "bad chunks", "more", "less", "none"]))
    whole = framing in ("length", "chunks") and not any(
        re.match("(content.length|transfer.encoding|expect|connection|upgrade)", line, re.IGNORECASE) for line in lines
    )
    if framing == "chunks":
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif framing == "bad chunks":
        lines.append("Transfer-Encoding: chunked")
    elif framing != "none":
        lines.append(f"Content-Length: {len(body) + {'length': 0, 'more': 50, 'less': -1}[framing]}")
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body, whole


class Read(io.BytesIO):
    """Bytes that were received, for http.client."""

    def makefile(self, *_):
        return self


def ask(gateway, data, *, whole):
    """The answer's status and body, None where the gateway closed the connection or still waits for more."""
    received = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=TIMEOUT + 5) as connection:
        try:
            connection.sendall(data)
        except OSError:
            return None
        if not whole:
            connection.settimeout(0.05)
        try:
            while not complete(received, data[:5] == b"HEAD ") and (piece := connection.recv(65536)):
                received += piece
        except ConnectionError:
            pass
        except TimeoutError:
            assert not whole, f"no answer within {TIMEOUT + 5} s: {received!r}"
    received = re.sub(rb"^HTTP/1\.1 100 .*?\r\n\r\n", b"", received, flags=re.DOTALL)
    if not received or not (whole or complete(received, data[:5] == b"HEAD ")):
        return None
    response = http.client.HTTPResponse(Read(received), method=data.split(b" ", 1)[0].decode("latin-1"))
    response.begin()
    return response.status, response.headers, response.read()


def complete(received, bodiless):
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(end) and (bodiless or length is None or len(body) >= int(length[1]))


@pytest.mark.timeout(SECONDS * 2 + 120)
def test_no_request_breaks_the_gateway(start_gateway, model_server, photo_server):
    raw = {"answer": b""}
    photo_server.paths |= {
        "/photo": lambda handler: handler.reply(200, raw["answer"], {}),
        "/raw": lambda handler: handler.wfile.write(raw["answer"]) and setattr(handler, "close_connection", True),
        "/away": lambda handler: handler.reply(302, b"", {"Location": raw["answer"].decode("latin-1").split("\n")[0]}),
    }
    gateway = start_gateway(
        model_server.address,
        request_timeout_seconds=TIMEOUT,
        fetch_timeout_seconds=1,
        fetch_allowed_networks="127.0.0.0/8",
        fetch_allowed_ports=photo_server.port,
        max_pixels=1 << 20,
        max_body_bytes=1 << 20,
    )
    statuses = collections.Counter()
    answers = photos | st.sampled_from(
        [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 999 \xff\r\n\r\n",
         b"\r\n" * 999,
         b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"HTTP/1.1 302 F\r\nLocation: //[\r\n\r\n",
         b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"HTTP/1.1 100 C\r\n\r\n" * 50]
    )  # fmt: skip

    def check(request, answer):
        data, whole = request
        raw["answer"] = answer
        start = time.monotonic()
        got = ask(gateway, data, whole=whole)
        assert time.monotonic() - start < TIMEOUT + 4
        if got is None:
            assert not whole, f"closed without an answer: {data!r}"
            statuses["closed"] += 1
            return
        status, headers, body = got
        statuses[status] += 1
        assert status in ALLOWED
        assert b"Traceback" not in body
        if status >= 400 and data[:5] != b"HEAD ":
            assert headers["Content-Type"] == "application/problem+json"
            assert json.loads(body)["request_id"] == headers["X-Request-Id"]

    end, number = time.monotonic() + SECONDS, SEED
    while time.monotonic() < end:
        run = given(requests(photo_server), answers)(check)
        run = settings(
            max_examples=100,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # making one that hangs smaller would take longer than looking at it
            suppress_health_check=list(HealthCheck),
        )(run)
        seed(number)(run)()
        number += 1
    print(f"{statuses.total()} requests in {SECONDS:.0f} s, seeds {SEED} to {number - 1}: {dict(statuses)}")
    assert statuses[200]
    assert not [line for line in gateway.log if '"traceback"' in line or '"level": "error"' in line]
    until = time.monotonic() + TIMEOUT + 5
    while not re.search(r"gateway_buffered_bytes 0\.0", text := gateway.admin("/metrics")[1]):
        assert time.monotonic() < until, "bytes are still counted as buffered"
        time.sleep(0.1)
    assert "gateway_in_flight_photos 0.0" in text
    assert gateway.post("/predict", PHOTOS[0])[0] == 200
