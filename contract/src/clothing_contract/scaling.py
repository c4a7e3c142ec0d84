"""Preprocessing: pixels scaled as the model was trained.

Formulas: keras-applications, imagenet_utils.py, ``_preprocess_numpy_input``; ``tf`` and ``caffe`` are computed with the
same operations in the same order as keras-image-helper 0.0.2 (preprocessors.py), ``rescale`` with a mean and a
deviation as torchvision's ToTensor and Normalize (transforms/_functional_tensor.py), so that the results are
bit-identical. Dividing differs from multiplying by the inverse, and float32 from float64: neither may be changed for
speed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from clothing_contract.contract import Input

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]

# keras-applications, imagenet_utils.py: each channel's mean and deviation, in the order of the output.
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_STD = (0.229, 0.224, 0.225)

# ITU-R 601-2 as Pillow computes convert("L") (libImaging/Convert.c, L24), in steps of 1/65536, rounded.
_GREY = (19595, 38470, 7471)


class Table(NamedTuple):
    """Lookup table of a preprocessing, bit-identical by construction."""

    values: Numbers  # 256 x channels float32: the result for each value of a channel, by the result's channels
    reverse: bool  # whether the result's channels are BGR

    @property
    def by_source(self) -> Numbers:
        """The values by the photo's channels: red, green, blue."""
        return np.ascontiguousarray(self.values[:, ::-1]) if self.reverse else self.values


@dataclass(frozen=True, slots=True)
class Scaling:
    """Scaling of pixels to a model's numbers.

    Equal scalings are equal and hashable, so that their tables are made once.
    """

    preprocessing: str = "tf"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: str = "rgb"

    @classmethod
    def of(cls, contract: Input) -> Scaling:
        """The scaling of a contract."""
        return cls(contract.preprocessing, contract.mean, contract.std, contract.channels)

    @property
    def is_bgr(self) -> bool:
        """Whether the result's channels are BGR."""
        return self.channels == "bgr" or (self.preprocessing == "caffe" and self.channels == "rgb")

    @property
    def table(self) -> Table:
        """As a lookup table."""
        return _table(self)

    def numbers(self, pixels: Pixels) -> Numbers:
        """Convert uint8 RGB pixels (..., 3) to float32 (..., 3), or (..., 1) for grey."""
        return self.scaled(self.ordered(pixels))

    def ordered(self, pixels: Pixels) -> Pixels:
        """RGB pixels in the model's channels: as they are, BGR, or grey (..., 1)."""
        if self.channels == "grey":
            return grey(pixels)
        return pixels[..., ::-1] if self.is_bgr else pixels

    def scaled(self, pixels: Pixels) -> Numbers:
        """float32 from uint8 pixels in the model's channels."""
        x = pixels.astype(np.float32, order="C")
        if self.preprocessing == "tf":
            x /= 127.5
            x -= 1.0
        elif self.preprocessing == "caffe":
            x -= np.array(_CAFFE_MEAN, np.float32)
        elif self.preprocessing in ("torch", "rescale"):
            x /= 255.0
        mean, std = (_TORCH_MEAN, _TORCH_STD) if self.preprocessing == "torch" else (self.mean, self.std)
        if mean:
            x -= np.array(mean, np.float32)
        if std:
            x /= np.array(std, np.float32)
        return x


def grey(pixels: Pixels) -> Pixels:
    """Convert RGB pixels (..., 3) to grey (..., 1): uint8 or float32.

    uint8 is as Pillow's convert("L").
    """
    if pixels.dtype != np.uint8:  # resized by TensorFlow, which doesn't round; a grey photo's numbers stay as they are
        red, green, blue = np.moveaxis(pixels, -1, 0)
        of_green, of_blue = (np.float32(weight / 65536) for weight in _GREY[1:])
        return np.asarray(red + (green - red) * of_green + (blue - red) * of_blue)[..., np.newaxis]
    wide = pixels.astype(np.uint32)
    mixed = wide[..., 0] * _GREY[0] + wide[..., 1] * _GREY[1] + wide[..., 2] * _GREY[2]
    return ((mixed + 0x8000) >> 16).astype(np.uint8)[..., np.newaxis]


@functools.lru_cache(maxsize=16)
def _table(scaling: Scaling) -> Table:
    every_value = np.arange(256, dtype=np.uint8).repeat(1 if scaling.channels == "grey" else 3)
    return Table(scaling.scaled(every_value.reshape(256, -1)), reverse=scaling.is_bgr)
