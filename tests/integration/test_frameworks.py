"""Prepared photos against Keras's own: ImageDataGenerator, image_dataset_from_directory, keras.applications."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import processes
from clothing_contract.scaling import Scaling
from clothing_gateway.image import decode
from clothing_gateway.model.signature import Model
from clothing_gateway.pipeline import prepare
from processes import MODEL_BIN

# Every so many of the 341 photos of the validation split; 1 takes all of them.
EVERY = int(os.environ.get("CLOTHING_DATASET_EVERY", "18"))
SIDE = 160
GREYS = ("0-grey.png", "0-grey-16.png", "0-grey.jpg")
FAMILIES = {"xception": "tf", "resnet50": "caffe", "densenet": "torch", "efficientnet": "none", "mobilenet_v3": "none"}
KERAS = """
import importlib, os, sys
import numpy as np
import tensorflow as tf
from PIL import Image

folder, side, families = sys.argv[1], int(sys.argv[2]), sys.argv[3].split()
names = sorted(os.listdir(f"{folder}/photos/all"))
out = {}
size = (side, side)
for kind, options, mode in (("scaled", {"rescale": 1 / 255}, "rgb"), ("pixels", {}, "rgb"), ("grey", {}, "grayscale")):
    flow = tf.keras.preprocessing.image.ImageDataGenerator(**options).flow_from_directory(
        f"{folder}/photos", target_size=size, color_mode=mode, batch_size=1, shuffle=False)
    for name, batch in zip(flow.filenames, flow):
        out[f"{kind} {os.path.basename(name)}"] = batch[0][0]
for kind, mode, part in (("dataset", "rgb", "photos"), ("grey dataset", "grayscale", "greys")):
    found = tf.keras.utils.image_dataset_from_directory(
        f"{folder}/{part}", image_size=size, color_mode=mode, batch_size=None, labels=None, shuffle=False)
    for path, photo in zip(found.file_paths, found):
        out[f"{kind} {os.path.basename(path)}"] = photo.numpy()
for name in names:
    image = Image.open(f"{folder}/photos/all/{name}").convert("RGB")
    out[f"loaded {name}"] = np.asarray(tf.keras.utils.load_img(f"{folder}/photos/all/{name}", target_size=size))
    out[f"resized {name}"] = tf.image.resize(np.asarray(image), size).numpy()
    if name.endswith(".jpg") and "cmyk" not in name:
        decoded = tf.io.decode_jpeg(tf.io.read_file(f"{folder}/photos/all/{name}"), 3, dct_method="INTEGER_ACCURATE")
        out[f"accurate {name}"] = tf.image.resize(decoded, size).numpy()
for family in families:
    prepare = importlib.import_module(f"keras.applications.{family}").preprocess_input
    for name in names[:20]:
        out[f"{family} {name}"] = prepare(out[f"loaded {name}"].astype("float32"))
np.savez(f"{folder}/keras.npz", **out)
"""
Numbers = npt.NDArray[np.float32]


def _formats() -> dict[str, bytes]:
    """A photo in each format and mode that both read."""
    noise = np.random.default_rng(1).integers(0, 256, (53, 71, 4), np.uint8)
    photo = Image.fromarray(noise).resize((213, 159), Image.Resampling.BICUBIC)
    rgb = photo.convert("RGB")
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "baseline.jpg": (rgb, {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "full-colour.jpg": (rgb, {"subsampling": 0}),
        "grey.jpg": (rgb.convert("L"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "rgb.png": (rgb, {}),
        "rgba.png": (photo, {}),
        "palette.png": (rgb.quantize(64), {}),
        "grey.png": (rgb.convert("L"), {}),
        "grey-16.png": (Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 251), {}),
        "photo.bmp": (rgb, {}),
        "photo.gif": (rgb.quantize(64), {}),
        "photo.webp": (rgb, {}),
        "lossless.webp": (rgb, {"lossless": True}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        out = io.BytesIO()
        image.save(out, {"jpg": "JPEG"}.get(name.rpartition(".")[2], name.rpartition(".")[2]), **options)
        files[f"0-{name}"] = out.getvalue()
    return files


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    files = sorted((processes.DATASET / "validation").glob("*/*.jpg"))[::EVERY]
    return _formats() | {f"1-{file.parent.name}-{file.name}": file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def keras(photos: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Numbers]:
    folder: Path = tmp_path_factory.mktemp("keras")
    for part, names in (("photos", photos.keys()), ("greys", GREYS)):
        (folder / part / "all").mkdir(parents=True)
        for name in names:
            (folder / part / "all" / name).write_bytes(photos[name])
    command = [MODEL_BIN / "python", "-c", KERAS, folder, str(SIDE), " ".join(FAMILIES)]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "keras.npz"))


def prepared(data: bytes, resampling: str, scaling: Scaling) -> Numbers:
    """As Keras, which turns no photo upright."""
    header = decode.read_header(data, 1 << 30, 1 << 40, resampling, exif_orientation=False)
    numbers = decode.decode(data, header, (SIDE, SIDE), scaling)
    assert numbers is not None
    return numbers


def test_all_files_were_read(photos: dict[str, bytes], keras: dict[str, Numbers]) -> None:
    """Keras's generator reads no GIF or WebP, and its dataset names those that it reads."""
    others = {name for name in photos if name.endswith((".gif", ".webp"))}
    assert {name for name in photos if f"pixels {name}" in keras} == photos.keys() - others
    assert {name for name in photos if f"dataset {name}" in keras} >= photos.keys() - others


def test_image_data_generator(photos: dict[str, bytes], keras: dict[str, Numbers]) -> None:
    """x *= 1/255 in float32 is within one unit of the last place of x /= 255, as torchvision divides."""
    for name, data in photos.items():
        if name == "0-grey-16.png":  # Pillow's convert clips it at 255, so that all is white
            continue
        pixels = prepared(data, "nearest", Scaling("none"))
        assert np.array_equal(pixels, keras[f"loaded {name}"]), name
        if f"pixels {name}" not in keras:
            continue
        assert np.array_equal(pixels, keras[f"pixels {name}"]), name
        assert np.array_equal(prepared(data, "nearest", Scaling("none", channels="grey")), keras[f"grey {name}"]), name
        scaled = keras[f"scaled {name}"]
        assert np.array_equal(pixels * np.float32(1 / 255), scaled), name
        assert np.abs(prepared(data, "nearest", Scaling("rescale")) - scaled).max() <= 2**-24, name


@pytest.mark.parametrize("family", FAMILIES)
def test_keras_applications(family: str, photos: dict[str, bytes], keras: dict[str, Numbers]) -> None:
    compared = [name for name in photos if f"{family} {name}" in keras and name != "0-grey-16.png"]
    assert len(compared) >= 15
    for name in compared:
        numbers = prepared(photos[name], "nearest", Scaling(FAMILIES[family]))
        assert np.array_equal(numbers, keras[f"{family} {name}"]), name


def test_image_dataset_from_directory(photos: dict[str, bytes], keras: dict[str, Numbers]) -> None:
    """The same bits but for JPEGs, which TensorFlow decodes by a faster, less exact transform, INTEGER_FAST.

    Of the pixels of its INTEGER_ACCURATE, which is libjpeg's default and Pillow's, the bits are the same.
    """
    for name, data in photos.items():
        numbers = prepared(data, "tf-bilinear", Scaling("none"))
        if name != "0-grey-16.png":
            assert np.array_equal(numbers, keras[f"resized {name}"]), name
        if f"accurate {name}" in keras:
            assert np.array_equal(numbers, keras[f"accurate {name}"]), name
        if f"dataset {name}" in keras:
            gap = np.abs(numbers - keras[f"dataset {name}"])
            assert gap.max() <= (4 if name.endswith(".jpg") else 0), name
            assert gap.mean() <= 1.3, name


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_models_of_grey_photos_get_unrounded_numbers(
    layout: str, photos: dict[str, bytes], keras: dict[str, Numbers]
) -> None:
    """Photos of shades of grey: for colours each library has weights of its own."""
    scaling = Scaling("none", channels="grey")
    model = Model("m", 1, "in", "float32", (SIDE, SIDE), None, "out", None, scaling, layout, "grey")
    for name in GREYS:
        header = decode.read_header(photos[name], 1 << 30, 1 << 40, "tf-bilinear", size=model.size)
        numbers = prepare(photos[name], header, model)
        wanted = keras[f"grey dataset {name}"]
        gap = np.abs(numbers - (wanted.transpose(2, 0, 1) if layout == "nchw" else wanted))
        assert gap.max() <= (4 if name.endswith(".jpg") else 0), name
