"""Preprocessing inside the graph: uint8 pixels, or an image file, to float32.

The numbers are those of clothing_contract.scaling, bit for bit. They are looked up in a table of 256
entries, because TensorFlow's optimizer turns a division by a constant into a multiplication, whose last bit differs.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from clothing_contract.scaling import Scaling
from clothing_contract.signature import NCHW, NHWC

FLOAT32, UINT8, ENCODED = "float32", "uint8", "encoded"


def numbers(pixels: Any, scaling: Scaling, layout: str = NHWC) -> Any:
    """Convert uint8 pixels, RGB or grey, to float32 of the same shape and layout."""
    if scaling == Scaling("none"):
        return tf.cast(pixels, tf.float32)
    values, reverse = scaling.table
    index = tf.cast(pixels, tf.int32)
    if len(values[0]) == 1 or (scaling.preprocessing == "tf" and not reverse):  # the channels are alike
        return tf.gather(values[:, 0], index)
    source = (2, 1, 0) if reverse else (0, 1, 2)
    planes = [index[:, channel] if layout == NCHW else index[..., channel] for channel in source]
    scaled = [tf.gather(values[:, channel], plane) for channel, plane in enumerate(planes)]
    return tf.stack(scaled, axis=1 if layout == NCHW else -1)


def pixels_of_files(files: Any, height: int, width: int) -> Any:
    """Decode JPEG, PNG, GIF and BMP files: (batch,) strings to uint8 pixels.

    The pixels are (batch, height, width, RGB).
    """
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
    """Indices of the rows or columns that Pillow's NEAREST resize takes.

    Source: libImaging/Geometry.c, ImagingScaleAffine.

    It adds up the step from one to the next in float64, and so does this: computing each place for itself gives
    another row for a photo in fifteen, and tf.image.resize's float32 for as many.
    """
    # Not `/`: the optimizer would make it a multiplication, here too.
    step = tf.math.divide_no_nan(tf.cast(source, tf.float64), tf.constant(target, tf.float64))
    steps = tf.concat([[step * 0.5], tf.fill([target - 1], step)], axis=0)
    return tf.minimum(tf.cast(tf.floor(tf.cumsum(steps)), tf.int32), source - 1)
