"""EXIF orientation: how a photo is turned before it is shown.

Cameras store pictures as their sensor lies and note in a tag how it was held. What the tag says is read as Pillow's
ImageOps.exif_transpose reads it, from the first directory of the block alone and from values that lie in their entry,
as an orientation does. Nothing else of the block is looked at, so damage elsewhere in it changes nothing. A directory
that can't be read turns nothing. XMP, which repeats the tag, is not parsed: browsers follow EXIF alone.

Sources: CIPA DC-008 (Exif 3.0), sections 4.5 and 4.6.4; TIFF 6.0, section 2; Pillow's TiffImagePlugin.py.
"""

from __future__ import annotations

import struct

import numpy as np

# Values: as stored, mirrored, turned by half; from 5 on rows and columns change places.
AS_STORED = 1
_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
# TIFF's headers, also the two that are wrong and that Pillow takes.
_ORDERS = {b"MM\0*": ">", b"II*\0": "<", b"MM*\0": ">", b"II\0*": "<"}
# TIFF's types of four bytes at most, by the letters of struct; ASCII and UNDEFINED are no numbers.
_NUMBERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 13: "L"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes


def orientation(block: bytes) -> int:
    """An EXIF block's orientation, 1 to 8; 1 where it is missing or unreadable."""
    for _ in range(2):
        block = block.removeprefix(_PREFIX)
    order = _ORDERS.get(block[:4])
    if order is None or len(block) < 8:
        return AS_STORED
    (at,) = struct.unpack_from(f"{order}L", block, 4)
    if at + 2 > len(block):
        return AS_STORED
    (count,) = struct.unpack_from(f"{order}H", block, at)
    # All entries at once: 65,535 take 0.1 ms.
    count = min(count, (len(block) - at - 2) // 12)
    tags = np.frombuffer(block, np.dtype(f"{order}u2"), count * 6, at + 2)[::6]
    for index in np.flatnonzero(tags == _ORIENTATION):
        found = _value(block, order, at + 2 + 12 * int(index))
        if found is not None:
            return int(found) if found in range(1, 9) else AS_STORED
    return AS_STORED


def _value(block: bytes, order: str, at: int) -> float | None:
    """An entry's first number.

    It is None where Pillow skips the entry, and 0 for one that is no orientation.
    """
    kind, count = struct.unpack_from(f"{order}HL", block, at + 2)
    size = count * _SIZES.get(kind, 0)
    if not size:
        return None
    if size > 4 or kind not in _NUMBERS:
        return 0
    value: float = struct.unpack_from(order + _NUMBERS[kind], block, at + 8)[0]
    return value
