"""Keras's crop_to_aspect_ratio, pad_to_aspect_ratio and keep_aspect_ratio against the gateway's fits, bit for bit."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from clothing_contract.fitting import Fit
from clothing_contract.scaling import Scaling
from clothing_gateway.image import decode
from processes import MODEL_BIN

# Of photos and models, (width, height): wide, tall, square, smaller, odd, of the model's ratio, a narrow one.
PHOTOS = [(450, 600), (123, 77), (40, 30), (401, 301), (300, 20), (224, 224), (641, 427), (299, 300), (358, 641)]
SIZES = [(160, 160), (299, 299), (200, 160), (23, 37)]
# Keras's argument, the gateway's fit and resampling.
WAYS = [
    ("crop_to_aspect_ratio", "keras-crop", "tf-bilinear"),
    ("pad_to_aspect_ratio", "keras-pad", "tf-bilinear"),
    ("keep_aspect_ratio", "keras-crop", "nearest"),
    ("keep_aspect_ratio", "keras-crop", "bilinear"),
]
KERAS = """
import sys
import keras
import numpy as np

folder, sizes, ways = sys.argv[1], eval(sys.argv[2]), eval(sys.argv[3])
paths = [f"{folder}/photos/{number:02}.png" for number in range(int(sys.argv[4]))]
out = {}
for width, height in sizes:
    for argument, _, resampling in ways:
        if argument == "keep_aspect_ratio":
            given = {"target_size": (height, width), "interpolation": resampling, argument: True}
            found = [np.asarray(keras.utils.load_img(path, **given)) for path in paths]
        else:
            given = {"image_size": (height, width), "batch_size": None, "labels": None, "shuffle": False}
            found = keras.utils.image_dataset_from_directory(f"{folder}/photos", **given, **{argument: True})
        for number, photo in enumerate(found):
            out[f"{argument} {resampling} {width} {height} {number}"] = np.asarray(photo)
np.savez(f"{folder}/keras.npz", **out)
"""


def test_photos_are_fitted_as_by_keras(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    files = []
    for number, (width, height) in enumerate(PHOTOS):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(out, "PNG")
        (tmp_path / f"photos/{number:02}.png").write_bytes(out.getvalue())
        files.append(out.getvalue())
    arguments = [str(tmp_path), repr(SIZES), repr(WAYS), str(len(PHOTOS))]
    subprocess.run([MODEL_BIN / "python", "-c", KERAS, *arguments], check=True, capture_output=True)
    wanted = np.load(tmp_path / "keras.npz")
    assert len(wanted) == len(PHOTOS) * len(SIZES) * len(WAYS)
    for argument, fit, resampling in WAYS:
        for size in SIZES:
            for number, data in enumerate(files):
                header = decode.read_header(data, 1 << 30, 1 << 40, resampling, fit=Fit(fit))
                got = decode.decode(data, header, size, Scaling("none"))
                case = f"{argument} {resampling} {size[0]} {size[1]} {number}"
                assert np.array_equal(got, wanted[case]), case
