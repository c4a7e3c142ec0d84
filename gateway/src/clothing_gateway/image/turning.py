"""EXIF orientation: stored rows and columns of an upright, resized picture.

Pillow's NEAREST adds a step up from pixel to pixel, so its choices are not symmetrical: a mirrored photo's are those of
the mirrored picture, counted from the other end. So a turned photo is bit for bit exif_transpose and then resize.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Places = npt.NDArray[np.int32]

# As in PIL.ImageOps.exif_transpose.
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MIRRORED_ROWS, _MIRRORED_COLUMNS = {3, 4, 6, 7}, {2, 3, 7, 8}


class Taken(NamedTuple):
    """Rows and columns taken of a stored picture, and the result's array.

    The array has the stored picture's orientation.
    """

    out: npt.NDArray[np.generic]  # (rows, columns, 3), a view of the result
    rows: Places  # ascending, but for those that are the picture's height: these are black
    columns: Places  # the picture's width is black


def is_transposed(orientation: int) -> bool:
    """Whether rows and columns change places."""
    return orientation >= 5


def upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """The (width, height) of a stored picture once it is turned."""
    return (size[1], size[0]) if is_transposed(orientation) else size


class Spans(NamedTuple):
    """One direction of a resampled picture: each result is a weighted sum."""

    starts: Places  # (results,): the first of the pixels that make it, ascending
    weights: npt.NDArray[np.int32]  # (results, pixels): in units of 1/2^22


class Resampled(NamedTuple):
    """Sums of a stored picture's rows and columns, and the result's array.

    The array has the stored picture's orientation.
    """

    out: npt.NDArray[np.uint8]  # (rows, columns, 3), a view of the result
    rows: Spans
    columns: Spans
    down_first: bool  # whether columns of pixels are summed before rows


@functools.lru_cache(maxsize=512)  # 15 us each; photos of a source have few sizes
def nearest(taken: int, start: int, there: int, photo: int) -> Places:
    """Index of each of ``taken`` pixels of a photo's part, as in ImagingScaleAffine.

    Of the photo's pixels the part has those from ``start``, ``there`` of them. Pillow's sums are repeated; the index
    ``photo`` is black.

    int32 (taken,), ascending. Pillow leaves a pixel black that its sum puts behind the last one.
    """
    step = float(np.float32(there)) / taken
    sums = np.full(taken, step)
    sums[0] = start + step * 0.5
    places = np.minimum(np.add.accumulate(sums, out=sums).astype(np.int32), np.int32(photo))
    places.flags.writeable = False
    return places


def turned(
    out: npt.NDArray[np.generic], rows: Places, columns: Places, stored: tuple[int, int], orientation: int
) -> Taken:
    """The stored picture's part for ``rows`` and ``columns`` of the upright one.

    ``stored`` is its (width, height).
    """
    if orientation == 1:
        return Taken(out, rows, columns)
    if is_transposed(orientation):
        out, rows, columns = out.transpose(1, 0, 2), columns, rows
    if orientation in _MIRRORED_ROWS:
        out, rows = out[::-1], _mirrored(rows, stored[1])[::-1]
    if orientation in _MIRRORED_COLUMNS:
        columns = _mirrored(columns, stored[0])
    return Taken(out, np.ascontiguousarray(rows), columns)


def resampled(upright: Resampled, stored: tuple[int, int], orientation: int) -> Resampled:
    """The stored picture's sums for those of the upright one.

    ``stored`` is its (width, height).
    """
    out, rows, columns, down_first = upright
    if is_transposed(orientation):
        out, rows, columns, down_first = out.transpose(1, 0, 2), columns, rows, not down_first
    if orientation in _MIRRORED_ROWS:
        out, rows = out[::-1], _mirrored_spans(rows, stored[1])
    if orientation in _MIRRORED_COLUMNS:
        out, columns = out[:, ::-1], _mirrored_spans(columns, stored[0])
    return Resampled(out, rows, columns, down_first)


def _mirrored_spans(spans: Spans, there: int) -> Spans:
    starts = np.int32(there - spans.weights.shape[1]) - spans.starts[::-1]
    return Spans(starts, np.ascontiguousarray(spans.weights[::-1, ::-1]))


def _mirrored(places: Places, there: int) -> Places:
    return np.where(places == there, places, np.int32(there - 1) - places)
