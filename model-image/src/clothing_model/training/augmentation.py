"""Augmentation: one projective transform, colour changes, and mixup.

Each batch's randomness comes from seed, epoch and batch number alone, so that a resumed training sees the same photos.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clothing_model.evaluation import dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from clothing_model.training.plan import Plan

# Augmentation reads from photos of this many times the served size, with NEAREST, as the gateway reads originals.
SOURCE_SCALE = 1.6


def transforms(rng: np.random.Generator, count: int, source: int, size: int) -> NDArray[np.float32]:
    """Random flips, rotations, zooms, stretches and shifts.

    Rotations are ±30°, zooms 0.75 to 1.1; the format is ImageProjectiveTransformV3's.

    Each row of the result, float32 ``(count, 8)``, maps a pixel of a ``size`` square to one of a ``source`` square.
    """
    angle = rng.normal(0, np.pi / 18, count).clip(-np.pi / 6, np.pi / 6)
    zoom = rng.uniform(0.75, 1.1, count) * source / size
    stretch = np.exp(rng.normal(0, 0.08, count))
    flip = rng.choice([-1.0, 1.0], count)
    a = zoom * stretch * np.cos(angle) * flip
    b = -zoom * np.sin(angle)
    d = zoom * np.sin(angle) * flip
    e = zoom / stretch * np.cos(angle)
    centre, middle = (source - 1) / 2, (size - 1) / 2
    shift = rng.uniform(-0.08, 0.08, (2, count)) * source
    c = centre + shift[0] - a * middle - b * middle
    f = centre + shift[1] - d * middle - e * middle
    zero = np.zeros(count)
    return np.stack([a, b, c, d, e, f, zero, zero], axis=1).astype(np.float32)


def colours(rng: np.random.Generator, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Random brightness, contrast and saturation, and blanked rectangles.

    Values stay in [-1, 1].
    """
    count, size = batch.shape[:2]
    grey = batch.mean(axis=3, keepdims=True)
    saturation = rng.uniform(0.6, 1.3, (count, 1, 1, 1)).astype(np.float32)
    contrast = rng.uniform(0.75, 1.25, (count, 1, 1, 1)).astype(np.float32)
    brightness = rng.uniform(-0.25, 0.25, (count, 1, 1, 1)).astype(np.float32)
    batch = ((grey + (batch - grey) * saturation) * contrast + brightness).clip(-1, 1)
    for index in np.flatnonzero(rng.random(count) < 0.25):
        height, width = rng.integers(size // 8, size // 3, 2)
        top, left = rng.integers(0, size - height), rng.integers(0, size - width)
        batch[index, top : top + height, left : left + width] = rng.uniform(-1, 1)
    return batch


def batches(
    plan: Plan, pixels: NDArray[np.uint8], targets: NDArray[np.int64], classes: int, epoch: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Iterate over one epoch's augmented batches of photos and targets.

    Photos are float32 ``(batch, s, s, 3)`` in [-1, 1], targets ``(batch, classes)``.
    """
    import tensorflow as tf

    size, source = plan.training_size(epoch), pixels.shape[1]
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(pixels))
    off = plan.smoothing / classes
    for number, start in enumerate(range(0, len(order) - plan.batch + 1, plan.batch)):
        rng = np.random.default_rng([plan.seed, epoch, number])
        chosen = order[start : start + plan.batch]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels[chosen],
            transforms=transforms(rng, len(chosen), source, size),
            output_shape=(size, size),
            fill_value=0.0,
            interpolation="NEAREST",
            fill_mode="REFLECT",
        ).numpy()
        x = colours(rng, dataset.scale(moved))
        y = np.full((len(chosen), classes), off, dtype=np.float32)
        y[np.arange(len(chosen)), targets[chosen]] += 1 - plan.smoothing
        if plan.mixup > 0:
            share = np.float32(rng.beta(plan.mixup, plan.mixup))
            x, y = share * x + (1 - share) * x[::-1], share * y + (1 - share) * y[::-1]
        yield x, y
