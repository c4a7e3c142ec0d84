"""TensorFlow's own tf.image.resize, in the model package's environment, against the gateway's."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clothing_contract.scaling import Scaling
from clothing_gateway.image import decode
from processes import MODEL_BIN

# Of photos and models, (width, height): shrunk, enlarged, odd, one pixel, the same.
SIZES = [
    ((450, 600), (160, 160)),
    ((123, 77), (37, 23)),
    ((40, 30), (299, 299)),
    ((1, 1), (7, 5)),
    ((401, 3000), (299, 299)),
    ((300, 8), (9, 20)),
    ((16, 17), (17, 16)),
    ((224, 224), (224, 224)),
]
RESIZE = """
import sys
import numpy as np
import tensorflow as tf

photos = np.load(sys.argv[1])
sizes = eval(sys.argv[3])
out = {}
for number, (_, (width, height)) in enumerate(sizes):
    photo = photos[f"photo{number}"]
    out[f"tf-bilinear{number}"] = tf.image.resize(photo, (height, width)).numpy()
    out[f"tf-bilinear-antialias{number}"] = tf.image.resize(photo, (height, width), antialias=True).numpy()
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for (width, height), _ in SIZES]


@pytest.fixture(scope="module")
def resized(photos, tmp_path_factory: pytest.TempPathFactory):
    folder: Path = tmp_path_factory.mktemp("resized")
    np.savez(folder / "photos.npz", **{f"photo{number}": photo for number, photo in enumerate(photos)})
    command = [MODEL_BIN / "python", "-c", RESIZE, folder / "photos.npz", folder / "resized.npz", repr(SIZES)]
    subprocess.run(command, check=True, capture_output=True)
    return np.load(folder / "resized.npz")


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("resampling", ["tf-bilinear", "tf-bilinear-antialias"])
def test_resizing_is_tensorflows_bit_for_bit(photos, resized, resampling: str, number: int) -> None:
    out = io.BytesIO()
    Image.fromarray(photos[number]).save(out, "PNG")
    header = decode.read_header(out.getvalue(), 1 << 30, 1 << 40, resampling)
    numbers = decode.decode(out.getvalue(), header, SIZES[number][1], Scaling("none"))
    assert numbers is not None
    assert numbers.dtype == np.float32
    assert np.array_equal(numbers, resized[f"{resampling}{number}"])
