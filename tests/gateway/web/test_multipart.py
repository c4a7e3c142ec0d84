"""Forms as clients send them, and malformed ones."""

from __future__ import annotations

from contextlib import suppress

import pytest
from fakes import multipart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clothing_gateway.errors import BadRequest, NoPhoto, TooLarge, UnsupportedMediaType
from clothing_gateway.web.multipart import files

BOUNDARIES = ("b0undary", "----WebKitFormBoundaryAbC123", "------------------------3a1d2f4b5c6e7f80", "a+b", "x")
FIELD = b'Content-Disposition: form-data; name="image"'
FILE = FIELD + b'; filename="a.jpg"'

# What files hold that looks like a form.
piece = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"--", b"-", b"\x00", b"\xff\xd8", b" ", b"\t", *(b.encode() for b in BOUNDARIES)]
)
data = st.lists(piece | st.binary(max_size=8), max_size=8).map(b"".join)


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(BOUNDARIES), st.lists(st.tuples(st.sampled_from(["image", "other"]), data), min_size=1, max_size=4)
)
def test_every_file_of_the_field_is_found(boundary, parts):
    if any(f"\r\n--{boundary}".encode() in b"\r\n" + content for _, content in parts):
        return  # no client chooses a boundary that its files contain
    body, content_type = multipart(*((name, "a photo (1).jpg", content) for name, content in parts), boundary=boundary)
    expected = [content for name, content in parts if name == "image" and content]
    if expected:
        assert files(content_type, body, "image") == expected
    else:
        with pytest.raises(NoPhoto):
            files(content_type, body, "image")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(piece | st.sampled_from([b"--x\r\n", b"--x--", FILE, b"\r\n\r\n"]), max_size=12).map(b"".join))
def test_malformed_bodies_raise_only_our_errors(body):
    with suppress(BadRequest, TooLarge, UnsupportedMediaType):
        assert all(isinstance(file, bytes) for file in files("multipart/form-data; boundary=x", body, "image"))


@pytest.mark.parametrize(
    ("content_type", "head"),
    [
        # curl, requests, browsers, Go
        ("boundary=------------------------d74496d66958873e", FILE + b"\r\nContent-Type: image/jpeg"),
        ("boundary=0b8f6c1e2d3a4f5b6c7d8e9fa0b1c2d3", FILE),
        ("boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", FILE + b"\r\nContent-Type: image/png"),
        ("boundary=---------------------------9051914041544843365972754266", FILE),
        ('boundary="b"', FILE + b"\r\nContent-Type: application/octet-stream"),
        ("charset=utf-8; boundary=b", FILE),
        ("Boundary=b", FILE.lower()),
        ("boundary=b", b"Content-Disposition: form-data; name=image; filename=a"),  # .NET
        ("boundary=b", FIELD + b"; filename=\"a\"; filename*=UTF-8''a.jpg"),
        ("boundary=b", FIELD + '; filename="é"'.encode()),
        ("boundary=b", FIELD + '; filename="é"'.encode("latin-1")),
        ("boundary=b", FIELD + b'; filename="C:\\a\\b.jpg"'),
        ("boundary=b", FIELD + b'; filename="a%22b.jpg"'),
        ("boundary=b", b"Content-Length: 6\r\n" + FILE + b"\r\nContent-Transfer-Encoding: binary"),
        ("boundary=b", FIELD),  # a form field without a file name: curl -F 'image=<photo.jpg'
    ],
)
@pytest.mark.parametrize("preamble", [b"", b"\r\n", b"preamble\r\n"])
def test_forms_of_common_clients(content_type, head, preamble):
    delimiter = b"--" + content_type.split("=")[-1].strip('"').encode()
    body = preamble + delimiter + b"\r\n" + head + b"\r\n\r\n\xff\xd8phot\r\n" + delimiter + b"--\r\nepilogue"
    assert files(f"Multipart/Form-Data; {content_type}", body, "image") == [b"\xff\xd8phot"]


def test_field_beside_a_long_text_field():
    photo, text = b"\xff" * 600_000, b"t" * 600_000
    body = b"--b\r\nContent-Disposition: form-data; name=text\r\n\r\n" + text + b"\r\n--b\r\n" + FIELD
    assert files("multipart/form-data; boundary=b", body + b"\r\n\r\n" + photo + b"\r\n--b--", "image") == [photo]


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_missing_boundary_has_a_message_of_its_own(content_type):
    with pytest.raises(BadRequest, match="has no boundary; let your client library set it"):
        files(content_type, b"--b\r\n", "image")


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" + FILE + b"\r\n\r\nx",  # cut off
        b"--b\r\n" + FILE + b"\r\n\r\nx\r\n--b",
        b"--c\r\n" + FILE + b"\r\n\r\nx\r\n--c--",
        b"--b\n" + FILE + b"\n\nx\n--b--",
        b"--b\r\nContent-Type: image/jpeg\r\n\r\nx\r\n--b--",
        b"x",
    ],
)
def test_malformed_form_is_400(body):
    with pytest.raises(BadRequest, match="malformed or cut off"):
        files("multipart/form-data; boundary=b", body, "image")


def test_an_empty_form_has_no_photo():
    for body in (b"", b"--b--\r\n"):
        with pytest.raises(NoPhoto):
            files("multipart/form-data; boundary=b", body, "image")


@pytest.mark.parametrize(
    ("parts", "detail"),
    [
        ([("file", "a.jpg", b"x")], 'The form has "file" but no "image"; rename the field.'),
        ([("photo", "", b"x")], 'The form has "photo" but no "image"; rename the field.'),
        ([("images[]", "a.jpg", b"x")], 'The form has "images[]" but no "image"; rename the field.'),
        ([("Image", "a.jpg", b"x")], 'The form has "Image" but no "image"; rename the field.'),
        ([("text", None, b"x"), ("bild", "a.jpg", b"x")], 'The form has "bild" but no "image"; rename the field.'),
        ([("größe", None, b"x")], 'The form has "größe" but no "image"; rename the field.'),
        ([("n" * 1000, None, b"x")], f'The form has "{"n" * 40}" but no "image"; rename the field.'),
        ([("image", "a.jpg", b""), ("text", None, b"x")], "The form's \"image\" is empty; send the photo's bytes."),
    ],
)
def test_form_without_a_photo_names_the_mistake(parts, detail):
    body = b""
    for name, filename, content in parts:
        head = f'name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
        body += f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
    with pytest.raises(NoPhoto) as caught:
        files("multipart/form-data; boundary=b", body + b"--b--\r\n", "image")
    assert caught.value.detail == detail


@pytest.mark.parametrize("encoding", ["base64", "BASE64", "quoted-printable"])
def test_base64_photo_is_named_in_the_error(encoding):
    head = FILE + b"\r\nContent-Transfer-Encoding: " + encoding.encode()
    with pytest.raises(UnsupportedMediaType, match=f"is in {encoding.lower()}; send its bytes as they are"):
        files("multipart/form-data; boundary=b", b"--b\r\n" + head + b"\r\n\r\n/9j/4A==\r\n--b--", "image")


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7bit", "x-unknown"])
def test_content_transfer_encoding_of_a_part_is_ignored(encoding):
    head = FILE + b"\r\nContent-Transfer-Encoding: " + encoding.encode()
    body = b"--b\r\n" + head + b"\r\n\r\n\xff\xd8\r\n--b--"
    assert files("multipart/form-data; boundary=b", body, "image") == [b"\xff\xd8"]


def form_of(parts):
    return b"".join(b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n' for _ in range(parts)) + b"--b--"


def test_form_is_limited_to_a_thousand_parts():
    assert files("multipart/form-data; boundary=b", form_of(1000), "f") == [b"x"] * 1000
    with pytest.raises(TooLarge, match="too many parts"):
        files("multipart/form-data; boundary=b", form_of(1001), "f")


def test_part_headers_are_limited_to_eight_of_4_kb():
    def form(headers, size):
        head = b"".join(b"X-%d: %s\r\n" % (number, b"x" * size) for number in range(headers))
        return b"--b\r\n" + head + FILE + b"\r\n\r\nx\r\n--b--"

    most = 4096 + 128 - len(b"X-0: ")  # the library's own limit
    assert files("multipart/form-data; boundary=b", form(7, most), "image") == [b"x"]
    for headers, size in ((8, most), (7, most + 1)):
        with pytest.raises(TooLarge):
            files("multipart/form-data; boundary=b", form(headers, size), "image")
