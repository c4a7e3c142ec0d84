"""The short parser of forms beside werkzeug's: where it takes a form at all, it finds the same files in it."""

from __future__ import annotations

import pytest
from fakes import multipart
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clothing_gateway.web import multipart as parsing

BOUNDARIES = ("b0undary", "----WebKitFormBoundaryAbC123", "------------------------3a1d2f4b5c6e7f80", "a+b", "x")


def both(content_type, body):
    return parsing.plain_files(content_type, body, "image"), parsing.any_files(content_type, body, "image")


# What files hold that looks like a form: the pieces of which both parsers' mistakes are made.
piece = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"--", b"-", b"\x00", b"\xff\xd8", b" ", b"\t", *(b.encode() for b in BOUNDARIES)]
)
small = st.lists(piece | st.binary(max_size=8), max_size=8).map(b"".join)
# werkzeug reads 64 KiB at a time: a file may end anywhere in that.
data = small | st.builds(lambda size, end: b"\xfe" * size + end, st.integers(65_200, 65_540), small)
quoted = st.text("abimg. ()\\\"%;é'=\r\n", max_size=6) | st.just("image")


@st.composite
def part(draw):
    disposition = draw(st.sampled_from(["Content-Disposition: form-data", "content-disposition:form-data", "X: y"]))
    line = disposition
    if draw(st.integers(0, 9)):
        line += f'; name="{draw(st.just("image") | quoted)}"'
    if draw(st.integers(0, 9)):
        line += f'; filename="{draw(quoted)}"'
    if not draw(st.integers(0, 9)):
        line += draw(st.sampled_from(["; filename*=UTF-8''a.jpg", "; name=image", "; size=1", ";", " "]))
    headers = [line]
    more = ["Content-Type: image/jpeg", "Content-Type: text/plain; charset=utf-8", "Content-Length: 3", " folded", "X"]
    headers += draw(st.lists(st.sampled_from(more), max_size=2))
    return "\r\n".join(headers).encode(), draw(data)


@st.composite
def forms(draw):
    """Forms as clients write them, most of them, and forms with a thing or two wrong."""
    boundary = draw(st.sampled_from(BOUNDARIES))
    start = b"--" + draw(st.just(boundary) | st.sampled_from(BOUNDARIES)).encode()
    newline = draw(st.just(b"\r\n") | st.sampled_from([b"\n", b"\r", b" \r\n"]))
    body = draw(st.just(b"") | st.sampled_from([b"\r\n", b"preamble\r\n", b"x"]))
    for head, content in draw(st.lists(part(), max_size=3)):
        body += start + newline + head + b"\r\n\r\n" + content + newline
    body += start + draw(st.just(b"--\r\n") | st.sampled_from([b"--", b"", b"--\r\nmore", b"-", b"\r\n"]))
    cut = draw(st.none() | st.integers(0, len(body)))
    form_type = draw(
        st.just(f"multipart/form-data; boundary={boundary}")
        | st.sampled_from(
            [
                f'multipart/form-data; boundary="{boundary}"',
                f"multipart/form-data;boundary={boundary}",
                f"Multipart/Form-Data; Boundary={boundary}",
                f'multipart/form-data; boundary="{boundary}',
                f"multipart/form-data; charset=utf-8; boundary={boundary}",
                f"multipart/form-data; boundary={boundary}; boundary=x",
                f"multipart/form-data; boundary={boundary} ",
                "multipart/form-data",
            ]
        )
    )
    return form_type, body[:cut]


@settings(max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(forms())
@example(("multipart/form-data; boundary=x", b"--x--"))
@example(
    (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename=""\r\n\r\n--x--',
    )
)
def test_a_plain_form_is_read_as_werkzeug_reads_it(given_form):
    plain, any_ = both(*given_form)
    assert plain is None or plain == any_


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(BOUNDARIES), st.lists(st.tuples(st.sampled_from(["image", "other"]), data), min_size=1, max_size=4)
)
def test_what_clients_send_is_plain(boundary, parts):
    body, content_type = multipart(*((name, "a photo (1).jpg", content) for name, content in parts), boundary=boundary)
    wanted = [content for name, content in parts if name == "image"]
    plain, any_ = both(content_type, body)
    if not any(boundary.encode() in content for _, content in parts):
        assert plain == wanted
        assert any_ == wanted
    assert plain in (None, any_)


HEAD = b'Content-Disposition: form-data; name="image"; filename="a.jpg"\r\n'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        # curl, requests, browsers, Go
        (
            "multipart/form-data; boundary=------------------------d74496d66958873e",
            HEAD + b"Content-Type: image/jpeg\r\n",
        ),
        ("multipart/form-data; boundary=0b8f6c1e2d3a4f5b6c7d8e9fa0b1c2d3", HEAD),
        ("multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", HEAD + b"Content-Type: image/png\r\n"),
        ("multipart/form-data; boundary=---------------------------9051914041544843365972754266", HEAD),
        ('multipart/form-data; boundary="b"', HEAD + b"Content-Type: application/octet-stream\r\n"),
    ],
)
def test_the_forms_of_common_clients(content_type, body):
    delimiter = b"--" + content_type.split("=")[1].strip('"').encode()
    whole = delimiter + b"\r\n" + body + b"\r\n\xff\xd8photo\r\n" + delimiter + b"--\r\n"
    assert both(content_type, whole) == ([b"\xff\xd8photo"],) * 2


@pytest.mark.parametrize(
    ("content_type", "body", "files"),
    [
        # a field that is no file, a name in another alphabet, no quotes, line feeds alone
        (
            "b",
            b'--b\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--b\r\n' + HEAD + b"\r\nx\r\n--b--",
            [b"x"],
        ),
        ("b", '--b\r\nContent-Disposition: form-data; name="image"; filename="é"\r\n\r\nx\r\n--b--'.encode(), [b"x"]),
        ("b", b"--b\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nx\r\n--b--", [b"x"]),
        ("b", b"--b\n" + HEAD.replace(b"\r", b"") + b"\nx\n--b--", [b"x"]),
        ("b", b"--b\r\n" + HEAD + b"\r\nx--b\r\n--b--\r\n", [b"x--b"]),
        ("b", b"preamble\r\n--b\r\n" + HEAD + b"\r\nx\r\n--b--\r\nepilogue", [b"x"]),
        ("b; charset=utf-8", b"--b\r\n" + HEAD + b"\r\nx\r\n--b--", [b"x"]),
        ("b", b"--b\r\n" + HEAD + b"\r\nx", []),
        ("b", b"", []),
        ("", b"--b\r\n", []),
    ],
)
def test_the_rest_is_left_to_werkzeug(content_type, body, files):
    content_type = f"multipart/form-data; boundary={content_type}"
    assert parsing.plain_files(content_type, body, "image") is None
    assert parsing.files(content_type, body, "image") == files
