"""Parser of a photo server's response, by RFC 9112.

http.client parses heads with Python's parser for e-mail: it takes folded lines, mixed line ends, two lengths, and costs
more than all the rest of a fetch. This takes what servers really send, and nothing that two parsers could read in two
ways: a server that writes so may mean something else with the next response on the same connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

# IANA's HTTP content codings that change the bytes. Others say how an object was stored (aws-chunked), or nothing.
COMPRESSIONS = frozenset(
    {"br", "compress", "dcb", "dcz", "deflate", "exi", "gzip", "pack200-gzip", "x-compress", "x-gzip", "zstd"}
)
# As many as the gateway takes from clients. Interim responses count, and what is between chunks.
MAX_HEAD_BYTES = 64 * 1024
# Chunks' sizes, line ends and extensions, and trailers. Beyond these, a byte for each four of content: chunks of 24
# bytes on average, and servers write hundreds.
MAX_CHUNK_OVERHEAD_BYTES = 16 * 1024
_CONTENT_FOR_OVERHEAD = 4
# Small chunks are joined up to this size.
_PIECE_BYTES = 64 * 1024
# As in http.client.
MAX_FIELDS = 100

# Possessive quantifiers (++, *+): a head that doesn't fit is refused in one pass.
_TEXT = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_LINE = _TOKEN + rb":" + _TEXT + rb"\r\n"
_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: " + _TEXT + rb")?\r\n(?:" + _LINE + rb")*+")
# The fields that the end of the response, its coding and a redirect depend on.
_FIELDS = re.compile(
    rb"\n(content-length|transfer-encoding|connection|content-encoding|location):[ \t]*+([^\r]*)", re.IGNORECASE
)
_LENGTH = re.compile(rb"[0-9]{1,15}")
# Of a Location: servers write it in UTF-8 and with blanks, and browsers follow it so.
_ENCODED = re.compile(rb"[\x20\x80-\xff]")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*+;" + _TEXT + rb")?")


class BadAnswer(ValueError):
    """The response is not HTTP/1.0 or 1.1, or ambiguous."""


class NoAnswer(ConnectionError):
    """The connection was closed before a response began."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and header fields of a response."""

    status: int
    length: int | None  # the body's; None for chunks, or until the connection is closed
    chunked: bool
    encodings: frozenset[str]  # the tokens of Content-Encoding in lower case, of which some name no compression
    location: str | None
    reusable: bool  # whether the connection may serve another request after the body


def parse(data: bytes) -> Head:
    """Parse a head: each line with its end, without the empty one. Raise BadAnswer."""
    match = _HEAD.fullmatch(data)
    if match is None:
        raise BadAnswer("the head is no head of HTTP/1.0 or 1.1")
    if data.count(b"\n") > MAX_FIELDS + 1:
        raise BadAnswer(f"more than {MAX_FIELDS} header fields")
    fields: dict[bytes, bytes] = {}
    for found, raw in _FIELDS.findall(data):
        name, value = found.lower(), raw.rstrip(b" \t")
        if name == b"connection" and name in fields:
            value = fields[name] + b"," + value
        elif fields.get(name, value) != value:
            raise BadAnswer(f"{name.decode()} is there twice")
        elif name in fields and name == b"transfer-encoding":
            raise BadAnswer("chunks within chunks")
        fields[name] = value
    old = match[1] == b"0"
    length = fields.get(b"content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadAnswer("the length is no number")
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or old or length is not None):
        raise BadAnswer("a transfer encoding that is not chunked, or beside a length, or in HTTP/1.0")
    options = {option.strip(b" \t").lower() for option in fields.get(b"connection", b"").split(b",")}
    location = fields.get(b"location")
    return Head(
        status=int(match[2]),
        length=None if length is None else int(length),
        chunked=coding is not None,
        encodings=tokens(fields.get(b"content-encoding", b"").decode("latin-1")),
        location=_ENCODED.sub(lambda byte: b"%%%02X" % byte[0][0], location).decode("ascii") if location else None,
        reusable=(length or coding) is not None and (b"keep-alive" in options if old else b"close" not in options),
    )


def tokens(value: str) -> frozenset[str]:
    """Return a comma-separated field's elements in lower case (RFC 9110, 5.6.1)."""
    return frozenset(token.strip() for token in value.lower().split(","))


class Answer:
    """One response: first its head, then its body in pieces."""

    def __init__(self, receive: Callable[[], bytes]) -> None:
        self._receive = receive  # the next bytes of the connection; empty at its end
        self._rest = b""  # what has been received, and is consumed up to an offset: a copy for each chunk costs more
        self._at = 0
        self._overhead = 0

    @property
    def surplus(self) -> bool:
        """Whether bytes follow the response: the connection must not be reused."""
        return bool(self._rest)

    def head(self) -> Head:
        """Return the final response's head; interim responses (100, 103) are skipped."""
        self._rest = self._receive()
        if not self._rest:
            raise NoAnswer("the connection ended without an answer")
        if self._ends_lines_in_line_feeds():
            # RFC 9112 2.2 allows to read it; only as a whole, and the connection is used for nothing else.
            data = self._until(b"\n\n") + b"\n"
            if b"\r" in data:
                raise BadAnswer("lines that end in two ways")
            head = replace(parse(data.replace(b"\n", b"\r\n")), reusable=False)
            if head.status // 100 == 1 or head.chunked:
                raise BadAnswer("chunks or an interim response, with lines that end in line feeds")
            return head
        while True:
            head = parse(self._until(b"\r\n\r\n") + b"\r\n")
            if head.status // 100 != 1 or head.status == 101:
                return head

    def _ends_lines_in_line_feeds(self) -> bool:
        while (end := self._rest.find(b"\n")) < 0 and len(self._rest) <= MAX_HEAD_BYTES:
            more = self._receive()
            if not more:
                break
            self._rest += more
        return end >= 0 and self._rest[end - 1 : end] != b"\r"

    def body(self, head: Head) -> Iterator[bytes]:
        """Yield the body's pieces; raise BadAnswer where it ends early."""
        if head.chunked:
            yield from self._chunks()
        elif head.length is not None:
            yield from self._take(head.length)
        else:
            data = self._rest[self._at :] or self._receive()
            self._rest, self._at = b"", 0
            while data:
                yield data
                data = self._receive()

    def _take(self, length: int) -> Iterator[bytes]:
        left = length
        while left > 0:
            if not self._rest:
                self._rest = self._receive()
                if not self._rest:
                    raise BadAnswer(f"{left} of {length} bytes are missing")
            data = self._rest[self._at : self._at + left]  # no copy where it is all of it
            self._consume(self._at + len(data))
            left -= len(data)
            yield data

    def _consume(self, end: int) -> None:
        if end < len(self._rest):
            self._at = end
        else:
            self._rest, self._at = b"", 0

    def _chunks(self) -> Iterator[bytes]:
        """Yield the content of chunks, those that arrived together as one piece.

        Each chunk's own bytes object would take 50 bytes more than it holds.
        """
        content = ready = 0
        pieces: list[bytes] = []
        self._overhead = max(self._overhead, MAX_HEAD_BYTES - MAX_CHUNK_OVERHEAD_BYTES)
        while size := self._chunk_size(content):
            for piece in self._take(size):
                pieces.append(piece)
                ready += len(piece)
                if not self._rest or ready >= _PIECE_BYTES:
                    yield b"".join(pieces)
                    pieces, ready = [], 0
            content += size
            if self._until(b"\r\n", content):
                raise BadAnswer("a chunk longer than its length")
        if pieces:
            yield b"".join(pieces)
        while self._until(b"\r\n", content):
            pass  # trailers are not used

    def _chunk_size(self, content: int) -> int:
        match = _CHUNK.fullmatch(self._until(b"\r\n", content))
        if match is None:
            raise BadAnswer("a chunk without a length")
        return int(match[1], 16)

    def _until(self, mark: bytes, content: int = 0) -> bytes:
        """Consume up to a delimiter, and return what is before it.

        The length is bounded by the content so far, so that it ends, and chunks of few bytes do: each costs 2 us.
        """
        limit = MAX_HEAD_BYTES + content // _CONTENT_FOR_OVERHEAD - self._overhead
        start, seen = self._at, self._at
        while (end := self._rest.find(mark, seen)) < 0 and len(self._rest) - start <= limit:
            more = self._receive()
            if not more:
                raise BadAnswer("the connection ended within the answer")
            self._rest = self._rest[start:] + more
            start, seen = 0, max(len(self._rest) - len(more) - len(mark) + 1, 0)
        if not 0 <= end - start <= limit:
            raise BadAnswer(f"more than {MAX_HEAD_BYTES} bytes that are no content")
        found = self._rest[start:end]
        self._overhead += end + len(mark) - start
        self._consume(end + len(mark))
        return found
