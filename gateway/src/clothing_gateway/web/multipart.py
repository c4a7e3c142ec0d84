"""The files in a multipart form, cut out of a body that is in memory.

werkzeug's parser takes anything that a client may mean by a form, a piece at a time, which costs a third of a photo's
other work. What clients really send (browsers, curl, the HTTP libraries) is plain: this takes exactly that, and gives
everything else to werkzeug. tests/gateway/web/test_multipart.py compares the two over generated forms.
"""

from __future__ import annotations

import io
import re
from typing import IO

from werkzeug.wrappers import Request

# RFC 2046, 5.1.1, without the characters that would need care: a blank, and what only a quoted string may hold.
_CONTENT_TYPE = re.compile(r'multipart/form-data; ?boundary=("?)([A-Za-z0-9_.+-]{1,70})\1')
# One file's headers: no escapes (%, \), no parameters but these two, and nothing that changes what the data means.
_PART = re.compile(
    rb'\r\nContent-Disposition: form-data; name="([A-Za-z0-9_.-]*)"; filename="[A-Za-z0-9_. ()+,@=-]*"'
    rb"(?:\r\nContent-Type: [A-Za-z0-9.+/-]+)?\r\n\r\n",
    re.IGNORECASE,
)
_END = (b"--", b"--\r\n")


class _MemoryRequest(Request):
    """A request whose uploads stay in memory: they are there already, and a read-only root has no place for files."""

    def _get_file_stream(self, *_: object, **__: object) -> IO[bytes]:
        return io.BytesIO()


def files(content_type: str, body: bytes, field: str) -> list[bytes]:
    """The files of a field, in their order; none where the body is no form."""
    plain = plain_files(content_type, body, field)
    return any_files(content_type, body, field) if plain is None else plain


def plain_files(content_type: str, body: bytes, field: str) -> list[bytes] | None:
    """The same of a plain form that has nothing but files; None where it may be something else."""
    kind = _CONTENT_TYPE.fullmatch(content_type)
    if kind is None:
        return None
    delimiter = b"--" + kind[2].encode("ascii")
    wanted = field.encode("ascii")
    if not body.startswith(delimiter):
        return None
    found: list[bytes] = []
    at = len(delimiter)
    while True:
        part = _PART.match(body, at)
        if part is None:
            return None
        # Wherever it stands: a file that holds the delimiter is werkzeug's to judge.
        end = body.find(delimiter, part.end())
        if end < part.end() + 2 or body[end - 2 : end] != b"\r\n":
            return None
        if part[1] == wanted:
            found.append(body[part.end() : end - 2])
        at = end + len(delimiter)
        if body[at : at + 5] in _END:
            return found


def any_files(content_type: str, body: bytes, field: str) -> list[bytes]:
    """The same by werkzeug, of whatever it takes for a form."""
    request = _MemoryRequest(
        {
            "REQUEST_METHOD": "POST",
            "CONTENT_TYPE": content_type,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
    )
    # Not read(), which copies the file once more.
    return [file.stream.getvalue() for file in request.files.getlist(field)]  # type: ignore[attr-defined]
