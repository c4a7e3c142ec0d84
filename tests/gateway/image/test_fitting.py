"""Fits and TensorFlow's bilinear against the formulas of torchvision, Pillow and TensorFlow, on both decoders."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fakes import image_bytes
from pictures import by_pillow, turned_file
from PIL import Image, ImageOps

from clothing_contract import FITS
from clothing_contract.fitting import Fit
from clothing_contract.scaling import Scaling
from clothing_gateway.errors import TooManyPixels
from clothing_gateway.image import decode
from clothing_gateway.settings import RESAMPLINGS

PILLOWS = [name for name in RESAMPLINGS if not name.startswith("tf-")]
PHOTOS = {
    "jpeg": image_bytes((123, 77)),
    "jpeg tall": image_bytes((77, 301)),
    "jpeg turned": turned_file(image_bytes((123, 77)), 6),
    "jpeg mirrored": turned_file(image_bytes((123, 77)), 4),
    "jpeg grey": image_bytes((200, 99), mode="L"),
    "png": image_bytes((123, 77), "PNG"),
    "webp turned": turned_file(image_bytes((123, 78), "WEBP"), 8),
    "gif": image_bytes((123, 77), "GIF", "P"),
    "bmp square": image_bytes((64, 64), "BMP"),
    "one pixel": image_bytes((1, 1), "PNG"),
}
IMAGENET = Scaling("rescale", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SCALINGS = [Scaling("tf"), Scaling("caffe"), IMAGENET, Scaling("none", channels="grey")]
SIZES = [(37, 23), (24, 24), (23, 40)]

CORE = pytest.param(True, marks=pytest.mark.skipif(decode.core is None, reason="the native core is not installed"))


@pytest.fixture(params=[CORE, False], ids=["core", "Pillow"])
def decoder(request, monkeypatch):
    """Each of the two ways that a plain JPEG may take."""
    if not request.param:
        monkeypatch.setattr(decode, "core", None)


def prepared(data, size, resampling, fit=decode.STRETCH, scaling=None):
    header = decode.read_header(data, 1 << 30, 1 << 40, resampling, fit=fit, size=size)
    return decode.decode(data, header, size, scaling)


def upright(data):
    with Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image.convert("RGB"))


def resized_and_cropped(image, side, size, resampling):
    """torchvision 0.20: transforms.Resize(side), transforms.CenterCrop(size) of a PIL image."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = side, int(side * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize(new, resampling)
    width, height = image.size
    left, top = round((width - size[0]) / 2.0), round((height - size[1]) / 2.0)
    return np.asarray(image.crop((left, top, left + size[0], top + size[1])))


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("resampling", PILLOWS)
@pytest.mark.parametrize("name", PHOTOS)
def test_crop_is_torchvisions(name, resampling):
    for size in SIZES:
        for side in (40, 41, 57):
            wanted = resized_and_cropped(upright(PHOTOS[name]), side, size, Image.Resampling[resampling.upper()])
            assert np.array_equal(prepared(PHOTOS[name], size, resampling, Fit("crop", side)), wanted), (size, side)


def test_crop_without_a_side_resizes_to_the_models_own():
    data = PHOTOS["jpeg"]
    assert np.array_equal(
        prepared(data, (24, 30), "bilinear", Fit("crop")), prepared(data, (24, 30), "bilinear", Fit("crop", 30))
    )


def test_crop_of_less_than_the_model_has_is_in_black():
    """As CenterCrop pads: (size - resized) // 2 before."""
    data = image_bytes((40, 60), "PNG")
    got = prepared(data, (30, 30), "nearest", Fit("crop", 21))  # 21 x 31
    assert not got[:, :4].any()
    assert not got[:, 25:].any()
    wanted = np.asarray(upright(data).resize((21, 31), Image.Resampling.NEAREST))
    assert np.array_equal(got[:, 4:25], wanted[:30])


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("resampling", PILLOWS)
@pytest.mark.parametrize("name", PHOTOS)
def test_pad_is_pillows(name, resampling):
    for size in SIZES:
        wanted = np.asarray(
            ImageOps.pad(upright(PHOTOS[name]), size, Image.Resampling[resampling.upper()], color="black")
        )
        assert np.array_equal(prepared(PHOTOS[name], size, resampling, Fit("pad")), wanted), size


@pytest.mark.parametrize("name", ["pad", "keras-pad"])
def test_pad_of_a_line_leaves_a_pixel(name):
    assert prepared(image_bytes((500, 1), "PNG"), (20, 20), "bilinear", Fit(name)).any()


def centre(image, size):
    """Box of the largest centre of the model's aspect ratio: load_img(keep_aspect_ratio=True) of Keras 3."""
    width, height = image.size
    crop_height = max(min(height, (width * size[1]) // size[0]), 1)
    crop_width = max(min(width, (height * size[0]) // size[1]), 1)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return left, top, left + crop_width, top + crop_height


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("resampling", PILLOWS)
@pytest.mark.parametrize("name", PHOTOS)
def test_keras_crop_is_load_imgs(name, resampling):
    photo = upright(PHOTOS[name])
    for size in SIZES:
        wanted = np.asarray(photo.resize(size, Image.Resampling[resampling.upper()], centre(photo, size)))
        assert np.array_equal(prepared(PHOTOS[name], size, resampling, Fit("keras-crop")), wanted), size


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("resampling", ["tf-bilinear", "tf-bilinear-antialias"])
@pytest.mark.parametrize("name", PHOTOS)
def test_keras_crop_cuts_before_tensorflow_resizes(name, resampling):
    """smart_resize: no pixel outside of the centre counts."""
    photo = upright(PHOTOS[name])
    for size in SIZES:
        out = io.BytesIO()
        photo.crop(centre(photo, size)).save(out, "PNG")
        cut = prepared(out.getvalue(), size, resampling, scaling=Scaling("none"))
        assert np.array_equal(prepared(PHOTOS[name], size, resampling, Fit("keras-crop"), Scaling("none")), cut), size


def test_keras_pad_rounds_down():
    """resize_with_pad of 123 x 77 to 37 x 24: 23 rows of 23.16, and none of 0.42 before them."""
    data = image_bytes((123, 77), "PNG")
    wanted = np.zeros((24, 37, 3), np.uint8)
    wanted[:23] = upright(data).resize((37, 23), Image.Resampling.NEAREST)
    assert np.array_equal(prepared(data, (37, 24), "nearest", Fit("keras-pad")), wanted)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "tf-bilinear", "tf-bilinear-antialias"])
def test_jpegs_decoded_at_a_fraction_are_cropped_there(resampling):
    """A part of 900 x 900 is decoded at an eighth: 113 x 113 for 100 x 100."""
    photo = Image.new("RGB", (1600, 900))
    photo.paste((250, 250, 250), (350, 0, 1250, 900))
    out = io.BytesIO()
    photo.save(out, "JPEG")
    fit = Fit("keras-crop")
    header = decode.read_header(out.getvalue(), 1 << 30, 1 << 40, resampling, jpeg_scaling=True, fit=fit)
    got = decode.decode(out.getvalue(), header, (100, 100))
    assert got.shape == (100, 100, 3)
    assert np.abs(got[:, 1:-1].astype(int) - 250).max() < 5


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", FITS[1:])
@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_fits_are_preprocessed_behind_resizing(scaling, resampling, name):
    """Black borders too: they are a photo's pixels."""
    for data in (PHOTOS["jpeg"], PHOTOS["jpeg turned"]):
        raw = prepared(data, (37, 40), resampling, Fit(name, 50), Scaling("none"))
        if not resampling.startswith("tf-"):
            raw = prepared(data, (37, 40), resampling, Fit(name, 50))
        numbers = prepared(data, (37, 40), resampling, Fit(name, 50), scaling)
        assert numbers.dtype == np.float32
        assert np.array_equal(numbers, scaling.numbers(raw))


def test_torchvisions_pipeline():
    """Resize(256), CenterCrop(224), ToTensor, Normalize."""
    data = image_bytes((640, 480))
    pixels = resized_and_cropped(upright(data), 256, (224, 224), Image.Resampling.BILINEAR)
    mean, std = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)
    wanted = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    assert np.array_equal(prepared(data, (224, 224), "bilinear", Fit("crop", 256), IMAGENET), wanted)


def test_narrow_photos_are_not_cropped():
    """256 x 16,384 at most: the one before would have 16,448 columns."""
    fit = Fit("crop", 256)
    assert prepared(by_pillow("PNG", (640, 10)), (224, 224), "bilinear", fit).shape == (224, 224, 3)
    for resampling in ("nearest", "bilinear", "tf-bilinear"):
        for kind in ("PNG", "JPEG"):
            with pytest.raises(TooManyPixels, match="too narrow"):
                prepared(by_pillow(kind, (643, 10)), (224, 224), resampling, fit)
    assert prepared(by_pillow("PNG", (643, 10)), (224, 224), "bilinear", Fit("pad")).shape == (224, 224, 3)


def two_taps(image, size):
    """TensorFlow's bilinear without antialiasing, in float64."""
    pixels = np.asarray(image, np.float64)
    for axis, taken in ((0, size[1]), (1, size[0])):
        there = pixels.shape[axis]
        at = (np.arange(taken) + 0.5) * there / taken - 0.5
        below = np.floor(at)
        lower, upper = np.maximum(below, 0).astype(int), np.minimum(np.ceil(at), there - 1).astype(int)
        weight = (at - below).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        pixels = pixels.take(lower, axis) * (1 - weight) + pixels.take(upper, axis) * weight
    return pixels


def triangle(image, size):
    """The same with antialiasing."""
    pixels = np.asarray(image, np.float64)
    for axis, taken in ((0, size[1]), (1, size[0])):
        there = pixels.shape[axis]
        radius = max(there / taken, 1)
        at = (np.arange(taken) + 0.5) * there / taken
        weights = np.maximum(1 - np.abs((np.arange(there) + 0.5 - at[:, None]) / radius), 0)
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis)
    return pixels


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", PHOTOS)
def test_tensorflows_bilinear_by_formula(name):
    for size in [*SIZES, (160, 150)]:
        for resampling, formula in (("tf-bilinear", two_taps), ("tf-bilinear-antialias", triangle)):
            got = prepared(PHOTOS[name], size, resampling, scaling=Scaling("none"))
            assert got.dtype == np.float32
            # TensorFlow's positions are float32, of 300 pixels to 3e-5; bits are compared in tests/integration.
            assert np.abs(got - formula(upright(PHOTOS[name]), size)).max() < 0.02, (size, resampling)


@pytest.mark.skipif(decode.core is None, reason="the native core is not installed")
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((4000, 3000), {}),
        ((4000, 3000), {"progressive": True}),
        ((3001, 2003), {"subsampling": 0}),
        ((3001, 2003), {"subsampling": 1}),
        ((2000, 1500), {"mode": "L"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_core_serves_large_photos(size, options, orientation, monkeypatch):
    data = turned_file(image_bytes(size, **options), orientation)
    ways = [
        ("nearest", Fit("crop", 256)),
        ("nearest", Fit("pad")),
        ("nearest", Fit("keras-crop")),
        ("tf-bilinear", Fit()),
        ("tf-bilinear", Fit("keras-crop")),
        ("tf-bilinear", Fit("crop", 256)),
    ]
    native = [prepared(data, (224, 224), *way, Scaling("tf")) for way in ways]
    assert decode.read_header(data, 1 << 30, 1 << 40, "tf-bilinear").plain
    monkeypatch.setattr(decode, "core", None)
    for way, numbers in zip(ways, native, strict=True):
        assert np.array_equal(numbers, prepared(data, (224, 224), *way, Scaling("tf"))), way


def test_models_of_uint8_get_tensorflows_pixels_rounded():
    data = PHOTOS["png"]
    numbers = prepared(data, (37, 23), "tf-bilinear", scaling=Scaling("none"))
    assert np.array_equal(prepared(data, (37, 23), "tf-bilinear"), np.rint(numbers).astype(np.uint8))


def test_as_image_dataset_from_directory_and_not_as_pillow():
    """Noise, of which no two ways of shrinking agree."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 450, 3), np.uint8))
    out = io.BytesIO()
    photo.save(out, "PNG")
    wanted = two_taps(photo, (160, 160))
    gaps = {
        name: np.abs(prepared(out.getvalue(), (160, 160), name, scaling=Scaling("none")) - wanted).mean()
        for name in RESAMPLINGS
    }
    assert gaps.pop("tf-bilinear") < 1e-4
    assert min(gaps.values()) > 1
