"""Fitting of a photo to the aspect ratio of a model's input.

``stretch`` resizes both sides to the model's. ``crop`` resizes the shorter side and keeps the centre, with the rounding
of torchvision's Resize and CenterCrop (transforms/functional.py). ``pad`` resizes the whole photo into the picture and
leaves black borders, with the rounding of Pillow's ImageOps.pad.
"""

from __future__ import annotations

from dataclasses import dataclass

from clothing_gateway.errors import TooManyPixels


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a picture, in pixels."""

    resized: int  # of the whole photo
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


@dataclass(frozen=True, slots=True)
class Fit:
    """The way of fitting: ``stretch``, ``crop`` or ``pad``.

    ``shorter_side`` is what ``crop`` resizes to, or None.
    """

    name: str = "stretch"
    shorter_side: int | None = None

    def axes(self, photo: tuple[int, int], size: tuple[int, int], max_side: int | None = None) -> tuple[Axis, Axis]:
        """The horizontal and the vertical axis, for an upright photo and a model's input.

        Both sizes are (width, height).

        Without a shorter side ``crop`` takes the larger of the model's. Raises TooManyPixels where the resized photo
        has a side of more than ``max_side``: a photo of 16,384 x 1 would be resized to 4 million x 256.
        """
        if self.name == "crop":
            resized = _shorter_to(photo, self.shorter_side or max(size))
            if max_side is not None and max(resized) > max_side:
                raise TooManyPixels(
                    f"The photo of {photo[0]} x {photo[1]} pixels is too narrow; send one whose sides differ less."
                )
            return _centre(resized[0], size[0]), _centre(resized[1], size[1])
        if self.name == "pad":
            resized = _within(photo, size)
            return _bordered(resized[0], size[0]), _bordered(resized[1], size[1])
        return Axis(size[0], 0, size[0], 0, size[0]), Axis(size[1], 0, size[1], 0, size[1])


def _shorter_to(photo: tuple[int, int], side: int) -> tuple[int, int]:
    """As _compute_resized_output_size of torchvision's Resize."""
    longer = int(side * max(photo) / min(photo))
    return (side, longer) if photo[0] <= photo[1] else (longer, side)


def _centre(resized: int, size: int) -> Axis:
    """As center_crop of torchvision, which pads with black what is smaller."""
    if resized < size:
        return Axis(resized, 0, resized, (size - resized) // 2, size)
    return Axis(resized, round((resized - size) / 2), size, 0, size)


def _within(photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """As ImageOps.contain, but never without pixels."""
    width, height = photo
    ratio, wanted = width / height, size[0] / size[1]
    if ratio > wanted:
        return size[0], max(round(height / width * size[0]), 1)
    if ratio < wanted:
        return max(round(width / height * size[1]), 1), size[1]
    return size


def _bordered(resized: int, size: int) -> Axis:
    return Axis(resized, 0, resized, round((size - resized) * 0.5), size)
