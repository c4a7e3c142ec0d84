"""Files of a multipart form in memory, by the library ``multipart``."""

from __future__ import annotations

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from clothing_gateway.errors import BadRequest, NoPhoto, TooLarge, UnsupportedMediaType

# Far more than a form of photos has, and few enough to parse within milliseconds.
_MAX_PARTS = 1000
# RFC 7578 4.7 deprecates it, and no decoder is applied: base64 has a third more bytes than the limits count.
_TEXT_ENCODINGS = frozenset({"base64", "quoted-printable"})
# Of a field's name in a message.
_NAME_CHARACTERS = 40


def files(content_type: str, body: bytes, field: str) -> list[bytes]:
    """Return the contents of all non-empty parts named ``field``, in order.

    A part needs no file name.

    Raises BadRequest for a malformed form, NoPhoto for one without such a part, UnsupportedMediaType for parts in
    base64, and TooLarge.
    """
    boundary = _boundary(content_type)
    if not body:
        raise NoPhoto
    found: list[bytes] = []
    wanted, pieces = False, list[bytes]()
    others: list[MultipartSegment] = []
    try:
        # Latin-1 decodes whatever bytes a file name has; only field names, which are ASCII, are compared.
        with PushMultipartParser(boundary, max_segment_count=_MAX_PARTS, header_charset="latin-1") as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    wanted, pieces = event.name == field, []
                    if wanted:
                        _refuse_text(event, field)
                    else:
                        others.append(event)
                elif not wanted:
                    continue
                elif event is None:
                    found.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                else:
                    pieces.append(event)
    except ParserLimitReached as error:
        # The parser keeps the error, and its frames the parser and the body: a cycle of tens of megabytes.
        error.with_traceback(None)
        raise TooLarge("The form has too many parts or headers; send fewer.", cause=str(error)) from None
    except MultipartError as error:
        error.with_traceback(None)
        raise BadRequest("The multipart form is malformed or cut off.", cause=str(error)) from None
    photos = [data for data in found if data]
    if not photos:
        raise _missing(field, others, empty=bool(found))
    return photos


def _boundary(content_type: str) -> str:
    boundary: str | None = parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise BadRequest("The Content-Type has no boundary; let your client library set it.")
    return boundary


def _refuse_text(part: MultipartSegment, field: str) -> None:
    encoding = str(part.header("Content-Transfer-Encoding", "")).strip().lower()
    if encoding in _TEXT_ENCODINGS:
        raise UnsupportedMediaType(f'The form\'s "{field}" is in {encoding}; send its bytes as they are.')


def _missing(field: str, others: list[MultipartSegment], *, empty: bool) -> NoPhoto:
    """Name the mistake: an empty part, or one of another name, a file before a text."""
    if empty:
        return NoPhoto(f"The form's \"{field}\" is empty; send the photo's bytes.")
    for part in sorted(others, key=lambda part: part.filename is None):
        name = (part.name or "").encode("latin-1", "replace").decode("utf-8", "replace")[:_NAME_CHARACTERS]
        return NoPhoto(f'The form has "{name}" but no "{field}"; rename the field.')
    return NoPhoto()
