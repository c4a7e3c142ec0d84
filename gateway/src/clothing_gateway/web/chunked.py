"""Chunked request bodies (RFC 9112, section 7.1).

They are read in linear time and with bounded overhead.

waitress's own receiver copies the rest of a piece three times for each chunk, and a control line or trailer without end
at each packet: 1 MB/s of one-byte chunks, or 20 bytes a packet behind a line of 18 MB, took a core.
"""

from __future__ import annotations

import re
from typing import Any

# A chunk's size with its extensions: clients send some ten bytes.
MAX_LINE_BYTES = 1024
MAX_TRAILER_BYTES = 8 * 1024
# Sizes, line ends and extensions: no client sends chunks of a byte for long. Beyond these, a byte for each four of
# content: chunks of 24 bytes on average, each of which costs 2 us in the event loop.
MAX_OVERHEAD_BYTES = 16 * 1024
_CONTENT_FOR_OVERHEAD = 4

# A possessive quantifier (*+): a line that doesn't match is refused in one pass.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*+(?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+)?\r\n")


class ChunkedBody:
    """Receiver of a chunked body, with the interface of waitress's receivers."""

    def __init__(self, buf: Any) -> None:  # noqa: ANN401 - waitress's buffers
        self.buf = buf
        self.completed = False
        self.error: str | None = None  # why the body is malformed
        self._line = b""  # a line whose end has not arrived
        self._left = 0  # bytes of the current chunk
        self._ends_chunk = False  # whether the next line is the end of a chunk
        self._trailer = False  # whether the last chunk has arrived
        self._trailer_bytes = 0
        self._content = 0
        self._overhead = 0

    def __len__(self) -> int:
        return len(self.buf)

    def getbuf(self) -> Any:  # noqa: ANN401 - as above
        """The buffer of the content."""
        return self.buf

    def getfile(self) -> Any:  # noqa: ANN401 - as above
        """The content as a file."""
        return self.buf.getfile()

    def received(self, data: bytes) -> int:
        """Take in data; the number of bytes that belong to the body."""
        at, pieces = 0, list[bytes]()
        while at < len(data) and not self.completed and self.error is None:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._content += len(piece)
                self._ends_chunk = not self._left
                continue
            end = data.find(b"\n", at) + 1
            self._line += data[at : end or len(data)]
            at = end or len(data)
            if len(self._line) > (MAX_TRAILER_BYTES if self._trailer else MAX_LINE_BYTES):
                self.error = "a chunk's line is too long"
            elif end:
                line, self._line = self._line, b""
                self._read(line)
        if pieces:
            self.buf.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return at

    def _read(self, line: bytes) -> None:
        """A line: a chunk's size, the end of a chunk, or a part of the trailer."""
        self._overhead += len(line)
        if self._ends_chunk:
            self._ends_chunk = False
            if line != b"\r\n":
                self.error = "a chunk is longer than its size"
        elif self._trailer:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES or not _TRAILER.fullmatch(line):
                self.error = "the trailer is too long or malformed"
            self.completed = self.error is None and line == b"\r\n"
        else:
            size = _SIZE.fullmatch(line)
            if size is None:
                self.error = "a chunk's size is malformed"
            elif self._overhead > self._content // _CONTENT_FOR_OVERHEAD + MAX_OVERHEAD_BYTES:
                self.error = "the chunks are too small"
            else:
                self._left = int(size[1], 16)
                self._trailer = not self._left
