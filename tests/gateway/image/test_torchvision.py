"""Prepared photos against torchvision's formulas: Resize, CenterCrop, ToTensor, Normalize of PIL images.

Sources, torchvision 0.20: transforms/functional.py, _compute_resized_output_size, center_crop; _functional_pil.py,
resize, crop, pad; functional.py, to_tensor; _functional_tensor.py, normalize.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from fakes import image_bytes
from pictures import png, turned_file
from PIL import Image, ImageOps

from clothing_contract.fitting import Fit
from clothing_contract.scaling import Scaling
from clothing_gateway.image import decode
from clothing_gateway.model.signature import Model

DATASET = Path(os.environ.get("CLOTHING_DATASET", Path(__file__).parents[4] / "shared" / "dataset"))
EVERY = int(os.environ.get("CLOTHING_DATASET_EVERY", "18"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMATS = {
    "jpeg": image_bytes((640, 427)),
    "jpeg tall": image_bytes((200, 900)),
    "jpeg progressive": image_bytes((427, 640), progressive=True),
    "jpeg grey": image_bytes((300, 301), mode="L"),
    "jpeg cmyk": image_bytes((640, 427), mode="CMYK"),
    "jpeg turned": turned_file(image_bytes((640, 427)), 6),
    "jpeg small": image_bytes((99, 77)),
    "png": image_bytes((640, 427), "PNG"),
    "png rgba": image_bytes((640, 427), "PNG", "RGBA"),
    "png palette": image_bytes((640, 427), "PNG", "P"),
    "png grey": image_bytes((640, 427), "PNG", "L"),
    "png colours of 16 bits": png((320, 200), 16, 2),
    "webp": image_bytes((640, 427), "WEBP"),
    "gif": image_bytes((640, 427), "GIF", "P"),
    "bmp": image_bytes((640, 427), "BMP"),
}
CORE = pytest.param(True, marks=pytest.mark.skipif(decode.core is None, reason="the native core is not installed"))


def tensor(data, side, size, filter_, mean=None, std=None):
    """Compose([Resize(side, filter_), CenterCrop(size), ToTensor(), Normalize(mean, std)])."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened.convert("RGB"))
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(side * long / short)
    image = image.resize((side, longer) if width <= height else (longer, side), filter_)
    width, height = image.size
    if size > width or size > height:
        left, top = max((size - width) // 2, 0), max((size - height) // 2, 0)
        right, bottom = max((size - width + 1) // 2, 0), max((size - height + 1) // 2, 0)
        image = ImageOps.expand(image, (left, top, right, bottom), fill=0)
        width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    image = image.crop((left, top, left + size, top + size))
    numbers = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    if mean is None:
        return numbers
    column = (3, 1, 1)
    return (numbers - np.array(mean, np.float32).reshape(column)) / np.array(std, np.float32).reshape(column)


def check(data, side, size, resampling):
    header = decode.read_header(data, 1 << 30, 1 << 40, resampling, fit=Fit("crop", side), size=(size, size))
    pixels = decode.decode(data, header, (size, size))
    filter_ = Image.Resampling[resampling.upper()]
    for preprocessing, normalized in (("torch", (MEAN, STD)), ("rescale", ())):
        scaling = Scaling(preprocessing)
        wanted = tensor(data, side, size, filter_, *normalized)
        model = Model("m", 1, "in", "float32", (size, size), None, "out", None, scaling, layout="nchw")
        assert np.array_equal(model.arranged(pixels), wanted), (side, size, preprocessing)
        numbers = decode.decode(data, header, (size, size), scaling)
        assert np.array_equal(numbers.transpose(2, 0, 1), wanted), (side, size, preprocessing)


@pytest.fixture(params=[CORE, False], ids=["core", "Pillow"])
def decoder(request, monkeypatch):
    """Each of the two ways that a plain JPEG may take."""
    if not request.param:
        monkeypatch.setattr(decode, "core", None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    """The presets of torchvision's models: 256 to 224, 232 to 224, 342 to 299, 384 and bicubic."""
    for side, size, resampling in (
        (256, 224, "bilinear"),
        (232, 224, "bilinear"),
        (342, 299, "bilinear"),
        (384, 384, "bicubic"),
        (200, 224, "bilinear"),
    ):
        check(FORMATS[name], side, size, resampling)


def test_photos():
    files = sorted((DATASET / "validation").glob("*/*.jpg"))[::EVERY]
    if not files:
        pytest.skip(f"no photos under {DATASET}; CLOTHING_DATASET names another place")
    for file in files:
        check(file.read_bytes(), 256, 224, "bilinear")
