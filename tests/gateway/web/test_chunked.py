"""Chunked bodies: what is valid, what is not, and the limits of what is no content."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clothing_gateway.web.chunked import MAX_LINE_BYTES, MAX_OVERHEAD_BYTES, MAX_TRAILER_BYTES, ChunkedBody


class Buffer:
    def __init__(self):
        self.data = b""
        self.appended = 0

    def append(self, data):
        self.data += data
        self.appended += 1

    def __len__(self):
        return len(self.data)

    def getfile(self):
        return io.BytesIO(self.data)


def receive(data, pieces=None):
    """The body's reader after the data, and how much of it was taken."""
    body, taken = ChunkedBody(Buffer()), 0
    for piece in pieces or [data]:
        if body.completed or body.error:
            break
        taken += body.received(piece)
    return body, taken


def encoded(chunks, extension=b"", trailer=b""):
    return b"".join(b"%x%b\r\n%b\r\n" % (len(one), extension, one) for one in chunks) + b"0\r\n" + trailer + b"\r\n"


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=20),
    st.sampled_from([b"", b";a", b" ;a=b", b';a="b c"']),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]),
    st.integers(1, 50),
)
def test_content_is_the_same_in_pieces_of_any_size(chunks, extension, trailer, size):
    data = encoded(chunks, extension, trailer)
    following = b"GET / HTTP/1.1\r\n"
    body, taken = receive(data + following)
    assert (body.error, body.completed, taken) == (None, True, len(data))
    assert body.getfile().read() == b"".join(chunks)
    body, _ = receive(data, [data[at : at + size] for at in range(0, len(data), size)])
    assert (body.error, body.completed, body.getbuf().data) == (None, True, b"".join(chunks))
    assert len(body) == len(b"".join(chunks))


def test_one_packet_is_appended_once():
    body, _ = receive(encoded([b"x"] * 1000))
    assert body.buf.appended == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n0\r\n\r\n",
        b"zz\r\n",
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 1\r\nx\r\n",
        b"1\nx\r\n",
        b"1\r\r\nx\r\n",
        b"2\r\nxyz\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"1;a=\x00\r\nx\r\n",
        b"1 a\r\nx\r\n",
        b"1" * 16 + b"\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n\n",
    ],
)
def test_malformed_chunks(data):
    assert receive(data)[0].error
    assert receive(data, [bytes([one]) for one in data])[0].error


def test_chunk_size_line_is_limited_to_1_kb():
    line = b"1;" + b"a" * (MAX_LINE_BYTES - 4)
    body, _ = receive(line + b"\r\nx\r\n0\r\n\r\n")
    assert body.completed
    assert receive(line + b"a\r\nx\r\n0\r\n\r\n")[0].error
    body = ChunkedBody(Buffer())
    for _ in range(MAX_LINE_BYTES // 20):
        body.received(b"1" * 20)
        assert body.error is None
    body.received(b"1" * 20)
    assert body.error


@pytest.mark.parametrize("lines", [1, 8])
def test_trailer_is_limited_to_8_kb(lines):
    size = MAX_TRAILER_BYTES // lines
    line = b"X: " + b"a" * (size - 5) + b"\r\n"
    last = b"X: " + b"a" * (size - 7) + b"\r\n"
    body, _ = receive(encoded([], trailer=line * (lines - 1) + last))
    assert body.completed
    assert receive(encoded([], trailer=line * (lines - 1) + last.replace(b"X", b"XX")))[0].error
    assert receive(b"0\r\nX:" + b"a" * MAX_TRAILER_BYTES)[0].error


@pytest.mark.parametrize("size", [1, 5, 23])
def test_small_chunks_are_limited(size):
    """What is no content may be 16 kB and a quarter of the content."""
    line = b"%x\r\n" % size
    chunk = line + b"x" * size + b"\r\n"

    def fits(count):
        return count * (len(chunk) - size) + len(line) <= MAX_OVERHEAD_BYTES + count * size // 4

    most = next(count for count in range(1 << 20) if not fits(count + 1))
    assert receive(chunk * most + line)[0].error is None
    assert receive(chunk * (most + 1) + line)[0].error


def test_chunks_of_24_bytes_are_not_limited():
    assert receive(encoded([b"x" * 24] * 40_000))[0].completed
