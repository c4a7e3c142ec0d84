"""From pixels to the numbers a model was trained on.

Formulas: keras-applications, imagenet_utils.py, ``_preprocess_numpy_input``; ``tf`` and ``caffe`` are computed with the
same operations in the same order as keras-image-helper 0.0.2 (preprocessors.py), so that every bit is the same.
Dividing is not multiplying by the inverse, and float32 is not float64: neither may be changed for speed.
"""

from __future__ import annotations

from collections.abc import Callable

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
    """0 to 255, as they are: EfficientNet, ConvNeXt, and models that scale inside."""
    return pixels.astype(np.float32)


Preprocess = Callable[[Pixels], Numbers]
BY_NAME: dict[str, Preprocess] = {"tf": tf, "caffe": caffe, "torch": torch, "none": none}
