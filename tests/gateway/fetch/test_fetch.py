"""The fetcher against real servers on loopback."""

from __future__ import annotations

import inspect
import socket
import ssl
import subprocess
import threading
import time
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import pytest
from fakes import ConnectProxy, PhotoServer

from clothing_gateway.deadline import Deadline
from clothing_gateway.errors import (
    AddressNotAllowed,
    NotAnImage,
    OutOfTime,
    Overloaded,
    PhotoServerFailed,
    TooManyBytes,
)
from clothing_gateway.fetch import Fetcher, Policy, Resolver, client, response
from clothing_gateway.fetch.client import ACCEPT
from clothing_gateway.fetch.policy import NotAllowed
from clothing_gateway.fetch.resolver import NoAddress
from clothing_gateway.image.layout import FORMATS
from clothing_gateway.limits.admission import ByteBudget

# How long a slow server takes, or longer; it is cut off after less than a second, however busy the machine.
SLOW_SECONDS = 10


@pytest.fixture
def budget():
    return ByteBudget(1 << 20)


@pytest.fixture
def make(photo_server, budget, stack):
    def make(ports=(), look_up=None, hosts=(), **changes):
        options = {
            "timeout_seconds": 5,
            "max_bytes": 100_000,
            "max_redirects": 3,
            **changes,
        }
        allowed = (ip_network("127.0.0.1/32"), ip_network("::1/128"))
        fetcher = Fetcher(
            Policy(frozenset({photo_server.port, *ports}), allowed, hosts),
            budget,
            resolver=Resolver(look_up) if look_up else None,
            **options,
        )
        stack.callback(fetcher.close)
        return fetcher

    return make


def get(fetcher, url, seconds=5.0):
    photo = fetcher.fetch(url, Deadline.after(seconds))
    try:
        return photo.data
    finally:
        photo.close()


def test_fetched_bytes_are_unchanged(make, photo_server, budget):
    photo_server.paths["/a.jpg?x=1&y=%20"] = b"\xff\xd8photo" * 1000
    fetcher = make()
    photo = fetcher.fetch(photo_server.url + "/a.jpg?x=1&y=%20#part", Deadline.after(5))
    assert photo.data == b"\xff\xd8photo" * 1000
    assert budget.reserved == len(photo.data)
    photo.close()
    assert budget.reserved == 0
    path, headers = photo_server.asked[0]
    assert path == "/a.jpg?x=1&y=%20"
    assert headers["Host"] == f"127.0.0.1:{photo_server.port}"
    assert headers["User-Agent"].startswith("clothing-gateway/")
    assert headers["Accept-Encoding"] == "identity"


def test_the_host_header_is_the_name_and_the_connection_goes_to_its_address(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    fetcher = make(look_up=lambda host: [ip_address("127.0.0.1")])
    assert get(fetcher, f"http://Photos.Example.:{photo_server.port}/a") == b"photo"
    assert photo_server.asked[0][1]["Host"] == f"photos.example:{photo_server.port}"


def test_a_connection_serves_several_photos(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    fetcher = make()
    for _ in range(5):
        assert get(fetcher, photo_server.url + "/a") == b"photo"
    assert photo_server.connections == 1


def test_a_kept_connection_is_used_only_for_an_address_found_now(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    answers = [[ip_address("127.0.0.1")], [ip_address("10.0.0.1")]]
    fetcher = make(look_up=lambda host: answers.pop(0))
    url = f"http://photos.example:{photo_server.port}/a"
    assert get(fetcher, url) == b"photo"
    with pytest.raises(AddressNotAllowed):
        get(fetcher, url)
    assert len(photo_server.asked) == 1


def test_a_kept_connection_that_the_server_has_closed_is_replaced(make, photo_server):
    def once(handler):
        handler.reply(200, b"photo", {})
        handler.close_connection = True

    photo_server.paths["/a"] = once
    fetcher = make()
    for _ in range(3):
        assert get(fetcher, photo_server.url + "/a") == b"photo"
    assert photo_server.connections == 3


def test_a_kept_connection_that_dies_under_the_request_is_replaced(make, photo_server):
    def dies(handler):
        if len(photo_server.asked) == 2:
            handler.close_connection = True  # no answer at all
        else:
            handler.reply(200, b"photo", {})

    photo_server.paths["/a"] = dies
    fetcher = make()
    assert get(fetcher, photo_server.url + "/a") == b"photo"
    assert get(fetcher, photo_server.url + "/a") == b"photo"
    assert len(photo_server.asked) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(make, photo_server, status):
    photo_server.paths["/short"] = (status, b"", {"Location": "/long/a.jpg"})
    photo_server.paths["/long/a.jpg"] = (status, b"", {"Location": "../b.jpg"})
    photo_server.paths["/b.jpg"] = b"photo"
    assert get(make(), photo_server.url + "/short") == b"photo"


def test_redirects_are_limited(make, photo_server):
    photo_server.paths["/a"] = (302, b"", {"Location": "/b"})
    photo_server.paths["/b"] = (302, b"", {"Location": "/a"})
    with pytest.raises(PhotoServerFailed, match="more than 3 times"):
        get(make(), photo_server.url + "/a")
    assert len(photo_server.asked) == 4
    photo_server.paths["/b"] = (302, b"", {"Location": "/c"})
    photo_server.paths["/c"] = (302, b"", {"Location": "/d"})
    photo_server.paths["/d"] = b"photo"
    assert get(make(), photo_server.url + "/a") == b"photo"


@pytest.mark.parametrize("location", ["/a", "a", "http://127.0.0.1:{port}/a"])
def test_redirect_loop_is_named(make, photo_server, location):
    """As walls do that set a cookie first."""
    there = {"Location": location.format(port=photo_server.port), "Set-Cookie": "seen=1"}
    photo_server.paths["/a"] = (302, b"", there)
    with pytest.raises(PhotoServerFailed, match="redirects to itself"):
        get(make(), photo_server.url + "/a")
    assert len(photo_server.asked) == 1


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/café.jpg".encode(), "/caf%C3%A9.jpg"),
        (b"/caf\xe9.jpg", "/caf%E9.jpg"),
        (b"/my photo.jpg ", "/my%20photo.jpg"),
        (b"?size[w]=300", "/photo?size[w]=300"),
        (b"http://127.0.0.1:%d/b?sig=a%%2bb%%2F&d=[1]", "/b?sig=a%2bb%2F&d=[1]"),
        (b"//127.0.0.1:%d/b?sig=a%%2bb", "/b?sig=a%2bb"),
        (b"http:/b", "/b"),
    ],
)
def test_location_is_resolved_as_by_browsers(make, stack, location, path):
    asked = []

    def talk(connection, request):
        asked.append(request.split(b" ")[1].decode())
        moved = location % port if b"%d" in location else location
        head = b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: " + moved + b"\r\nContent-Length: 0\r\n\r\n"
        connection.sendall(head if len(asked) == 1 else WHOLE)

    port = raw_server(stack, talk)
    assert get(make(ports=[port]), f"http://127.0.0.1:{port}/photo") == b"photo"
    assert asked == ["/photo", path]


def test_signed_url_is_sent_byte_for_byte(make, photo_server):
    path = "/a%2bb.jpg?X-Sig=%2f%2F+~&filter[w]=300&{y}"
    photo_server.paths[path] = b"photo"
    assert get(make(), photo_server.url + path) == b"photo"


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("http://127.0.0.1:{port}/a.jpg\n", "/a.jpg"),
        (" \thttp://127.0.0.1:{port}/a.jpg \r\n", "/a.jpg"),
        ("http://127.0.0.1:{port}/my photo.jpg", "/my%20photo.jpg"),
        ("http://127.0.0.1:{port}/a.jpg?name=my photo&x=1 ", "/a.jpg?name=my%20photo&x=1"),
    ],
)
def test_whitespace_in_urls_is_handled_as_by_browsers(make, photo_server, written, path):
    photo_server.paths[path] = b"photo"
    assert get(make(), written.format(port=photo_server.port)) == b"photo"


def test_relative_location_ignores_whitespace_around_the_url(make, photo_server):
    photo_server.paths["/a%20b"] = (302, b"", {"Location": "?c=d"})
    photo_server.paths["/a%20b?c=d"] = b"photo"
    assert get(make(), f" http://127.0.0.1:{photo_server.port}/a b\n") == b"photo"


def test_internationalised_host_is_resolved_in_its_ascii_form(make, photo_server):
    asked = []
    photo_server.paths["/a"] = b"photo"
    fetcher = make(look_up=lambda host: asked.append(host) or [ip_address("127.0.0.1")])
    assert get(fetcher, f"http://bücher.example:{photo_server.port}/a") == b"photo"
    assert asked == ["xn--bcher-kva.example"]
    assert photo_server.asked[0][1]["Host"] == f"xn--bcher-kva.example:{photo_server.port}"


def test_accept_header_lists_decodable_formats_first(make, photo_server):
    def negotiates(handler):
        weights = {}
        for part in handler.headers["Accept"].split(","):
            kind, _, weight = part.partition(";q=")
            weights[kind] = float(weight or 1)
        kinds = ("image/avif", "image/jxl", "image/jpeg")  # the first of equals, as the server prefers smaller files
        handler.reply(200, max(kinds, key=lambda kind: weights.get(kind, weights["*/*"])).encode(), {})

    photo_server.paths["/a"] = negotiates
    assert get(make(), photo_server.url + "/a") == b"image/jpeg"
    assert {f"image/{kind.lower()}" for kind in FORMATS} == set(ACCEPT.split(",")[:-1])


def test_the_user_agent_can_be_set(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    agent = "shop/1.0 (https://shop.example; ops@shop.example)"
    get(make(user_agent=agent), photo_server.url + "/a")
    assert photo_server.asked[0][1]["User-Agent"] == agent


@pytest.mark.parametrize(
    "page",
    [b"<!doctype html><html>", b"\n <HTML lang=en>", b"\xef\xbb\xbf<!-- a\nb --><!DOCTYPE html>", b"<head><title>"],
)
def test_html_response_is_named_in_the_error(make, photo_server, page):
    photo_server.paths["/share"] = (200, page, {"Content-Type": "text/html"})
    with pytest.raises(NotAnImage, match="gave a web page"):
        get(make(), photo_server.url + "/share")
    photo_server.paths["/svg"] = b"<svg><html></svg>"
    assert get(make(), photo_server.url + "/svg") == b"<svg><html></svg>"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://127.0.0.2:{port}/",
        "http://127.1:{port}/",
        "//169.254.169.254/",
        "http://[::ffff:169.254.169.254]/",
        "http://user@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/_x",
        "http://localhost.evil\\@127.0.0.1:{port}/",
        "javascript:alert(1)",
        "data:image/png;base64,aaaa",
        "http://127.0.0.1:{other}/",
        "http:\\\\127.0.0.1:{port}/b",
    ],
)
def test_redirect_to_a_forbidden_address_is_refused(make, photo_server, stack, location):
    other = PhotoServer()
    stack.callback(other.stop)
    where = location.format(port=photo_server.port, other=other.port)
    photo_server.paths["/a"] = (302, b"", {"Location": where})
    with pytest.raises(AddressNotAllowed):
        get(make(), photo_server.url + "/a")
    assert len(photo_server.asked) == 1
    assert other.asked == []
    assert other.connections == 0


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 429, 500, 503])
def test_status_other_than_200_is_a_photo_server_error(make, photo_server, status):
    photo_server.paths["/a"] = (status, b"" if status in (204, 304) else b"x", {})
    with pytest.raises(PhotoServerFailed, match=f"status {status}"):
        get(make(), photo_server.url + "/a")


def test_redirect_without_location_is_a_photo_server_error(make, photo_server):
    photo_server.paths["/a"] = (302, b"", {})
    with pytest.raises(PhotoServerFailed, match="status 302"):
        get(make(), photo_server.url + "/a")


def test_content_length_over_the_limit_is_not_read(make, photo_server, budget):
    photo_server.paths["/a"] = (200, b"", {"Content-Length": "100001"})
    with pytest.raises(TooManyBytes, match="100000 bytes"):
        get(make(), photo_server.url + "/a")
    assert budget.reserved == 0


def chunked(size, count, pause=0.0):
    def reply(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(count):
            handler.wfile.write(b"%x\r\n" % size + b"x" * size + b"\r\n")
            time.sleep(pause)
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def test_chunked_response_is_decoded(make, photo_server):
    photo_server.paths["/a"] = chunked(1000, 90)
    fetcher = make()
    assert get(fetcher, photo_server.url + "/a") == b"x" * 90_000
    assert get(fetcher, photo_server.url + "/a") == b"x" * 90_000
    assert photo_server.connections == 1


def test_response_over_the_size_limit_is_cut_off(make, photo_server, budget):
    """Of 100,000 bytes, with and without a length."""
    photo_server.paths |= {"/a": b"x" * 100_000, "/b": chunked(10_000, 10)}
    for path in ("/a", "/b"):
        assert len(get(make(), photo_server.url + path)) == 100_000
    photo_server.paths |= {"/a": b"x" * 100_001, "/b": chunked(100_001, 1), "/c": chunked(10_000, 1_000_000)}
    for path in ("/a", "/b", "/c"):
        with pytest.raises(TooManyBytes):
            get(make(), photo_server.url + path)
    assert budget.reserved == 0


def test_truncated_response_is_a_photo_server_error(make, photo_server):
    def short(handler):
        handler.reply(200, b"half", {"Content-Length": "8"})
        handler.close_connection = True

    photo_server.paths["/a"] = short
    with pytest.raises(PhotoServerFailed):
        get(make(), photo_server.url + "/a")


def test_response_without_length_ends_with_the_connection(make, photo_server):
    def until_closed(handler):
        handler.reply(200, b"photo", {"Content-Length": None, "Connection": "close"})
        handler.close_connection = True

    photo_server.paths["/a"] = until_closed
    assert get(make(), photo_server.url + "/a") == b"photo"


@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "br", "zstd", "deflate", "compress", "aws-chunked, gzip"])
def test_a_compressed_answer_is_refused(make, photo_server, coding):
    photo_server.paths["/a"] = (200, b"\x1f\x8b", {"Content-Encoding": coding})
    with pytest.raises(PhotoServerFailed, match="compressed"):
        get(make(), photo_server.url + "/a")


@pytest.mark.parametrize(
    "coding", ["", "aws-chunked", "aws-chunked,", "none", "UTF-8", "binary", "identity", "Identity"]
)
def test_a_content_encoding_that_names_no_compression_is_none(make, photo_server, coding):
    """Stores give back how an object was uploaded."""
    photo_server.paths["/a"] = (200, b"photo", {"Content-Encoding": coding})
    assert get(make(), photo_server.url + "/a") == b"photo"


def test_fetched_bytes_in_memory_are_limited_across_requests(make, photo_server, budget):
    photo_server.paths["/a"] = b"x" * 50_000
    assert budget.reserve((1 << 20) - 49_999)
    with pytest.raises(Overloaded):
        get(make(), photo_server.url + "/a")
    assert budget.reserved == (1 << 20) - 49_999


def test_one_client_has_its_share_of_the_fetched_bytes(photo_server, stack):
    photo_server.paths["/a"] = b"x" * 50_000
    budget = ByteBudget(160_000, 100_000)
    policy = Policy(frozenset({photo_server.port}), (ip_network("127.0.0.1/32"),))
    fetcher = Fetcher(policy, budget, timeout_seconds=5, max_bytes=100_000, max_redirects=0)
    stack.callback(fetcher.close)

    def fetch(owner):
        return fetcher.fetch(photo_server.url + "/a", Deadline.after(5), owner=owner)

    held = [fetch("a"), fetch("a")]
    with pytest.raises(Overloaded):
        fetch("a")
    held.append(fetch("b"))
    assert budget.reserved == 150_000
    for photo in held:
        photo.close()
    assert budget.reserved == 0


def raw_server(stack, talk):
    """A server that says what no HTTP library would."""
    listener = socket.create_server(("127.0.0.1", 0))
    stack.callback(listener.close)
    takes_two = len(inspect.signature(talk).parameters) == 2

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536)
                try:
                    talk(connection, request) if takes_two else talk(connection)
                except OSError:
                    pass

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def drip(data, pause):
    def talk(connection):
        for byte in data:
            connection.send(bytes([byte]))
            time.sleep(pause)

    return talk


@pytest.mark.parametrize(
    "talk",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nphoto", 0.3),  # the whole answer, byte by byte
        drip(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1000, 0.02),  # headers without end
        lambda connection: time.sleep(SLOW_SECONDS),  # nothing
        lambda connection: (
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
            time.sleep(SLOW_SECONDS),
        ),
    ],
    ids=["drip", "headers", "silence", "half"],
)
def test_slow_photo_server_times_out(make, stack, talk):
    port = raw_server(stack, talk)
    fetcher = make(ports=[port], timeout_seconds=0.3)
    start = time.monotonic()
    with pytest.raises(PhotoServerFailed, match="in time"):
        get(fetcher, f"http://127.0.0.1:{port}/")
    assert time.monotonic() - start < SLOW_SECONDS / 2


def test_request_deadline_ends_the_fetch(make, stack):
    port = raw_server(stack, lambda connection: time.sleep(SLOW_SECONDS))
    start = time.monotonic()
    with pytest.raises(OutOfTime):
        get(make(ports=[port]), f"http://127.0.0.1:{port}/", 0.2)
    assert time.monotonic() - start < SLOW_SECONDS / 2


# A whole answer of a careful server, and what must not change it.
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nphoto"


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        b"HTTP/1.1 200 \r\ncontent-length:5\r\n\r\nphoto",
        b"HTTP/1.1 200\r\nContent-Length:\t 5 \t\r\nContent-Length: 5\r\n\r\nphoto",
        b"HTTP/1.1 200 Tr\xe8s bien\r\nX-Empty:\r\nX-Note: \xe9\xff\tb\r\nContent-Length: 00005\r\n\r\nphoto",
        b"HTTP/1.0 200 OK\r\n\r\nphoto",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nph\r\n003;a=b\r\noto\r\n0\r\nX-Trailer: a\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + WHOLE,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nphotoHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\nContent-Length: 5\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 9\r\nContent-Length: 5\r\n\r\nphoto",
        # Cameras and CGI scripts, whose lines end in a line feed; the second has the other end in its body.
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nphoto",
        b"HTTP/1.0 200 OK\nContent-Type: image/jpeg\n\nphoto",
        b"HTTP/1.1 200 OK\nContent-Length: 5\nConnection: keep-alive\n\nphoto",
    ],
)
def test_common_http_responses_are_parsed(make, stack, answer):
    """In one piece, and byte by byte."""
    pieces = [[answer], [bytes([byte]) for byte in answer]]
    connections = []

    def talk(connection):
        connections.append(connection)
        for piece in pieces[len(connections) - 1]:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(piece)

    port = raw_server(stack, talk)
    fetcher = make(ports=[port])
    for _ in pieces:
        assert get(fetcher, f"http://127.0.0.1:{port}/") == b"photo"
    assert len(connections) == 2


_LINES = b"HTTP/1.1 200 OK\r\n%s\r\n\r\nphoto"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"220 smtp ready\r\n",
        b"photo",  # HTTP/0.9
        b"\xff\xd8\xff\xe0 no head at all \r\n\r\n",
        b"\r\n" + WHOLE,
        b" " + WHOLE,
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\nphoto",
        b"HTTP/1.1 2000 OK\r\n\r\nphoto",
        b"HTTP/1.1 099 OK\r\n\r\nphoto",
        b"HTTP/1.2 200 OK\r\n\r\nphoto",
        b"HTTP/2 200\r\n\r\nphoto",
        b"HTTP/1.1 200 O\0K\r\n\r\nphoto",
        b"http/1.1 200 OK\r\n\r\nphoto",
        b"ICY 200 OK\r\n\r\nphoto",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5",  # the end within the head
        b"HTTP/1.1 200 OK\nContent-Length: 5\r\n\nphoto",  # two kinds of line ends
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\n\nphoto",
        b"HTTP/1.1 200 OK\nX: a\rContent-Length: 5\n\nphoto",
        b"HTTP/1.1 200 OK\nX: a\n folded\n\nphoto",
        b"HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6\n\nphoto",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\nphoto\n0\n\n",
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\r\nphoto\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\n\n" + WHOLE,
        b"HTTP/1.1 200 OK\nContent-Length: 5\n",
        _LINES % b"X: a\nContent-Length: 5",
        _LINES % b"X: a\rContent-Length: 5",
        _LINES % b"X: a\r\n folded: b",
        _LINES % b"X: a\r\n\tContent-Length: 5",
        _LINES % b"X : a",
        _LINES % b"no field",
        _LINES % b": a",
        _LINES % b"X\xe9: a",
        _LINES % b"X: a\0b",
        _LINES % b"X: a\x7fb",
        _LINES % b"Content-Length: -5\r\nConnection: close",
        _LINES % b"Content-Length: +5",
        _LINES % b"Content-Length: 5, 5",
        _LINES % b"Content-Length: 0x5",
        _LINES % b"Content-Length: 5 5",
        _LINES % b"Content-Length:",
        _LINES % b"Content-Length: \xb25",
        _LINES % (b"Content-Length: " + b"9" * 5000),
        _LINES % b"Content-Length: 5\r\nContent-Length: 4",
        _LINES % b"Content-Length: 5\r\ncontent-length: 05",
        _LINES % b"Content-Length: 6",  # more than comes
        _LINES % b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        _LINES % b"Transfer-Encoding: identity",
        _LINES % b"Transfer-Encoding: gzip, chunked",
        _LINES % b"Transfer-Encoding: chunked, chunked",
        _LINES % b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        _LINES % b"Transfer-Encoding: xchunked",
        _LINES % b"Content-Encoding: gzip\r\nContent-Encoding: identity",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nphoto\r\n0\r\n\r\n",
        *(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
            for body in (
                b"zz\r\nx\r\n0\r\n\r\n",
                b"-5\r\nphoto\r\n0\r\n\r\n",
                b"0x5\r\nphoto\r\n0\r\n\r\n",
                b"5 \r\nphoto\r\n0\r\n\r\n",
                b"5\nphoto\n0\n\n",
                b"5\r\nphotos\r\n0\r\n\r\n",
                b"4\r\nphoto\r\n0\r\n\r\n",
                b"5\r\nphoto\r\n",  # no last chunk
                b"5\r\nphoto\r\n0\r\n",  # no end of it
                b"6\r\nphoto\r\n0\r\n\r\n",
                b"\r\nphoto\r\n0\r\n\r\n",
                b"ffffffffff\r\nphoto",
                b"5;" + b"a" * 70_000 + b"\r\nphoto\r\n0\r\n\r\n",
                b"5\r\nphoto\r\n0\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
            )
        ),
        _LINES % (b"X: " + b"a" * 70_000),
        _LINES % b"\r\n".join(b"X-%d: a" % n for n in range(300)),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000 + WHOLE,
        b"HTTP/1.1 302 Found\r\nLocation: //[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\xe9\r\n evil: 1\r\n\r\n",
    ],
)
def test_ambiguous_response_framing_is_an_error(make, stack, answer, budget):
    port = raw_server(stack, lambda connection: connection.sendall(answer))
    fetcher = make(ports=[port])
    with pytest.raises((PhotoServerFailed, AddressNotAllowed)) as caught:
        get(fetcher, f"http://127.0.0.1:{port}/")
    assert "127.0.0.1" not in caught.value.detail
    assert budget.reserved == 0
    assert not fetcher._idle


def test_chunk_extensions_are_limited(make, stack):
    """A server whose chunks have one byte each, behind as much that is none as it likes."""
    sent = []

    def talk(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1;" + b"a" * 1000 + b"\r\nx\r\n")
            sent.append(1)

    port = raw_server(stack, talk)
    with pytest.raises(PhotoServerFailed) as caught:
        get(make(ports=[port]), f"http://127.0.0.1:{port}/")
    assert "no content" in caught.value.cause


def received(data, size):
    """The body's pieces of a response that arrives in pieces of this size."""
    arriving = (data[at : at + size] for at in range(0, len(data), size))
    answer = response.Answer(lambda: next(arriving, b""))
    return list(answer.body(answer.head()))


@pytest.mark.parametrize("size", [1, 23])
def test_small_chunks_are_limited(size):
    """What is no content may be 16 kB and a quarter of the content."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    line = b"%x\r\n" % size
    chunk = line + b"x" * size + b"\r\n"

    def fits(count):
        beside = count * (len(chunk) - size) + len(b"0\r\n")
        return beside <= response.MAX_CHUNK_OVERHEAD_BYTES + count * size // 4

    most = next(count for count in range(1 << 20) if not fits(count + 1))
    assert b"".join(received(head + chunk * most + b"0\r\n\r\n", 65536)) == b"x" * size * most
    with pytest.raises(response.BadAnswer, match="no content"):
        received(head + chunk * (most + 1) + b"0\r\n\r\n", 65536)


@pytest.mark.parametrize(
    "rest", [b"5;%b\r\nphoto\r\n0\r\n\r\n", b"5\r\nphoto\r\n0\r\n%b\r\n\r\n"], ids=["line", "trailer"]
)
def test_chunk_lines_and_trailers_are_limited_to_16_kb(rest):
    """All of them together, without the empty line at the end."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    most = response.MAX_CHUNK_OVERHEAD_BYTES - len(rest % b"") + len(b"photo") + 2 + 5 // 4
    assert b"".join(received(head + rest % (b"x" * most), 65536)) == b"photo"
    with pytest.raises(response.BadAnswer, match="no content"):
        received(head + rest % (b"x" * (most + 1)), 65536)


@pytest.mark.parametrize("size", [65536, 29, 30, 31])
def test_small_chunks_are_joined(size):
    """Wherever their packets end: in pieces of 24 bytes 20 MB would take 60 MB of memory."""
    chunks = (b"18\r\n" + b"x" * 24 + b"\r\n") * 10_000
    pieces = received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n", size)
    assert b"".join(pieces) == b"x" * 240_000
    if size == 65536:
        assert len(pieces) < 10


@pytest.mark.parametrize(
    "first",
    [
        WHOLE + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",  # what nobody asked for
        WHOLE + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Close\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x\r\nConnection: y , close\r\n\r\nphoto",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nphoto",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nphoto\r\n0\r\n\r\nx",
        b"HTTP/1.1 200 OK\nContent-Length: 5\nConnection: keep-alive\n\nphoto",
    ],
)
def test_non_reusable_connection_is_closed(make, stack, first):
    asked = []

    def talk(connection):
        asked.append(connection)
        connection.sendall(first)
        asked.append(connection.recv(65536))  # b"": closed, and no second request

    port = raw_server(stack, talk)
    fetcher = make(ports=[port])
    assert get(fetcher, f"http://127.0.0.1:{port}/") == b"photo"
    assert get(fetcher, f"http://127.0.0.1:{port}/") == b"photo"
    assert asked[1] == b""
    assert asked[2] is not asked[0]


def test_refused_connection_is_a_photo_server_error(make):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(PhotoServerFailed) as caught:
        get(make(ports=[port]), f"http://127.0.0.1:{port}/")
    assert caught.value.detail == PhotoServerFailed.detail
    assert "refused" in caught.value.cause


def test_the_next_address_is_tried_when_one_does_not_answer(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    fetcher = make(look_up=lambda host: [ip_address("::1"), ip_address("127.0.0.1")])
    assert get(fetcher, f"http://both.example:{photo_server.port}/a") == b"photo"


@pytest.mark.parametrize("dead", [client.MAX_ADDRESSES - 1, client.MAX_ADDRESSES])
def test_addresses_that_are_tried_are_limited(make, photo_server, dead):
    """A name may have thousands; ::1 refuses the connection."""
    photo_server.paths["/a"] = b"photo"
    fetcher = make(look_up=lambda host: [ip_address("::1")] * dead + [ip_address("127.0.0.1")])
    url = f"http://many.example:{photo_server.port}/a"
    if dead < client.MAX_ADDRESSES:
        assert get(fetcher, url) == b"photo"
    else:
        with pytest.raises(PhotoServerFailed):
            get(fetcher, url)
    assert photo_server.connections == (dead < client.MAX_ADDRESSES)


def test_ipv6(make, stack):
    server = PhotoServer("::1")
    stack.callback(server.stop)
    server.paths["/a"] = b"photo"
    assert get(make(ports=[server.port]), server.url + "/a") == b"photo"
    assert server.asked[0][1]["Host"] == f"[::1]:{server.port}"


def test_proxies_of_the_environment_are_not_used(make, photo_server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    photo_server.paths["/a"] = b"photo"
    assert get(make(), photo_server.url + "/a") == b"photo"


def test_malformed_response_is_a_photo_server_error(make, stack):
    port = raw_server(stack, lambda connection: connection.sendall(b"ICY 200 OK\r\n\r\nphoto"))
    with pytest.raises(PhotoServerFailed, match="invalid HTTP response"):
        get(make(ports=[port]), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "location", ["http://user:SECRET@127.0.0.1:{port}/", "http://127.0.0.1:99999/?sig=SECRET", "//a\u2100SECRET/"]
)
def test_no_password_or_signature_of_a_redirect_is_in_an_error(make, photo_server, location):
    where = location.format(port=photo_server.port).encode().decode("latin-1")
    photo_server.paths["/a"] = (302, b"", {"Location": where})
    with pytest.raises((AddressNotAllowed, PhotoServerFailed)) as caught:
        get(make(), photo_server.url + "/a")
    assert "SECRET" not in f"{caught.value.detail} {caught.value.cause}".upper()


@pytest.mark.parametrize(
    ("lookup_seconds", "addresses", "refused_after"),
    [
        (0.0025, ["10.1.2.3"], 0.05),
        (0.0056, [], 0.05),
        (0.0001, [], 0.05),
        (0.049, ["10.1.2.3"], 0.05),
        (0.051, [], 0.1),
    ],
)
def test_refusal_time_does_not_reveal_whether_a_name_exists(
    make, photo_server, monkeypatch, lookup_seconds, addresses, refused_after
):
    """By a clock that stands but for the lookup and for what is waited."""
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    class OnItsClock:
        def addresses(self, host, deadline):
            wait(lookup_seconds)
            if not addresses:
                raise NoAddress("it is not there")
            return list(map(ip_address, addresses))

    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    limit = client._Limit(time.monotonic() + 5, lambda: False)
    target = Policy().target("http://inside.example/")
    fetcher = make()
    fetcher._resolver = OnItsClock()
    with pytest.raises(NotAllowed):
        fetcher._addresses(target, limit)
    assert now == [pytest.approx(refused_after)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=photos.example "
        "-addext subjectAltName=DNS:photos.example -addext basicConstraints=critical,CA:TRUE".split(),
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls_server(photo_server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    names = []
    context.sni_callback = lambda sock, name, _: names.append(name)
    photo_server._server.socket = context.wrap_socket(
        photo_server._server.socket, server_side=True, do_handshake_on_connect=False
    )
    photo_server.paths["/a"] = b"photo"
    photo_server.names = names
    return photo_server


def test_tls_checks_the_name_though_it_connects_to_an_address(make, tls_server, certificate):
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    fetcher = make(tls=trusting, look_up=lambda host: [ip_address("127.0.0.1")])
    assert get(fetcher, f"https://photos.example:{tls_server.port}/a") == b"photo"
    assert get(fetcher, f"https://photos.example:{tls_server.port}/a") == b"photo"
    assert tls_server.names == ["photos.example"]
    with pytest.raises(PhotoServerFailed) as caught:
        get(fetcher, f"https://other.example:{tls_server.port}/a")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause


def test_untrusted_certificate_is_refused(make, tls_server):
    fetcher = make(look_up=lambda host: [ip_address("127.0.0.1")])
    with pytest.raises(PhotoServerFailed) as caught:
        get(fetcher, f"https://photos.example:{tls_server.port}/a")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause


def test_a_certificate_needs_a_subject_alternative_name(make, photo_server, stack, tmp_path):
    """RFC 9525: a common name is no name of a server. By the context that the fetcher makes itself."""
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=photos.example "
        "-addext basicConstraints=critical,CA:TRUE".split(),
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    photo_server._server.socket = context.wrap_socket(
        photo_server._server.socket, server_side=True, do_handshake_on_connect=False
    )
    ours = client._tls_context()
    ours.load_verify_locations(tmp_path / "cert.pem")
    with pytest.raises(PhotoServerFailed) as caught:
        get(
            make(tls=ours, look_up=lambda host: [ip_address("127.0.0.1")]),
            f"https://photos.example:{photo_server.port}/",
        )
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause


def test_private_certificate_authority_works_under_python_3_13(make, stack, photo_server, tmp_path, monkeypatch):
    """Its basic constraints are not marked critical, which RFC 5280 asks for and Python 3.13 insists on."""
    (tmp_path / "names").write_text("subjectAltName=DNS:photos.example\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -addext basicConstraints=CA:TRUE",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=photos.example",
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    photo_server._server.socket = served.wrap_socket(
        photo_server._server.socket, server_side=True, do_handshake_on_connect=False
    )
    photo_server.paths["/"] = b"photo"

    def strict(make_context=ssl.create_default_context, **options):
        context = make_context(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(tmp_path / "ca.pem")
        return context

    url = f"https://photos.example:{photo_server.port}/"
    with pytest.raises(PhotoServerFailed) as caught:
        get(make(tls=strict(), look_up=lambda host: [ip_address("127.0.0.1")]), url)
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause
    monkeypatch.setattr(client.ssl, "create_default_context", strict)
    assert get(make(look_up=lambda host: [ip_address("127.0.0.1")]), url) == b"photo"


def test_slow_tls_server_times_out(make, tls_server, certificate):
    def drip_body(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(SLOW_SECONDS / 100)

    tls_server.paths["/slow"] = drip_body
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    fetcher = make(
        tls=trusting,
        look_up=lambda host: [ip_address("127.0.0.1")],
        timeout_seconds=0.4,
    )
    start = time.monotonic()
    with pytest.raises(PhotoServerFailed, match="in time"):
        get(fetcher, f"https://photos.example:{tls_server.port}/slow")
    assert time.monotonic() - start < SLOW_SECONDS / 2


def test_fetch_results_are_counted(make, photo_server):
    counted = []
    photo_server.paths["/a"] = b"photo"
    fetcher = make(count=counted.append)
    get(fetcher, photo_server.url + "/a")
    for url in (photo_server.url + "/none", "http://10.0.0.1/"):
        with pytest.raises((PhotoServerFailed, AddressNotAllowed)):
            get(fetcher, url)
    assert counted == ["ok", "failed", "not_allowed"]


def test_a_redirect_leads_to_allowed_hosts_only(make, photo_server):
    photo_server.paths["/a"] = b"photo"
    photo_server.paths["/to-b"] = (
        302,
        b"",
        {"Location": f"http://b.example:{photo_server.port}/a"},
    )
    photo_server.paths["/to-c"] = (
        302,
        b"",
        {"Location": f"http://c.test:{photo_server.port}/a"},
    )
    fetcher = make(look_up=lambda host: [ip_address("127.0.0.1")], hosts=("*.example",))
    assert get(fetcher, f"http://a.example:{photo_server.port}/to-b") == b"photo"
    with pytest.raises(AddressNotAllowed):
        get(fetcher, f"http://a.example:{photo_server.port}/to-c")
    assert [path for path, _ in photo_server.asked] == ["/to-b", "/a", "/to-c"]


@pytest.fixture
def proxy(stack):
    proxy = ConnectProxy()
    stack.callback(proxy.stop)
    return proxy


def test_proxy_receives_the_checked_address(make, photo_server, proxy):
    photo_server.paths |= {"/a": b"photo", "/to-a": (302, b"", {"Location": "/a"})}
    fetcher = make(look_up=lambda host: [ip_address("127.0.0.1")], proxy=proxy.address)
    for _ in range(3):
        assert get(fetcher, f"http://photos.example:{photo_server.port}/a") == b"photo"
    assert proxy.asked == [f"CONNECT 127.0.0.1:{photo_server.port}"]  # one tunnel, used again
    assert get(fetcher, f"http://photos.example:{photo_server.port}/to-a") == b"photo"
    assert {headers["Host"] for _, headers in photo_server.asked} == {f"photos.example:{photo_server.port}"}
    assert photo_server.connections == len(proxy.asked)


def test_tls_through_the_proxy_verifies_the_host_name(make, tls_server, certificate, proxy):
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    fetcher = make(
        tls=trusting,
        look_up=lambda host: [ip_address("127.0.0.1")],
        proxy=proxy.address,
    )
    assert get(fetcher, f"https://photos.example:{tls_server.port}/a") == b"photo"
    assert tls_server.names == ["photos.example"]
    with pytest.raises(PhotoServerFailed) as caught:
        get(fetcher, f"https://other.example:{tls_server.port}/a")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.cause
    assert set(proxy.asked) == {f"CONNECT 127.0.0.1:{tls_server.port}"}


def test_forbidden_url_does_not_reach_the_proxy(make, photo_server, proxy):
    photo_server.paths["/inside"] = (302, b"", {"Location": "http://169.254.169.254/"})
    fetcher = make(look_up=lambda host: [ip_address("10.0.0.1")], proxy=proxy.address, ports=(80,))
    for url in (
        "http://10.0.0.1/",
        "http://inside.example/",
        photo_server.url + "/inside",
    ):
        with pytest.raises(AddressNotAllowed):
            get(fetcher, url)
    assert proxy.asked == [f"CONNECT 127.0.0.1:{photo_server.port}"]


def test_refusing_or_unreachable_proxy_is_an_error(make, photo_server, proxy):
    photo_server.paths["/a"] = b"photo"
    proxy.status = "403 Forbidden"
    with pytest.raises(PhotoServerFailed) as caught:
        get(make(proxy=proxy.address), photo_server.url + "/a")
    assert "403" in caught.value.cause
    with pytest.raises(PhotoServerFailed):
        get(make(proxy=("127.0.0.1", 1)), photo_server.url + "/a")
    assert not photo_server.asked


def test_proxy_variables_of_the_environment_are_not_used(make, photo_server, proxy, monkeypatch):
    photo_server.paths["/a"] = b"photo"
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, "http://{}:{}".format(*proxy.address))
    assert get(make(), photo_server.url + "/a") == b"photo"
    assert not proxy.asked
