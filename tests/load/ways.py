"""The benchmark's ways of preparing photos, with the right scores of each.

All but TensorFlow's bilinear are Pillow's pixels and float32 operations in the framework's order, so that scores are
equal. TensorFlow's is computed from its definition, by matrices and in another order, so that scores are near.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import photos
from PIL import Image, ImageOps
from systems import OURS, System

Numbers = npt.NDArray[np.float32]
NEAREST = Image.Resampling.NEAREST


@dataclass(frozen=True)
class Way:
    """A model's way of preparing photos: the settings and the expected tensor."""

    name: str
    title: str
    tensor: Callable[[Image.Image], Numbers]  # of the photo in RGB, upright
    settings: dict[str, str] = field(default_factory=dict)
    size: int = photos.SIZE[0]  # pixels, the width and the height
    channels: int = 3
    layout: str = "nhwc"
    turned: bool = False  # by EXIF, in the files
    tolerance: float = 0  # of a score

    @property
    def system(self) -> System:
        """Our gateway with these settings."""
        return replace(
            OURS,
            name=f"way-{self.name}",
            title=self.title,
            variables=lambda address: OURS.variables(address) | self.settings,
        )

    def model_flags(self) -> list[str]:
        """The model server's flags, for a signature with this input."""
        return ["-size", str(self.size), "-channels", str(self.channels), "-layout", self.layout]

    def scores(self, data: bytes) -> list[float]:
        """Expected scores of the benchmark's model server."""
        with Image.open(io.BytesIO(data)) as image:
            return photos.spread(self.tensor(ImageOps.exif_transpose(image.convert("RGB"))).ravel())


def _scaled(pixels: Any) -> Numbers:
    """Scale to [-1, 1], as Xception."""
    numbers = np.asarray(pixels).astype(np.float32)
    numbers /= 127.5
    numbers -= 1.0
    return numbers


def _rescaled(image: Image.Image) -> Numbers:
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _torchvision(image: Image.Image) -> Numbers:
    """Resize(256), CenterCrop(224), ToTensor and Normalize of a PIL image."""
    width, height = image.size
    short, crop = 256, 224
    longer = int(short * max(width, height) / min(width, height))
    size = (short, longer) if width <= height else (longer, short)
    left, top = (round((side - crop) / 2) for side in size)
    kept = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + crop, top + crop))
    mean, deviation = (np.array(three, np.float32) for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((_rescaled(kept) - mean) / deviation).transpose(2, 0, 1)


def _triangles(there: int, taken: int, antialias: bool) -> Numbers:
    """Weights (taken, there) of tf.image.resize's bilinear along one axis."""
    scale = np.float32(there) / np.float32(taken)
    middles = (np.arange(taken, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    reach = max(scale, np.float32(1)) if antialias else np.float32(1)
    weights = np.maximum(1 - np.abs(np.arange(there, dtype=np.float32) - middles[:, None]) / reach, 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _tensorflow(image: Image.Image, antialias: bool) -> Numbers:
    """tf.image.resize, bilinear."""
    down, across = (_triangles(side, photos.SIZE[0], antialias) for side in (image.height, image.width))
    rows = np.tensordot(down, np.asarray(image).astype(np.float32), 1)
    return _scaled(np.tensordot(across, rows, (1, 1)).transpose(1, 0, 2))


# The course's first: the others are read against it.
WAYS = [
    Way("nearest", "the course's: stretch, nearest, tf", lambda image: _scaled(image.resize(photos.SIZE, NEAREST))),
    Way(
        "torchvision",
        "torchvision's: crop 256 to 224, bilinear, torch, channels first",
        _torchvision,
        {
            "GATEWAY_FIT": "crop",
            "GATEWAY_SHORTER_SIDE": "256",
            "GATEWAY_RESAMPLING": "bilinear",
            "GATEWAY_PREPROCESSING": "torch",
        },
        size=224,
        layout="nchw",
    ),
    Way(
        "rescale",
        "stretch, nearest, rescale (x/255)",
        lambda image: _rescaled(image.resize(photos.SIZE, NEAREST)),
        {"GATEWAY_PREPROCESSING": "rescale"},
    ),
    Way(
        "tf-bilinear",
        "stretch, tf-bilinear, tf",
        lambda image: _tensorflow(image, antialias=False),
        {"GATEWAY_RESAMPLING": "tf-bilinear"},
        tolerance=1e-4,  # one pixel value is 1/127.5
    ),
    Way(
        "tf-bilinear-antialias",
        "stretch, tf-bilinear-antialias, tf",
        lambda image: _tensorflow(image, antialias=True),
        {"GATEWAY_RESAMPLING": "tf-bilinear-antialias"},
        tolerance=1e-4,
    ),
    Way(
        "lanczos",
        "stretch, lanczos, tf",
        lambda image: _scaled(image.resize(photos.SIZE, Image.Resampling.LANCZOS)),
        {"GATEWAY_RESAMPLING": "lanczos"},
    ),
    Way(
        "grey",
        "grey 28 x 28, nearest, rescale (x/255)",
        lambda image: _rescaled(image.convert("L").resize((28, 28), NEAREST)),
        {"GATEWAY_PREPROCESSING": "rescale"},
        size=28,
        channels=1,
    ),
    Way(
        "turned",
        "the course's, photos turned by EXIF",
        lambda image: _scaled(image.resize(photos.SIZE, NEAREST)),
        turned=True,
    ),
]
