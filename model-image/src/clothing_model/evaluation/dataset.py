"""Folders of labelled photos, read as the gateway reads a photo.

A dataset is a folder with a folder per class::

    train/pants/a.jpg  train/hat/b.jpg  …

Photos become pixels by the gateway's pipeline, which is keras-image-helper's bit for bit, but for photos that cameras
stored turned: decode, set upright by EXIF, convert to RGB, resize with NEAREST. A model that is trained on other pixels
than it is served loses accuracy silently.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from clothing_contract import Input
from clothing_contract.fitting import Axis, Fit
from clothing_contract.scaling import Scaling
from clothing_model.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif"})


# The gateway's default for GATEWAY_MAX_SIDE_PIXELS: the longer side of a photo, and of a resized one, at most.
MAX_SIDE = 16_384
# How photos of the course's model are prepared, which `train` trains.
COURSE = Input()

# What Pillow raises for files that are no image, or a decompression bomb.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class DatasetError(ModelError):
    """A folder of photos is unusable; the message names the folder and the fix."""


@dataclass(frozen=True)
class Dataset:
    """Paths of photos with their classes.

    Attributes:
        labels: the classes' names in the model's output order (sorted folder names).
        paths: the photos.
        targets: int64 ``(len(paths),)``, an index into ``labels`` for each photo.

    """

    labels: tuple[str, ...]
    paths: tuple[Path, ...]
    targets: NDArray[np.int64]

    def sha256(self) -> str:
        """SHA-256 of the photos' bytes and classes, in order.

        Equal digests mean that two trainings had the same data.
        """
        digest = hashlib.sha256()
        for path, target in zip(self.paths, self.targets, strict=True):
            digest.update(f"{self.labels[target]}/{path.name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def find_photos(folder: Path, labels: tuple[str, ...] | None = None) -> Dataset:
    """List the photos of ``folder``, a folder per class.

    Args:
        folder: the dataset.
        labels: the classes in the order wanted; the sorted folder names by default, as Keras orders them.

    Raises:
        DatasetError: no such folder, no classes, a class without photos, or other classes than ``labels``.

    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give a folder that holds one folder of photos per class")
    found = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not found:
        raise DatasetError(
            f"{folder}: holds no folders; photos must lie in one folder per class, as {folder}/pants/1.jpg"
        )
    if labels is not None and set(found) != set(labels):
        raise DatasetError(
            f"{folder}: its classes are {', '.join(found)}, expected are {', '.join(labels)}; make the folders agree"
        )
    names = labels or found
    paths: list[Path] = []
    targets: list[int] = []
    for index, name in enumerate(names):
        photos = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not photos:
            raise DatasetError(
                f"{folder / name}: holds no photos ({', '.join(sorted(SUFFIXES))}); add some or remove the folder"
            )
        paths += photos
        targets += [index] * len(photos)
    return Dataset(names, tuple(paths), np.array(targets, dtype=np.int64))


def read_pixels(
    photo: Path | bytes, size: int | tuple[int, int], contract: Input = COURSE
) -> NDArray[np.uint8 | np.float32]:
    """Pixels of one photo, fitted: ``(height, width, 3)``, RGB, from 0 to 255.

    They are uint8, or float32 where TensorFlow resizes, which doesn't round.

    Args:
        photo: its path, or its file's bytes.
        size: both sides, or (height, width).
        contract: how the photo is fitted and resized, and whether it is turned upright by EXIF.

    Raises:
        ValueError: a photo that ``crop`` would resize to a side of more than MAX_SIDE.

    """
    height, width = (size, size) if isinstance(size, int) else size
    with Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo) as image:
        rgb = _upright(image) if contract.exif_orientation else image.convert("RGB")
        across, down = Fit.of(contract).axes(rgb.size, (width, height), MAX_SIDE)
        resized = _resized(rgb, across, down, contract.resampling)
    kept = resized[down.taken, across.taken]
    if kept.shape[:2] == (height, width):
        return kept
    out = np.zeros((height, width, 3), kept.dtype)
    out[down.placed, across.placed] = kept
    return out


def _resized(image: Image.Image, across: Axis, down: Axis, resampling: str) -> NDArray[np.uint8 | np.float32]:
    part = across.start, down.start, across.start + across.there, down.start + down.there
    if not resampling.startswith("tf-"):
        return np.asarray(image.resize((across.resized, down.resized), Image.Resampling[resampling.upper()], part))
    import tensorflow as tf

    is_antialiased = resampling.endswith("-antialias")
    pixels = np.asarray(image.crop(part))
    return np.asarray(tf.image.resize(pixels, (down.resized, across.resized), antialias=is_antialiased).numpy())


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture upright, in RGB; an unreadable EXIF block turns nothing."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    try:
        return ImageOps.exif_transpose(rgb)
    except (OSError, SyntaxError, ValueError, struct.error):
        return rgb


def thumbnail(photo: Path, side: int) -> NDArray[np.uint8]:
    """Thumbnail: uint8 ``(side, side, 3)``, the whole photo upright on white."""
    with Image.open(photo) as image:
        return np.asarray(ImageOps.pad(_upright(image), (side, side), Image.Resampling.LANCZOS, color="white"))


def load_pixels(dataset: Dataset, size: int, progress: Callable[[int, int], None] | None = None) -> NDArray[np.uint8]:
    """All photos of a dataset: uint8 ``(n, size, size, 3)``.

    ``progress`` is told of the photos read so far and of their number.

    Raises:
        DatasetError: a photo that can't be decoded, by name.

    """
    pixels = np.empty((len(dataset.paths), size, size, 3), dtype=np.uint8)
    for index, path in enumerate(dataset.paths):
        try:
            pixels[index] = read_pixels(path, size)
        except UNREADABLE as error:
            raise DatasetError(f"{path}: can't be read as a photo ({error}); remove or replace it") from error
        if progress is not None:
            progress(index + 1, len(dataset.paths))
    return pixels


def scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The ``tf`` preprocessing of Keras: ``x / 127.5 - 1``, float32 in [-1, 1]."""
    return Scaling("tf").numbers(pixels)
