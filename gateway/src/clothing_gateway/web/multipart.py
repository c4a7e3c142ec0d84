"""The files of a multipart form, by the library ``multipart``, from a body that is in memory."""

from __future__ import annotations

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from clothing_gateway.errors import BadRequest, TooLarge

# Far more than a form of photos has, and few enough to parse within milliseconds.
_MAX_PARTS = 1000


def files(content_type: str, body: bytes, field: str) -> list[bytes]:
    """The contents of all parts named ``field``, in order, with a file name or without; BadRequest or TooLarge."""
    boundary = parse_options_header(content_type)[1].get("boundary")
    if not boundary:
        raise BadRequest("The Content-Type has no boundary; let your client library set it.")
    found: list[bytes] = []
    if not body:
        return found
    wanted, pieces = False, list[bytes]()
    try:
        # Latin-1 decodes whatever bytes a file name has; only field names, which are ASCII, are compared.
        with PushMultipartParser(boundary, max_segment_count=_MAX_PARTS, header_charset="latin-1") as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    wanted, pieces = event.name == field, []
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
    return found
