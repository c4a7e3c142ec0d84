"""Reader of protobuf's wire format, as far as a SavedModel needs it.

TensorFlow takes seconds and 1.7 GB to import, only to read a few names out of saved_model.pb. This walks the
message instead: a field that no caller reads, such as a graph of 100 MB, is stepped over without being read.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Decode a varint; returns the number and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError(f"a broken number at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterate over a message's fields: number and value.

    A value is an int, or the bytes of a string, message or packed list.
    """
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = varint(data, at)
        elif kind == FIXED64:
            length = 8
        elif kind == FIXED32:
            length = 4
        else:
            raise WireError(f"an unknown kind of field at byte {at}")
        end = at + length
        if end > len(data):
            raise WireError(f"it ends at byte {len(data)}, in the middle of a field that reaches to byte {end}")
        yield number, data[at:end]
        at = end


def messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of a field that holds messages or strings."""
    for number, value in fields(data):
        if number == wanted and isinstance(value, memoryview):
            yield value


def text(data: memoryview) -> str:
    """The value of a string field; broken UTF-8 is replaced."""
    return bytes(data).decode("utf-8", "replace")


def strings(data: memoryview, wanted: int) -> list[str]:
    """All values of a repeated string field."""
    return [text(value) for value in messages(data, wanted)]


def string(data: memoryview, wanted: int) -> str:
    """The last value of a string field, which wins, as in every protobuf reader."""
    found = strings(data, wanted)
    return found[-1] if found else ""


def integer(data: memoryview, wanted: int, default: int = 0) -> int:
    """The last value of an integer field, as it is in the bytes (see ``signed``)."""
    value = default
    for number, found in fields(data):
        if number == wanted and isinstance(found, int):
            value = found
    return value


def signed(value: int) -> int:
    """A varint as an int64: -1 is written as 2**64 - 1."""
    return value - (1 << 64) if value >= 1 << 63 else value


def mapping(data: memoryview, wanted: int) -> dict[str, memoryview]:
    """A map field with strings as keys and messages as values."""
    result = {}
    for entry in messages(data, wanted):
        value = list(messages(entry, 2))
        result[string(entry, 1)] = value[-1] if value else memoryview(b"")
    return result
