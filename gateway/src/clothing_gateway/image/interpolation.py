"""Bilinear resizing as in tf.image.resize: float32, half-pixel centres.

Without antialiasing four pixels make one, however much a photo is shrunk: so image_dataset_from_directory resizes, and
so do its models see. With it all pixels count, by a triangle as wide as the shrinking.

Sources: TensorFlow's kernels resize_bilinear_op.cc (compute_interpolation_weights, compute_lerp) and
scale_and_translate_op.cc (ComputeSpansCore, GatherRows, GatherColumns), with the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clothing_contract.fitting import Axis

Numbers = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32]
# Rows and columns of a photo, each ascending, as uint8 (rows, columns, 3).
Gather = Callable[[Places, Places], Pixels]

_HALF, _ONE = np.float32(0.5), np.float32(1)


class _Pairs(NamedTuple):
    """One axis: the needed pixels, and the two of them for each result."""

    needed: Places  # of the photo
    lower: npt.NDArray[np.intp]  # indices in ``needed``
    upper: npt.NDArray[np.intp]
    weight: Numbers  # of the upper one


def _pairs(axis: Axis) -> _Pairs:
    scale = np.float32(axis.there) / np.float32(axis.resized)
    at = (np.arange(axis.resized, dtype=np.float32)[axis.taken] + _HALF) * scale - _HALF
    below = np.floor(at)
    lower = np.maximum(below, 0).astype(np.int32)
    upper = np.minimum(np.ceil(at), axis.there - 1).astype(np.int32)
    needed = np.unique(np.concatenate((lower, upper)))
    places = np.searchsorted(needed, lower), np.searchsorted(needed, upper)
    return _Pairs(needed + np.int32(axis.start), *places, at - below)


def bilinear(gather: Gather, across: Axis, down: Axis) -> Numbers:
    """Resize without antialiasing to float32 (rows kept, columns kept, 3)."""
    columns, rows = _pairs(across), _pairs(down)
    pixels = gather(rows.needed, columns.needed).astype(np.float32)
    left, right = pixels[:, columns.lower], pixels[:, columns.upper]
    right -= left
    right *= columns.weight[:, None]
    right += left
    top, bottom = right[rows.lower], right[rows.upper]
    bottom -= top
    bottom *= rows.weight[:, None, None]
    bottom += top
    return bottom


class _Spans(NamedTuple):
    starts: npt.NDArray[np.int64]  # (results,)
    weights: Numbers  # (results, longest span)


def _spans(axis: Axis) -> _Spans:
    there = axis.there
    inverse = np.float32(1.0 / np.float64(np.float32(axis.resized) / np.float32(there)))
    radius = np.maximum(inverse, _ONE)  # of a triangle, which is 1, by how much is shrunk
    at = (np.arange(axis.resized, dtype=np.float32)[axis.taken] + _HALF) * inverse
    starts = np.clip(np.ceil(at - radius - _HALF).astype(np.int64), 0, there - 1)
    ends = np.clip(np.floor(at + radius - _HALF).astype(np.int64), 0, there - 1) + 1
    sources = starts[:, None] + np.arange(int((ends - starts).max()))
    distance = np.abs((sources.astype(np.float32) + _HALF - at[:, None]) * (_ONE / radius))
    weights = np.where(sources < ends[:, None], np.maximum(_ONE - distance, np.float32(0)), np.float32(0))
    total = np.add.accumulate(weights, axis=1, dtype=np.float32)[:, -1:]
    weights *= _ONE / total
    return _Spans(starts, weights)


def antialiased(strips: Iterator[Pixels], across: Axis, down: Axis) -> Numbers:
    """Resize with antialiasing to float32 (rows kept, columns kept, 3).

    The photo is given as strips of its rows from the top.
    """
    rows = _spans(down)
    between = np.zeros((down.kept, across.there, 3), np.float32)
    first = 0  # of the results that a row may still belong to
    y = -down.start
    for strip in strips:
        for row in strip[:, across.start : across.start + across.there].astype(np.float32):
            while first < down.kept and y - rows.starts[first] >= rows.weights.shape[1]:
                first += 1
            for index in range(first, down.kept):
                at = y - int(rows.starts[index])
                if at < 0:
                    break
                if at < rows.weights.shape[1] and rows.weights[index, at]:
                    between[index] += row * rows.weights[index, at]
            y += 1
    columns = _spans(across)
    out = np.zeros((down.kept, across.kept, 3), np.float32)
    for at in range(columns.weights.shape[1]):
        places = np.minimum(columns.starts + at, across.there - 1)
        out += between[:, places] * columns.weights[:, at, None]
    return out
