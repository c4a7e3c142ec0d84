"""Preprocessing inside the graph: from uint8 pixels, or from a photo's file, to a model's numbers.

The numbers are those of clothing_gateway.image.preprocessing, bit for bit. They are looked up in a table of 256
entries, because TensorFlow's optimizer turns a division by a constant into a multiplication, whose last bit differs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

FLOAT32, UINT8, ENCODED = "float32", "uint8", "encoded"

# keras-applications, imagenet_utils.py: each channel's mean and deviation, in the order of the output.
_CAFFE_MEAN = (103.939, 116.779, 123.68)
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_DEVIATION = (0.229, 0.224, 0.225)


def table(preprocessing: str) -> NDArray[np.float32]:
    """For each value of a pixel, its number in each channel of the output: float32 (256, 3)."""
    x = np.repeat(np.arange(256, dtype=np.float32)[:, np.newaxis], 3, axis=1)
    if preprocessing == "tf":
        x /= np.float32(127.5)
        x -= np.float32(1)
    elif preprocessing == "caffe":
        x -= np.array(_CAFFE_MEAN, np.float32)
    elif preprocessing == "torch":
        x /= np.float32(255)
        x -= np.array(_TORCH_MEAN, np.float32)
        x /= np.array(_TORCH_DEVIATION, np.float32)
    return x


def numbers(pixels: Any, preprocessing: str) -> Any:
    """float32 from uint8 (batch, height, width, RGB)."""
    if preprocessing == "none":
        return tf.cast(pixels, tf.float32)
    values = table(preprocessing)
    index = tf.cast(pixels, tf.int32)
    if preprocessing == "tf":  # the channels are alike
        return tf.gather(values[:, 0], index)
    source = (2, 1, 0) if preprocessing == "caffe" else (0, 1, 2)  # caffe's models take BGR
    return tf.stack([tf.gather(values[:, channel], index[..., source[channel]]) for channel in range(3)], axis=-1)


def pixels_of_files(files: Any, height: int, width: int) -> Any:
    """uint8 (batch, height, width, RGB) from the bytes of JPEG, PNG, GIF and BMP files: (batch,) strings."""
    with tf.device("/CPU:0"):  # where the decoders are, and where sums are in order
        return tf.map_fn(
            lambda file: _pixels(file, height, width),
            files,
            fn_output_signature=tf.TensorSpec((height, width, 3), tf.uint8),
        )


def _pixels(file: Any, height: int, width: int) -> Any:
    # decode_image takes the faster and coarser transform for JPEG; Pillow, and so the training, the accurate one.
    decoded = tf.cond(
        tf.equal(tf.strings.substr(file, 0, 2), b"\xff\xd8"),
        lambda: tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(file, channels=3, expand_animations=False),
    )
    size = tf.shape(decoded)
    nearest = tf.gather(decoded, _nearest(size[0], height), axis=0)
    return tf.ensure_shape(tf.gather(nearest, _nearest(size[1], width), axis=1), (height, width, 3))


def _nearest(source: Any, target: int) -> Any:
    """Which rows or columns of a photo Pillow's resize with NEAREST takes (libImaging/Geometry.c, ImagingScaleAffine).

    It adds up the step from one to the next in float64, and so does this: computing each place for itself gives
    another row for a photo in fifteen, and tf.image.resize's float32 for as many.
    """
    # Not `/`: the optimizer would make it a multiplication, here too.
    step = tf.math.divide_no_nan(tf.cast(source, tf.float64), tf.constant(target, tf.float64))
    steps = tf.concat([[step * 0.5], tf.fill([target - 1], step)], axis=0)
    return tf.minimum(tf.cast(tf.floor(tf.cumsum(steps)), tf.int32), source - 1)
