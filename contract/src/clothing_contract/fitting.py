"""Fitting of a photo to the aspect ratio of a model's input.

``stretch`` resizes both sides to the model's. ``crop`` resizes the shorter side and keeps the centre, with the rounding
of torchvision's Resize and CenterCrop (transforms/functional.py). ``pad`` resizes the whole photo into the picture and
leaves black borders, with the rounding of Pillow's ImageOps.pad.

``keras-crop`` takes the largest centre of the model's aspect ratio and resizes that, as ``crop_to_aspect_ratio`` of
image_dataset_from_directory (Keras 3, utils/image_utils.py, smart_resize) and ``keep_aspect_ratio`` of load_img.
``keras-pad`` is ``pad_to_aspect_ratio``, TensorFlow's resize_with_pad (ops/image_ops_impl.py), which rounds down. Both
compute in float32, as they do.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from clothing_contract.contract import Input


class TooNarrowError(ValueError):
    """A photo whose sides differ by so much that resizing it takes too much memory."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a picture, in pixels."""

    start: int  # of the photo's part that is resized
    there: int  # of that part
    resized: int  # of the result
    first: int  # of those that are kept
    kept: int
    at: int  # of the first in the model's picture
    size: int  # of the model's picture

    @property
    def taken(self) -> slice:
        """The pixels of the resized photo that are kept."""
        return slice(self.first, self.first + self.kept)

    @property
    def placed(self) -> slice:
        """Where they lie in the model's picture."""
        return slice(self.at, self.at + self.kept)

    def of(self, photo: int, now: int) -> Axis:
        """The same of a photo that was decoded with ``now`` of its pixels."""
        if photo == now:
            return self
        start = self.start * now // photo
        return replace(self, start=start, there=min(max(self.there * now // photo, 1), now - start))


@dataclass(frozen=True, slots=True)
class Fit:
    """The way of fitting, one of FITS.

    ``shorter_side`` is what ``crop`` resizes to, or None.
    """

    name: str = "stretch"
    shorter_side: int | None = None

    @classmethod
    def of(cls, contract: Input) -> Fit:
        """The fit of a contract."""
        return cls(contract.fit, contract.shorter_side)

    def axes(self, photo: tuple[int, int], size: tuple[int, int], max_side: int | None = None) -> tuple[Axis, Axis]:
        """The horizontal and the vertical axis, for an upright photo and a model's input.

        Both sizes are (width, height).

        Without a shorter side ``crop`` takes the larger of the model's. Raises TooNarrowError where the resized photo
        has a side of more than ``max_side``: a photo of 16,384 x 1 would be resized to 4 million x 256.
        """
        across, down = zip(photo, size, strict=True)
        if self.name == "crop":
            resized = _shorter_to(photo, self.shorter_side or max(size))
            if max_side is not None and max(resized) > max_side:
                raise TooNarrowError(
                    f"The photo of {photo[0]} x {photo[1]} pixels is too narrow; send one whose sides differ less."
                )
            return _centre(*across, resized[0]), _centre(*down, resized[1])
        if self.name == "pad":
            resized = _within(photo, size)
            return _bordered(*across, resized[0]), _bordered(*down, resized[1])
        if self.name == "keras-crop":
            return _largest_centre(*across, *down), _largest_centre(*down, *across)
        if self.name == "keras-pad":
            ratio = max(np.float32(there) / np.float32(wanted) for there, wanted in (across, down))
            return _floored(*across, ratio), _floored(*down, ratio)
        return _stretched(*across), _stretched(*down)


@functools.lru_cache(maxsize=512)  # photos of a source have few sizes
def _stretched(there: int, size: int) -> Axis:
    return Axis(0, there, size, 0, size, 0, size)


def _largest_centre(there: int, size: int, other_there: int, other_size: int) -> Axis:
    """As smart_resize: as much of this side as the other one allows."""
    ideal = int(np.float32(other_there * size) / np.float32(other_size))
    cropped = max(min(there, ideal), 1)
    return Axis((there - cropped) // 2, cropped, size, 0, size, 0, size)


def _shorter_to(photo: tuple[int, int], side: int) -> tuple[int, int]:
    """As _compute_resized_output_size of torchvision's Resize."""
    longer = int(side * max(photo) / min(photo))
    return (side, longer) if photo[0] <= photo[1] else (longer, side)


def _centre(there: int, size: int, resized: int) -> Axis:
    """As center_crop of torchvision, which pads with black what is smaller."""
    if resized < size:
        return Axis(0, there, resized, 0, resized, (size - resized) // 2, size)
    return Axis(0, there, resized, round((resized - size) / 2), size, 0, size)


def _within(photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """As ImageOps.contain, but never without pixels."""
    width, height = photo
    ratio, wanted = width / height, size[0] / size[1]
    if ratio > wanted:
        return size[0], max(round(height / width * size[0]), 1)
    if ratio < wanted:
        return max(round(width / height * size[1]), 1), size[1]
    return size


def _bordered(there: int, size: int, resized: int) -> Axis:
    return Axis(0, there, resized, 0, resized, round((size - resized) * 0.5), size)


def _floored(there: int, size: int, ratio: np.float32) -> Axis:
    """As resize_with_pad, but never without pixels, for which TensorFlow fails."""
    exact = np.float32(there) / ratio
    resized = max(int(exact), 1)
    return Axis(0, there, resized, 0, resized, max(int((np.float32(size) - exact) / np.float32(2)), 0), size)
