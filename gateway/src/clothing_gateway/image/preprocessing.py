"""Preprocessing: pixels scaled as the model was trained.

Formulas: keras-applications, imagenet_utils.py, ``_preprocess_numpy_input``; ``tf`` and ``caffe`` are computed with the
same operations in the same order as keras-image-helper 0.0.2 (preprocessors.py), so that the results are bit-identical.
Dividing differs from multiplying by the inverse, and float32 from float64: neither may be changed for speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]


def tf(pixels: Pixels) -> Numbers:
    """-1 to 1: Xception, Inception, MobileNet, ResNet V2, NASNet."""
    x = pixels.astype(np.float32)
    x /= 127.5
    x -= 1.0
    return x


def caffe(pixels: Pixels) -> Numbers:
    """BGR, less ImageNet's mean of each channel: ResNet, VGG."""
    x = pixels.astype(np.float32)[..., ::-1]
    x[..., 0] -= 103.939
    x[..., 1] -= 116.779
    x[..., 2] -= 123.68
    return np.ascontiguousarray(x)


def torch(pixels: Pixels) -> Numbers:
    """0 to 1, less ImageNet's mean, by its standard deviation: DenseNet, and models that come from PyTorch."""
    x = pixels.astype(np.float32)
    x /= 255.0
    x -= np.array([0.485, 0.456, 0.406], np.float32)
    x /= np.array([0.229, 0.224, 0.225], np.float32)
    return x


def none(pixels: Pixels) -> Numbers:
    """0 to 255, unscaled: EfficientNet, ConvNeXt, and models that scale inside."""
    return pixels.astype(np.float32)


Preprocess = Callable[[Pixels], Numbers]
BY_NAME: dict[str, Preprocess] = {"tf": tf, "caffe": caffe, "torch": torch, "none": none}


class Table(NamedTuple):
    """A preprocessing as a lookup table; its results are bit-identical by construction."""

    values: Numbers  # 256 x 3 float32: the result for each value of a channel, by the result's channels
    reverse: bool  # whether the result's channels are BGR


def _table(function: Preprocess) -> Table:
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 1, 3)
    black_and_red = function(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8))[0]
    values = np.ascontiguousarray(function(every_value).reshape(256, 3))
    return Table(values, reverse=bool(black_and_red[0, 0] == black_and_red[1, 0]))


TABLES: dict[str, Table] = {name: _table(function) for name, function in BY_NAME.items()}
